"""Scrubs, planned and done, for people and for programs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from underlay.model import Damage, Reason
from underlay.naming import printable
from underlay.policy.scrub import ScrubSubject, ScrubVerdict
from underlay.render.answers import damage_json, problem_json
from underlay.render.lines import ago, short_name
from underlay.render.tables import table
from underlay.render.things import problem_text
from underlay.scrub import Scrubbed, ScrubReport
from underlay.units import format_duration, format_size

_STYLES: Mapping[str, str] = {
    "sound": "green",
    "readable": "green",
    "changed": "dim",
    "stopped": "yellow",
    "damaged": "bold red",
    "unsteady": "bold red",
    "failed": "red",
}


def scrub_plan_json(plan: Sequence[ScrubVerdict]) -> dict[str, Any]:
    """What a scrub would do, for programs: everything is left."""
    left = [_verdict_json(verdict) for verdict in plan]
    return {"dry_run": True, "images": [], "left": left, "read": 0, "seconds": 0, "problems": []}


def scrub_json(report: ScrubReport) -> dict[str, Any]:
    """What a scrub did, for programs."""
    return {
        "dry_run": False,
        "images": [_scrubbed_json(one) for one in report.images],
        "left": [_verdict_json(verdict) for verdict in report.left],
        "read": report.read,
        "seconds": round(report.seconds, 3),
        "problems": [problem_json(problem) for problem in report.problems],
    }


def _scrubbed_json(one: Scrubbed) -> dict[str, Any]:
    error = one.error
    return {
        **_subject_json(one.subject),
        "outcome": one.outcome,
        "detail": one.detail,
        "read": one.read,
        "damage": _reason_json(one.damage) if one.damage else None,
        "users": [_reason_json(user) for user in one.users],
        "repair": _reason_json(one.repair) if one.repair else None,
        "error": None if error is None else {"code": error.code, "message": error.message, "hint": error.hint},
    }


def _verdict_json(verdict: ScrubVerdict) -> dict[str, Any]:
    subject = verdict.subject
    return {
        **_subject_json(subject),
        "action": "scrub" if verdict.scrubs else "skip",
        "reason": _reason_json(verdict.reason),
        "allocated": subject.allocated,
        "reached": subject.reached,
        "read_at": _iso(subject.read_at),
        "published_at": _iso(subject.published_at),
        "damage": damage_json(subject.damage),
    }


def _subject_json(subject: ScrubSubject) -> dict[str, Any]:
    return {"cache": subject.cache, "name": subject.name, "path": str(subject.path), "ref": subject.ref}


def _reason_json(reason: Reason) -> dict[str, str]:
    return {"code": reason.code, "detail": reason.detail}


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def scrub_plan_tables(plan: Sequence[ScrubVerdict], *, now: datetime, wide: bool) -> Iterator[RenderableType]:
    """What a scrub would read, in its order, and one line that sums up."""
    wanted = [verdict for verdict in plan if verdict.scrubs]
    if wanted:
        yield _plan_table(wanted, now=now, wide=wide)
    size = format_size(sum(verdict.subject.allocated - verdict.subject.reached for verdict in wanted))
    skipped = len(plan) - len(wanted)
    yield Text(f"would read {_images(len(wanted))}, {size}" + (f"; {skipped} left out: read recently" if skipped else ""))


def _plan_table(verdicts: Sequence[ScrubVerdict], *, now: datetime, wide: bool) -> RenderableType:
    made = table("IMAGE", "CACHE", "LAST READ", numbers=("ON DISK",), last=("WHY",), flexible=("WHY",))
    for verdict in verdicts:
        subject = verdict.subject
        made.add_row(
            subject.name if wide else short_name(subject.name),
            subject.cache,
            "never" if subject.read_at is None else ago(subject.read_at, now=now),
            format_size(subject.allocated),
            Text(printable(verdict.reason.detail) + _told(subject.damage)),
        )
    return made


def _told(damage: Damage | None) -> str:
    return f"; it is damaged: {printable(damage.detail)}" if damage else ""


def scrub_tables(report: ScrubReport, *, wide: bool) -> Iterator[RenderableType]:
    """What is to be told of single images, who needs a damaged one, what is left, and one line that sums up."""
    told = [one for one in report.images if one.outcome != "sound" or one.detail != "as it was published"]
    if told:
        yield _outcome_table(told, wide=wide)
    for problem in report.problems:
        yield problem_text(problem)
    outcomes = Counter(one.outcome for one in report.images)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    rate = format_size(int(report.read / report.seconds)) if report.seconds else format_size(report.read)
    pace = f"{format_size(report.read)} in {format_duration(report.seconds)}, {rate}/s"
    yield Text(f"read {_images(len(report.images))}, {pace}" + (f": {counts}" if counts else ""))
    if waiting := sum(verdict.scrubs for verdict in report.left):
        yield Text(f"left for the next scrub: {_images(waiting)}", style="yellow")


def _outcome_table(images: Sequence[Scrubbed], *, wide: bool) -> RenderableType:
    made = table("OUTCOME", "IMAGE", "CACHE", "WHAT", flexible=("WHAT",))
    for one in images:
        name = one.subject.name if wide else short_name(one.subject.name)
        what = [one.detail, *_users(one.users), *([one.repair.detail] if one.repair else [])]
        outcome = Text(one.outcome, style=_STYLES[one.outcome])
        made.add_row(outcome, name, one.subject.cache, Text(printable("; ".join(what)), overflow="fold"))
    return made


def _users(users: Sequence[Reason]) -> Iterator[str]:
    if users:
        yield "needed: " + ", ".join(f"{user.code} {user.detail}" for user in users)


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"
