"""What came of followed refs, for people and for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from underlay.following import Refreshed
from underlay.naming import printable
from underlay.policy.follow import HoldVerdict
from underlay.render.lines import short_name
from underlay.render.tables import Fitted, table

_STYLES: Mapping[str, str] = {
    "moved": "green",
    "current": "green",
    "last-good": "yellow",
    "error": "red",
    "unfollowed": "yellow",
}


def refreshed_json(one: Refreshed) -> dict[str, Any]:
    """What came of one followed ref, for programs."""
    error = one.error
    return {
        "ref": one.ref,
        "cache": str(one.cache) if one.cache else None,
        "outcome": one.outcome,
        "before": one.before,
        "after": one.after,
        "path": str(one.image.path) if one.image else None,
        "versions": [_verdict_json(verdict) for verdict in one.versions],
        "error": None if error is None else {"code": error.code, "message": error.message, "hint": error.hint},
    }


def _verdict_json(verdict: HoldVerdict) -> dict[str, Any]:
    return {
        "version_id": verdict.version.id,
        "name": verdict.version.name,
        "action": "hold" if verdict.holds else "let-go",
        "reason": {"code": verdict.reason.code, "detail": verdict.reason.detail},
    }


def refreshed_table(done: Sequence[Refreshed]) -> RenderableType:
    """What came of some followed refs, one a row."""
    if not done:
        return Text("No refs are followed: name them in the configuration, or here.", style="dim")
    made = table("OUTCOME", "REF", "WHAT", flexible=("REF", "WHAT"))
    for one in done:
        outcome = Text(one.outcome, style=_STYLES[one.outcome])
        made.add_row(outcome, Fitted(printable(one.ref), keep_end=True), printable(_what(one)))
    return made


def _what(one: Refreshed) -> str:
    held = [verdict.version.name for verdict in one.versions if verdict.holds]
    let_go = [verdict.version.name or "one that is gone" for verdict in one.versions if not verdict.holds]
    told = [one.error.message] if one.error else []
    told += [f"newest: {short_name(name) if name else 'not here yet'}" for name in held[:1]]
    told += [f"older held: {len(held) - 1}"] if len(held) > 1 else []
    told += [f"let go: {', '.join(map(short_name, let_go))}"] if let_go else []
    return "; ".join(told)
