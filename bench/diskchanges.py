"""Rows about what becomes of disks: preallocated, swap, written out, flattened, each against the tool's own command."""

import os
from itertools import count
from pathlib import Path

from bench.hosts import configuration
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.setting import Setting
from underlay import DiskSpec, Host
from underlay.disks.qcow2 import Qcow2Backend

_MIB = 1 << 20
_DATA, _SIZE = 64 * _MIB, 128 * _MIB


def changes(setting: Setting) -> Things:
    """A preallocated overlay, a swap disk, an extraction and a flattening."""
    directory = setting.directory
    image = directory / "random.raw"
    image.write_bytes(os.urandom(_DATA))
    host = Host.open(configuration(directory, "disk"))
    base = host.ensure(f"file://{image}")
    theirs = directory / "changed"
    theirs.mkdir()
    numbers = count()
    yield _preallocated(theirs, base.path, host, numbers)
    yield _swap(theirs, host, numbers)
    host.create_disk("written", base, size=_SIZE)
    disk = host.disk("written").path

    def extract(_: int) -> None:
        host.extract_disk("written", theirs / f"ours-{next(numbers)}", format="raw")

    def convert(_: int) -> None:
        command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, theirs / f"theirs-{next(numbers)}")

    yield Row(
        name="disk, extracted as raw",
        what="with locks, an fsync and a rename",
        ours=Contender(name="Host.extract_disk (durable)", run=extract),
        peer=Contender(name="qemu-img convert", run=convert),
        goal=Goal(wall=2.0, why="the same work, made durable"),
    )
    yield _flattened(theirs, host, base.path, numbers)


def _preallocated(theirs: Path, base: Path, host: Host, numbers: "count[int]") -> Row:
    image = host.find(base.name)[0]

    def create(_: int) -> None:
        path = theirs / f"{next(numbers)}"
        spec = DiskSpec(instance=path.name, name="disk", path=path, size=_SIZE)
        Qcow2Backend(preallocation="metadata").create(image, spec)

    def qemu_img(_: int) -> None:
        options = f"backing_file={base},backing_fmt=raw,extended_l2=on,preallocation=metadata"
        command("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, theirs / f"{next(numbers)}", str(_SIZE))

    return Row(
        name="disk, preallocated overlay",
        what="attribute, fsync, rename, fsync",
        ours=Contender(name="Qcow2Backend.create (durable)", run=create),
        peer=Contender(name="qemu-img create", run=qemu_img),
        goal=Goal(wall=2.0, why="the same work, made durable"),
    )


def _swap(theirs: Path, host: Host, numbers: "count[int]") -> Row:
    def create(_: int) -> None:
        host.create_swap(f"vm-{next(numbers)}", 64 * _MIB)

    def mkswap(_: int) -> None:
        path = theirs / f"{next(numbers)}"
        with path.open("wb") as file:
            file.truncate(64 * _MIB)
        command("/usr/sbin/mkswap", path)

    return Row(
        name="disk, swap",
        what="an overlay on the shared image",
        ours=Contender(name="Host.create_swap (durable)", run=create),
        peer=Contender(name="mkswap", run=mkswap),
        goal=Goal(wall=1.0, why="an overlay is less than a file system"),
    )


def _flattened(theirs: Path, host: Host, base: Path, numbers: "count[int]") -> Row:
    image = host.find(base.name)[0]

    def prepare(_: int) -> None:
        if any(disk.instance == "flattened" for disk in host.disks()):
            host.remove_disk("flattened")
        host.create_disk("flattened", image, size=_SIZE)
        (theirs / "overlay").unlink(missing_ok=True)
        options = f"backing_file={base},backing_fmt=raw"
        command("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, theirs / "overlay", str(_SIZE))

    return Row(
        name="disk, flattened",
        what="a copy that is compared and renamed; the tool's own is not safe to kill",
        ours=Contender(name="Host.flatten_disk (durable)", run=lambda _: host.flatten_disk("flattened"), prepare=prepare),
        peer=Contender(
            name="qemu-img rebase",
            run=lambda _: command("qemu-img", "rebase", "-f", "qcow2", "-b", "", theirs / "overlay"),
            prepare=prepare,
        ),
        goal=Goal(wall=3.0, why="a copy that is compared before it takes the place"),
    )
