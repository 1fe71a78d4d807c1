"""Room for an ingest, reserved before its first byte is written, against what all others on the file system have reserved."""

import os
from collections.abc import Sequence
from contextlib import ExitStack

from underlay import locks
from underlay.errors import InsufficientSpace
from underlay.files import translated
from underlay.filesystems import file_system, free_bytes
from underlay.store import staging as stagings
from underlay.store.layout import Store
from underlay.store.staging import Staging


def reserve(store: Store, staging: Staging, *, need: int, neighbours: Sequence[Store]) -> None:
    """Claim room for all that this ingest will come to allocate.

    A claim counts only while its ingest lives, less what it has allocated already. When room is short, dead ingests are swept
    first. The check and the claim stand under the space locks of all caches of the file system, taken in one order, so that
    processes whose configurations share a single cache exclude each other too.

    Args:
        need: bytes at the peak, what is allocated already included.
        neighbours: the host's other caches; left aside are those on another file system and those that are not ours to write.

    Raises:
        InsufficientSpace, LockTimeout
    """
    with translated(store.root, needed=need), ExitStack() as stack:
        stores = _on_same_file_system(store, neighbours)
        for other in stores:
            stack.enter_context(locks.exclusive(other.paths.space_lock, timeout=store.lock_timeout))
        missing = need - stagings.allocated(staging)
        if missing > _unclaimed(stores, staging):
            _sweep(stores)
        free = _unclaimed(stores, staging)
        if missing > free:
            reclaimable = {str(other.root): reclaimable_bytes([other]) for other in stores}
            claimed = free_bytes(store.root) - free
            raise InsufficientSpace(
                str(store.root), needed=missing, free=max(0, free), reclaimable=reclaimable, claimed=max(0, claimed)
            )
        stagings.write_reservation(staging, need)


def claimed(stores: Sequence[Store]) -> int:
    """Bytes that living ingests of these caches are still to allocate."""
    usable = [store for store in stores if _is_ours(store)]
    return sum(stagings.outstanding(one) for store in usable for one, alive in stagings.ingests(store) if alive)


def reclaimable_bytes(stores: Sequence[Store]) -> int:
    """Bytes that dead ingests occupy."""
    return sum(stagings.allocated(dead) for store in stores for dead, alive in stagings.ingests(store) if not alive)


def _unclaimed(stores: Sequence[Store], mine: Staging) -> int:
    claims = sum(
        stagings.outstanding(other)
        for store in stores
        for other, alive in stagings.ingests(store)
        if alive and other.directory != mine.directory
    )
    # The claims first: what another allocates between the two is then counted twice, not missed.
    return free_bytes(stores[0].root) - claims


def _sweep(stores: Sequence[Store]) -> None:
    for store in stores:
        stagings.sweep_dead(store)


def _on_same_file_system(store: Store, neighbours: Sequence[Store]) -> list[Store]:
    mine = file_system(store.root).key
    usable = (other for other in neighbours if _is_ours(other) and file_system(other.root).key == mine)
    # By identity, because two names may lead to one directory, whose lock a thread cannot take twice.
    stores = {_identity(other): other for other in (*usable, store)}
    return [stores[identity] for identity in sorted(stores)]


def _is_ours(store: Store) -> bool:
    """Whether the cache is laid out and we may see and sweep its ingests; nobody else's can be counted."""
    wanted = os.R_OK | os.W_OK | os.X_OK
    return all(os.access(path, wanted, effective_ids=True) for path in (store.paths.locks, store.paths.tmp))


def _identity(store: Store) -> tuple[int, int]:
    status = os.stat(store.root)
    return status.st_dev, status.st_ino
