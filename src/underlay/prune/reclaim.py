"""Room on a file system, made by removing what nobody needs from the caches that lie on it: the plan for it."""

import dataclasses
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from underlay.config import Config
from underlay.files import translated
from underlay.filesystems import file_system, free_bytes
from underlay.plan import Plan, Rules, Verdict
from underlay.policy.reclaim import candidates, plan_reclaim
from underlay.prune.observation import Known, make_plan
from underlay.store import eviction

_OWN_FILES = 256 << 10  # bytes that locks, markers and records may take while room is made


def make_reclaim_plan(config: Config, known: Known, *, need: int, path: Path, now: datetime | None = None) -> Plan:
    """A plan that leaves ``need`` bytes free on the file system of a path, as far as that can be had.

    Raises:
        CacheMissing, CacheNotWritable: the path cannot be looked at.
    """
    plan = make_plan(config, _caches_beside(config, path), known, now=now)
    with translated(path):
        missing = need - free_bytes(path)
    if missing > 0:
        missing += _OWN_FILES
    ordered = candidates(plan.verdicts, {name: config.rules.get(name, Rules()) for name in config.caches}, plan.clocks)
    own: dict[tuple[Path, str], int] = {}
    left = missing
    for verdict in ordered:
        if left <= 0:
            break
        with suppress(OSError):  # gone by now, or not ours to read: it is not counted
            own[verdict.root, verdict.file.name] = frees = _frees(verdict)
            left -= frees
    judged, shortfall = plan_reclaim(plan.verdicts, ordered, own, missing=missing)
    return dataclasses.replace(plan, verdicts=judged, need=need, path=path, shortfall=max(0, shortfall - _OWN_FILES))


def _caches_beside(config: Config, path: Path) -> list[str]:
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
