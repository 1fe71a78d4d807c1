"""Disks that are no files of this host: volumes, images in a Ceph. What is recorded here is how they are found again.

The record is durable before the disk appears, so there is no moment at which a disk exists and nothing knows of it. It says
where the disk is and who has to be asked about it; what the disk is, the disk says itself. It keeps a base image only where
the disk reads from it for as long as it lives.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from underlay.errors import StorageFailed
from underlay.files import keep_directory, sync_directory, translated, write_durably
from underlay.model import LAYOUT
from underlay.store.layout import Store

_MODE = 0o644


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded of one disk.

    Attributes:
        path: as `underlay.model.DiskSpec` has it. base: name of the image in this cache that it was made from, or None.
        keeps_base: the disk reads from it for as long as it lives.
    """

    layout: int = LAYOUT
    instance: str
    name: str
    backend: str
    path: str
    base: str | None
    keeps_base: bool


def record(store: Store, at: Path, volume: Volume) -> None:
    """Record a disk, durably. Idempotent. The caller holds the disk's lock.

    Args:
        at: the path that the disk would have as a file, which tells it from all others.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    path = store.paths.volume(at)
    with translated(path):
        if keep_directory(path.parent, 0o2775):
            sync_directory(path.parent.parent)
        write_durably(path, msgspec.json.encode(volume), mode=_MODE)  # crash: a record of a disk that never came


def forget(store: Store, at: Path) -> None:
    """Forget a disk that is gone. Idempotent. The caller holds the disk's lock."""
    path = store.paths.volume(at)
    with translated(path), suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)


def find(store: Store, at: Path) -> Volume | None:
    """What is recorded of the disk; None: nothing is.

    Raises:
        CacheNotWritable, StorageFailed: the record cannot be read.
    """
    return _read(store.paths.volume(at))


def volumes(store: Store) -> list[Volume]:
    """Every recorded disk, whether it is still there or not.

    Raises:
        CacheNotWritable, StorageFailed: a record cannot be read, and may keep an image.
    """
    with translated(store.paths.volumes):
        try:
            names = sorted(os.listdir(store.paths.volumes))
        except FileNotFoundError:
            return []
    paths = (store.paths.volumes / name for name in names if name.endswith(".json"))
    return [found for path in paths if (found := _read(path)) is not None]


def _read(path: Path) -> Volume | None:
    with translated(path):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        volume = msgspec.json.decode(content, type=Volume)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StorageFailed(f"{path} cannot be read: {error}", hint="restore it, or remove it if its disk is gone") from error
    if volume.layout != LAYOUT:
        raise StorageFailed(f"{path} is of layout {volume.layout}", hint="it was written by another version of Underlay")
    return volume
