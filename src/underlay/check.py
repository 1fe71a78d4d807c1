"""A look over the whole host that changes nothing: the first thing to run on directories that exist already.

Each finding has a code (docs/reference/reasons.md), a weight and, where there is something to do, a hint.
"""

import json
import math
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from underlay import instances, registry
from underlay.config import Config
from underlay.errors import CacheMissing, UnderlayError
from underlay.files import keeps_attributes, translated
from underlay.filesystems import free_bytes
from underlay.host import Host
from underlay.model import InstanceDisk, Level
from underlay.naming import CacheKind, kind_of_name
from underlay.plan import Verdict
from underlay.run import SEARCH_PATH
from underlay.store import Store, hosts, images, scrubs
from underlay.store.space import reclaimable_bytes
from underlay.store.staging import ingests
from underlay.units import format_duration, format_size

_MANAGER_SILENCE = 2 * 2400.0  # seconds: two of Nova's default manager_interval
_SAME_PASS = 300.0  # seconds between what one prune says in two places
_LOW_SPACE = 0.05  # of the file system
_RIVALS = {"nova-compute": CacheKind.BASE, "ironic-conductor": CacheKind.MASTERS}
_RIVAL_HINTS = {
    CacheKind.BASE: "only one of the two should remove images: set remove_unused_base_images=false in nova.conf",
    CacheKind.MASTERS: "only one of the two should remove images: give Underlay a directory of its own",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the check saw.

    Attributes:
        level: info is as it should be, warning wants a look, problem wants a hand.
    """

    code: str
    level: Level
    path: Path
    detail: str
    hint: str | None = None


def check_host(config: Config) -> list[Finding]:
    """Look the caches, the instances path and the tools over. Reads only; takes no lock and makes no file."""
    findings = [*_tools(), *_instances(config)]
    for store in config.caches.values():
        try:
            findings += _cache(store, config)
        except UnderlayError as error:
            findings.append(_failed(error, store.root))
    return [*findings, *_first_prune(config, told={(finding.code, finding.path) for finding in findings})]


def _failed(error: UnderlayError, path: Path) -> Finding:
    return Finding(code=error.code, level=Level.PROBLEM, path=path, detail=error.message, hint=error.hint)


def _tools() -> Iterator[Finding]:
    found = shutil.which("qemu-img", path=SEARCH_PATH)
    if found:
        yield Finding(code="tool-found", level=Level.INFO, path=Path(found), detail="qemu-img is installed")
    else:
        hint = "install it: apt-get install qemu-utils"
        yield Finding(code="tool-missing", level=Level.PROBLEM, path=Path("qemu-img"), detail="it is not installed", hint=hint)


def _instances(config: Config) -> Iterator[Finding]:
    path = config.instances
    if not os.path.isdir(path):
        yield _not_there(config, path, code="instances-missing", level=Level.WARNING, what="the instances path")
        return
    if config.hosts and config.host not in config.hosts:
        detail = f"instances.hosts does not name this host, {config.host}"
        hint = "name it there, or correct 'host'"
        yield Finding(code="host-unnamed", level=Level.WARNING, path=config.origin or path, detail=detail, hint=hint)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            code="instances-not-writable", level=Level.PROBLEM, path=path, detail="no disk can be made there by this user"
        )
    found, problems = instances.disks(config)
    yield Finding(code="disks", level=Level.INFO, path=path, detail=f"{_count(len(found), 'disk')}")
    caches = [store.root for store in config.caches.values()]
    for problem in problems:
        if not any(problem.path.is_relative_to(root) for root in caches):  # what is wrong in a cache is told with it
            yield Finding(code=problem.code, level=Level.WARNING, path=problem.path, detail=problem.detail)
    for disk in found:
        yield from _disk(config, disk)


def _disk(config: Config, disk: InstanceDisk) -> Iterator[Finding]:
    if disk.format is None:
        detail = "nothing says what format it has, so no tool may open it"
        hint = f"note its format in {disk.path.parent / 'disk.info'}, as Nova does"
        yield Finding(code="disk-unrecorded", level=Level.WARNING, path=disk.path, detail=detail, hint=hint)
    elif disk.base_path is not None and not os.path.exists(disk.base_path) and _reads_from_base(config, disk):
        detail = f"its base image {disk.base_path} is not there"
        hint = "restore that file, else the disk cannot be used"
        yield Finding(code="base-missing", level=Level.PROBLEM, path=disk.path, detail=detail, hint=hint)


def _reads_from_base(config: Config, disk: InstanceDisk) -> bool:
    """Whether a disk cannot be used without its base image; one of a backend that is not here may be so."""
    try:
        return registry.open_backend(disk.backend, config.disks).traits.overlays
    except UnderlayError:
        return True


def _not_there(config: Config, path: Path, *, code: str, level: Level, what: str) -> Finding:
    """A directory that is not there: as it should be when the embedded default has not been used yet."""
    if config.origin is None:
        detail = f"{what} is not there yet: the first fetch makes it"
        return Finding(code=code, level=Level.INFO, path=path, detail=detail)
    hint = "make the directory, or correct the configuration"
    return Finding(code=code, level=level, path=path, detail=f"{what} is not there", hint=hint)


def _cache(store: Store, config: Config) -> Iterator[Finding]:
    if not os.path.lexists(store.root):
        yield _not_there(config, store.root, code=CacheMissing.code, level=Level.PROBLEM, what="the cache directory")
        return
    laid_out = store.check()
    detail = "laid out by Underlay" if laid_out else "not laid out yet: the first fetch makes .underlay beside the images"
    yield Finding(code="laid-out" if laid_out else "not-laid-out", level=Level.INFO, path=store.root, detail=detail)
    with translated(store.root):
        yield from _attributes(store)
        yield from _writable(store)
        yield from _modes(store)
        yield from _space(store)
        yield from _nova_locks(store)
        yield from _private_files(store)
        yield from _images(store)
        yield from _strangers(store)
        yield from _rivals(store, config)


def _attributes(store: Store) -> Iterator[Finding]:
    if keeps_attributes(store.root):
        yield Finding(code="attributes-kept", level=Level.INFO, path=store.root, detail="the file system keeps user attributes")
    else:
        detail = "the file system keeps no user attributes: images stay unrecorded and are inspected at each use"
        yield Finding(code="attributes-missing", level=Level.WARNING, path=store.root, detail=detail)


def _writable(store: Store) -> Iterator[Finding]:
    for path in (store.root, store.paths.private, store.paths.locks):
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            hint = "run as its owner, or mount the file system read-write"
            detail = "this user cannot write there"
            yield Finding(code="cache-not-writable", level=Level.PROBLEM, path=path, detail=detail, hint=hint)


def _space(store: Store) -> Iterator[Finding]:
    status = os.statvfs(store.root)
    free, whole = free_bytes(store.root), status.f_blocks * status.f_frsize
    low = free < _LOW_SPACE * whole
    detail = f"{format_size(free)} free of {format_size(whole)}"
    yield Finding(
        code="space-low" if low else "space", level=Level.WARNING if low else Level.INFO, path=store.root, detail=detail
    )


def _nova_locks(store: Store) -> Iterator[Finding]:
    if store.nova_locks is None:
        if store.kind is CacheKind.BASE:
            detail = "Nova's locks are not taken: the cache does not lie directly below the instances path"
            hint = "if a Nova uses this cache, set nova_locks to its lock directory"
            yield Finding(code="nova-locks-unused", level=Level.INFO, path=store.root, detail=detail, hint=hint)
        return
    path = store.nova_locks
    yield Finding(code="nova-locks-used", level=Level.INFO, path=path, detail="Nova's locks are taken there as well as our own")
    if not path.is_dir():
        detail = "Nova's lock directory is not there yet; the first lock makes it"
        yield Finding(code="nova-locks-missing", level=Level.INFO, path=path, detail=detail)
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        detail = "Nova's lock directory cannot be written, so Nova cannot be excluded"
        yield Finding(code="nova-locks-not-writable", level=Level.PROBLEM, path=path, detail=detail)
    elif (owner := path.stat()).st_uid != store.root.stat().st_uid:
        detail = f"Nova's lock directory belongs to uid {owner.st_uid}, the cache to another"
        yield Finding(code="owner-differs", level=Level.WARNING, path=path, detail=detail)


def _private_files(store: Store) -> Iterator[Finding]:
    try:
        dead = [staging for staging, alive in ingests(store) if not alive]
        left = _names_in(store.paths.trash)
    except PermissionError:
        detail = "this user may not look for dead ingests and trash"
        hint = "run as the owner of the cache to see them"
        yield Finding(code="private-unreadable", level=Level.INFO, path=store.paths.private, detail=detail, hint=hint)
        return
    if dead:
        size = format_size(reclaimable_bytes([store]))
        detail = f"{_count(len(dead), 'dead ingest')} of {size}: taken over by the next fetch, or swept when space is short"
        yield Finding(code="dead-ingests", level=Level.INFO, path=store.paths.tmp, detail=detail)
    if left:
        detail = f"{_count(len(left), 'image')} on the way out when something stopped"
        yield Finding(code="trash-left", level=Level.WARNING, path=store.paths.trash, detail=detail)


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _images(store: Store) -> Iterator[Finding]:
    found, problems = images.images(store)
    unrecorded = sum(1 for image in found if image.record is None)
    size = format_size(sum(image.allocated for image in found))
    detail = f"{_count(len(found), 'image')} of {size}, {unrecorded} of them unrecorded"
    yield Finding(code="images", level=Level.INFO, path=store.root, detail=detail)
    for problem in problems:
        yield Finding(code=problem.code, level=Level.PROBLEM, path=problem.path, detail=problem.detail)
    if found:
        yield Finding(code="scrubs", level=Level.INFO, path=store.root, detail=_scrubbed(store))
    owner = store.root.stat().st_uid
    for image in found:
        with suppress(FileNotFoundError):  # removed meanwhile
            yield from _image(image.path, image.path.stat(), owner=owner)


def _scrubbed(store: Store) -> str:
    """How long ago the content of the image was looked at of which it is longest ago."""
    seen = [subject.known_since for subject in scrubs.subjects(store, store.root.name)[0]]
    never = sum(moment is None for moment in seen)
    oldest = min((moment for moment in seen if moment is not None), default=None)
    told = [f"the content of {_count(never, 'image')} was never looked at"] if never else []
    if oldest is not None:
        age = max(0.0, (datetime.now(UTC) - oldest).total_seconds())
        told.append(f"what was looked at longest ago was {format_duration(age)} ago")
    return ", ".join(told)


def _image(path: Path, status: os.stat_result, *, owner: int) -> Iterator[Finding]:
    if status.st_uid != owner:
        detail = f"it belongs to uid {status.st_uid}, its directory to {owner}"
        yield Finding(code="owner-differs", level=Level.WARNING, path=path, detail=detail)
    yield from _mode(path, status, hint="chmod 0644")


def _modes(store: Store) -> Iterator[Finding]:
    """Who may write in a directory may put another file in an image's place, unless its sticky bit is set."""
    for directory, hint in ((store.root, "chmod o-w"), (store.paths.private, "chmod 0755")):
        with suppress(FileNotFoundError):
            status = directory.stat()
            if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
                yield from _mode(directory, status, hint=hint)


def _mode(path: Path, status: os.stat_result, *, hint: str) -> Iterator[Finding]:
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        detail = f"others than its owner may write it (mode {mode:04o})"
        yield Finding(code="mode-unsafe", level=Level.WARNING, path=path, detail=detail, hint=hint)


def _strangers(store: Store) -> Iterator[Finding]:
    meanings = [kind_of_name(name, kind=store.kind) for name in os.listdir(store.root) if not name.startswith(".")]
    if left := meanings.count("leftover"):
        detail = f"{_count(left, 'file')} that an interrupted fetch or conversion left"
        yield Finding(code="leftovers", level=Level.INFO, path=store.root, detail=detail)
    if strange := meanings.count(None):
        detail = f"{_count(strange, 'name')} of no image; Underlay never touches such files"
        yield Finding(code="foreign-files", level=Level.INFO, path=store.root, detail=detail)


def _rivals(store: Store, config: Config) -> Iterator[Finding]:
    hint = _RIVAL_HINTS[store.kind]
    for name, pids in sorted(_running_rivals().items()):
        if _RIVALS[name] is store.kind:
            detail = f"{name} runs on this host (pid {', '.join(map(str, pids))}) and may manage this directory"
            yield Finding(code="rival-running", level=Level.WARNING, path=store.root, detail=detail, hint=hint)
    if store.kind is CacheKind.BASE and store.root.parent == config.instances:
        registry = config.instances / "compute_nodes"
        if (ago := _last_pass(registry, ours=_ours(store, config))) is not None and ago < _MANAGER_SILENCE:
            detail = f"a Nova image cache manager passed {format_duration(max(0.0, ago))} ago"
            yield Finding(code="rival-active", level=Level.WARNING, path=registry, detail=detail, hint=hint)


def _first_prune(config: Config, *, told: Set[tuple[str, Path]]) -> Iterator[Finding]:
    """What a prune would do now, and why it would leave the rest; what was told already is left out."""
    where = config.origin or config.instances
    try:
        plan = Host.open(config).plan_prune(now=datetime.now(UTC))
    except UnderlayError as error:
        yield _failed(error, where)
        return
    if not plan.clocks:
        return  # no base cache is there yet
    for store in config.caches.values():
        verdicts = [verdict for verdict in plan.verdicts if verdict.root == store.root]
        if going := [verdict for verdict in verdicts if verdict.removes]:
            detail = f"a prune would remove {_files(going)}: {_reasons(going)}"
            yield Finding(code="prune-removes", level=Level.INFO, path=store.root, detail=detail)
        if staying := [verdict for verdict in verdicts if not verdict.removes]:
            detail = f"a prune would keep {_files(staying)}: {_reasons(staying)}"
            yield Finding(code="prune-keeps", level=Level.INFO, path=store.root, detail=detail)
    for unknown in plan.unknowns:
        hint = _UNKNOWN_HINTS.get(unknown.code, "until that is known, those files stay")
        kinds = "everything" if "leftover" in unknown.keeps else f"every {', '.join(sorted(unknown.keeps))}"
        detail = f"{unknown.detail}: {kinds} is kept"
        yield Finding(code=unknown.code, level=Level.WARNING, path=unknown.root or where, detail=detail, hint=hint)
    known = told | {(unknown.code, unknown.root or where) for unknown in plan.unknowns}
    details = {unknown.detail for unknown in plan.unknowns}
    for problem in plan.problems:
        if problem.code == "no-inventory":
            hint = "name one as instances.inventory, and images of instances without a disk on this host are known too"
            yield Finding(code="no-inventory", level=Level.INFO, path=where, detail=problem.detail, hint=hint)
        elif (problem.code, problem.path) not in known and problem.detail not in details:
            yield Finding(code=problem.code, level=Level.WARNING, path=problem.path, detail=problem.detail)


_UNKNOWN_HINTS = {
    "hosts-undeclared": "name every host that shares the storage as instances.hosts",
    "host-silent": "run 'underlay prune' there, or 'underlay hosts retire' it if it is gone for good",
    "host-incomplete": "run 'underlay check' there",
    "locks-local": "mount the file system so that locks reach the other hosts",
    "root-empty": "mount the file system; if that is right, run 'underlay check --accept'",
    "root-moved": "mount the right file system; if this is it, run 'underlay check --accept'",
}


def _files(verdicts: Sequence[Verdict]) -> str:
    return f"{_count(len(verdicts), 'file')} of {format_size(sum(verdict.file.allocated for verdict in verdicts))}"


def _reasons(verdicts: Sequence[Verdict]) -> str:
    """How many files each reason holds for; a file may have several."""
    codes = Counter(code for verdict in verdicts for code in {reason.code for reason in verdict.reasons})
    return ", ".join(f"{number} {code}" for code, number in sorted(codes.items(), key=lambda one: (-one[1], one[0])))


def _running_rivals() -> dict[str, list[int]]:
    """Process numbers of the rivals that we can see, by the name of their program or of the script that an interpreter runs."""
    found: dict[str, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (directory / "cmdline").read_bytes().split(b"\0")[:2]
            for name in {os.path.basename(os.fsdecode(argument)) for argument in arguments} & _RIVALS.keys():
                found.setdefault(name, []).append(int(directory.name))
    return found


def _ours(store: Store, config: Config) -> dict[str, float]:
    """The hosts whose stamps in Nova's registry are of an Underlay, with the time of the last; infinity: whatever the time.

    This host's is ours when no nova-compute runs here; another's is when that host said to us at that time what it uses.
    """
    said, _ = hosts.hosts(store)
    stamps = {use.host: use.at.timestamp() for use in said if use.host != config.host}
    return stamps if "nova-compute" in _running_rivals() else stamps | {config.host: math.inf}


def _last_pass(registry: Path, *, ours: Mapping[str, float]) -> float | None:
    """Seconds since any host's manager noted its pass in Nova's registry (host to Unix time); None when none did."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        stamps = {host: float(stamp) for host, stamp in json.loads(registry.read_bytes()).items()}
        return time.time() - max(at for host, at in stamps.items() if at > ours.get(host, -math.inf) + _SAME_PASS)
    return None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
