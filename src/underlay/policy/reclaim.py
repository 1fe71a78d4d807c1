"""Which unused files go to make room now, over several caches: by the caches' priority, then least recently used first.

The rules of a prune say what nobody needs; only what really comes free counts. A base keeps its minimum age, a master may go at
any age but not when it was used just now.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from msgspec.structs import replace

from underlay.model import Reason
from underlay.plan import Rules, Verdict
from underlay.policy.prune import NANOSECONDS, nanoseconds
from underlay.units import format_size

_WORTH = 10  # a file must free a tenth of what it occupies
_EARLY = frozenset({"young", "no-ttl"})


def candidates(verdicts: Sequence[Verdict], rules: Mapping[str, Rules], clocks: Mapping[Path, datetime]) -> list[Verdict]:
    """The files that may go, first those that are to go first.

    Args:
        verdicts: of a prune. rules: of the caches by name; the highest priority gives up its files first. clocks: by which
            ages are told, by cache directory.
    """
    may_go = [one for one in verdicts if one.removes or _may_go_early(one, rules[one.cache], clocks[one.root])]
    return sorted(may_go, key=lambda verdict: (-rules[verdict.cache].priority, verdict.file.used_ns))


def spare(verdicts: Sequence[Verdict], spared: Collection[tuple[Path, str]]) -> list[Verdict]:
    """The verdicts when some files, by cache directory and name, are to stay: the request that wants room wants them."""
    reason = Reason("wanted", "the request that wants the room is for it")
    return [_spared(one, reason) if (one.root, one.file.name) in spared else one for one in verdicts]


def _spared(verdict: Verdict, reason: Reason) -> Verdict:
    return replace(verdict, removes=False, reasons=(reason,) if verdict.removes else (*verdict.reasons, reason))


def plan_reclaim(
    verdicts: Sequence[Verdict], ordered: Sequence[Verdict], own: Mapping[tuple[Path, str], int], *, missing: int
) -> tuple[list[Verdict], int]:
    """The verdicts that make so many bytes free, and the bytes that are missing all the same.

    Args:
        verdicts: of a prune. ordered: its `candidates`.
        own: bytes that come free with a candidate, by cache directory and name; one that was not measured stays.
        missing: bytes that are to come free.
    """
    chosen: dict[tuple[Path, str], Verdict] = {}
    for verdict in ordered:
        key = verdict.root, verdict.file.name
        frees = own.get(key)
        if frees is None or missing <= 0:
            chosen[key] = _kept(verdict, Reason("enough", "there is room enough without its removal"))
        elif frees * _WORTH < verdict.file.allocated:
            chosen[key] = _kept(verdict, Reason("frees-nothing", f"only {format_size(frees)} would come free"))
        else:
            why = Reason("reclaimed", f"nobody needs it, and {format_size(missing)} are wanted")
            chosen[key] = replace(verdict, removes=True, reasons=(why,))
            missing -= frees
    judged = [chosen.get((verdict.root, verdict.file.name), verdict) for verdict in verdicts]
    return judged, max(0, missing)


def _kept(verdict: Verdict, reason: Reason) -> Verdict:
    return replace(verdict, removes=False, reasons=(reason,))


def _may_go_early(verdict: Verdict, rules: Rules, now: datetime) -> bool:
    """Whether it is a master that only its age keeps, and that was not used just now."""
    age_ns = nanoseconds(now) - verdict.file.used_ns
    is_early = verdict.file.kind == "master" and {reason.code for reason in verdict.reasons} <= _EARLY
    return is_early and age_ns >= rules.keep_recent * NANOSECONDS
