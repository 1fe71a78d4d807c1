"""What people and programs see: tables, trees and JSON of images, disks, caches and findings; progress on a terminal.

Everything printable is made here; only the command line prints it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from underlay.check import Finding
from underlay.model import BaseImage, Event, InstanceDisk, Level, Problem, Progress as WorkProgress
from underlay.units import format_duration, format_size

_PLAIN_WIDTH = 160  # columns of a table that goes into a file or a pipe
_SHORT_NAME = 12
_LEVELS = tuple(Level)
_STYLES: Mapping[Level, str] = {Level.INFO: "green", Level.WARNING: "yellow", Level.PROBLEM: "red", Level.DEBUG: "dim"}


def console(stream: IO[str]) -> Console:
    """A console on a stream: as wide as the terminal, or wide enough for a file."""
    return Console(file=stream, width=None if stream.isatty() else _PLAIN_WIDTH, highlight=False)


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
    """Enough of a name to tell it by, and to find it by: its beginning and its suffix."""
    stem, dot, suffix = name.partition(".")
    return name if len(stem) <= _SHORT_NAME else f"{stem[:_SHORT_NAME]}{dot}{suffix}"


def ago(moment: datetime, *, now: datetime) -> str:
    """How long ago something was."""
    return format_duration(max(0.0, (now - moment).total_seconds())) + " ago"


def image_table(images: Sequence[BaseImage], users: Mapping[str, int], *, now: datetime, wide: bool) -> RenderableType:
    """Images, one a row; ``users`` counts the disks made from each, by path."""
    if not images:
        return Text("No images.", style="dim")
    table = _table()
    for heading in ("NAME", "REF"):
        table.add_column(heading, no_wrap=True, overflow="fold" if wide else "ellipsis", ratio=1 if heading == "REF" else None)
    table.add_column("FORMAT", no_wrap=True)
    for heading in ("ON DISK", "VIRTUAL", "DISKS", "LAST USED"):
        table.add_column(heading, no_wrap=True, justify="right")
    for image in images:
        table.add_row(
            image.name if wide else short_name(image.name),
            image.ref or Text("unrecorded", style="yellow"),
            image.format,
            format_size(image.allocated),
            format_size(image.virtual_size),
            str(users.get(str(image.path), 0)),
            ago(image.last_used, now=now),
        )
    return table


def image_tree(image: BaseImage, disks: Sequence[InstanceDisk], *, now: datetime) -> RenderableType:
    """One image: what is known of it, and a branch for each disk that is made from it."""
    tree = Tree(Text(image.name, style="bold"))
    for heading, value in _facts(image, now=now):
        tree.add(Text.assemble((f"{heading:<13}", "dim"), value))
    branch = tree.add(Text(f"used by {len(disks)} disks" if disks else "used by no disk that is known"))
    for disk in disks:
        branch.add(Text(f"{disk.instance}/{disk.name}  {disk.backend}  {disk.path}"))
    return tree


def _facts(image: BaseImage, *, now: datetime) -> list[tuple[str, str]]:
    record = image.record
    facts = [
        ("path", str(image.path)),
        ("ref", record.ref if record else "unrecorded: it was not fetched by Underlay"),
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


def disk_table(disks: Sequence[InstanceDisk]) -> RenderableType:
    """Disks, one a row."""
    if not disks:
        return Text("No disks.", style="dim")
    table = _table()
    for heading in ("INSTANCE", "NAME", "BACKEND"):
        table.add_column(heading, no_wrap=True)
    for heading in ("SIZE", "ON DISK"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("BASE", no_wrap=True)
    table.add_column("PATH", overflow="fold")
    for disk in disks:
        table.add_row(
            disk.instance,
            disk.name,
            disk.backend,
            "?" if disk.size is None else format_size(disk.size),
            format_size(disk.allocated),
            short_name(disk.base) if disk.base else "-",
            str(disk.path),
        )
    return table


def usage_table(caches: Sequence[Mapping[str, Any]], disks: Mapping[str, Any]) -> RenderableType:
    """What each cache occupies, and what the disks do."""
    table = _table()
    table.add_column("WHAT", no_wrap=True)
    for heading in ("COUNT", "ON DISK", "INGESTS", "FREE"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("PATH", overflow="fold")
    for cache in caches:
        table.add_row(
            f"{cache['name']} ({cache['kind']})",
            str(cache["images"]),
            format_size(cache["allocated"]),
            format_size(cache["ingests"]),
            format_size(cache["free"]),
            cache["path"],
        )
    table.add_row("disks", str(disks["count"]), format_size(disks["allocated"]), "", "", disks["path"])
    return table


def findings_table(findings: Sequence[Finding]) -> RenderableType:
    """Findings, the weightiest last, where the eye is when the command ends."""
    table = _table()
    table.add_column("LEVEL", no_wrap=True)
    table.add_column("CODE", no_wrap=True)
    table.add_column("WHAT", overflow="fold", ratio=1)
    for finding in sorted(findings, key=lambda finding: _LEVELS.index(finding.level)):
        hint = f" ({finding.hint})" if finding.hint else ""
        level = Text(finding.level.value, style=_STYLES[finding.level])
        table.add_row(level, finding.code, f"{finding.path}: {finding.detail}{hint}")
    return table


def problem_text(problem: Problem) -> Text:
    """A problem in one line."""
    return Text.assemble(("problem ", "red"), f"{problem.code}: {problem.detail}")


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))


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
    text = str(value)
    return f'"{text}"' if any(character.isspace() for character in text) else text


@dataclass(slots=True)
class TerminalProgress:
    """Bars with stage, rate and time left, one for each ref, drawn on a terminal."""

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
            columns = (TextColumn("{task.description:<8}"), BarColumn(), DownloadColumn(binary_units=True))
            self._bars = Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=self.console)
            self._bars.start()
        return self._bars


_PLAIN_INTERVAL = 5.0  # seconds


@dataclass(slots=True)
class PlainProgress:
    """One line every few seconds, for logs and pipes; work that is over sooner says nothing."""

    stream: IO[str]
    _started: dict[tuple[str, str], float] = field(default_factory=dict)
    _next: float = field(default_factory=lambda: time.monotonic() + _PLAIN_INTERVAL)

    def show(self, progress: WorkProgress) -> None:
        """Write a line, unless one was written just now."""
        now = time.monotonic()
        begun = self._started.setdefault((progress.ref, progress.stage), now)
        if now < self._next:
            return
        self._next = now + _PLAIN_INTERVAL
        self.stream.write(progress_line(progress, seconds=now - begun) + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Nothing to put away."""


def progress_line(progress: WorkProgress, *, seconds: float) -> str:
    """Work's state in one line: stage, how much, rate, time left."""
    rate = progress.done / seconds if seconds > 0 else 0.0
    parts = [f"{progress.stage} {progress.ref}: {format_size(progress.done)}"]
    if progress.total:
        parts.append(f"of {format_size(progress.total)} ({100 * progress.done // progress.total} %)")
    if rate > 0:
        parts.append(f"at {format_size(int(rate))}/s")
        if progress.total:
            parts.append(f"{format_duration((progress.total - progress.done) / rate)} left")
    return " ".join(parts)


def utc_now() -> datetime:
    """Now, for ages and log lines."""
    return datetime.now(UTC)
