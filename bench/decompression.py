"""A compressed image, decompressed piece by piece in a process that runs, against the program that writes its format."""

import os
import subprocess
from functools import partial
from pathlib import Path

from bench.images import write_files
from bench.measure import Contender, Row, Things, process
from bench.results import Goal
from bench.setting import Setting
from underlay.formats.compressed import Decompressor
from underlay.stream import filled

_GOALS = {
    "gzip": Goal(wall=0.4, why="isal, beside zlib that gzip has"),
    "zstd": None,
    "xz": Goal(wall=1.0, why="the same library"),
    "bzip2": Goal(wall=1.0, why="the same library"),
}


def decompression(setting: Setting) -> Things:
    """A row for each compression."""
    image = setting.directory / "plain.img"
    write_files(image, setting.size)
    for compression, goal in _GOALS.items():
        compressed = image.with_suffix(f".{compression}")
        with compressed.open("wb") as file:
            subprocess.run([compression, "-c", image], check=True, stdout=file)
        yield Row(
            name=f"decompress, {compression}",
            what=f"{compression}, in one thread, nothing written",
            ours=Contender(name="formats.compressed", run=partial(_decompress, compressed, compression, setting.size)),
            peer=process(f"{compression} -dc", compression, "-dc", compressed),
            goal=goal,
        )


def _decompress(path: Path, compression: str, size: int, _: int) -> None:
    decompressor = Decompressor(os.fspath(path), compression)
    with path.open("rb", buffering=0) as file:
        fed = sum(len(output) for piece in filled(file) for output in decompressor.feed(piece))
        assert size == fed + sum(map(len, decompressor.finish()))
