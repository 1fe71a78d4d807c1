"""Disks outside the scanned roots: a symlink for each keeps its base image, as a garbage collector's root does.

The symlink is durable before the disk appears, so there is no moment at which a disk exists and nothing knows of it.
"""

import os
from contextlib import suppress
from pathlib import Path

from underlay.files import keep_directory, sync_directory, translated
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
    """Forget a disk that is provably gone. Idempotent. The caller holds the disk's lock."""
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


def _entries(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
