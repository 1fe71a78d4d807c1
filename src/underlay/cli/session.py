"""What the global options amount to: a host to work on, and an observer that tells on standard error how it goes."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from underlay import render
from underlay.cli.output import silence
from underlay.config import for_command_line, load_config
from underlay.host import Host
from underlay.model import Event, Level, Progress

_ORDER = tuple(Level)


class Session(msgspec.Struct, frozen=True):
    """The global options of one command."""

    config: Path | None
    verbose: int
    log_format: str

    @contextmanager
    def host(self) -> Iterator[Host]:
        """The host; its events and progress go to standard error while the context lasts."""
        reporter = Reporter(threshold=self._threshold(), as_json=self.log_format == "json")
        try:
            yield Host.open(for_command_line(load_config(self.config)), observer=reporter)
        finally:
            reporter.close()

    def _threshold(self) -> Level:
        # On a terminal the bars tell how it goes; a log wants the lines.
        level = _ORDER.index(Level.WARNING if sys.stderr.isatty() else Level.INFO)
        return _ORDER[max(0, level - self.verbose)]


class Reporter(msgspec.Struct):
    """An observer that writes one structured line for each event, and shows progress, on standard error.

    When nobody reads standard error any more the work goes on, and what is to be told is dropped.
    """

    threshold: Level
    as_json: bool
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)
    _display: "render.Display | None" = None

    def event(self, event: Event) -> None:
        """Write the event's line, if it matters enough."""
        if _ORDER.index(event.level) < _ORDER.index(self.threshold):
            return
        now = render.utc_now()
        line = render.json_text(render.event_json(event, now=now)) if self.as_json else render.event_line(event, now=now)
        with self._lock, _while_heard():
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def progress(self, progress: Progress) -> None:
        """Show the work's state."""
        with self._lock, _while_heard():
            if self._display is None:
                self._display = self._choose_display()
            self._display.show(progress)

    def _choose_display(self) -> "render.Display":
        if self.as_json:
            return render.LineProgress(sys.stderr, render.progress_event)
        if sys.stderr.isatty():
            return render.TerminalProgress(render.console(sys.stderr))
        return render.LineProgress(sys.stderr, render.progress_line)

    def close(self) -> None:
        """Put the display away."""
        if self._display is not None:
            with _while_heard():
                self._display.close()


@contextmanager
def _while_heard() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        silence(sys.stderr)
