"""One open connection of libvirt, which several may use at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from underlay.compute.libvirt.library import library


class Line:
    """A handle (virConnect), closed once it is given up and nobody uses it: libvirt would free it under whoever still asks.

    Args:
        let_go: called when it is given up, before it is closed.
    """

    def __init__(self, handle: Any, *, let_go: Callable[[], object]) -> None:
        self.handle = handle
        self._let_go = let_go
        self._lock = threading.Lock()
        self._users = 1  # its owner

    @property
    def is_alive(self) -> bool:
        """Whether libvirt is at the other end, as far as anybody knows."""
        try:
            return bool(self.handle.isAlive())
        except library().libvirtError:
            return False

    def take(self) -> None:
        """Be one more user, who is to leave it with `leave`. Its owner has not given it up meanwhile."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Use it no more. The last one closes it, and may wait for libvirt for ever."""
        with self._lock:
            self._users -= 1
            is_last = not self._users
        if is_last:
            with _whatever_libvirt_says():
                self.handle.close()

    def give_up(self) -> None:
        """Its owner uses it no more, and may wait for libvirt for ever as well."""
        with _whatever_libvirt_says():
            self._let_go()
        self.leave()


@contextmanager
def _whatever_libvirt_says() -> Iterator[None]:
    """It is gone already, or does not have to know."""
    with suppress(library().libvirtError):
        yield
