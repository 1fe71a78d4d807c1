"""Room for an ingest, reserved before its first byte is written, against what all others on the file system have reserved."""

from collections.abc import Sequence
from pathlib import Path

from underlay import locks
from underlay.errors import InsufficientSpace
from underlay.files import file_system, free_bytes, translated
from underlay.store import staging as stagings
from underlay.store.layout import Store
from underlay.store.staging import Staging


def reserve(store: Store, staging: Staging, *, need: int, neighbours: Sequence[Store]) -> None:
    """Claim room for all that this ingest will come to allocate.

    A claim counts only while its ingest lives, less what it has allocated already. When room is short, dead ingests are swept
    first. One lock spans the check and the claim for all caches of the file system: that of the first of them by path.

    Args:
        need: bytes at the peak, what is allocated already included.
        neighbours: the host's other caches; those on another file system are left aside.

    Raises:
        InsufficientSpace, LockTimeout
    """
    stores = _on_same_file_system(store, neighbours)
    with translated(store.root, needed=need):
        with locks.exclusive(stores[0].paths.space_lock, timeout=store.lock_timeout):
            missing = need - stagings.allocated(staging)
            if missing > _unclaimed(stores, staging):
                _sweep(stores)
            free = _unclaimed(stores, staging)
            if missing > free:
                raise InsufficientSpace(str(store.root), needed=missing, free=max(0, free), reclaimable=reclaimable_bytes(stores))
            stagings.write_reservation(staging, need)


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
    return free_bytes(stores[0].root) - claims


def _sweep(stores: Sequence[Store]) -> None:
    for store in stores:
        stagings.sweep_dead(store)


def _on_same_file_system(store: Store, neighbours: Sequence[Store]) -> list[Store]:
    mine = file_system(store.root).key
    stores = {store.root: store}
    for other in neighbours:
        if _is_laid_out(other.root) and file_system(other.root).key == mine:
            stores[other.root] = other
    return [stores[root] for root in sorted(stores)]


def _is_laid_out(root: Path) -> bool:
    return (root / ".underlay" / "locks").is_dir()
