"""Files on their way out: into ``trash/`` under their locks, then gone, or back where they were.

The caller holds the name's locks from before `trash` until after `destroy` or `put_back`, and looks between them whether
anybody came to need the file. While it lies in ``trash/`` nobody can open it by its name; its inode is untouched.
"""

import os
from contextlib import suppress
from pathlib import Path

from underlay import locks
from underlay.errors import UnderlayError
from underlay.extents import own_bytes
from underlay.files import is_regular, open_regular, rename_no_replace, sync_directory, translated
from underlay.naming import kind_of_name
from underlay.plan import CachedFile
from underlay.store import leases, staging as stagings
from underlay.store.layout import Store
from underlay.store.listing import dead_ingest, described, marker_of
from underlay.store.locking import try_exclusive


def trash(store: Store, name: str) -> None:
    """Take a file out of the cache, durably. The caller holds its locks.

    Raises:
        CacheMissing: it is gone. CacheNotWritable, StorageFailed
    """
    with translated(store.paths.image(name)):
        rename_no_replace(store.paths.image(name), store.paths.trashed(name))  # crash: in the cache or in the trash, whole
        # The new name first: a file system may keep the two changes apart.
        sync_directory(store.paths.trash)
        sync_directory(store.root)  # crash: in the trash, where the next pass finds it


def trashed(store: Store, file: CachedFile) -> CachedFile | None:
    """A file in the trash as it is now; None when it is gone. Its ctime is that of its renaming.

    Raises:
        CacheNotWritable, StorageFailed
    """
    with translated(store.paths.trashed(file.name)):
        try:
            status = os.lstat(store.paths.trashed(file.name))
        except FileNotFoundError:
            return None
        return described(file.name, file.kind, status, marker=marker_of(store, file.name), record=None)


def destroy(store: Store, name: str) -> int:
    """Remove a file from the trash for good, and its marker; the bytes that its file system has more.

    Raises:
        CacheNotWritable, StorageFailed
    """
    path = store.paths.trashed(name)
    with translated(path):
        freed = freed_by_removal(path)
        os.unlink(path)  # crash: gone, or in the trash once more
        sync_directory(path.parent)  # crash: gone
        _forget(store, name)
    return freed


def _forget(store: Store, name: str) -> None:
    """Remove what was noted of a file that is gone. A crash before leaves notes of no image, which mean nothing."""
    for note in (store.paths.used_marker(name), store.paths.quarantined(name), store.paths.scrub(name)):
        with suppress(FileNotFoundError):
            os.unlink(note)


def put_back(store: Store, name: str) -> bool:
    """Return a file from the trash to the cache; False when another has its name there by now.

    Raises:
        CacheMissing, CacheNotWritable, StorageFailed
    """
    with translated(store.paths.trashed(name)):
        try:
            rename_no_replace(store.paths.trashed(name), store.paths.image(name))  # crash: in the trash or in the cache, whole
        except FileExistsError:
            return False
        sync_directory(store.root)
        sync_directory(store.paths.trash)  # crash: back, for good
    return True


def drop(store: Store, name: str) -> None:
    """Remove a master that its source asks nobody to keep, unless it is leased or somebody is at it.

    Whoever got a link or a copy has the bytes; nothing depends on a master's name. What cannot be removed now is left to a
    prune: it answers no request.
    """
    with suppress(UnderlayError), try_exclusive(store, name) as taken:
        held, unreadable = leases.leases(store)
        if taken is None or unreadable or any(name in lease.names for lease in held):
            return
        with translated(store.paths.image(name)), suppress(FileNotFoundError):
            os.unlink(store.paths.image(name))  # crash: gone, or there once more, where it answers nobody
            sync_directory(store.root)
            _forget(store, name)


def recover(store: Store) -> list[str]:
    """Put back what a crash left in the trash; the next look over the cache judges it anew. The names.

    A file whose name another has by now is removed when nobody has it open: whoever needs the image finds the other one.

    Raises:
        CacheNotWritable, StorageFailed
    """
    recovered = []
    for name in _names(store.paths.trash):
        if kind_of_name(name, kind=store.kind) is None:
            continue
        with try_exclusive(store, name) as taken:
            if taken is not None and _recover(store, name):
                recovered.append(name)
    return recovered


def remove_dead_ingest(store: Store, file: CachedFile) -> int | None:
    """Remove an ingest that nobody works on; the bytes that it occupied, None when somebody does, or has since it was judged.

    Raises:
        CacheNotWritable, StorageFailed
    """
    key = os.path.basename(file.name)
    staging = stagings.Staging(store.paths.ingest(key))
    with translated(staging.directory), locks.try_exclusive(store.paths.ingest_lock(key)) as lock:
        if lock is None or dead_ingest(staging) != file:
            return None
        freed = stagings.allocated(staging)
        stagings.discard(staging)
    return freed


def is_same_trashed(file: CachedFile, found: CachedFile | None) -> bool:
    """Whether the file in the trash is the one that was judged, not used since; its renaming changed its ctime."""
    return found is not None and _without_ctime(found) == _without_ctime(file)


def _without_ctime(file: CachedFile) -> tuple[object, ...]:
    return file.device, file.inode, file.size, file.mtime_ns, file.links, file.used_ns


def _recover(store: Store, name: str) -> bool:
    with translated(store.paths.trashed(name)):
        try:
            status = os.lstat(store.paths.trashed(name))
        except FileNotFoundError:  # another pass has destroyed it, or put it back, since we listed it
            return False
    if not is_regular(status):
        return False
    if put_back(store, name):
        return True
    if locks.opened_elsewhere(store.paths.trashed(name)) is False:
        with translated(store.paths.trashed(name)):
            os.unlink(store.paths.trashed(name))  # the marker is the other image's
            sync_directory(store.paths.trash)
    return False


def freed_by_removal(path: Path) -> int:
    """Bytes that the file system would have more without a file: what others share by links or reflinks does not come free.

    Raises:
        OSError
    """
    fd = open_regular(path)
    try:
        return own_bytes(fd) if os.fstat(fd).st_nlink == 1 else 0
    finally:
        os.close(fd)


def _names(directory: Path) -> list[str]:
    with translated(directory):
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []
