"""Disks outside the scanned roots: a symlink for each keeps its base image, as a garbage collector's root does.

The symlink is durable before the disk appears, so there is no moment at which a disk exists and nothing knows of it.
"""

import os
from contextlib import suppress
from pathlib import Path

from underlay.files import keep_directory, sync_directory, translated
from underlay.store.layout import Store


def add(store: Store, name: str, disk: Path) -> None:
    """Record that a disk needs the image, durably. Idempotent.

    Raises:
        CacheNotWritable, InsufficientSpace
    """
    root = store.paths.disk_root(name, disk)
    with translated(root):
        if keep_directory(root.parent, 0o2775):
            sync_directory(root.parent.parent)
        with suppress(FileExistsError):  # its name is the key of the disk's path, so an existing one points there
            os.symlink(disk, root)  # crash: a root whose disk never came, retired when that is certain
        sync_directory(root.parent)


def retire(store: Store, name: str, disk: Path) -> None:
    """Forget a disk that is provably gone. Idempotent."""
    root = store.paths.disk_root(name, disk)
    with translated(root), suppress(FileNotFoundError):
        root.unlink()
        sync_directory(root.parent)


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
