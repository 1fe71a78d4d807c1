"""What takes no more than a line: sentences, names and ages, events, and progress where there is no terminal."""

import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from underlay.model import Attachment, Event, InstanceDisk, Lease, Level, Progress as WorkProgress
from underlay.naming import printable
from underlay.render.answers import json_text
from underlay.units import format_duration, format_size

_LONG_NAME = re.compile(r"([0-9a-f]{12})[0-9a-f]{28}(.*)|([0-9a-f]{8}-[0-9a-f]{3})[0-9a-f-]{24}(.*)")


# -------------------------------------------------------------------------------------------------------------- sentences


def short_name(name: str) -> str:
    """Enough of a name to tell it by, and to find it by: its beginning and what follows its digits."""
    match = _LONG_NAME.fullmatch(name)
    return "".join(part for part in match.groups() if part) if match else name


def ago(moment: datetime, *, now: datetime) -> str:
    """How long ago something was."""
    return format_duration(max(0.0, (now - moment).total_seconds())) + " ago"


def utc_now() -> datetime:
    """Now, for ages and log lines."""
    return datetime.now(UTC)


def disk_line(disk: InstanceDisk) -> str:
    """One disk in a sentence."""
    size = "an unknown size" if disk.size is None else format_size(disk.size)
    base = f" made from {disk.base}" if disk.base else ""
    text = f"{disk.path} ({disk.format or 'unrecorded'}, {size}, {format_size(disk.allocated)} on disk){base}"
    return printable(text)


def attachment_line(attachment: Attachment) -> str:
    """How a hypervisor is to open a disk, as ``key=value`` pairs; what is its own choice is left out."""
    pairs = {
        "type": attachment.type,
        "source": attachment.source,
        "protocol": attachment.protocol,
        "servers": ",".join(f"{host}:{port}" for host, port in attachment.servers) or None,
        "user": attachment.user,
        "secret": attachment.secret,
        "format": attachment.format,
        "cache": attachment.cache,
        "io": attachment.io,
        "discard": attachment.discard,
    }
    return printable(" ".join(f"{key}={value}" for key, value in pairs.items() if value is not None))


def released_text(leases: Sequence[tuple[Path, Lease]]) -> str:
    """What was let go of, in a sentence."""
    told = "; ".join(f"{lease.id} of {lease.holder}: {', '.join(lease.names)}" for _, lease in leases)
    return printable(f"released {told}")


# -------------------------------------------------------------------------------------------------------- events and progress


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


_LINE_INTERVAL = 5.0  # seconds


class LineProgress(msgspec.Struct):
    """One line every few seconds, for logs and pipes; work that is over sooner says nothing.

    Attributes:
        line: makes the line of a state, given the bytes a second since its stage began.
    """

    stream: IO[str]
    line: Callable[[WorkProgress, float], str]
    _started: dict[tuple[str, str], tuple[float, int]] = msgspec.field(default_factory=dict)
    _next: float = msgspec.field(default_factory=lambda: time.monotonic() + _LINE_INTERVAL)

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
