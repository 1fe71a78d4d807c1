"""What is compared with what. A goal is the ratio of wall times that docs/reference/performance aims at, never a test."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Contender, Row, command
from bench.tree import Tree, build, build_masters
from underlay import Host
from underlay.config import Config, parse_config
from underlay.formats.compressed import Decompressor
from underlay.locks import exclusive
from underlay.naming import CacheKind
from underlay.store import Store, listing
from underlay.stream import filled
from underlay.usage.directories import header

if TYPE_CHECKING:
    from environment import Runner
    from nova_environment import Nova

_LOCK_CYCLES = 2000
_DELIVERIES = 20
_MASTERS = 100_000
# What `find` is asked to tell, by our own listing: of every master that nobody has, its name, its size and its last use.
_SCAN = """
import sys
from pathlib import Path
from underlay.naming import CacheKind
from underlay.store import Store, listing
from underlay.stream import filled

files = listing.files(Store(root=Path(sys.argv[1]), kind=CacheKind.MASTERS))
print("\\n".join([f"{file.name} {file.size} {file.used_ns}" for file in files if file.links == 1]))
"""


def configuration(directory: Path, name: str) -> Config:
    """A host of its own below ``directory``."""
    root = directory / name
    for part in ("base", "instances"):
        (root / part).mkdir(parents=True, exist_ok=True)
    text = f"""
        [instances]
        path = "{root}/instances"
        [caches.base]
        kind = "base"
        path = "{root}/base"
        [sources.file]
        allowed_paths = ["{directory}"]
    """
    return parse_config(text, origin=root / "underlay.toml")


@contextmanager
def serving(served: Path, *, rate: int | None = None) -> Iterator[str]:
    """Serve one directory from a process of its own, ``rate`` bytes a second at most; its URL."""
    argv = [sys.executable, "-m", "bench.serve", os.fspath(served), *([] if rate is None else [str(rate)])]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()  # leaving closes its input, which ends it


def miss(directory: Path, url: str) -> Sequence[Row]:
    """A verified, durable miss against the shell recipe that people use, and against a download that is neither."""

    def run(_: int) -> None:
        assert Host.open(configuration(directory, "miss")).fetch(url).reason.code == "fetched"

    def forget(_: int) -> None:
        shutil.rmtree(directory / "miss", ignore_errors=True)
        os.sync()  # what curl left to be written is not waited for by us

    target = directory / "curl.img"
    download = f"curl -s -o {target} {url}"

    def curl(name: str, recipe: str) -> Contender:
        return Contender(name=name, run=lambda _: command("sh", "-c", recipe), prepare=lambda _: target.unlink(missing_ok=True))

    ours = Contender(name="Host.fetch (durable)", run=run, prepare=forget)
    recipe = curl("curl; sync; sha256sum", f"{download}; sync {target}; sha256sum {target}")
    source = "verified and durable; curl is neither"
    return [
        Row(name="miss, raw", ours=ours, peer=recipe, goal=0.40, source="verified and durable"),
        Row(name="miss, over curl alone", ours=ours, peer=curl("curl", download), goal=1.11, source=source),
    ]


def decompress(directory: Path, size: int) -> Iterator[Row]:
    """A compressed image, decompressed piece by piece in a process that runs, against the program that writes its format."""
    image = directory / "plain.img"
    write_files(image, size)
    for compression, goal in (("gzip", 0.4), ("zstd", None), ("xz", 1.0), ("bzip2", 1.0)):
        compressed = image.with_suffix(f".{compression}")
        with compressed.open("wb") as file:
            subprocess.run([compression, "-c", image], check=True, stdout=file)
        yield Row(
            name=f"decompress, {compression}",
            ours=Contender(name="formats.compressed", run=partial(_decompress, compressed, compression, size)),
            peer=_command(f"{compression} -dc", compression, "-dc", compressed),
            goal=goal,
            source="in one thread, nothing written",
        )


def _decompress(path: Path, compression: str, size: int, _: int) -> None:
    decompressor = Decompressor(os.fspath(path), compression)
    with path.open("rb", buffering=0) as file:
        fed = sum(len(output) for piece in filled(file) for output in decompressor.feed(piece))
        assert size == fed + sum(map(len, decompressor.finish()))


def write_files(image: Path, size: int) -> None:
    """As a system's image is: half of it programs and text, for which this Python's own files stand; then nothing."""
    files = sorted(path for path in Path(os.__file__).parent.rglob("*") if path.is_file())
    with image.open("wb") as file:
        for path in cycle(files):
            if file.tell() >= size // 2:
                break
            file.write(path.read_bytes())
        file.truncate(size)


def start_up(directory: Path, image: Path) -> Sequence[Row]:
    """One-shot commands against an interpreter that does nothing."""
    config = configuration(directory, "start")
    file = directory / "start" / "underlay.toml"
    file.write_text(
        f'[instances]\npath = "{config.instances}"\n[caches.base]\nkind = "base"\npath = "{directory}/start/base"\n'
        f'[sources.file]\nallowed_paths = ["{directory}"]\n',
        encoding="utf-8",
    )
    ref = f"file://{image}"
    Host.open(file).ensure(ref)
    underlay = [sys.executable, "-m", "underlay", "--config", os.fspath(file)]
    idle = Contender(name="python -c pass", run=lambda _: command(sys.executable, "-c", "pass"), repeat=3)

    def row(name: str, *arguments: str) -> Row:
        ours = Contender(name=f"underlay {name}", run=lambda _: command(*underlay, *arguments), repeat=3)
        return Row(name=f"start-up, {name}", ours=ours, peer=idle, goal=3.0, source="one-shot commands")

    def create(number: int) -> None:
        command(*underlay, "disk", "create", f"vm-{number}", "--image", ref)

    disk = Contender(name="underlay disk create", run=create, repeat=3)
    return [
        row("list", "list"),
        row("show", "show", ref),
        Row(name="start-up, disk create", ours=disk, peer=idle, goal=3.0, source="one-shot commands, on a hit"),
    ]


def lock(directory: Path) -> Row:
    """One uncontended cycle of a lock against the least that a lock file can cost. The design asks for 15 us at most."""
    path = directory / "lock"

    def ours(_: int) -> None:
        with exclusive(path, timeout=1):
            pass

    def peer(_: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)

    return Row(
        name="lock, one cycle",
        ours=Contender(name="locks.exclusive", run=ours, repeat=_LOCK_CYCLES),
        peer=Contender(name="open, flock, close", run=peer, repeat=_LOCK_CYCLES),
        goal=None,
        source="15 us at most",
    )


def backing(tree: Tree) -> Row:
    """Which file a disk is backed by: read natively, against a qemu-img process for each disk."""
    disks = [os.fspath(disk) for disk in tree.disks()]

    def ours(number: int) -> object:
        return header(disks[number % len(disks)])

    def peer(number: int) -> None:
        command("qemu-img", "info", "-U", "--output", "json", disks[number % len(disks)])

    return Row(
        name="backing file of a disk",
        ours=Contender(name="usage.directories.header", run=ours, repeat=len(disks)),
        peer=Contender(name="qemu-img info", run=peer, repeat=20),
        goal=1 / 200,
        source="warm; read until two reads agree",
    )


def prune_pass(tree: Tree, files: int) -> Callable[[int], object]:
    """A whole pass: instances read, everything looked at, decided, and uses refreshed; nothing is old enough to go."""
    host = Host.open(tree.configuration)

    def run(_: int) -> object:
        report = host.apply(host.plan_prune())
        assert (files, 0, []) == (len(report.verdicts), len(report.removed), list(report.problems))
        return report

    return run


def prune_against_nova(directory: Path, nova: "Nova") -> Row:
    """A pass over 100 instances and 1,000 files, ours and that of Nova's own manager, in processes that run already."""
    ours, theirs = (build(directory / f"pass-{side}", instances=100, files=1000) for side in ("ours", "nova"))
    instances = json.loads(theirs.records.read_text(encoding="utf-8"))

    def peer(_: int) -> None:
        assert nova.update(theirs.instances, instances)["error"] is None

    return Row(
        name="prune, 100 instances, 1k files",
        ours=Contender(name="Host.plan_prune, apply", run=prune_pass(ours, 1000)),
        peer=Contender(name="nova 34.0.0, update", run=peer),
        goal=None,
        source="Nova starts qemu-img for each instance",
    )


def prune_linear(directory: Path) -> Sequence[Row]:
    """Ten times as much is to take ten times as long, to the power of 1.1 at most."""
    trees = [build(directory / f"pass-{files}", instances=files // 10, files=files) for files in (1000, 10_000, 100_000)]
    small, middle, large = (
        Contender(name=f"{files} files", run=prune_pass(tree, files))
        for tree, files in zip(trees, (1000, 10_000, 100_000), strict=True)
    )
    source = "10 to the power of 1.1"
    return [
        Row(name="prune, 10k over 1k files", ours=middle, peer=small, goal=10**1.1, source=source),
        Row(name="prune, 100k over 10k files", ours=large, peer=middle, goal=10**1.1, source=f"{source}; 1.5 s at most"),
    ]


def prune_memory(directory: Path) -> int:
    """Bytes that a process of its own comes to hold in memory while it prunes the largest tree of `prune_linear`."""
    code = (
        "import resource, sys; from underlay import Host; host = Host.open(sys.argv[1]); host.apply(host.plan_prune()); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    file = directory / "pass-100000" / "underlay.toml"
    return int(subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, text=True).stdout)


def deliver(directory: Path, url: str, ironic: "Runner") -> Sequence[Row]:
    """A hit delivered by hard link, in processes that run: durable and without a request, against Ironic's with its HEAD."""
    host = Host.open(_masters(directory / "deliver", revalidate_after="1h"))
    places = {side: directory / side for side in ("ours", "ironic", "bare")}
    for place in places.values():
        place.mkdir()
    numbers = count()

    def ours(name: str, come: str) -> None:
        delivered = host.deliver(url, places["ours"] / name)
        assert ("hit", come) == (delivered.came and delivered.came.code, delivered.reason.code)

    def peer(name: str) -> None:
        ironic.ask(masters=str(directory / "deliver" / "ironic"), href=url, path=str(places["ironic"] / name))

    def contender(name: str, side: str, run: Callable[[int], object]) -> Contender:
        return Contender(name=name, run=run, prepare=lambda _: _empty(places[side]), repeat=_DELIVERIES)

    host.deliver(url, places["ours"] / "there")
    peer("there")
    link = Contender(name="link, rename, fsync", run=_linker(places["bare"]), repeat=_DELIVERIES)
    durable, fetch = "Host.deliver (durable)", "ironic 39.0.0, fetch_image"
    again = contender(durable, "ours", lambda turn: ours(f"{turn % _DELIVERIES}", "linked"))
    anywhere = contender(durable, "ours", lambda _: ours(f"new-{next(numbers)}", "linked"))
    theirs = contender(fetch, "ironic", lambda turn: peer(f"{turn % _DELIVERIES}"))
    there = Contender(name="Host.deliver", run=lambda _: ours("there", "delivered"), repeat=_DELIVERIES)
    theirs_there = Contender(name=fetch, run=lambda _: peer("there"), repeat=_DELIVERIES)
    source = "1 ms at most; Ironic asks the server first"
    return [
        Row(name="deliver, a hit", ours=again, peer=theirs, goal=None, source=source),
        Row(name="deliver, at a path never used", ours=anywhere, peer=theirs, goal=None, source=f"{source}; makes a lock file"),
        Row(name="deliver, there already", ours=there, peer=theirs_there, goal=None, source=source),
        Row(name="deliver, over the disk's part", ours=again, peer=link, goal=None, source="what a durable link costs"),
    ]


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name != "there":
            path.unlink()


def _linker(directory: Path) -> Callable[[int], None]:
    """A durable hard link by the system calls alone."""
    image = directory / "image"
    image.write_bytes(bytes(512))

    def run(turn: int) -> None:
        temporary = directory / f".{turn}"
        os.link(image, temporary)
        os.rename(temporary, directory / f"{turn}")
        target = os.open(directory, os.O_RDONLY)
        os.fsync(target)
        os.close(target)

    return run


def _masters(root: Path, *, revalidate_after: str) -> Config:
    """A host with a cache of masters below ``root``."""
    (root / "masters").mkdir(parents=True)
    text = f"""
        [instances]
        path = "{root}/instances"
        [caches.masters]
        kind = "masters"
        path = "{root}/masters"
        [sources.http]
        revalidate_after = "{revalidate_after}"
    """
    return parse_config(text, origin=root / "underlay.toml")


def scan(directory: Path) -> Iterator[Row]:
    """All masters of a cache, process to process, and the listing alone over the least that Python can do."""
    for marked in (False, True):
        root = build_masters(directory / f"masters-{marked}", files=_MASTERS, marked=marked)
        yield Row(
            name="scan, 100k masters" + (", marked" if marked else ""),
            ours=_command("store.listing, a line each", sys.executable, "-c", _SCAN, root),
            peer=_command("find -links 1 -printf", "find", root, "-links", "1", "-printf", "%f %s %T@\n"),
            goal=1.3,
            source="process to process" + ("; find reads the markers too" if marked else ""),
        )
        if not marked:
            yield _scan_in_process(root)


def _scan_in_process(root: Path) -> Row:
    store = Store(root=root, kind=CacheKind.MASTERS)

    def peer(_: int) -> None:
        directory = os.open(root, os.O_RDONLY)
        for name in os.listdir(directory):
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        os.close(directory)

    return Row(
        name="scan, in process",
        ours=Contender(name="store.listing.files", run=lambda _: len(listing.files(store))),
        peer=Contender(name="listdir, stat each", run=peer),
        goal=None,
        source="the least that Python can do",
    )


def _command(name: str, *argv: str | os.PathLike[str]) -> Contender:
    return Contender(name=name, run=lambda _: command(*argv))
