"""A hit delivered by hard link, in processes that run: durable and without a request, against Ironic's with its HEAD."""

import os
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from bench.components import clock, ironic
from bench.hosts import masters
from bench.images import write_small
from bench.measure import Contender, Row, Things
from bench.results import Goal
from bench.serving import serving
from bench.setting import Setting
from underlay import Host

_REPEAT = 20
_GOAL = Goal(seconds=1e-3, why="the design: a hit takes about a millisecond")


def deliveries(setting: Setting) -> Things:
    """Delivered where nothing is, where nothing ever was, and where the image is already."""
    directory = setting.directory
    image = write_small(directory / "served" / "small.img")
    host = Host.open(masters(directory / "deliver"))
    places = {side: directory / side for side in ("ours", "ironic", "bare")}
    for place in places.values():
        place.mkdir()
    numbers = count()
    with serving(image.parent) as base, ironic() as runner:
        url = f"{base}/{image.name}"

        def deliver(name: str, come: str) -> None:
            delivered = host.deliver(url, places["ours"] / name)
            assert ("hit", come) == (delivered.came and delivered.came.code, delivered.reason.code)

        def fetch(name: str) -> None:
            target = os.fspath(places["ironic"] / name)
            runner.ask(do="fetch", masters=os.fspath(directory / "theirs"), href=url, path=target)

        def ours(run: Callable[[int], object]) -> Contender:
            return Contender(name="Host.deliver (durable)", run=run, prepare=partial(_empty, places["ours"]), repeat=_REPEAT)

        def theirs(run: Callable[[int], object]) -> Contender:
            prepare = partial(_empty, places["ironic"])
            return Contender(name="ironic 39.0.0, fetch_image", run=run, prepare=prepare, repeat=_REPEAT, clock=clock(runner))

        host.deliver(url, places["ours"] / "there")
        fetch("there")
        again = ours(lambda turn: deliver(f"{turn % _REPEAT}", "linked"))
        fetched = theirs(lambda turn: fetch(f"{turn % _REPEAT}"))
        yield Row(name="deliver, a hit", what="at a path of before", ours=again, peer=fetched, goal=_GOAL)
        yield Row(
            name="deliver, at a path never used",
            what="at a path that nothing was ever delivered to; a lock file is made",
            ours=ours(lambda _: deliver(f"new-{next(numbers)}", "linked")),
            peer=fetched,
            goal=_GOAL,
        )
        yield Row(
            name="deliver, there already",
            what="at a path that has the image already",
            ours=ours(lambda _: deliver("there", "delivered")),
            peer=theirs(lambda _: fetch("there")),
            goal=_GOAL,
        )
        yield Row(
            name="deliver, over the disk's part",
            what="at a path of before, and the bare system calls of a durable link",
            ours=again,
            peer=Contender(name="link, rename, fsync", run=_linker(places["bare"]), repeat=_REPEAT),
        )


def _empty(directory: Path, _: int) -> None:
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
