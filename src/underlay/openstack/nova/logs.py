"""What the core tells while it works for Nova, in Nova's log."""

import logging

from underlay.model import Event, Level, Progress

_LEVELS = {
    Level.DEBUG: logging.DEBUG,
    Level.INFO: logging.DEBUG,  # each step of a fetch
    Level.WARNING: logging.WARNING,
    Level.PROBLEM: logging.ERROR,
}


class Logged:
    """An observer that logs."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def event(self, event: Event) -> None:
        """Log it."""
        fields = " ".join(f"{name}={value}" for name, value in event.fields.items())
        self._log.log(_LEVELS[event.level], "%s (%s): %s", event.code, fields, event.detail or "done")

    def progress(self, progress: Progress) -> None:
        """Let it pass."""
