"""The volumes of images, of which disks are snapshots: each made once, for reading only, and gone with its last snapshot.

Under an image's lock its volume is made, gets a snapshot, or goes. The locks are of this host, as the volume group is; a dead
process holds none. That nobody stands on a volume which goes, LVM sees to as well, under its own lock.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from underlay import locks
from underlay.disks.lvm import changes, content, names
from underlay.disks.lvm.looking import Found, Volume, rounded, volumes
from underlay.disks.lvm.storage import Storage, check_pool, written
from underlay.errors import DiskExists, DiskInUse
from underlay.files import keep_directory, translated
from underlay.model import BaseImage

_LOCKS = Path("/run/lock/underlay")
_PRIVATE = 0o700


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
        with translated(_LOCKS):
            stack.enter_context(locks.exclusive(_lock(storage, base), timeout=math.inf))
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
        origin = _made(storage, base, image, size=image.size if is_thin else size, pool=found.pool)
    elif is_thin:
        check_pool(storage, found.pool, needed=0)
    full = rounded(size, origin.extent)
    is_smaller = is_thin and full > origin.size
    if is_smaller:
        tags = [*tags, names.sized(full)]
    changes.make_snapshot(storage.group, volume, origin=base, is_thin=is_thin, tags=tags)
    if is_smaller:
        try:
            changes.extend(storage.group, volume, full)  # crash: a disk that says it is not whole
        except BaseException:
            changes.remove_named(storage.group, volume)
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


def _made(storage: Storage, base: str, image: BaseImage, *, size: int, pool: Volume | None) -> Volume:
    tags = [names.BASE, names.MAKING]
    try:
        fill(storage, base, image, size=size, tags=tags, pool=pool)  # crash: a volume that says it is not whole
        changes.finish_base(storage.group, base)
    except BaseException:
        with suppress(DiskExists):
            changes.remove_named(storage.group, base)
        raise
    (made,) = volumes(storage.group, f'lv_name="{base}"')
    return made


def fill(storage: Storage, volume: str, image: BaseImage, *, size: int, tags: list[str], pool: Volume | None) -> int:
    """Make a volume that holds an image, and zeros behind it; the bytes that were written to it.

    Raises:
        BackendUnavailable, InsufficientSpace, StorageFailed
    """
    if storage.pool is None:
        changes.make_plain(storage.group, volume, size=size, tags=tags)
    else:
        with translated(image.path):
            needed = content.allocated(image.path, size=image.size)
        check_pool(storage, pool, needed=needed)
        changes.make_thin(storage.group, volume, pool=storage.pool, size=size, tags=tags)
    with written(storage, volume):
        device = storage.device(volume)
        return content.write_file(image.path, device, size=image.size, skips_zeros=storage.pool is not None)


def sweep(storage: Storage) -> None:
    """Remove the volumes of images on which nobody stands.

    Raises:
        BackendUnavailable
    """
    for base in volumes(storage.group, f'lv_tags="{names.BASE}" && lv_descendants=""'):
        with translated(_LOCKS), locks.try_exclusive(_lock(storage, base.name)) as lock, suppress(DiskInUse):
            if lock is not None:
                changes.remove(storage.group, base, is_needed_by_snapshots=True)


def _lock(storage: Storage, base: str) -> Path:
    keep_directory(_LOCKS, _PRIVATE)
    return _LOCKS / f"{storage.group.name}-{base}"
