"""Rows about disks on a hit: overlays against qemu-img and against what Nova does, flat disks against cp."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from bench.measure import Contender, Row, command
from bench.rows import configuration
from underlay import DiskSpec, Host
from underlay.disks.qcow2 import Qcow2Backend
from underlay.files import copy_sparse

_DISKS = 10
_FICLONE = 0x40049409  # linux/fs.h
_SIZE = "20GiB"
_FLAT_SIZE, _FLAT_PIECE = 2 << 30, 4 << 20
# oslo.concurrency's prlimit, by which Nova runs `qemu-img info`: a Python that limits itself and becomes the command.
_PRLIMIT = (
    "import argparse, os, resource, sys;"
    "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); resource.setrlimit(resource.RLIMIT_CPU, (30, 30));"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def overlays(directory: Path, image: Path) -> Iterator[Row]:
    """An overlay on a base that is there, in a process that runs, against one process of qemu-img and the three of Nova."""
    host = Host.open(configuration(directory, "hit"))
    base = host.ensure(f"file://{image}")
    alone, theirs = directory / "alone", directory / "theirs"
    alone.mkdir()
    theirs.mkdir()
    numbers = count()

    def create(_: int) -> object:
        return host.create_disk(f"vm-{next(numbers)}", base, size=_SIZE)

    def write(_: int) -> object:
        name = f"{next(numbers)}"
        return Qcow2Backend().create(base, DiskSpec(instance=name, name="disk", path=alone / name, size=20 << 30))

    def qemu_img(_: int) -> None:
        _qemu_img_create(base.path, theirs / f"{next(numbers)}")

    def nova(_: int) -> None:
        overlay = theirs / f"{next(numbers)}"
        info = ("qemu-img", "info", "--force-share", "--output=json", "-f", "raw", base.path)
        command(sys.executable, "-c", _PRLIMIT, "env", "LC_ALL=C", "LANG=C", *info)
        _qemu_img_create(base.path, overlay)
        command("qemu-img", "resize", "-q", "-f", "qcow2", overlay, "21G")

    def bare(_: int) -> None:
        _durable_file(alone / f"{next(numbers)}")

    made = Contender(name="Host.create_disk (durable)", run=create, repeat=_DISKS)
    least = Contender(name="write, fsync, link, fsync", run=bare, repeat=_DISKS)
    written = Contender(name="Qcow2Backend.create (durable)", run=write, repeat=_DISKS)
    one = Contender(name="qemu-img create", run=qemu_img, repeat=_DISKS)
    three = Contender(name="prlimit info, create, resize", run=nova, repeat=3)
    everything = "with locks, records, disk.info and the instance's directory"
    return iter(
        [
            Row(name="hit, qcow2 overlay", ours=made, peer=one, goal=0.08, source=everything),
            Row(name="hit, qcow2 over Nova's way", ours=made, peer=three, goal=0.02, source=everything),
            Row(name="hit, the overlay alone", ours=written, peer=one, goal=0.08, source="attribute, fsync, rename, fsync"),
            Row(
                name="hit, alone over Nova's way", ours=written, peer=three, goal=0.02, source="the same, over three processes"
            ),
            Row(name="hit, alone over the least", ours=written, peer=least, goal=None, source="what a durable file costs"),
            Row(name="hit, the least", ours=least, peer=one, goal=None, source="a durable file over a process"),
        ]
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


def flat(directory: Path) -> Iterator[Row]:
    """A flat disk of an image with holes, against cp: where blocks can be shared, and where they have to be copied."""
    for kind, goal in (("xfs", 0.3), ("ext4", 1.1)):
        with _mounted(directory, kind) as where:
            yield from _flat_rows(where, kind, goal)


def _flat_rows(where: Path, kind: str, goal: float) -> Iterator[Row]:
    image = where / "image.raw"
    _write_with_holes(image)
    host = Host.open(configuration(where, "flat"))
    base = host.ensure(f"file://{image}")
    target = where / "copy"

    def copy(_: int) -> None:
        with base.path.open("rb") as source, target.open("xb") as file:
            copy_sparse(source.fileno(), file.fileno(), base.size)

    def share(_: int) -> None:
        with base.path.open("rb") as source, target.open("xb") as file:
            fcntl.ioctl(file, _FICLONE, source.fileno())

    def create(_: int) -> object:
        return host.create_disk("vm", base, backend="flat")

    def settle(remove: Callable[[], object]) -> Callable[[int], None]:
        def prepare(_: int) -> None:
            remove()
            os.sync()  # or one run waits for what another has written

        return prepare

    without = settle(lambda: target.unlink(missing_ok=True))
    copied = Contender(name="copy_sparse", run=copy, prepare=without)
    plain = Contender(name="cp", run=lambda _: command("cp", base.path, target), prepare=without)
    durable = Contender(
        name="cp; sync", run=lambda _: command("sh", "-c", f"cp {base.path} {target} && sync {target}"), prepare=without
    )
    disk = where / "flat" / "instances" / "vm" / "disk"
    made = Contender(
        name="Host.create_disk (durable)", run=create, prepare=settle(lambda: disk.exists() and host.remove_disk("vm"))
    )
    yield Row(name=f"flat, {kind}, the copy alone", ours=copied, peer=plain, goal=goal, source="neither is durable")
    if kind == "xfs":
        shared = Contender(name="ioctl FICLONE", run=share, prepare=without)
        yield Row(name=f"flat, {kind}, copy over FICLONE", ours=copied, peer=shared, goal=None, source="what the kernel takes")
    yield Row(name=f"flat, {kind}", ours=made, peer=durable, goal=goal, source="both are durable")


def _write_with_holes(image: Path) -> None:
    """2 GiB, of which 600 MiB are data."""
    piece = os.urandom(_FLAT_PIECE)
    with image.open("wb") as file:
        for number in range(150):
            file.seek(number * (_FLAT_SIZE // 150) // 4096 * 4096)
            file.write(piece)
        file.truncate(_FLAT_SIZE)


@contextmanager
def _mounted(directory: Path, kind: str) -> Iterator[Path]:
    """A new file system of a kind, in a file; needs root."""
    file, where = directory / f"{kind}.img", directory / kind
    where.mkdir()
    with file.open("wb") as image:
        image.truncate(6 << 30)
    subprocess.run([f"mkfs.{kind}", "-q", file], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", file, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        file.unlink()
