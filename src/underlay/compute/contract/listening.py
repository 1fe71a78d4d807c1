"""How a driver tells its compute service that something happened."""

import logging
from collections.abc import Callable
from typing import Any

from underlay.compute.events import Event

_LOG = logging.getLogger(__name__)


class Listening:
    """One listener, which hears each event in the thread that tells of it."""

    _compute_event_callback: Callable[[Event], Any] | None = None

    def register_event_listener(self, callback: Callable[[Event], Any] | None) -> None:
        """Say who hears events from now on, in place of who did; None: nobody."""
        self._compute_event_callback = callback

    def emit_event(self, event: Event) -> None:
        """Tell the listener, and wait until it has heard. What goes wrong there is logged and ends here.

        Raises:
            ValueError: this is no event.
        """
        callback = self._compute_event_callback
        if callback is None:
            _LOG.debug("nobody hears the event %s", event)
            return
        if not isinstance(event, Event):
            raise ValueError(f"{event!r} is no event")
        _LOG.debug("emitting the event %s", event)
        try:
            callback(event)
        except Exception as error:  # noqa: BLE001 - the listener is not ours, and the hypervisor's events must go on
            _LOG.error("the listener failed at the event %s: %s", event, error)
