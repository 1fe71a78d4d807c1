"""Room for a request that found none: what nobody needs goes, if that is enough; else nothing goes, and the error says why."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from underlay import locks
from underlay.config import Config
from underlay.contracts import Observer
from underlay.errors import InsufficientSpace, UnderlayError
from underlay.prune.observation import Known
from underlay.prune.reclaim import Goal, caches_beside, free_now, make_reclaim_plan
from underlay.prune.removal import apply
from underlay.store import Store, ballast, eviction, space

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

    One at a time makes room on a file system. Nothing is held for the request: it takes part in the reservations, and asks
    again.

    Args:
        error: what the request found.
        spared: files that the request itself would hit, by cache directory and name.

    Raises:
        InsufficientSpace: it cannot be had; what each cache could give is in it, and nothing was removed.
    """
    stores = [config.caches[name] for name in caches_beside(config, path)]
    need = (error.needed or _RECORDS) + error.claimed
    # The system refused, though there is room: a quota, or inodes. A reservation that failed has told of each cache.
    if not error.reclaimable and need <= free_now(path):
        raise error
    if error.needed is None:  # not even a lock file may have room
        for store in stores:
            ballast.throw_off(store.paths)
    try:
        with _one_at_a_time(stores):
            # First what is free: what others write in between is then missed, and the request asks again.
            left = free_now(path)
            left -= space.claimed(stores)
            missing = (error.needed or _RECORDS) - left
            if missing <= 0:  # others have made it while we waited for our turn
                return
            goal = Goal(path=path, missing=missing, spared=spared)
            plan = make_reclaim_plan(config, known, goal)
            if plan.shortfall > 0 and _recover(stores):
                plan = make_reclaim_plan(config, known, goal)
            if plan.shortfall > 0:
                reclaimable = {str(root): size for root, size in plan.frees.items()}
                raise InsufficientSpace(str(path), needed=error.needed, free=max(0, left), reclaimable=reclaimable) from error
            apply(config, plan, observer)
    finally:
        for store in stores:
            ballast.keep(store.paths)


@contextmanager
def _one_at_a_time(stores: Sequence[Store]) -> Iterator[None]:
    """A plan sees nothing of what another is removing just now, neither as free nor as what may go."""
    with ExitStack() as stack:
        # By identity: two names may lead to one directory, whose lock a thread cannot take twice.
        by_directory = {os.path.realpath(store.root): store for store in stores}
        for _, store in sorted(by_directory.items()):
            with suppress(UnderlayError, OSError):  # not laid out, or not ours
                stack.enter_context(locks.exclusive(store.paths.room_lock, timeout=store.lock_timeout))
        yield


def _recover(stores: Sequence[Store]) -> bool:
    """Whether a crash had left something in the trash, where no plan sees it; it is back in its cache."""
    recovered: list[str] = []
    for store in stores:
        with suppress(UnderlayError):
            recovered += eviction.recover(store)
    return bool(recovered)
