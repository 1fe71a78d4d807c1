"""What people and programs see: tables, trees and JSON of images, disks, caches and findings; progress on a terminal.

Everything printable is made here; only the command line prints it.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any, Protocol

from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from underlay.check import Finding
from underlay.model import BaseImage, Event, InstanceDisk, Level, Problem, Progress as WorkProgress
from underlay.units import format_duration, format_size

_PLAIN_WIDTH = 10_000  # columns where nothing is folded or shortened: in a file, in a pipe, or as asked for
_LONG_NAME = re.compile(r"([0-9a-f]{12})[0-9a-f]{28}(.*)|([0-9a-f]{8}-[0-9a-f]{3})[0-9a-f-]{24}(.*)")
_LEAST = 12  # columns of a shortened cell
_LEVELS = tuple(Level)
_STYLES: Mapping[Level, str] = {Level.INFO: "green", Level.WARNING: "yellow", Level.PROBLEM: "red", Level.DEBUG: "dim"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to who prints: rich would end the program here."""
        raise


def console(stream: IO[str], *, wide: bool = False) -> Console:
    """A console on a stream: as wide as the terminal, or as any line. Brackets in a name or a ref are no markup."""
    width = None if stream.isatty() and not wide else _PLAIN_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


# --------------------------------------------------------------------------------------------------------------------- JSON


def image_json(image: BaseImage, disks: Sequence[InstanceDisk]) -> dict[str, Any]:
    """An image for programs; ``disks`` are those that are made from it."""
    record = image.record
    return {
        "name": image.name,
        "path": str(image.path),
        "cache": str(image.cache),
        "recorded": record is not None,
        "ref": record.ref if record else None,
        "version_id": record.version_id if record else None,
        "format": image.format,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "allocated": image.allocated,
        "digests": list(record.digests) if record else [],
        "stored_digest": record.stored if record else None,
        "fetched_at": record.fetched_at.isoformat() if record else None,
        "last_used": image.last_used.isoformat(timespec="seconds"),
        "disks": [str(disk.path) for disk in disks],
    }


def disk_json(disk: InstanceDisk) -> dict[str, Any]:
    """A disk for programs."""
    return {
        "instance": disk.instance,
        "name": disk.name,
        "path": str(disk.path),
        "backend": disk.backend,
        "format": disk.format,
        "size": disk.size,
        "allocated": disk.allocated,
        "base": disk.base,
        "base_path": str(disk.base_path) if disk.base_path else None,
    }


def problem_json(problem: Problem) -> dict[str, Any]:
    """A problem for programs."""
    return {"code": problem.code, "path": str(problem.path), "detail": problem.detail}


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {
        "code": finding.code,
        "level": finding.level.value,
        "path": str(finding.path),
        "detail": finding.detail,
        "hint": finding.hint,
    }


# ------------------------------------------------------------------------------------------------------------------- tables


def short_name(name: str) -> str:
    """Enough of a name to tell it by, and to find it by: its beginning and what follows its digits."""
    match = _LONG_NAME.fullmatch(name)
    return "".join(part for part in match.groups() if part) if match else name


def ago(moment: datetime, *, now: datetime) -> str:
    """How long ago something was."""
    return format_duration(max(0.0, (now - moment).total_seconds())) + " ago"


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A cell of one line: what does not fit is left out at the end that says less."""

    text: str
    keep_end: bool = False
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, room = self.text, options.max_width
        if len(text) > room:
            text = "…" + text[len(text) - room + 1 :] if self.keep_end else text[: room - 1] + "…"
        yield Text(text, style=self.style, no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_LEAST, len(self.text)), len(self.text))


def image_table(images: Sequence[BaseImage], users: Mapping[str, int], *, now: datetime, wide: bool) -> RenderableType:
    """Images, one a row; ``users`` counts the disks made from each, by path. Wide: with whole names."""
    if not images:
        return Text("No images.", style="dim")
    table = _table("NAME", "REF", "FORMAT", numbers=("ON DISK", "VIRTUAL", "DISKS", "LAST USED"), flexible=("REF",))
    for image in images:
        table.add_row(
            image.name if wide else short_name(image.name),
            _Fitted(image.ref, keep_end=True) if image.ref else Text("unrecorded", style="yellow"),
            image.format,
            format_size(image.allocated),
            format_size(image.virtual_size),
            str(users.get(str(image.path), 0)),
            ago(image.last_used, now=now),
        )
    return table


def image_tree(image: BaseImage, disks: Sequence[InstanceDisk], *, now: datetime) -> RenderableType:
    """One image: what is known of it, and a branch for each disk that is made from it."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for heading, value in _facts(image, now=now):
        facts.add_row(heading, value)
    users = Tree(Text(_used_by(len(disks))))
    for disk in disks:
        users.add(Text(f"{disk.instance}/{disk.name} ({disk.backend}) {disk.path}", overflow="fold"))
    return Group(Text(image.name, style="bold"), facts, users)


def _used_by(number: int) -> str:
    if number == 0:
        return "used by no disk that is known"
    return f"used by {number} disk{'s' if number > 1 else ''}"


def _facts(image: BaseImage, *, now: datetime) -> list[tuple[str, str]]:
    record = image.record
    facts = [
        ("path", str(image.path)),
        ("ref", record.ref if record else "unrecorded: it was not fetched by Underlay, or its file system keeps no attributes"),
        ("format", image.format),
        ("size", f"{format_size(image.allocated)} on disk, {format_size(image.virtual_size)} virtual"),
    ]
    if record:
        facts += [
            ("version", record.version_id),
            *(("digest", digest) for digest in record.digests),
            ("fetched", f"{record.fetched_at:%Y-%m-%d %H:%M:%S} UTC ({ago(record.fetched_at, now=now)})"),
        ]
    return [*facts, ("last used", ago(image.last_used, now=now))]


def disk_table(disks: Sequence[InstanceDisk], *, wide: bool) -> RenderableType:
    """Disks, one a row; one that lies outside its instance's directory is called by its path. Wide: with whole names."""
    if not disks:
        return Text("No disks.", style="dim")
    table = _table("INSTANCE", "NAME", "BACKEND", numbers=("SIZE", "ON DISK"), last=("BASE",), flexible=("NAME", "BASE"))
    for disk in disks:
        elsewhere = (disk.path.parent.name, disk.path.name) != (disk.instance, disk.name)
        base = disk.base or "-"
        table.add_row(
            disk.instance,
            _Fitted(str(disk.path) if elsewhere or wide else disk.name, keep_end=True),
            disk.backend,
            "?" if disk.size is None else format_size(disk.size),
            format_size(disk.allocated),
            _Fitted(base if wide else short_name(base)),
        )
    return table


def disk_line(disk: InstanceDisk) -> Text:
    """One disk in a sentence."""
    size = "an unknown size" if disk.size is None else format_size(disk.size)
    base = f" made from {disk.base}" if disk.base else ""
    text = f"{disk.path} ({disk.format or 'unrecorded'}, {size}, {format_size(disk.allocated)} on disk){base}"
    return Text(text)


def usage_table(caches: Sequence[Mapping[str, Any]], disks: Mapping[str, Any]) -> RenderableType:
    """What each cache occupies, and what the disks do."""
    table = _table("WHAT", numbers=("COUNT", "ON DISK", "INGESTS", "FREE"), last=("PATH",), flexible=("PATH",))
    for cache in caches:
        table.add_row(
            f"{cache['name']} ({cache['kind']})",
            str(cache["images"]),
            format_size(cache["allocated"]),
            "?" if cache["ingests"] is None else format_size(cache["ingests"]),
            format_size(cache["free"]),
            cache["path"],
        )
    table.add_row("disks", str(disks["count"]), format_size(disks["allocated"]), "", "", disks["path"])
    return table


def findings_table(findings: Sequence[Finding]) -> RenderableType:
    """Findings, the weightiest last, where the eye is when the command ends."""
    table = _table("LEVEL", "CODE", "WHAT", flexible=("WHAT",))
    for finding in sorted(findings, key=lambda finding: _LEVELS.index(finding.level)):
        hint = f" ({finding.hint})" if finding.hint else ""
        level = Text(finding.level.value, style=_STYLES[finding.level])
        where = "" if str(finding.path) in finding.detail else f"{finding.path}: "
        table.add_row(level, finding.code, f"{where}{finding.detail}{hint}")
    return table


def problem_text(problem: Problem) -> Text:
    """A problem in one line."""
    return Text.assemble(("problem ", "red"), f"{problem.code}: {problem.detail}")


def _table(*words: str, numbers: Sequence[str] = (), last: Sequence[str] = (), flexible: Sequence[str]) -> Table:
    """A table without lines; what is not flexible is never shortened."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in (*words, *numbers, *last):
        justify: JustifyMethod = "right" if heading in numbers else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in flexible, overflow="fold")
    return table


# --------------------------------------------------------------------------------------------------------- events and progress


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
    return json.dumps(event_json(event, now=utc_now()))


def utc_now() -> datetime:
    """Now, for ages and log lines."""
    return datetime.now(UTC)
