"""What is compared with what. A goal is the ratio of wall times that docs/reference/performance aims at, never a test."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Contender, Row, command
from bench.tree import Tree, build
from underlay import Host
from underlay.config import Config, parse_config
from underlay.locks import exclusive
from underlay.usage.directories import header

if TYPE_CHECKING:
    from nova_environment import Nova

_LOCK_CYCLES = 2000
_DISKS = 10


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
def serving(image: Path) -> Iterator[str]:
    """Serve one directory from a process of its own; the URL of ``image``."""
    argv = [sys.executable, "-m", "bench.serve", os.fspath(image.parent)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"{server.stdout.readline().strip()}/{image.name}"  # leaving closes its input, which ends it


def miss(directory: Path, url: str) -> Row:
    """A verified, durable miss against the shell recipe that people use."""

    def ours(number: int) -> object:
        return Host.open(configuration(directory, f"miss-{number}")).ensure(url)

    def forget(number: int) -> None:
        shutil.rmtree(directory / f"miss-{number - 1}", ignore_errors=True)
        configuration(directory, f"miss-{number}")

    target = directory / "curl.img"
    recipe = f"curl -s -o {target} {url}; sync {target}; sha256sum {target}"
    return Row(
        name="miss, raw",
        ours=Contender(name="Host.ensure", run=ours, prepare=forget),
        peer=Contender(
            name="curl; sync; sha256sum",
            run=lambda _: command("sh", "-c", recipe),
            prepare=lambda _: target.unlink(missing_ok=True),
        ),
        goal=0.40,
        source="verified and durable",
    )


def hit(directory: Path, image: Path) -> Row:
    """An overlay on a base that is there, in a process that runs, against the qemu-img process alone."""
    host = Host.open(configuration(directory, "hit"))
    base = host.ensure(f"file://{image}")
    overlays = directory / "overlays"
    overlays.mkdir()

    def ours(number: int) -> object:
        return host.create_disk(f"vm-{number}", base, size="20GiB")

    def peer(number: int) -> None:
        overlay = overlays / f"{number}.qcow2"
        command("qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", "raw", overlay, "20G")

    return Row(
        name="hit, qcow2 overlay",
        ours=Contender(name="Host.create_disk (durable)", run=ours, repeat=_DISKS),
        peer=Contender(name="qemu-img create", run=peer, repeat=_DISKS),
        goal=0.08,
        source="our own overlay writer is to come",
    )


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
