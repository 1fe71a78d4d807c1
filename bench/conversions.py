"""qcow2 to raw in a process that runs, against the qemu-img process, on each file system that can be mounted here."""

import os
from collections.abc import Sequence
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
_AS_SHARED = Goal(wall=1.0, why="blocks are shared, by both")
_COMPRESSED = {
    "compressed": (("-c",), Goal(wall=0.6, cpu=0.65, why="libdeflate in two threads, where qemu-img has zlib")),
    "zstd": (("-c", "-o", "compression_type=zstd"), Goal(wall=1.0, why="the same library, in two threads")),
}
_IN_PARALLEL = ("-W", "-m", "16")
_PARALLEL_GOALS = {
    "compressed": Goal(wall=0.8, why="libdeflate, where qemu-img has zlib"),
    "zstd": Goal(wall=1.0, why="the same library"),
}


def conversions(setting: Setting) -> Things:
    """Rows for plain clusters on each file system, and for compressed ones. Needs root."""
    disk = setting.directory / "convert.img"
    write_files(disk, setting.size)
    for kind, goal in _PLAIN_GOALS.items():
        with mounted(setting.directory, kind, max(4 * setting.size, 512 << 20)) as where:
            yield _row(f"plain, {kind}", converting(disk, where), goal)
            if kind == "ext4":
                yield from _compressed_rows(disk, where, kind)
            else:
                yield _row(f"plain over -C, {kind}", converting(disk, where, reads=("-C",)), _AS_SHARED)


def _compressed_rows(disk: Path, where: Path, kind: str) -> Things:
    for name, (writes, goal) in _COMPRESSED.items():
        yield _row(f"{name}, {kind}", converting(disk, where, *writes), goal)
        yield _row(f"{name} over -W, {kind}", converting(disk, where, *writes, reads=_IN_PARALLEL), _PARALLEL_GOALS[name])


def _row(name: str, contenders: tuple[Contender, Contender], goal: Goal) -> Row:
    ours, peer = contenders
    return Row(
        name=f"convert, {name}", what=f"{name}: byte for byte the same, neither durable", ours=ours, peer=peer, goal=goal
    )


def converting(disk: Path, where: Path, *options: str, reads: Sequence[str] = ()) -> tuple[Contender, Contender]:
    """Ours and qemu-img, which ``reads`` with more options, of a qcow2 image that is made of ``disk`` with these."""
    image, target = where / "image.qcow2", where / "raw"
    command("qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", disk, image)

    def ours(_: int) -> None:
        with image.open("rb") as source, target.open("xb") as raw:
            header = qcow2.parse_header(os.pread(source.fileno(), qcow2.HEADER_BYTES, 0))
            convert(source.fileno(), raw.fileno(), header)

    def forget(_: int) -> None:
        target.unlink(missing_ok=True)
        os.sync()

    argv: tuple[str | Path, ...] = ("qemu-img", "convert", *reads, "-f", "qcow2", "-O", "raw", image, target)
    return (
        Contender(name="formats.qcow2.convert", run=ours, prepare=forget),
        Contender(name=" ".join(["qemu-img convert", *reads]), run=lambda _: command(*argv), prepare=forget),
    )
