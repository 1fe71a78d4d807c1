"""Room for a request that found none: what nobody needs goes, if that is enough; else nothing goes, and the error says why."""

from collections.abc import Collection
from pathlib import Path

from underlay.config import Config
from underlay.contracts import Observer
from underlay.errors import InsufficientSpace
from underlay.prune.observation import Known
from underlay.prune.reclaim import Goal, free_now, make_reclaim_plan
from underlay.prune.removal import apply

_RECORDS = 1 << 20  # bytes to be had where a record found no room


def make_room(
    config: Config,
    known: Known,
    error: InsufficientSpace,
    path: Path,
    *,
    spared: Collection[tuple[Path, str]],
    observer: Observer,
) -> None:
    """Free what was missing on the file system of a path, by the rules of a reclaim.

    Nothing is held for the request meanwhile: who comes between takes part in the same reservations, and it asks again.

    Args:
        error: what the request found.
        spared: files that the request itself would hit, by cache directory and name.

    Raises:
        InsufficientSpace: it cannot be had; what each cache could give is in it, and nothing was removed.
    """
    free = free_now(path)  # the request has left what it had written by now
    need = (error.needed or _RECORDS) + error.claimed
    if need <= free:  # a quota, or inodes: bytes are not what is missing
        raise error
    goal = Goal(path=path, need=need, spared=spared)
    plan = make_reclaim_plan(config, known, goal)
    if plan.shortfall > 0:
        reclaimable = {str(root): size for root, size in plan.frees.items()}
        left = max(0, free - error.claimed)
        raise InsufficientSpace(str(path), needed=error.needed, free=left, reclaimable=reclaimable) from error
    apply(config, plan, observer)
