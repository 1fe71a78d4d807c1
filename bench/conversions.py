"""qcow2 to raw in a process that runs, against the qemu-img process, on each file system that can be mounted here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Contender, Row, command
from bench.rows import write_files
from underlay.formats import qcow2
from underlay.formats.qcow2.convert import convert

_PLAIN_GOALS = {"ext4": 1.0, "xfs": 0.3, "btrfs": 0.1}  # the latter two share blocks
_COMPRESSED_GOAL = 0.6


def conversions(directory: Path, size: int) -> Iterator[Row]:
    """A row for plain clusters on each file system, and one for compressed ones. Needs root."""
    disk = directory / "convert.img"
    write_files(disk, size)
    for kind, goal in _PLAIN_GOALS.items():
        with _mounted(directory, kind, 4 * size) as where:
            yield _row(disk, where, f"convert, plain, {kind}", (), goal)
            if kind == "ext4":
                yield _row(disk, where, f"convert, compressed, {kind}", ("-c",), _COMPRESSED_GOAL)


def _row(disk: Path, where: Path, name: str, options: tuple[str, ...], goal: float) -> Row:
    image, target = where / "image.qcow2", where / "raw"
    command("qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", disk, image)

    def ours(_: int) -> None:
        with image.open("rb") as source, target.open("xb") as raw:
            header = qcow2.parse_header(os.pread(source.fileno(), qcow2.HEADER_BYTES, 0))
            convert(source.fileno(), raw.fileno(), header)

    def forget(_: int) -> None:
        target.unlink(missing_ok=True)
        os.sync()

    argv = ("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, target)
    return Row(
        name=name,
        ours=Contender(name="formats.qcow2.convert", run=ours, prepare=forget),
        peer=Contender(name="qemu-img convert", run=lambda _: command(*argv), prepare=forget),
        goal=goal,
        source="byte for byte the same, neither durable",
    )


@contextmanager
def _mounted(directory: Path, kind: str, size: int) -> Iterator[Path]:
    """A new file system of this kind."""
    where, device = directory / kind, directory / f"{kind}.device"
    where.mkdir()
    with device.open("wb") as file:
        file.truncate(size)
    command(f"mkfs.{kind}", "-q", device)
    command("mount", "-o", "loop", device, where)
    try:
        yield where
    finally:
        command("umount", where)
        device.unlink()
