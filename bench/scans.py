"""All masters of a cache looked at: process to process, and the listing alone over the least that Python can do."""

import os
import sys
from pathlib import Path

from bench.measure import Contender, Row, Things, process
from bench.results import Goal
from bench.setting import Setting
from bench.tree import build_masters
from underlay.naming import CacheKind
from underlay.store import Store, listing

_MASTERS = 100_000
GOAL = Goal(wall=1.3, why="a Python process with the same system calls takes as long as find")
# What `find` is asked to tell, by our own listing: of every master that nobody has, its name, its size and its last use.
_SCAN = """
import sys
from pathlib import Path
from underlay.naming import CacheKind
from underlay.store import Store, listing

files = listing.files(Store(root=Path(sys.argv[1]), kind=CacheKind.MASTERS))
print("\\n".join([f"{file.name} {file.size} {file.used_ns}" for file in files if file.links == 1]))
"""


def scans(setting: Setting) -> Things:
    """Masters as Ironic leaves them, and with our markers."""
    bare = build_masters(setting.directory / "bare", files=_MASTERS, marked=False)
    ours, peer = scanning(bare)
    yield Row(name="scan, 100k masters", what="masters as Ironic leaves them", ours=ours, peer=peer, goal=GOAL)
    yield _in_process(bare)
    ours, peer = scanning(build_masters(setting.directory / "marked", files=_MASTERS, marked=True))
    what = "masters with a marker each in `.underlay/used`, which `find` looks at as well"
    yield Row(name="scan, 100k masters, marked", what=what, ours=ours, peer=peer, goal=GOAL)


def scanning(root: Path) -> tuple[Contender, Contender]:
    """Ours and ``find``, both from start to end."""
    find = ("find", root, "-links", "1", "-printf", "%f %s %T@\n")
    return process("listing, a line each", sys.executable, "-c", _SCAN, root), process("find -links 1 -printf", *find)


def _in_process(root: Path) -> Row:
    store = Store(root=root, kind=CacheKind.MASTERS)

    def peer(_: int) -> None:
        directory = os.open(root, os.O_RDONLY)
        for name in os.listdir(directory):
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        os.close(directory)

    return Row(
        name="scan, in process",
        what="the listing alone, in a process that runs, and the least that Python can do",
        ours=Contender(name="store.listing.files", run=lambda _: len(listing.files(store))),
        peer=Contender(name="listdir, stat each", run=peer),
    )
