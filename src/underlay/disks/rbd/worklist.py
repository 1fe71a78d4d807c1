"""What is being done to the disks of a pool, and what of it the dead have left: a list in an object of the pool.

An image comes about under a temporary name, and gets its own when it is whole, so nobody takes a part for a disk. Before it
appears, the list says so, and so does whoever changes an image that is there. A key is ``IMAGE/TOKEN``, of the disk's image for
whose sake it is done and of the piece of work, and the value a `Claim`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from underlay.disks.rbd import claim as claims, removing, renaming
from underlay.disks.rbd.claim import Claim
from underlay.disks.rbd.looking import find
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.underway import under_way
from underlay.errors import DiskExists, DiskInUse, DiskNotFound, UnderlayError

LIST = "underlay.making"
"""The object that has the list, as key and value pairs."""

_MOST = 1000  # claims of one image that are looked at


@contextmanager
def claimed(disk: ImageName, *, makes: ImageName | None = None) -> Iterator[Claim]:
    """Say that there is work on a disk. It is under way for as long as the block lasts; the claim stays until it is dropped.

    Args:
        makes: the image that comes about, for a snapshot another than the disk's; None: the disk's own is changed.

    Raises:
        BackendUnavailable, InsufficientSpace
    """
    with under_way() as token:
        pool = (makes or disk).pool.name
        ours = claims.claimed(disk.cluster, token=token, pool=pool, makes=makes.name if makes else None)
        _put(disk, ours)  # crash: a claim of what never came
        yield ours


@contextmanager
def changing(disk: ImageName) -> Iterator[Claim]:
    """Change an image that is there, after what the dead have left is gone. The caller holds the disk's lock.

    Raises:
        BackendUnavailable, InsufficientSpace
    """
    take_away_left(disk)
    with claimed(disk) as ours:
        try:
            yield ours
        finally:
            drop(disk, ours.token)


def take_away_left(disk: ImageName) -> None:
    """Take away what the dead have left of a disk; what cannot go now stays on the list. The caller holds the disk's lock.

    Raises:
        BackendUnavailable
    """
    for token, claim in listed(disk).items():
        with suppress(DiskInUse, DiskExists):
            _take_away(disk, token, claim)


def _take_away(disk: ImageName, token: str, claim: Claim) -> None:
    made = ImageName(disk.cluster, disk.cluster.pool(claim.pool), claim.temporary) if claim.makes else disk
    left = find(made)
    if not claims.is_dead(disk.cluster, claim, watchers=left.watchers if left else ()):
        return
    claims.shut_out(disk.cluster, claim)
    if claim.makes:
        target = made.beside(claim.makes)
        if left is not None and (whole := find(target)) is not None and whole.id == left.id:
            renaming.finish(made, target, left.id)
        else:
            removing.discard(made)
    elif left is None:
        removing.finish_removal(disk)
    drop(disk, token)


def listed(disk: ImageName) -> Mapping[str, Claim]:
    """By token, the work that is done on a disk, or that was left."""

    def read() -> list[tuple[str, bytes]]:
        with disk.cluster.library.rados.ReadOpCtx() as operation:
            pairs, _ = disk.pool.get_omap_vals(operation, "", f"{disk.name}/", _MOST)
            disk.pool.operate_read_op(operation, LIST)
            return list(pairs)

    try:
        pairs = disk.cluster.ask(read, of=_spoken(disk))
    except DiskNotFound:
        return {}
    return {key.partition("/")[2]: claims.decoded(value) for key, value in pairs}


def _put(disk: ImageName, claim: Claim) -> None:
    def write() -> None:
        with disk.cluster.library.rados.WriteOpCtx() as operation:
            disk.pool.set_omap(operation, (_key(disk, claim.token),), (claims.encoded(claim),))
            disk.pool.operate_write_op(operation, LIST)

    disk.cluster.ask(write, of=_spoken(disk))


def drop(disk: ImageName, token: str) -> None:
    """Say that the work is done. A Ceph that is silent is left a claim of who is dead, for the next to take away."""

    def write() -> None:
        with disk.cluster.library.rados.WriteOpCtx() as operation:
            disk.pool.remove_omap_keys(operation, (_key(disk, token),))
            disk.pool.operate_write_op(operation, LIST)

    if not disk.cluster.is_silent:
        with suppress(UnderlayError):
            disk.cluster.ask(write, of=_spoken(disk))


def _key(disk: ImageName, token: str) -> str:
    return f"{disk.name}/{token}"


def _spoken(disk: ImageName) -> str:
    return f"object {disk.pool.name}/{LIST}"
