"""Who needs what, for people and for programs: plans and what came of them, explanations, hosts, bytes, pre-cached images."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from underlay.model import Problem
from underlay.naming import printable
from underlay.plan import Plan, Report, Verdict
from underlay.precache import Precached
from underlay.render.answers import problem_json
from underlay.render.lines import ago, short_name
from underlay.render.tables import Fitted, facts_table, table
from underlay.render.things import problem_text
from underlay.units import format_duration, format_size

_NANOSECONDS = 1_000_000_000

# --------------------------------------------------------------------------------------------------------- plans and verdicts


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict for programs."""
    return {
        "cache": verdict.cache,
        "name": verdict.file.name,
        "path": str(verdict.path),
        "kind": verdict.file.kind,
        "action": "remove" if verdict.removes else "keep",
        "refresh": verdict.refresh,
        "reasons": [{"code": reason.code, "detail": reason.detail} for reason in verdict.reasons],
        "allocated": verdict.file.allocated,
    }


def plan_json(plan: Plan, report: Report | None, *, where: Path) -> dict[str, Any]:
    """A plan and what came of it for programs; without a report nothing was done.

    Args:
        where: the path of what could not be told and concerns every cache.
    """
    verdicts = plan.verdicts if report is None else report.verdicts
    return {
        "plan": [verdict_json(verdict) for verdict in verdicts],
        "removed": [] if report is None else [str(path) for path in report.removed],
        "freed": 0 if report is None else report.freed,
        "shortfall": plan.shortfall if report is None else report.shortfall,
        "problems": [problem_json(problem) for problem in _problems(plan, report, where)],
    }


def plan_tables(plan: Plan, report: Report | None, *, where: Path, wide: bool) -> Iterator[RenderableType]:
    """What went or would go and why, what stays and for which reasons, what could not be told, and one line that sums up."""
    verdicts = plan.verdicts if report is None else report.verdicts
    gone = None if report is None else set(report.removed)
    going = [one for one in verdicts if one.removes and (gone is None or one.path in gone)]
    staying = [one for one in verdicts if not one.removes]
    if going:
        yield _going_table(going, heading="WOULD GO" if report is None else "REMOVED", wide=wide)
    if staying:
        yield _staying_table(staying)
    for problem in _problems(plan, report, where):
        is_note = problem.code == "no-inventory"  # as it was configured
        yield Text(f"note {problem.code}: {printable(problem.detail)}") if is_note else problem_text(problem)
    yield Text(_sum(going, staying, report))
    if shortfall := plan.shortfall if report is None else report.shortfall:
        wanted = f"{format_size(plan.need)} that are to be free"
        yield Text(f"missing: {format_size(shortfall)} of the {wanted}; nothing else there may go", style="bold red")


def _problems(plan: Plan, report: Report | None, where: Path) -> list[Problem]:
    """What is wrong, and what could not be told besides, each once."""
    problems = list(plan.problems if report is None else report.problems)
    told = {(problem.code, problem.detail) for problem in problems}
    others = [Problem(unknown.code, unknown.root or where, unknown.detail) for unknown in plan.unknowns]
    return list(dict.fromkeys([*problems, *(one for one in others if (one.code, one.detail) not in told)]))


def _going_table(verdicts: Sequence[Verdict], *, heading: str, wide: bool) -> RenderableType:
    caches = len({verdict.cache for verdict in verdicts}) > 1
    words = (heading, "CACHE") if caches else (heading,)
    made = table(*words, "KIND", numbers=("ON DISK",), last=("WHY",), flexible=("WHY",))
    for verdict in verdicts:
        name = printable(verdict.file.name)
        made.add_row(
            name if wide else short_name(name),
            *((verdict.cache,) if caches else ()),
            verdict.file.kind,
            format_size(verdict.file.allocated),
            Text("; ".join(printable(reason.detail) for reason in verdict.reasons)),
        )
    return made


def _staying_table(verdicts: Sequence[Verdict]) -> RenderableType:
    """How many files each reason keeps; a file may have several."""
    files: Counter[str] = Counter()
    bytes_kept: Counter[str] = Counter()
    for verdict in verdicts:
        for code in {reason.code for reason in verdict.reasons}:
            files[code] += 1
            bytes_kept[code] += verdict.file.allocated
    made = table("KEPT BECAUSE", numbers=("FILES", "ON DISK"), last=("SUCH AS",), flexible=("SUCH AS",))
    for code, number in files.most_common():
        example = next(one for verdict in verdicts for one in verdict.reasons if one.code == code)
        made.add_row(code, str(number), format_size(bytes_kept[code]), Fitted(printable(example.detail)))
    return made


def _sum(going: Sequence[Verdict], staying: Sequence[Verdict], report: Report | None) -> str:
    kept = f"kept {_files(staying)}"
    if report is None:
        return f"{kept}; would remove {_files(going)}"
    return f"{kept}; removed {_files(going)}, freed {format_size(report.freed)}"


def _files(verdicts: Sequence[Verdict]) -> str:
    size = sum(verdict.file.allocated for verdict in verdicts)
    number = len(verdicts)
    return f"{number} file{'' if number == 1 else 's'}" + (f" of {format_size(size)}" if number else "")


def explanation_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict for programs, with when its file was last used and when it would go."""
    return {
        **verdict_json(verdict),
        "last_used": _iso(_moment(verdict.file.used_ns)),
        "goes_at": _iso(verdict.goes_at),
    }


def explanation_tree(verdict: Verdict, *, now: datetime) -> RenderableType:
    """Why a file is kept, or would go, and when."""
    used = _moment(verdict.file.used_ns)
    facts = [
        ("path", printable(str(verdict.path))),
        ("kind", f"{verdict.file.kind}, {format_size(verdict.file.allocated)} on disk"),
        ("last used", "at a time that no calendar has" if used is None else _when(used, now=now)),
        ("goes", _goes(verdict, now=now)),
    ]
    reasons = Tree(Text("a prune would remove it:" if verdict.removes else "kept:"))
    for reason in verdict.reasons:
        reasons.add(Text.assemble((reason.code, "bold"), f" {printable(reason.detail)}", overflow="fold"))
    return Group(Text(printable(verdict.file.name), style="bold"), facts_table(facts), reasons)


def _goes(verdict: Verdict, *, now: datetime) -> str:
    if verdict.removes:
        return "with the next prune"
    if verdict.goes_at is None:
        return "not while this is so"
    return f"{_when(verdict.goes_at, now=now)}, unless somebody comes to need it"


def _when(moment: datetime, *, now: datetime) -> str:
    away = (moment - now).total_seconds()
    told = ago(moment, now=now) if away <= 0 else f"in {format_duration(away)}"
    return f"{moment:%Y-%m-%d %H:%M} UTC ({told})"


def _moment(nanoseconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(nanoseconds / _NANOSECONDS, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


# ---------------------------------------------------------------------------------------------------------------------- hosts


def hosts_table(hosts: Sequence[Mapping[str, Any]], *, now: datetime) -> RenderableType:
    """The hosts that share a cache, one a row."""
    if not hosts:
        return Text("No other host is known to share a cache.", style="dim")
    made = table("HOST", numbers=("IMAGES",), last=("LAST SAID", "STATE", "CACHE"), flexible=("CACHE",))
    for host in hosts:
        said = host["said_at"]
        made.add_row(
            printable(host["host"]),
            "?" if host["images"] is None else str(host["images"]),
            "never" if said is None else ago(datetime.fromisoformat(said), now=now),
            _state(host),
            Fitted(printable(host["cache"]), keep_end=True),
        )
    return made


def _state(host: Mapping[str, Any]) -> Text:
    if host["this"]:
        return Text("this host")
    if not host["declared"]:
        return Text("not in instances.hosts", style="yellow")
    if host["said_at"] is None:
        return Text("silent: nothing goes", style="yellow")
    return Text("declared") if host["complete"] else Text("could not tell all", style="yellow")


# ---------------------------------------------------------------------------------------------------------------------- bytes


def footprint_table(caches: Sequence[Mapping[str, Any]], disks: Mapping[str, Any]) -> RenderableType:
    """What each cache occupies, kind by kind, and what the disks do."""
    made = table("WHAT", numbers=("COUNT", "ON DISK", "SHARED", "FREE"), last=("PATH",), flexible=("PATH",))
    for cache in caches:
        own = "own file system: " if cache["own_file_system"] else ""
        made.add_row(
            f"{cache['name']} ({cache['kind']})",
            str(cache["images"]),
            format_size(cache["allocated"]),
            format_size(cache["shared"]),
            format_size(cache["free"]),
            f"{own}{printable(cache['path'])}",
        )
        for kind in cache["kinds"]:
            if kind["count"]:
                sizes = (format_size(kind["allocated"]), format_size(kind["shared"]))
                made.add_row(f"  {kind['kind']}", str(kind["count"]), *sizes, "", "")
        if cache["ingests"] != 0:
            made.add_row("  ingests", "", "?" if cache["ingests"] is None else format_size(cache["ingests"]), "", "", "")
    path = printable(disks["path"])
    made.add_row("disks", str(disks["count"]), format_size(disks["allocated"]), format_size(disks["shared"]), "", path)
    return made


def image_footprint_table(caches: Sequence[Mapping[str, Any]], *, wide: bool) -> RenderableType:
    """What each file of the caches occupies, the largest first."""
    made = table("NAME", "KIND", numbers=("ON DISK", "ITS OWN", "LINKS"), last=("CACHE",), flexible=())
    files = [(cache["name"], file) for cache in caches for file in cache["files"] or ()]
    for cache, file in sorted(files, key=lambda one: -one[1]["allocated"]):
        name = printable(file["name"])
        own = "?" if file["own"] is None else format_size(file["own"])
        sizes = (format_size(file["allocated"]), own, str(file["links"]))
        made.add_row(name if wide else short_name(name), file["kind"], *sizes, cache)
    return made


# ------------------------------------------------------------------------------------------------------------------ pre-cache


def precached_json(one: Precached) -> dict[str, Any]:
    """What came of pre-caching one image, for programs."""
    error = one.error
    return {
        "ref": one.ref,
        "outcome": one.outcome,
        "path": str(one.image.path) if one.image else None,
        "error": None if error is None else {"code": error.code, "message": error.message, "hint": error.hint},
    }


def precached_table(images: Sequence[Precached]) -> RenderableType:
    """What came of pre-caching some images, one a row."""
    styles = {"cached": "green", "existing": "green", "unsupported": "yellow", "error": "red"}
    made = table("OUTCOME", "REF", "WHAT", flexible=("REF", "WHAT"))
    for one in images:
        what = one.error.message if one.error else str(one.image.path) if one.image else ""
        made.add_row(Text(one.outcome, style=styles[one.outcome]), Fitted(printable(one.ref), keep_end=True), printable(what))
    return made
