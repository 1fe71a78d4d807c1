"""What is made once and kept: by a key, by the first thread that wants it, in each process anew.

What is kept here holds connections, tokens and locks, which a forked child must not share with its parent: two processes that
write into one TLS connection break it, and a lock that another thread held at the fork is never let go of in the child.
"""

import os
import threading
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
FileStamp = tuple[tuple[int, int, int, int] | None, ...]
"""What changes when one of several files does, comes or goes."""


class _Box(Generic[Value]):
    """What one process keeps."""

    __slots__ = ("lock", "process", "values")

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.values: dict[Hashable, Value] = {}


class Once(Generic[Value]):
    """Values by their keys. Safe to share between threads, and across forks.

    Any two are equal: what is kept already makes no two owners different.
    """

    __slots__ = ("_box",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self._box: _Box[Value] = _Box()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Once)

    def get(self, key: Hashable, make: Callable[[], Value], *, holds: Callable[[Value], bool] = lambda _: True) -> Value:
        """The value; made while the others wait, when there is none or the one that is there does not hold any more.

        Raises:
            what ``make`` raises; then nothing is kept.
        """
        box = self._of_this_process()
        with box.lock:
            if key not in box.values or not holds(box.values[key]):
                box.values.pop(key, None)
                box.values[key] = make()
            return box.values[key]

    def drop(self, key: Hashable, value: Value) -> None:
        """Forget a value, unless another one took its place already."""
        box = self._of_this_process()
        with box.lock:
            if box.values.get(key) is value:
                del box.values[key]

    def _of_this_process(self) -> _Box[Value]:
        # A child's threads that come here at once may begin with a box each: then what is in all but the last is made again.
        if self._box.process != os.getpid():
            self._box = _Box()
        return self._box


def file_stamp(paths: Iterable[Path]) -> FileStamp:
    """What tells whether any of these files has changed."""
    return tuple(map(_identity, paths))


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:  # whoever reads it says what is wrong
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
