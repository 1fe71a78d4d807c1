"""Disks outside the scanned roots: a symlink for each keeps its base image, as a garbage collector's root does.

The symlink is durable before the disk appears, so there is no moment at which a disk exists and nothing knows of it. It stays
until the disk is removed or forgotten by hand: a path where nothing is may be one that is not mounted here, or was renamed.
"""

import os
from contextlib import suppress
from pathlib import Path

from underlay.files import keep_directory, sync_directory, translated
from underlay.naming import path_key
from underlay.store.layout import Store

_TRIES = 10


def add(store: Store, name: str, disk: Path) -> None:
    """Record that a disk needs the image, durably or not at all. Idempotent. The caller holds the disk's lock.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    root = store.paths.disk_root(name, disk)
    with translated(root):
        if os.path.lexists(root):  # its name is the key of the disk's path, so it points there
            sync_directory(root.parent)
            return
        try:
            _put(root, disk)
        except BaseException:
            with suppress(OSError):
                _remove(root)
            raise


def _put(root: Path, disk: Path) -> None:
    for attempt in range(1, _TRIES + 1):
        try:
            if keep_directory(root.parent, 0o2775):
                sync_directory(root.parent.parent)
            os.symlink(disk, root)  # crash: a root whose disk never came, retired when that is certain
            sync_directory(root.parent)
        except FileNotFoundError:  # the last other root of the image was retired just now, and its directory with it
            if attempt == _TRIES:
                raise
        else:
            return


def retire(store: Store, name: str, disk: Path) -> None:
    """Forget a disk that is gone. Idempotent. The caller holds the disk's lock."""
    root = store.paths.disk_root(name, disk)
    with translated(root):
        _remove(root)


def _remove(root: Path) -> None:
    with suppress(FileNotFoundError):
        root.unlink()
        sync_directory(root.parent)
    with suppress(OSError):  # other disks need the image
        root.parent.rmdir()


def disks(store: Store) -> list[tuple[str, Path]]:
    """``(image name, disk path)`` of every recorded disk, whether it is still there or not.

    A root that is retired meanwhile is left out; what cannot be read is an error, because it may keep an image.

    Raises:
        CacheNotWritable, StorageFailed
    """
    found = []
    with translated(store.paths.disks):
        for name in _entries(store.paths.disks):
            for key in _entries(store.paths.disks / name):
                with suppress(FileNotFoundError):
                    found.append((name, Path(os.readlink(store.paths.disks / name / key))))
    return found


def note(store: Store, directory: Path) -> None:
    """Note a directory of instances in which a disk is about to be made from this cache, durably. Idempotent.

    Another configuration may share the cache, or this one may come to name another directory: the disks in it still count.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    link = store.paths.instances / path_key(directory)
    with translated(link):
        if os.path.lexists(link):
            return
        if keep_directory(link.parent, 0o2775):
            sync_directory(link.parent.parent)
        with suppress(FileExistsError):
            os.symlink(directory, link)  # crash: the note of a directory with no disk of this cache, which is read in vain
        try:
            sync_directory(link.parent)
        except BaseException:  # what may not last is not taken for noted the next time
            with suppress(OSError):
                link.unlink()
            raise


def noted(store: Store) -> list[Path]:
    """Every directory of instances in which a disk was made from this cache.

    Raises:
        CacheNotWritable, StorageFailed
    """
    with translated(store.paths.instances):
        return [Path(os.readlink(store.paths.instances / key)) for key in _entries(store.paths.instances)]


def forget_noted(store: Store, directory: Path) -> None:
    """Forget a directory of instances. Idempotent.

    Raises:
        CacheNotWritable, StorageFailed
    """
    link = store.paths.instances / path_key(directory)
    with translated(link), suppress(FileNotFoundError):
        link.unlink()
        sync_directory(link.parent)


def _entries(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
