"""Images, disks, leases, findings and problems for people: tables and trees."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from underlay.model import BaseImage, InstanceDisk, Lease, Level, Problem
from underlay.naming import printable
from underlay.render.lines import ago, short_name
from underlay.render.tables import Fitted, facts_table, table
from underlay.units import format_duration, format_size

if TYPE_CHECKING:
    from underlay.check import Finding
    from underlay.contracts import BackendTraits

_LEVELS = tuple(Level)
_STYLES: Mapping[Level, str] = {Level.INFO: "green", Level.WARNING: "yellow", Level.PROBLEM: "red", Level.DEBUG: "dim"}


def image_table(images: Sequence[BaseImage], users: Mapping[str, int], *, now: datetime, wide: bool) -> RenderableType:
    """Images, one a row; ``users`` counts the disks made from each and its leases, by path. Wide: with whole names."""
    if not images:
        return Text("No images.", style="dim")
    made = table("NAME", "REF", "FORMAT", numbers=("ON DISK", "VIRTUAL", "USERS", "LAST USED"), flexible=("REF",))
    for image in images:
        made.add_row(
            image.name if wide else short_name(image.name),
            Fitted(image.ref, keep_end=True) if image.ref else Text("unrecorded", style="yellow"),
            image.format,
            format_size(image.allocated),
            format_size(image.virtual_size),
            str(users.get(str(image.path), 0)),
            ago(image.last_used, now=now),
        )
    return made


def image_tree(
    image: BaseImage, disks: Sequence[InstanceDisk], leases: Sequence[Lease] = (), *, now: datetime
) -> RenderableType:
    """One image: what is known of it, a branch for each disk that is made from it, and one for each lease and pin."""
    users = Tree(Text(_used_by(len(disks), len(leases))))
    for disk in disks:
        users.add(Text(printable(f"{disk.instance}/{disk.name} ({disk.backend}) {disk.path}"), overflow="fold"))
    for lease in leases:
        users.add(Text(f"{_held(lease, now=now)} by {lease.holder} ({lease.id})", overflow="fold"))
    return Group(Text(image.name, style="bold"), facts_table(_facts(image, now=now)), users)


def _used_by(disks: int, leases: int) -> str:
    told = [f"{number} {noun}{'s' if number > 1 else ''}" for number, noun in ((disks, "disk"), (leases, "lease")) if number]
    return f"used by {' and '.join(told)}" if told else "used by no disk that is known"


def _held(lease: Lease, *, now: datetime) -> str:
    if lease.expires is None:
        return "pinned"
    left = (lease.expires - now).total_seconds()
    return f"leased for another {format_duration(left)}" if left > 0 else f"was leased until {ago(lease.expires, now=now)}"


def lease_table(leases: Sequence[tuple[Path, Lease]], *, now: datetime, wide: bool) -> RenderableType:
    """Leases and pins, one a row, with the cache that each is in. Wide: with whole names."""
    if not leases:
        return Text("No leases and no pins.", style="dim")
    made = table("ID", "HOLDER", "IMAGES", "ENDS", last=("CACHE",), flexible=("HOLDER", "IMAGES", "CACHE"))
    for cache, lease in leases:
        made.add_row(
            lease.id,
            Fitted(printable(lease.holder)),
            Fitted(printable(", ".join(lease.names if wide else map(short_name, lease.names)))),
            _ends(lease, now=now),
            Fitted(printable(str(cache)), keep_end=True),
        )
    return made


def _ends(lease: Lease, *, now: datetime) -> Text:
    if lease.expires is None:
        return Text("never: a pin")
    left = (lease.expires - now).total_seconds()
    return Text(f"in {format_duration(left)}") if left > 0 else Text("has ended", style="dim")


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
    if image.damage:
        found = f"{image.damage.detail} (found by a scrub {ago(image.damage.found_at, now=now)})"
        facts.append(("damaged", f"{printable(found)}: it is never served, and stays for who needs it"))
    return [*facts, ("last used", ago(image.last_used, now=now))]


def disk_table(disks: Sequence[InstanceDisk], *, wide: bool) -> RenderableType:
    """Disks, one a row; one that lies outside its instance's directory is called by its path. Wide: with whole names."""
    if not disks:
        return Text("No disks.", style="dim")
    made = table("INSTANCE", "NAME", "BACKEND", numbers=("SIZE", "ON DISK"), last=("BASE",), flexible=("NAME", "BASE"))
    for disk in disks:
        instance, name, path = (printable(text) for text in (disk.instance, disk.name, str(disk.path)))
        elsewhere = (disk.path.parent.name, disk.path.name) != (disk.instance, disk.name)
        base = disk.base or "-"
        made.add_row(
            instance,
            Fitted(path if elsewhere or wide else name, keep_end=True),
            disk.backend,
            "?" if disk.size is None else format_size(disk.size),
            format_size(disk.allocated),
            Fitted(base if wide else short_name(base)),
        )
    return made


def backend_table(backends: "Sequence[BackendTraits]") -> RenderableType:
    """Backends, one a row, with what each of them can."""
    made = table("BACKEND", "FORMAT", "READS", "BASE", "DISKS ARE", last=("CAN",), flexible=("CAN",))
    for one in backends:
        able = {"resize": one.resizable, "rebase": one.rebases, "clone": one.clones, "snapshot": one.snapshots}
        can = [word for word, is_able in (able | {"encrypt": one.encrypts}).items() if is_able]
        made.add_row(
            one.name,
            one.disk_format,
            "raw images" if one.needs_raw else "any image",
            "needed" if one.overlays else "not needed",
            "files" if one.on_host_filesystem else "shared" if one.shared_storage else "volumes",
            ", ".join(can),
        )
    return made


def findings_table(findings: "Sequence[Finding]") -> RenderableType:
    """Findings, the weightiest last, where the eye is when the command ends."""
    made = table("LEVEL", "CODE", "WHAT", flexible=("WHAT",))
    for finding in sorted(findings, key=lambda finding: _LEVELS.index(finding.level)):
        hint = f" ({finding.hint})" if finding.hint else ""
        level = Text(finding.level.value, style=_STYLES[finding.level])
        where = "" if str(finding.path) in finding.detail else f"{finding.path}: "
        made.add_row(level, finding.code, Text(printable(f"{where}{finding.detail}{hint}")))
    return made


def problem_text(problem: Problem) -> Text:
    """A problem in one line."""
    return Text.assemble(("problem ", "red"), f"{problem.code}: {printable(problem.detail)}")
