"""A look over the whole host that changes nothing: the first thing to run on directories that exist already.

Each finding has a code (docs/reference/reasons.md), a weight and, where there is something to do, a hint.
"""

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from underlay.config import Config
from underlay.errors import UnderlayError
from underlay.files import free_bytes, keeps_attributes
from underlay.model import Level
from underlay.naming import CacheKind, kind_of_name
from underlay.store import Store, images
from underlay.store.space import reclaimable_bytes
from underlay.store.staging import ingests
from underlay.units import format_size

_MANAGER_SILENCE = 2 * 2400.0  # seconds: two of Nova's default manager_interval
_LOW_SPACE = 0.05  # of the file system
_RIVALS = {"nova-compute": CacheKind.BASE, "ironic-conductor": CacheKind.MASTERS}
_RIVAL_HINT = "let one of the two manage the directory: set remove_unused_base_images=false there"


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
        findings += _cache(store, config)
    return findings


def _tools() -> Iterator[Finding]:
    found = shutil.which("qemu-img")
    if found:
        yield Finding(code="tool-found", level=Level.INFO, path=Path(found), detail="qemu-img is installed")
    else:
        hint = "install it: apt-get install qemu-utils"
        yield Finding(code="tool-missing", level=Level.PROBLEM, path=Path("qemu-img"), detail="it is not installed", hint=hint)


def _instances(config: Config) -> Iterator[Finding]:
    path = config.instances
    if not path.is_dir():
        yield Finding(code="instances-missing", level=Level.WARNING, path=path, detail="the instances path is not there")
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            code="instances-not-writable", level=Level.PROBLEM, path=path, detail="no disk can be made there by this user"
        )


def _cache(store: Store, config: Config) -> Iterator[Finding]:
    try:
        laid_out = store.check()
    except UnderlayError as error:
        yield Finding(code=error.code, level=Level.PROBLEM, path=store.root, detail=error.message, hint=error.hint)
        return
    detail = "laid out by Underlay" if laid_out else "not laid out yet: the first fetch makes .underlay beside the images"
    yield Finding(code="laid-out" if laid_out else "not-laid-out", level=Level.INFO, path=store.root, detail=detail)
    yield from _attributes(store)
    yield from _writable(store)
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
        return
    path = store.nova_locks
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
    with suppress(PermissionError):
        dead = [staging for staging, alive in ingests(store) if not alive]
        if dead:
            size = format_size(reclaimable_bytes([store]))
            detail = f"{len(dead)} dead ingests hold {size}; they are taken over, or swept when space is short"
            yield Finding(code="dead-ingests", level=Level.INFO, path=store.paths.tmp, detail=detail)
        if store.paths.trash.is_dir() and (left := os.listdir(store.paths.trash)):
            detail = f"{len(left)} images were on their way out when something stopped"
            yield Finding(code="trash-left", level=Level.WARNING, path=store.paths.trash, detail=detail)


def _images(store: Store) -> Iterator[Finding]:
    found, problems = images.images(store)
    unrecorded = sum(1 for image in found if image.record is None)
    size = format_size(sum(image.allocated for image in found))
    detail = f"{len(found)} images of {size}, {unrecorded} of them unrecorded"
    yield Finding(code="images", level=Level.INFO, path=store.root, detail=detail)
    for problem in problems:
        yield Finding(code=problem.code, level=Level.PROBLEM, path=problem.path, detail=problem.detail)
    owner = store.root.stat()
    for image in found:
        status = image.path.stat()
        if status.st_uid != owner.st_uid:
            detail = f"it belongs to uid {status.st_uid}, its directory to {owner.st_uid}"
            yield Finding(code="owner-differs", level=Level.WARNING, path=image.path, detail=detail)
        if stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            detail = f"others than its owner may write it (mode {stat.S_IMODE(status.st_mode):04o})"
            yield Finding(code="mode-unsafe", level=Level.WARNING, path=image.path, detail=detail, hint="chmod 0644")


def _strangers(store: Store) -> Iterator[Finding]:
    meanings = [kind_of_name(name, kind=store.kind) for name in os.listdir(store.root) if not name.startswith(".")]
    if left := meanings.count("leftover"):
        detail = f"{left} files that an interrupted fetch or conversion left"
        yield Finding(code="leftovers", level=Level.INFO, path=store.root, detail=detail)
    if strange := meanings.count(None):
        detail = f"{strange} names that are no image's; Underlay never touches them"
        yield Finding(code="foreign-files", level=Level.INFO, path=store.root, detail=detail)


def _rivals(store: Store, config: Config) -> Iterator[Finding]:
    for name in sorted(_running() & _RIVALS.keys()):
        if _RIVALS[name] is store.kind:
            detail = f"{name} runs on this host and may manage this directory"
            yield Finding(code="rival-running", level=Level.WARNING, path=store.root, detail=detail, hint=_RIVAL_HINT)
    if store.kind is CacheKind.BASE and store.root.parent == config.instances:
        registry = config.instances / "compute_nodes"
        if (ago := _last_pass(registry)) is not None and ago < _MANAGER_SILENCE:
            detail = f"a Nova image cache manager passed {ago:.0f} s ago"
            yield Finding(code="rival-active", level=Level.WARNING, path=registry, detail=detail, hint=_RIVAL_HINT)


def _running() -> set[str]:
    """Base names of the programs, and of the scripts that interpreters run, of every process that we may see."""
    names: set[str] = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (directory / "cmdline").read_bytes().split(b"\0")[:2]
            names.update(os.path.basename(os.fsdecode(argument)) for argument in arguments)
    return names


def _last_pass(registry: Path) -> float | None:
    """Seconds since any host's manager noted its pass in Nova's registry (host to Unix time); None when none did."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return time.time() - max(float(stamp) for stamp in json.loads(registry.read_bytes()).values())
    return None
