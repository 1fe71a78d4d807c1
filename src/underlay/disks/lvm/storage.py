"""Where disks come about: a volume group, perhaps a thin pool in it; whether it has room, and what its failures mean."""

import errno
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from underlay import locks
from underlay.contracts import StorageRoom
from underlay.disks.lvm import content, names
from underlay.disks.lvm.changes import activate
from underlay.disks.lvm.commands import Group
from underlay.disks.lvm.looking import Volume, volumes
from underlay.errors import BackendUnavailable, DiskInUse, InsufficientSpace, UnderlayError, Unsupported
from underlay.files import keep_directory, storage_error, translated

LOCKS = Path("/run/lock/underlay")
"""Where they are."""

_PRIVATE = 0o700
_TABLES_FULL = 99.0  # percent of a pool's metadata, above which it may stop in the middle of a write
_FAILED = frozenset({errno.EIO, errno.ENOSPC, errno.ENODATA})


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing:
    """What is done to what a guest wrote, before its extents may be another's.

    Attributes:
        how: zero, shred or none. size: bytes from the beginning; None: all.
    """

    how: str
    size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A volume group as it is configured.

    Attributes:
        pool: the thin pool of the disks; None: they have extents of their own.
    """

    group: Group
    pool: str | None
    clearing: Clearing

    def device(self, volume: str) -> Path:
        """The device of a volume."""
        return names.device(self.group.name, volume)


def measured(storage: Storage) -> StorageRoom:
    """How large the volume group is, or the pool of thin disks.

    Raises:
        BackendUnavailable: it is not there.
    """
    if storage.pool is None:
        row = storage.group.report("vgs", fields=["vg_size", "vg_free"])[0]
        return StorageRoom(total=int(row["vg_size"]), free=int(row["vg_free"]))
    pool = next(volumes(storage.group, f'lv_name="{storage.pool}"'), None)
    if pool is None:
        raise _no_pool(storage)
    return StorageRoom(total=pool.size, free=pool.free)


def _no_pool(storage: Storage) -> BackendUnavailable:
    group, pool = storage.group.name, storage.pool
    hint = f"make it: lvcreate --type thin-pool --name {pool} --extents 80%FREE {group}"
    return BackendUnavailable(f"the thin pool {group}/{pool} is not there", hint=hint)


def check_pool(storage: Storage, pool: Volume | None, *, needed: int) -> None:
    """Refuse to write into a pool that has no room: it would make the writer wait for some, and then fail.

    Raises:
        BackendUnavailable: there is none. InsufficientSpace
        Unsupported: it gives out what others have written.
    """
    name = f"{storage.group.name}/{storage.pool}"
    where = f"the thin pool {name}"
    if pool is None:
        raise _no_pool(storage)
    if not pool.gives_zeros:
        what = f"keep disks in {where}: it gives out blocks that hold what others have written"
        raise Unsupported("lvm", what, hint=f"lvchange --zero y {name}")
    if pool.free < max(needed, pool.chunk) or pool.used_by_tables >= _TABLES_FULL:
        raise InsufficientSpace(where, needed=needed, free=pool.free, reclaimable={})


@contextmanager
def room(storage: Storage, *, needed: int) -> Iterator[None]:
    """Have a pool's room for oneself while the block writes into it: what others have begun to write is not counted yet.

    Without a pool there is nothing to see to: extents are taken at once.

    Raises:
        as `check_pool`; CacheNotWritable
    """
    if storage.pool is None:
        yield
        return
    with ExitStack() as stack:
        # Without a deadline: an image may be large, and the kernel frees what a dead holder held.
        with translated(LOCKS):
            stack.enter_context(locks.exclusive(lock_file(storage, f"pool-{storage.pool}"), timeout=math.inf))
        pool = next(volumes(storage.group, f'lv_name="{storage.pool}"'), None)  # as who held the lock left it
        check_pool(storage, pool, needed=needed)
        yield


def lock_file(storage: Storage, name: str) -> Path:
    """Where a lock lies, of which a dead process holds none: locks are of this host, as the volume group is."""
    keep_directory(LOCKS, _PRIVATE)
    return LOCKS / f"{storage.group.name}-{name}"


@contextmanager
def written(storage: Storage, volume: str) -> Iterator[None]:
    """Turn what the system says of a device into the error that says what to do about it.

    Raises:
        DiskInUse, InsufficientSpace, StorageFailed, BackendUnavailable
    """
    try:
        yield
    except OSError as error:
        raise _translated(storage, volume, error) from error


def _translated(storage: Storage, volume: str, error: OSError) -> UnderlayError:
    device = storage.device(volume)
    if error.errno == errno.EBUSY:
        return DiskInUse(f"{device} is in use", hint="stop who uses it: lsof, dmsetup ls --tree")
    if error.errno == errno.ESTALE:
        return BackendUnavailable(f"{device} was given to another volume meanwhile", hint="try again")
    if error.errno == errno.ENOENT and error.filename == str(device):
        return BackendUnavailable(f"{device} is not there", hint="see whether udev runs, and lvs -o +lv_active")
    if error.errno in _FAILED and storage.pool is not None:
        for pool in volumes(storage.group, f'lv_name="{storage.pool}"'):
            check_pool(storage, pool, needed=0)  # raises when it filled up meanwhile
    return storage_error(error, device)


def is_wiped(storage: Storage, volume: Volume) -> bool:
    """Whether a volume is overwritten before it goes: not a thin one, whose pool overwrites what it gives out again."""
    return storage.clearing.how != "none" and not volume.is_thin


def wipe(storage: Storage, volume: Volume) -> None:
    """Overwrite what a guest wrote to a volume that is about to go, if that is configured.

    Raises:
        as `written`; ToolMissing, ToolFailed
    """
    if not is_wiped(storage, volume):
        return
    activate(storage.group, volume)
    with written(storage, volume.name):
        how, size = storage.clearing.how, storage.clearing.size
        content.clear(storage.device(volume.name), uuid=volume.uuid, how=how, size=size)
