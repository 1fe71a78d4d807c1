"""libvirt's own event loop, in a thread: without it no event comes, and a daemon takes us for dead.

libvirt has one loop in a process, which any number of threads may run; each driver has a thread of its own, from its
`init_host` to its `cleanup_host`.
"""

import threading
from typing import Any

from underlay.compute.libvirt.library import library

_TICK = 250  # milliseconds after which the loop looks whether it is to end
_PATIENCE = 10.0  # seconds that it has for that


class EventLoop:
    """The thread. It does not keep a process from ending."""

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer: Any = None

    def start(self) -> None:
        """Run the loop; to be called before a connection is opened."""
        if self._thread is not None:
            return
        libvirt = library()
        libvirt.virEventRegisterDefaultImpl()  # a second time it does nothing
        self._ends.clear()
        self._timer = libvirt.virEventAddTimeout(_TICK, _tick, None)
        self._thread = threading.Thread(target=self._run, args=(libvirt,), name="underlay-libvirt-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Run it no more."""
        if self._thread is None:
            return
        self._ends.set()
        self._thread.join(_PATIENCE)
        library().virEventRemoveTimeout(self._timer)
        self._thread = self._timer = None

    def _run(self, libvirt: Any) -> None:
        while not self._ends.is_set():
            libvirt.virEventRunDefaultImpl()


def _tick(_timer: int, _nothing: object) -> None:
    """Nothing is to be done; the loop comes round."""
