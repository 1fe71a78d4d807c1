"""The volumes of images, of which disks are snapshots: each made once, for reading only, and gone with its last snapshot.

Under an image's lock its volume is made, gets a snapshot, or goes. The locks are of this host, as the volume group is; a dead
process holds none. That nobody stands on a volume which goes, LVM sees to as well, under its own lock.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from underlay import locks
from underlay.disks.lvm import changes, content, names
from underlay.disks.lvm.looking import Found, Volume, rounded, volumes
from underlay.disks.lvm.storage import LOCKS, Storage, check_pool, lock_file, room, written
from underlay.errors import DiskExists, DiskInUse, UnderlayError
from underlay.files import translated
from underlay.model import BaseImage


@contextmanager
def held(storage: Storage, image: BaseImage, *, size: int) -> Iterator[str]:
    """The name of an image's volume, which nobody else makes, takes a snapshot of, or removes while the block lasts.

    Args:
        size: bytes of the disk that is to be its snapshot.

    Raises:
        CacheNotWritable
    """
    with translated(image.path):
        base = names.base_name(image, size=None if storage.pool else size)
    with ExitStack() as stack:
        # Without a deadline: an image may be large, and the kernel frees what a dead holder held.
        with translated(LOCKS):
            stack.enter_context(locks.exclusive(lock_file(storage, base), timeout=math.inf))
        yield base


def snapshot(storage: Storage, image: BaseImage, volume: str, *, found: Found, base: str, size: int, tags: list[str]) -> Volume:
    """Make a volume a snapshot of an image's own volume, which is made if it is not there; the image's volume.

    Until it has its size it says that it is not whole. The caller holds ``base``, the name of the image's volume.

    Args:
        size: bytes that the snapshot is to have at least.

    Raises:
        BackendUnavailable, InsufficientSpace, DiskExists
    """
    is_thin = storage.pool is not None
    origin = _kept(storage, base, found.image)
    if origin is None:
        origin = _made(storage, base, image, size=image.size if is_thin else size)
    elif is_thin:
        check_pool(storage, found.pool, needed=0)
    full = rounded(size, origin.extent)
    is_smaller = is_thin and full > origin.size
    unfinished = names.unfinished(origin.size)
    if is_smaller:
        tags = [*tags, unfinished]
    changes.make_snapshot(storage.group, volume, origin=origin, is_thin=is_thin, tags=tags)
    if is_smaller:
        try:
            changes.extend(storage.group, volume, full)  # crash: a disk that says it is not whole
            changes.untag(storage.group, volume, unfinished)  # crash: a tag that says nothing at this size
        except BaseException:
            with suppress(UnderlayError):  # what cannot go now is taken away by the next who makes the disk
                changes.remove_made(storage.group, volume, tag=unfinished)
            raise
    return origin


def _kept(storage: Storage, base: str, found: Volume | None) -> Volume | None:
    """The image's volume if it is there and whole; what a dead maker left goes."""
    if found is None:
        return None
    if names.BASE not in found.tags:
        raise DiskExists(f"{changes.spoken(storage.group, base)} exists and is no image of ours", hint="rename or remove it")
    if names.MAKING not in found.tags:
        changes.activate(storage.group, found)
        return found
    changes.remove(storage.group, found, is_needed_by_snapshots=True)
    return None


def _made(storage: Storage, base: str, image: BaseImage, *, size: int) -> Volume:
    tags = [names.BASE, names.MAKING]
    try:
        fill(storage, base, image, size=size, tags=tags)  # crash: a volume that says it is not whole
        changes.finish_base(storage.group, base)
    except BaseException:
        # By what only ours says: another may have its name, and lvremove takes snapshots along with their origin.
        with suppress(UnderlayError):  # what cannot go now is taken away by the next who needs the image's volume
            changes.remove_made(storage.group, base, tag=names.MAKING)
        raise
    (made,) = volumes(storage.group, f'lv_name="{base}"')
    return made


def fill(storage: Storage, volume: str, image: BaseImage, *, size: int, tags: list[str]) -> int:
    """Make a volume that holds an image, and zeros behind it; the bytes that were written to it.

    Raises:
        BackendUnavailable, InsufficientSpace, StorageFailed
    """
    if storage.pool is None:
        changes.make_plain(storage.group, volume, size=size, tags=tags)
        return _write(storage, volume, image)
    with translated(image.path):
        needed = content.allocated(image.path, size=image.size)
    with room(storage, needed=needed):
        changes.make_thin(storage.group, volume, pool=storage.pool, size=size, tags=tags)
        return _write(storage, volume, image)


def _write(storage: Storage, volume: str, image: BaseImage) -> int:
    with written(storage, volume):
        device = storage.device(volume)
        return content.write_file(image.path, device, size=image.size, skips_zeros=storage.pool is not None)


def sweep(storage: Storage) -> None:
    """Remove the volumes of images on which nobody stands.

    Raises:
        BackendUnavailable
    """
    for base in volumes(storage.group, f'lv_tags="{names.BASE}" && lv_descendants=""'):
        with translated(LOCKS), locks.try_exclusive(lock_file(storage, base.name)) as lock, suppress(DiskInUse):
            if lock is not None:
                changes.remove(storage.group, base, is_needed_by_snapshots=True)
