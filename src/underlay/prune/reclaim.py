"""A plan to reclaim: how much is missing on a file system, and which unused files of its caches make up for it."""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from underlay.config import Config
from underlay.files import translated
from underlay.filesystems import file_system, free_bytes
from underlay.plan import Plan, Rules, Verdict
from underlay.policy.reclaim import candidates, plan_reclaim, spare
from underlay.prune.observation import Known, make_plan
from underlay.store import eviction
from underlay.usage import openfiles
from underlay.values import replace

_OWN_FILES = 256 << 10  # bytes that locks, markers and records may take while room is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is to be had on the file system of a path.

    Attributes:
        missing: bytes that are to come free. slack: bytes more, for what is written meanwhile.
        spared: files that stay all the same, by cache directory and name.
    """

    path: Path
    missing: int
    slack: int = _OWN_FILES
    spared: Collection[tuple[Path, str]] = ()


def free_now(path: Path) -> int:
    """Bytes that may still be written on the file system of a path.

    Raises:
        CacheMissing, CacheNotWritable: the path cannot be looked at.
    """
    with translated(path):
        return free_bytes(path)


def make_reclaim_plan(
    config: Config, known: Known, goal: Goal, *, names: Sequence[str] | None = None, now: datetime | None = None
) -> Plan:
    """A plan that reaches a goal, as far as that can be had.

    Args:
        names: of the caches that give; None for all on the file system of the path.

    Raises:
        CacheMissing, CacheNotWritable: the path cannot be looked at.
    """
    plan = make_plan(config, caches_beside(config, goal.path) if names is None else names, known, now=now)
    need = free_now(goal.path) + goal.missing
    wanted = goal.missing + (goal.slack if goal.missing > 0 else 0)
    rules = {name: config.rules.get(name, Rules()) for name in config.caches}
    verdicts = spare(plan.verdicts, goal.spared)
    ordered = candidates(verdicts, rules, plan.clocks)
    own = _measured(ordered, wanted)
    judged, shortfall = plan_reclaim(verdicts, ordered, own, missing=wanted)
    return replace(
        plan,
        verdicts=judged,
        need=need,
        path=goal.path,
        shortfall=max(0, shortfall - (wanted - goal.missing)),
        frees=_by_cache(plan, own),
    )


def _measured(ordered: Sequence[Verdict], missing: int) -> dict[tuple[Path, str], int]:
    """What comes free with each candidate, as far down the order as it takes."""
    own: dict[tuple[Path, str], int] = {}
    for verdict in ordered:
        if missing <= 0:
            break
        with suppress(OSError):  # gone by now, or not ours to read: it is not counted
            if _is_perhaps_open(verdict):
                continue  # it would be kept as it is about to go; the next one goes in its place
            own[verdict.root, verdict.file.name] = frees = _frees(verdict)
            missing -= frees
    return own


def _is_perhaps_open(verdict: Verdict) -> bool:
    return "/" not in verdict.file.name and openfiles.opened([verdict.path])[verdict.path] is not False


def _by_cache(plan: Plan, own: dict[tuple[Path, str], int]) -> dict[Path, int]:
    frees = Counter(dict.fromkeys(plan.clocks, 0))
    for (root, _), size in own.items():
        frees[root] += size
    return dict(frees)


def caches_beside(config: Config, path: Path) -> list[str]:
    """The names of the caches on the file system of a path."""
    with translated(path):
        key = file_system(path).key
    found = []
    for name, store in config.caches.items():
        with suppress(OSError):
            if file_system(store.root).key == key:
                found.append(name)
    return found


def _frees(verdict: Verdict) -> int:
    """Bytes that the file system would have more without a file; a dead ingest is a directory of its own."""
    return verdict.file.allocated if "/" in verdict.file.name else eviction.freed_by_removal(verdict.path)
