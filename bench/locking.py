"""One uncontended cycle of a lock against the least that a lock file can cost."""

import fcntl
import os

from bench.measure import Contender, Row, Things
from bench.results import Goal
from bench.setting import Setting
from underlay.locks import exclusive

_CYCLES = 2000


def locking(setting: Setting) -> Things:
    """One row."""
    path = setting.directory / "lock"

    def ours(_: int) -> None:
        with exclusive(path, timeout=1):
            pass

    def peer(_: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)

    yield Row(
        name="lock, one cycle",
        what="take a lock and let it go; ours looks whether the file is still the same, too",
        ours=Contender(name="locks.exclusive", run=ours, repeat=_CYCLES),
        peer=Contender(name="open, flock, close", run=peer, repeat=_CYCLES),
        goal=Goal(seconds=15e-6, why="the design: a lock must not be seen beside a disk's creation"),
    )
