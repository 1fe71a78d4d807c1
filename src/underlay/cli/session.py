"""What the global options amount to: a host to work on, and an observer that tells on standard error how it goes."""

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from underlay import render
from underlay.host import Host
from underlay.model import Event, Level, Progress

_ORDER = (Level.DEBUG, Level.INFO, Level.WARNING)


@dataclass(frozen=True, slots=True)
class Session:
    """The global options of one command."""

    config: Path | None
    verbose: int
    log_format: str

    @contextmanager
    def host(self) -> Iterator[Host]:
        """The host; its events and progress go to standard error while the context lasts."""
        reporter = Reporter(threshold=self._threshold(), as_json=self.log_format == "json")
        try:
            yield Host.open(self.config, observer=reporter)
        finally:
            reporter.close()

    def _threshold(self) -> Level:
        # On a terminal the bars tell how it goes; a log wants the lines.
        level = _ORDER.index(Level.WARNING if sys.stderr.isatty() else Level.INFO)
        return _ORDER[max(0, level - self.verbose)]


@dataclass(slots=True)
class Reporter:
    """An observer that writes one structured line for each event, and shows progress."""

    threshold: Level
    as_json: bool
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _display: render.TerminalProgress | render.PlainProgress | None = None

    def event(self, event: Event) -> None:
        """Write the event's line, if it matters enough."""
        if _ORDER.index(event.level) < _ORDER.index(self.threshold):
            return
        now = render.utc_now()
        line = json.dumps(render.event_json(event, now=now)) if self.as_json else render.event_line(event, now=now)
        with self._lock:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def progress(self, progress: Progress) -> None:
        """Show the work's state."""
        with self._lock:
            if self._display is None:
                terminal = sys.stderr.isatty() and not self.as_json
                display = render.TerminalProgress(render.console(sys.stderr)) if terminal else render.PlainProgress(sys.stderr)
                self._display = display
            self._display.show(progress)

    def close(self) -> None:
        """Put the display away."""
        if self._display is not None:
            self._display.close()


def answer(payload: Mapping[str, Any]) -> None:
    """Print a command's answer for programs: one JSON object."""
    sys.stdout.write(json.dumps(payload) + "\n")


def show(*things: Any) -> None:
    """Print a command's answer for people."""
    target = render.console(sys.stdout)
    for thing in things:
        target.print(thing)
