"""Events of libvirt's domains, told to the compute service.

libvirt calls from its event loop, which must not wait: a service that hears an event asks back, and a daemon that is not
answered hangs up. So one thread takes what libvirt calls, and another tells it.
"""

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any

from underlay.compute import events
from underlay.compute.errors import ComputeError
from underlay.compute.events import LifecycleEvent
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.probename import is_probe

_LOG = logging.getLogger(__name__)
_PATIENCE = 10.0  # seconds that the thread has to end

# libvirt's virDomainEventType. What it calls suspended is a guest whose CPUs stand; 7 is one that suspended itself.
_TRANSITIONS = MappingProxyType(
    {
        2: events.EVENT_LIFECYCLE_STARTED,
        3: events.EVENT_LIFECYCLE_PAUSED,
        4: events.EVENT_LIFECYCLE_RESUMED,
        5: events.EVENT_LIFECYCLE_STOPPED,
        7: events.EVENT_LIFECYCLE_SUSPENDED,
    }
)
# What it says besides, its details: why a guest was suspended, or stopped. One that stands still for a migration is not paused;
# it has gone, or goes on in a moment.
_BY_DETAIL = MappingProxyType(
    {
        (3, 1): None,
        (3, 7): events.EVENT_LIFECYCLE_POSTCOPY_STARTED,
        (5, 3): events.EVENT_LIFECYCLE_MIGRATION_COMPLETED,
        (5, 4): events.EVENT_LIFECYCLE_SUSPENDED,
    }
)


class LifecycleEvents:
    """What is heard of domains, in the order in which it was.

    A guest that stopped and runs again by the time it is told has not stopped: a reboot does that. One whose reboot fails has.

    Args:
        tell: called with each event, in a thread of this one's own.
        is_active: whether a domain runs, by its UUID.
    """

    def __init__(self, *, tell: Callable[[LifecycleEvent], None], is_active: Callable[[str], bool]) -> None:
        self._tell = tell
        self._is_active = is_active
        self._heard: queue.SimpleQueue[LifecycleEvent | None] = queue.SimpleQueue()
        self._held: dict[str, LifecycleEvent | None] = {}  # being rebooted, and that they stopped
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Tell from now on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="underlay-libvirt-teller", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Tell what has been heard, and no more."""
        if self._thread is not None:
            self._heard.put(None)
            self._thread.join(_PATIENCE)
            self._thread = None

    def listen(self, handle: Any) -> Callable[[], None]:
        """Hear of all domains of a connection; what is returned ends that, and has to, before the connection can be closed."""
        number = handle.domainEventRegisterAny(None, library().VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._hear, None)
        return partial(handle.domainEventDeregisterAny, number)

    def hold(self, uuid: str) -> None:
        """A guest is being rebooted: that it stops is not told until that is done."""
        with self._lock:
            self._held[uuid] = None

    def release(self, uuid: str) -> None:
        """It has been, or that failed, which a guest that is still off shows."""
        with self._lock:
            stopped = self._held.pop(uuid, None)
        if stopped is not None:
            self._heard.put(stopped)

    def _hear(self, _handle: Any, domain: Any, event: int, detail: int, _nothing: object) -> None:
        transition = _BY_DETAIL.get((event, detail), _TRANSITIONS.get(event))
        if transition is not None and not is_probe(domain):
            self._heard.put(LifecycleEvent(domain.UUIDString(), transition))

    def _run(self) -> None:
        while (event := self._heard.get()) is not None:
            try:
                if event.transition != events.EVENT_LIFECYCLE_STOPPED or self._has_stopped(event):
                    self._tell(event)
            except Exception:  # noqa: BLE001 - the last door of this thread: whatever one event meets, the next one is told
                _LOG.exception("of the instance %s it could not be told: %s", event.uuid, event.get_name())

    def _has_stopped(self, event: LifecycleEvent) -> bool:
        with self._lock:
            if event.uuid in self._held:
                self._held[event.uuid] = event
                return False
        try:
            return not self._is_active(event.uuid)
        except ComputeError:  # gone with its domain, or nobody can say otherwise
            return True
