"""Rows about disks on a hit: overlays against qemu-img and against what Nova does, flat disks against cp."""

import fcntl
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from bench.hosts import configuration
from bench.images import write_small, write_with_holes
from bench.measure import Contender, Row, Things, command
from bench.mounts import mounted
from bench.results import Goal
from bench.setting import Setting
from underlay import BaseImage, DiskSpec, Host
from underlay.disks.qcow2 import Qcow2Backend
from underlay.files import copy_sparse

_DISKS = 10
_FICLONE = 0x40049409  # linux/fs.h
_SIZE = "20GiB"
_FLAT_GOALS = {
    "xfs": Goal(wall=0.3, why="blocks are shared by one call, which is less than the start of a process"),
    "ext4": Goal(wall=1.1, why="the same bytes are copied"),
}
_OVER_QEMU_IMG = Goal(wall=0.08, why="the writing of the file with its fsyncs, half as much again")
_OVER_NOVA = Goal(wall=0.02, why="the same, over three processes, of which one is a Python")
# oslo.concurrency's prlimit, by which Nova runs `qemu-img info`: a Python that limits itself and becomes the command.
_PRLIMIT = (
    "import argparse, os, resource, sys;"
    "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); resource.setrlimit(resource.RLIMIT_CPU, (30, 30));"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def overlays(setting: Setting) -> Things:
    """An overlay on a base that is there, in a process that runs, against one process of qemu-img and the three of Nova."""
    host, base = _host_with(setting.directory, write_small(setting.directory / "small.img"))
    alone, theirs = setting.directory / "alone", setting.directory / "theirs"
    alone.mkdir()
    theirs.mkdir()
    numbers = count()

    def write(_: int) -> object:
        name = f"{next(numbers)}"
        return Qcow2Backend().create(base, DiskSpec(instance=name, name="disk", path=alone / name, size=20 << 30))

    def nova(_: int) -> None:
        overlay = theirs / f"nova-{next(numbers)}"
        info = ("qemu-img", "info", "--force-share", "--output=json", "-f", "raw", base.path)
        command(sys.executable, "-c", _PRLIMIT, "env", "LC_ALL=C", "LANG=C", *info)
        _qemu_img_create(base.path, overlay)
        command("qemu-img", "resize", "-q", "-f", "qcow2", overlay, "21G")

    def bare(_: int) -> None:
        _durable_file(alone / f"{next(numbers)}")

    least = Contender(name="write, fsync, link, fsync", run=bare, repeat=_DISKS)
    made, one = overlaying(host, base, theirs)
    written = Contender(name="Qcow2Backend.create (durable)", run=write, repeat=_DISKS)
    three = Contender(name="prlimit info, create, resize", run=nova, repeat=3)
    everything = "with locks, records, `disk.info` and the instance's directory"
    alone_what = "the overlay alone: attribute, fsync, rename, fsync"
    yield Row(name="hit, qcow2 overlay", what=everything, ours=made, peer=one, goal=_OVER_QEMU_IMG)
    yield Row(name="hit, qcow2 over Nova's way", what=everything, ours=made, peer=three, goal=_OVER_NOVA)
    yield Row(name="hit, the overlay alone", what=alone_what, ours=written, peer=one, goal=_OVER_QEMU_IMG)
    yield Row(name="hit, alone over Nova's way", what=alone_what, ours=written, peer=three, goal=_OVER_NOVA)
    yield Row(
        name="hit, alone over the least", what="the overlay alone, over what a durable file costs", ours=written, peer=least
    )
    yield Row(name="hit, the least", what="what a durable file costs, over a process", ours=least, peer=one)


def overlaying(host: Host, base: BaseImage, theirs: Path) -> tuple[Contender, Contender]:
    """Ours, with all that belongs to a disk, and one process of qemu-img that writes into ``theirs``."""
    numbers = count()

    def create(_: int) -> object:
        return host.create_disk(f"vm-{next(numbers)}", base, size=_SIZE)

    def qemu_img(_: int) -> None:
        _qemu_img_create(base.path, theirs / f"{next(numbers)}")

    return (
        Contender(name="Host.create_disk (durable)", run=create, repeat=_DISKS),
        Contender(name="qemu-img create", run=qemu_img, repeat=_DISKS),
    )


def _durable_file(path: Path) -> None:
    """A small durable file by the system calls alone, with as much in it as an overlay has."""
    directory = os.open(path.parent, os.O_RDONLY)
    file = os.open(path.parent, os.O_RDWR | os.O_TMPFILE, 0o640)
    os.ftruncate(file, 4 << 16)
    for offset in range(0, 3 << 16, 1 << 16):
        os.pwrite(file, bytes(200), offset)
    os.setxattr(file, "user.bench", bytes(250))
    os.fsync(file)
    os.link(f"/proc/self/fd/{file}", path, src_dir_fd=file, follow_symlinks=True)
    os.fsync(directory)
    os.close(file)
    os.close(directory)


def _qemu_img_create(base: Path, overlay: Path) -> None:
    command("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay, "20G")


def flat(setting: Setting) -> Things:
    """A flat disk of an image with holes, against cp: where blocks can be shared, and where they have to be copied."""
    size = 4 * setting.size  # three tenths of it are data
    for kind, goal in _FLAT_GOALS.items():
        with mounted(setting.directory, kind, max(3 * size, 512 << 20)) as where:
            yield from _flat_rows(where, kind, goal, size)


def _flat_rows(where: Path, kind: str, goal: Goal, size: int) -> Things:
    image = where / "image.raw"
    write_with_holes(image, size)
    host, base = _host_with(where, image)
    target = where / "copy"

    def copy(_: int) -> None:
        with base.path.open("rb") as source, target.open("xb") as file:
            copy_sparse(source.fileno(), file.fileno(), base.size)

    def share(_: int) -> None:
        with base.path.open("rb") as source, target.open("xb") as file:
            fcntl.ioctl(file, _FICLONE, source.fileno())

    without = _settled(lambda: target.unlink(missing_ok=True))
    copied = Contender(name="copy_sparse", run=copy, prepare=without)
    plain = Contender(name="cp", run=lambda _: command("cp", base.path, target), prepare=without)
    made, durable = copying(host, base, target)
    what = f"on {kind}, the copy alone; neither is durable"
    yield Row(name=f"flat, {kind}, the copy alone", what=what, ours=copied, peer=plain, goal=goal)
    if kind == "xfs":
        shared = Contender(name="ioctl FICLONE", run=share, prepare=without)
        yield Row(name=f"flat, {kind}, copy over FICLONE", what="over what the kernel takes", ours=copied, peer=shared)
    yield Row(name=f"flat, {kind}", what=f"on {kind}, with everything; both are durable", ours=made, peer=durable, goal=goal)


def copying(host: Host, base: BaseImage, target: Path) -> tuple[Contender, Contender]:
    """Ours, with all that belongs to a disk, and a durable copy by programs."""
    line = f"cp {base.path} {target} && sync {target}"
    ours = Contender(
        name="Host.create_disk (durable)",
        run=lambda _: host.create_disk("copied", base, backend="flat"),
        prepare=_settled(lambda: (host.config.instances / "copied" / "disk").exists() and host.remove_disk("copied")),
    )
    without = _settled(lambda: target.unlink(missing_ok=True))
    return ours, Contender(name="cp; sync", run=lambda _: command("sh", "-c", line), prepare=without)


def _host_with(directory: Path, image: Path) -> tuple[Host, BaseImage]:
    host = Host.open(configuration(directory, "host"))
    return host, host.ensure(image.as_uri())


def _settled(remove: Callable[[], object]) -> Callable[[int], None]:
    def prepare(_: int) -> None:
        remove()
        os.sync()  # or one run waits for what another has written

    return prepare
