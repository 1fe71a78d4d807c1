"""libvirt's own event loop, in a thread: without it no event comes, and a daemon takes us for dead.

libvirt has one loop in a process, which any number of threads may run; each driver has a thread of its own, from its
`init_host` to its `cleanup_host`.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from underlay.compute.libvirt.library import library

_LOG = logging.getLogger(__name__)
_TICK = 250  # milliseconds after which the loop looks whether it is to end
_LAST_TICK = 10  # the same, once it is to end
_LAST_TURNS = 3  # in which it closes what was let go of just now, and a tick may come between
_PATIENCE = 10.0  # seconds that it has to end


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
        turn = libvirt.virEventRunDefaultImpl
        self._thread = threading.Thread(target=turn_until, args=(self._ends, turn), name="underlay-libvirt-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Run it no more. Connections are closed before that: libvirt's loop closes their sockets."""
        if self._thread is None:
            return
        self._ends.set()
        libvirt = library()
        libvirt.virEventUpdateTimeout(self._timer, _LAST_TICK)
        self._thread.join(_PATIENCE)
        libvirt.virEventRemoveTimeout(self._timer)
        self._thread = self._timer = None


def turn_until(ends: threading.Event, turn: Callable[[], object]) -> None:
    """Turn a loop until it is to end, and a few times more. A turn that fails is logged, and the next comes after a moment."""
    libvirt, left = library(), _LAST_TURNS
    while left:
        left -= ends.is_set()
        try:
            turn()
        except libvirt.libvirtError as error:
            _LOG.warning("libvirt's event loop fails, and is tried again: %s", error)
            time.sleep(_LAST_TICK / 1000)


def _tick(_timer: int, _nothing: object) -> None:
    """Nothing is to be done; the loop comes round."""
