"""How a disk's image comes about and how it goes: whole or not at all, whoever is killed meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from underlay.attributes import encode_record
from underlay.disks.rbd import claim as claims, worklist
from underlay.disks.rbd.claim import Claim
from underlay.disks.rbd.looking import GOING, RECORD, SNAPSHOT, Found, belongs_to, find, refuse_foreign
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.removing import discard, finish_removal, keep_trash, remove_image
from underlay.disks.rbd.renaming import rename
from underlay.disks.rbd.snapshots import refuse_needed, take_away_ours
from underlay.errors import BackendUnavailable, DiskExists, DiskInUse, StorageFailed, UnderlayError
from underlay.model import DiskRecord, DiskSpec


def existing(image: ImageName, want: DiskSpec) -> Found | None:
    """The disk that is there, after what the dead have left has gone; None: nothing is.

    Raises:
        DiskExists: what is no disk of ours. BackendUnavailable
    """
    worklist.take_away_left(image)
    found = find(image)
    if found is None:
        return None
    if not belongs_to(found, want):
        raise DiskExists(f"{image} exists and is no disk of ours", hint="rename or remove it")
    if found.claim is not None:
        _finish(image, found, found.claim)
        return None
    return found


@contextmanager
def making(image: ImageName, *, disk: ImageName) -> Iterator[ImageName]:
    """A name under which to make an image, which then gets its own. The caller holds the lock of the disk that it is made for.

    Raises:
        DiskExists: another image has the name. BackendUnavailable, InsufficientSpace
    """
    keep_trash(image)
    with worklist.claimed(disk, makes=image) as ours:
        temporary = image.beside(ours.temporary)
        try:
            yield temporary  # crash: an image that is on the list
            rename(temporary, image)  # crash: both names, or the new one
        except BaseException:
            if not image.cluster.is_silent:  # else it is on the list, and the next one takes it away
                with suppress(UnderlayError):
                    discard(temporary)
                    worklist.drop(disk, ours.token)
            raise
        worklist.drop(disk, ours.token)  # crash: a claim of what is whole


def set_record(image: ImageName, record: DiskRecord) -> None:
    """Have an image say what it is, and nothing else that is ours: librbd gives a clone what its parent says of itself."""

    def say() -> None:
        for key in (SNAPSHOT, GOING):
            with suppress(KeyError):
                opened.metadata_remove(key)
        opened.metadata_set(RECORD, encode_record(record).decode())

    with image.opened(read_only=False) as opened:
        image.ask(say)


def remove_disk(image: ImageName, want: DiskSpec) -> None:
    """Remove a disk's image, what its making left, and what a killed remover left; one that is gone is a success.

    One is gone as well whose name another maker's has since, which stays.

    Raises:
        DiskInUse: somebody has it open, or needs it. DiskUnrecorded, DiskExists: it is no disk, or another one.
        BackendUnavailable
    """
    with worklist.changing(image) as ours:
        found = find(image)
        if found is None:
            finish_removal(image)
            return
        refuse_foreign(image, found, want)
        if found.record is not None and want.maker not in (None, found.record.maker):
            return
        if found.claim is not None:
            _finish(image, found, found.claim)
        else:
            _remove(image, found, ours)


def _remove(image: ImageName, found: Found, ours: Claim) -> None:
    if found.watchers:
        who = ", ".join(found.watchers)
        raise DiskInUse(f"{image} is open: {who}", hint="stop the instance; rbd status shows who has it")
    take_away_ours(image, found, alive=worklist.listed(image))
    refuse_needed(image)
    with image.opened(read_only=False) as opened:
        image.ask(lambda: opened.metadata_set(GOING, claims.encoded(ours).decode()))  # crash: it is there, and no disk any more
    try:
        remove_image(image)
    except (DiskInUse, StorageFailed):
        with suppress(UnderlayError), image.opened(read_only=False) as opened:
            image.ask(lambda: opened.metadata_remove(GOING))
        raise


def _finish(image: ImageName, found: Found, claim: Claim) -> None:
    """Remove what a killed remover left of a disk.

    Raises:
        BackendUnavailable: another is at it. DiskInUse
    """
    if not claims.is_dead(image.cluster, claim, watchers=found.watchers):
        raise BackendUnavailable(f"{image} is being removed by {claim.host}", hint="try again when it is gone")
    claims.shut_out(image.cluster, claim)
    remove_image(image)
