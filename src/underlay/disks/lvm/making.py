"""How a disk comes about, is replaced and goes: whole or not at all, whoever is killed meanwhile.

What is made has a name of its own until it is whole, so nobody takes a part for a disk, and a tag that says for which disk it
is, by which the next who makes or removes that disk finds what a dead maker left.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from underlay.disks.lvm import changes, content, crypt, names
from underlay.disks.lvm.looking import Found, Volume, find, look, volumes
from underlay.disks.lvm.storage import Storage, is_wiped, wipe, written
from underlay.errors import DiskExists, DiskInUse, UnderlayError
from underlay.model import DiskRecord
from underlay.values import replace


@contextmanager
def making(storage: Storage, volume: str) -> Iterator[str]:
    """A name under which to make something for a disk; after an error nothing of it is left."""
    temporary = names.temporary_name(volume)
    try:
        yield temporary  # crash: a volume that says for which disk it is
    except BaseException:
        with suppress(UnderlayError):  # what cannot go now is taken away by the next who makes the disk
            for left in volumes(storage.group, f'lv_name="{temporary}"'):
                _discard(storage, left)
        raise


def settled(storage: Storage, volume: str, *, image: str | None = None) -> Found:
    """What there is of a disk, after what dead processes left was brought to its end. The caller holds the disk's lock.

    Raises:
        DiskInUse, BackendUnavailable
    """
    found = find(storage.group, volume, pool=storage.pool, image=image)
    for left in found.left:
        if left is not found.replacement:
            _discard(storage, left)
    if found.replacement is not None:
        put_in_place(storage, volume, found)
    elif found.named is not None and not found.named.is_whole:
        _finish_removal(storage, found.named)
    elif not found.left:
        return found
    return find(storage.group, volume, pool=storage.pool, image=image)


def _discard(storage: Storage, left: Volume) -> None:
    crypt.close_side(storage.device(left.name))
    if names.COPY in left.tags:
        wipe(storage, left)
    changes.remove(storage.group, left, is_needed_by_snapshots=not left.is_thin)


def remove(storage: Storage, volume: Volume) -> None:
    """Remove a disk.

    Raises:
        DiskInUse: somebody has it open, or snapshots of others stand on it. BackendUnavailable
    """
    of = changes.spoken(storage.group, volume.name)
    if volume.snapshots and not volume.is_thin:
        raise DiskInUse(f"{of} is needed by {', '.join(volume.snapshots)}", hint="remove these first")
    if volume.is_encrypted:
        crypt.close_side(storage.device(volume.name))
        _, volume = look(storage.group, volume.name)  # which nobody else has open, before its keys are destroyed
    _check_closed(storage, volume)
    if not is_wiped(storage, volume) and not volume.is_encrypted:
        changes.remove(storage.group, volume, is_needed_by_snapshots=not volume.is_thin)
        return
    changes.doom(storage.group, volume)  # crash: a disk that is there, and is none any more
    _finish_removal(storage, volume)


def _check_closed(storage: Storage, volume: Volume) -> None:
    if volume.is_open:
        of = changes.spoken(storage.group, volume.name)
        raise DiskInUse(f"{of} is open", hint="stop the instance; lsof or dmsetup ls --tree shows who has it")


def _finish_removal(storage: Storage, volume: Volume) -> None:
    if volume.is_encrypted:
        crypt.close_side(storage.device(volume.name))
    for going in volumes(storage.group, changes.this(volume)):  # which has its name still, and somebody may have opened it
        _check_closed(storage, going)
        if going.is_encrypted:
            changes.activate(storage.group, going)
            crypt.erase(storage.device(going.name))
        _clear_and_remove(storage, going)


def _clear_and_remove(storage: Storage, volume: Volume) -> None:
    if not volume.is_lost:
        wipe(storage, volume)
        changes.remove(storage.group, volume, is_needed_by_snapshots=not volume.is_thin)
    elif is_wiped(storage, volume):
        _clear_lost(storage, volume)
    else:
        changes.remove(storage.group, volume, is_needed_by_snapshots=True)


def _clear_lost(storage: Storage, volume: Volume) -> None:
    """Remove a snapshot that ran out of room, through which nobody writes, and overwrite its extents under another name."""
    extents = changes.extents_of(storage.group, volume.name)
    changes.remove(storage.group, volume, is_needed_by_snapshots=True)  # crash: extents that hold what the guest wrote
    with making(storage, volume.name) as temporary:
        tags = [names.made_for(volume.name), names.COPY]
        changes.make_plain_over(storage.group, temporary, extents, tags=tags)
        for made in volumes(storage.group, f'lv_name="{temporary}"'):
            _discard(storage, made)


def stand_alone(storage: Storage, volume: Volume, *, size: int) -> None:
    """Put a volume of its own extents in the place of a snapshot, with what that shows, and zeros behind it.

    Raises:
        InsufficientSpace, BackendUnavailable, StorageFailed, DiskInUse
    """
    record = volume.record
    assert record is not None
    changes.activate(storage.group, volume)
    with making(storage, volume.name) as temporary:
        changes.make_plain(storage.group, temporary, size=size, tags=[*_tags(record, volume.name), names.COPY])
        with written(storage, temporary):
            content.write_volume(storage.device(volume.name), storage.device(temporary))
        changes.tag(storage.group, temporary, names.WHOLE)  # crash: two that are the disk, of which the new one counts
    put_in_place(storage, volume.name, find(storage.group, volume.name, pool=None))


def put_in_place(storage: Storage, volume: str, found: Found) -> None:
    """Bring a replacement to its end: the old volume goes, and the new one gets the disk's name.

    Raises:
        DiskExists: what has the disk's name was never made for it. DiskInUse, BackendUnavailable
    """
    assert found.replacement is not None
    if found.named is not None:
        of = changes.spoken(storage.group, volume)
        if names.made_for(volume) not in found.named.tags:
            raise DiskExists(f"{of} exists and is no disk of ours", hint="rename or remove it")
        _check_closed(storage, found.named)
        _clear_and_remove(storage, found.named)  # crash: the new one, not yet by its name
    changes.rename(storage.group, found.replacement.name, volume)


def _tags(record: DiskRecord, volume: str) -> list[str]:
    return [*names.record_tags(replace(record, parent=None)), names.made_for(volume)]


def grow_plain(storage: Storage, volume: Volume, *, size: int) -> None:
    """Give a volume more extents, which hold zeros already when they become its.

    Raises:
        InsufficientSpace, BackendUnavailable, StorageFailed
    """
    with making(storage, volume.name) as temporary:
        tags = [names.made_for(volume.name)]
        changes.make_plain(storage.group, temporary, size=size - volume.size, tags=tags)
        with written(storage, temporary):
            content.write_zeros(storage.device(temporary), 0)
        changes.extend_by(storage.group, volume, temporary)
    with written(storage, volume.name):  # once more: between the one and the other the extents were nobody's
        content.write_zeros(storage.device(volume.name), volume.size)


def grow_encrypted(storage: Storage, volume: Volume, *, size: int) -> None:
    """Give an encrypted volume that is open more room, and write zeros there: what is behind its end decrypts to noise.

    Where the volume has its room already, and its opened side has not, a growth that did not come to its end does so.

    Raises:
        InsufficientSpace, BackendUnavailable, StorageFailed, DiskNotFound
    """
    device = storage.device(volume.name)
    seen = crypt.side_bytes(device)
    if size > volume.size:
        changes.extend(storage.group, volume.name, size)  # crash: a volume that is larger than its opened side
    crypt.grow_side(device)  # crash: room that holds noise
    with written(storage, volume.name):
        content.write_zeros(names.mapped(volume.name), seen)
