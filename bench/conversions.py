"""qcow2 to raw in a process that runs, against the qemu-img process, on each file system that can be mounted here."""

import os
from pathlib import Path

from bench.images import write_files
from bench.measure import Contender, Row, Things, command
from bench.mounts import mounted
from bench.results import Goal
from bench.setting import Setting
from underlay.formats import qcow2
from underlay.formats.qcow2.convert import convert

_PLAIN_GOALS = {
    "ext4": Goal(wall=1.0, why="the same bytes are copied"),
    "xfs": Goal(wall=0.3, why="blocks are shared, and nothing is copied"),
    "btrfs": Goal(wall=0.1, why="blocks are shared, and nothing is copied"),
}
_COMPRESSED_GOAL = Goal(wall=0.6, cpu=0.65, why="libdeflate in two threads, where qemu-img has zlib")


def conversions(setting: Setting) -> Things:
    """A row for plain clusters on each file system, and one for compressed ones. Needs root."""
    disk = setting.directory / "convert.img"
    write_files(disk, setting.size)
    for kind, goal in _PLAIN_GOALS.items():
        with mounted(setting.directory, kind, max(4 * setting.size, 512 << 20)) as where:
            yield _row(disk, where, f"convert, plain, {kind}", (), goal)
            if kind == "ext4":
                yield _row(disk, where, f"convert, compressed, {kind}", ("-c",), _COMPRESSED_GOAL)


def _row(disk: Path, where: Path, name: str, options: tuple[str, ...], goal: Goal) -> Row:
    ours, peer = converting(disk, where, *options)
    what = "byte for byte the same, neither durable"
    return Row(name=name, what=f"{name.removeprefix('convert, ')}: {what}", ours=ours, peer=peer, goal=goal)


def converting(disk: Path, where: Path, *options: str) -> tuple[Contender, Contender]:
    """Ours and qemu-img, of a qcow2 image that is made of ``disk`` with these options."""
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
    return (
        Contender(name="formats.qcow2.convert", run=ours, prepare=forget),
        Contender(name="qemu-img convert", run=lambda _: command(*argv), prepare=forget),
    )
