"""Rows about a scrub: a whole one of one image, records and all, against openssl over the same file."""

import os
from collections.abc import Callable
from pathlib import Path

from bench.hosts import configuration
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.setting import Setting
from underlay import Host
from underlay.testing.bootimage import write_raw

_SPARSE_SIZE, _PIECE = 2 << 30, 4 << 20
_GOAL = Goal(wall=1.1, why="the same digest over the same bytes, and the records")


def scrubs(setting: Setting) -> Things:
    """A dense image and one that is a third full, both with nothing of the file in memory; and openssl with all of it."""
    directory = setting.directory
    dense = directory / "scrubbed.img"
    write_raw(dense, size=setting.size, message="bench", payload=setting.size - (1 << 20))
    yield from _rows(directory, dense, "dense", also_warm=True)
    dense.unlink()
    sparse = directory / "sparse.img"
    with sparse.open("wb") as file:
        for start in range(0, _SPARSE_SIZE, 3 * _PIECE):
            file.seek(start)
            file.write(os.urandom(_PIECE))
        file.truncate(_SPARSE_SIZE)
    yield from _rows(directory, sparse, "a third full", also_warm=False)


def _rows(directory: Path, image: Path, name: str, *, also_warm: bool) -> Things:
    host = Host.open(configuration(directory, f"scrub-{image.stem}"))
    base = host.ensure(f"file://{image}")
    os.sync()

    def run(_: int) -> None:
        assert [one.outcome for one in host.scrub().images] == ["sound"]

    def openssl(of: str, prepare: Callable[[Path], None]) -> Contender:
        return Contender(
            name=f"openssl dgst, {of}",
            run=lambda _: command("openssl", "dgst", "-sha256", base.path),
            prepare=lambda _: prepare(base.path),
        )

    ours = Contender(name="Host.scrub, from the disk", run=run, prepare=lambda _: _forget(base.path))
    what = "the disk is read by both, holes by openssl only"
    yield Row(name=f"scrub, {name}", what=what, ours=ours, peer=openssl("from the disk", _forget), goal=_GOAL)
    if also_warm:
        warm = openssl("from memory", lambda path: command("cat", path))
        yield Row(name=f"scrub, {name}, over memory", what="a scrub reads the disk all the same", ours=ours, peer=warm)


def _forget(path: Path) -> None:
    """Have nothing of a file in memory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
