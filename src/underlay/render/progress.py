"""Events as lines and as JSON, and progress: bars on a terminal, a line every few seconds elsewhere."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from underlay.model import Event, Level, Progress as WorkProgress
from underlay.render.tables import json_text, utc_now
from underlay.units import format_duration, format_size


def event_line(event: Event, *, now: datetime) -> str:
    """An event as one structured line: time, level, code, then ``key=value`` pairs."""
    pairs = [("detail", event.detail or None), *event.fields.items()]
    fields = " ".join(f"{key}={_quoted(value)}" for key, value in pairs if value is not None)
    return f"{now:%Y-%m-%dT%H:%M:%SZ} {event.level} {event.code} {fields}".rstrip()


def event_json(event: Event, *, now: datetime) -> dict[str, Any]:
    """An event for programs."""
    time_text = now.isoformat(timespec="milliseconds")
    return {"time": time_text, "level": event.level.value, "event": event.code, "detail": event.detail, **event.fields}


def _quoted(value: object) -> str:
    """A value that is one word as it is, any other as a JSON text: one line, whatever is in it."""
    text = str(value)
    is_word = text.isprintable() and not any(character in ' "=' for character in text)
    return text if is_word and text else json.dumps(text, ensure_ascii=not text.isprintable())


class Display(Protocol):
    """Shows how long work goes on."""

    def show(self, progress: WorkProgress) -> None:
        """Show the work's state."""
        ...

    def close(self) -> None:
        """Leave the terminal or the log as it is."""
        ...


@dataclass(slots=True)
class TerminalProgress:
    """Bars with stage, rate and time left, one for each stage of each ref, drawn on a terminal."""

    console: Console
    _bars: Progress | None = None
    _tasks: dict[tuple[str, str], TaskID] = field(default_factory=dict)

    def show(self, progress: WorkProgress) -> None:
        """Draw the work's state."""
        bars = self._started()
        key = (progress.ref, progress.stage)
        if key not in self._tasks:
            self._tasks[key] = bars.add_task(progress.stage, total=progress.total)
        bars.update(self._tasks[key], completed=progress.done, total=progress.total)

    def close(self) -> None:
        """Leave the terminal as it is, the bars at their last state."""
        if self._bars is not None:
            self._bars.stop()

    def _started(self) -> Progress:
        if self._bars is None:
            stage = TextColumn("{task.description:<8}", markup=False)
            self._bars = Progress(stage, BarColumn(bar_width=20), _Amount(), _Rate(), _TimeLeft(), console=self.console)
            self._bars.start()
        return self._bars


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = f" of {format_size(int(task.total))}" if task.total else ""
        return Text(f"{format_size(int(task.completed))}{total}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{format_size(int(speed))}/s" if speed else "")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{format_duration(left)} left")


_LINE_INTERVAL = 5.0  # seconds


@dataclass(slots=True)
class LineProgress:
    """One line every few seconds, for logs and pipes; work that is over sooner says nothing.

    Attributes:
        line: makes the line of a state, given the bytes a second since its stage began.
    """

    stream: IO[str]
    line: Callable[[WorkProgress, float], str]
    _started: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    _next: float = field(default_factory=lambda: time.monotonic() + _LINE_INTERVAL)

    def show(self, progress: WorkProgress) -> None:
        """Write a line, unless one was written just now."""
        now = time.monotonic()
        begun, done_then = self._started.setdefault((progress.ref, progress.stage), (now, progress.done))
        if now < self._next:
            return
        self._next = now + _LINE_INTERVAL
        rate = max(0, progress.done - done_then) / (now - begun) if now > begun else 0.0
        self.stream.write(self.line(progress, rate) + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Nothing to put away."""


def progress_line(progress: WorkProgress, rate: float) -> str:
    """Work's state in one line: stage, how much, rate (bytes a second), time left."""
    parts = [f"{progress.stage} {progress.ref}: {format_size(progress.done)}"]
    if progress.total:
        parts.append(f"of {format_size(progress.total)} ({100 * progress.done // progress.total} %)")
    if rate > 0:
        parts.append(f"at {format_size(int(rate))}/s")
        if progress.total:
            parts.append(f"{format_duration(max(0.0, progress.total - progress.done) / rate)} left")
    return " ".join(parts)


def progress_event(progress: WorkProgress, rate: float) -> str:
    """Work's state as a line of a JSON log."""
    amounts = {"done": progress.done, "total": progress.total, "rate": int(rate)}
    event = Event(
        code="progress", level=Level.INFO, detail="", fields={"ref": progress.ref, "stage": progress.stage, **amounts}
    )
    return json_text(event_json(event, now=utc_now()))
