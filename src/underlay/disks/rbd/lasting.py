"""A snapshot of a disk that lasts: an image of its own, which reads from no other and has a snapshot to clone disks from."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from underlay.disks.rbd import snapshots, worklist
from underlay.disks.rbd.looking import GOING, RECORD, SNAPSHOT, Found, find, look_at_ours
from underlay.disks.rbd.making import making
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.places import BACKEND, Location
from underlay.disks.rbd.removing import finish_removal, remove_image
from underlay.errors import DiskExists, DiskInUse, UnderlayError, Unsupported
from underlay.model import DiskSpec

_LASTING = "snap"  # as Glance calls its own


def keep(disk: ImageName, want: DiskSpec, new: ImageName, *, data_pool: str | None) -> Location:
    """Make an image of what a disk is now. The caller holds the disk's lock.

    Raises:
        DiskExists: the name is taken. DiskNotFound, DiskUnrecorded, BackendUnavailable, InsufficientSpace
    """
    found = look_at_ours(disk, want)
    at = Location(fsid=disk.cluster.fsid(), pool=new.pool.name, image=new.name, snapshot=_LASTING)
    with worklist.changing(disk) as ours:
        if find(new) is not None:
            raise DiskExists(f"{new} is there", hint="remove it, or choose another name")
        with _held(disk, found, token=ours.token) as held, making(new, disk=disk) as temporary:
            snapshots.clone(disk, held, temporary, data_pool=data_pool)
            snapshots.flatten(temporary)
            _make_lasting(temporary)
    return at


@contextmanager
def _held(disk: ImageName, found: Found, *, token: str) -> Iterator[str]:
    """A snapshot of a disk for as long as the block lasts."""
    with suppress(DiskInUse):
        snapshots.take_away_ours(disk, found, alive=worklist.listed(disk))
    held = snapshots.name_of_ours(token)
    snapshots.make_snapshot(disk, held)  # crash: a snapshot that the next one, or the removal, takes away
    try:
        yield held
    finally:
        with suppress(UnderlayError):  # as a crash
            snapshots.remove_snapshot(disk, held)


def _make_lasting(image: ImageName) -> None:
    def say() -> None:
        for key in (RECORD, GOING):  # librbd gives a clone what its parent says of itself
            with suppress(KeyError):
                opened.metadata_remove(key)
        opened.metadata_set(SNAPSHOT, "1")

    with image.opened(read_only=False) as opened:
        image.ask(say)
    snapshots.make_snapshot(image, _LASTING)
    snapshots.protect(image, _LASTING)


def discard(image: ImageName, at: Location) -> None:
    """Remove an image that was kept so; one that is gone is a success.

    Raises:
        DiskInUse: disks read from it. Unsupported: it was not made so.
    """
    found = find(image)
    if found is None:
        finish_removal(image)
        return
    if not found.is_snapshot or found.record is not None or at.snapshot != _LASTING:
        raise Unsupported(BACKEND, f"remove image {at.spoken}: it is no snapshot that it made")
    snapshots.refuse_needed(image, besides={_LASTING})
    snapshots.remove_snapshot(image, _LASTING)  # crash: an image without it
    remove_image(image)
