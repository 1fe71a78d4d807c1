"""An image at a path of its user's own: a hard link to it, or a copy where no link can be.

The path changes in one step, from what was there to the whole image, and only when there is something to change. While the link
or the copy is made the image is held, so nobody removes it in between; afterwards the link, or the copy's record, keeps it.
"""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from underlay import locks
from underlay.config import Config
from underlay.errors import CacheMissing, InvalidName, NotCached
from underlay.files import adopt, copy_sparse, create, is_regular, link, open_regular, sync_directory, translated
from underlay.model import BaseImage, Reason
from underlay.naming import CacheKind, path_key
from underlay.store import Store, copies, images
from underlay.store.images import Hold

_COPY_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Delivered:
    """An image at a path.

    Attributes:
        reason: how it came there: linked, copied, or delivered (it was there already). came: how the image came to be in its
            cache.
    """

    path: Path
    image: BaseImage
    reason: Reason
    came: Reason | None = None


def check_place(config: Config, path: Path) -> None:
    """Refuse a path that no image may be put at.

    Raises:
        InvalidName: not a plain absolute path, or inside a cache. CacheMissing: its directory is not there.
    """
    text = os.fspath(path)
    if not path.is_absolute() or text.startswith("//") or ".." in path.parts or not text.isprintable() or not path.name:
        raise InvalidName(f"{text!r} is no place for an image", hint="use a plain absolute path")
    parent = Path(os.path.realpath(path.parent))
    for store in config.caches.values():
        if _is_ours(parent, store):
            raise InvalidName(f"{text!r} is no place for an image: {store.root} is a cache", hint="use another directory")
    with translated(path.parent):
        if not parent.is_dir():
            raise CacheMissing(f"{path.parent} is not there, so nothing can be delivered in it", hint="make the directory")


def _is_ours(directory: Path, store: Store) -> bool:
    """Whether nothing but a cache's own files has a place there. Below masters a provisioner may have its directories."""
    root = Path(os.path.realpath(store.root))
    if store.kind is CacheKind.MASTERS:
        return directory == root or directory.is_relative_to(root / store.paths.private.name)
    return directory.is_relative_to(root)


def deliver(config: Config, store: Store, image: BaseImage, path: Path) -> Delivered:
    """Put an image of a cache at a path; whatever plain file was there is replaced.

    Holds the image's lock shared and the path's exclusively. Right already costs no write but the mark of the use.

    Raises:
        InvalidName: something that is no plain file is there. NotCached: the image is gone, or another by now.
        CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed, LockTimeout
    """
    with images.held(store, image.name) as hold, _path_lock(config, path):
        if _version_id(hold.image) != _version_id(image):
            raise NotCached(f"the image {image.name} was replaced meanwhile", hint="ask for it again")
        images.mark_used(store, image.name)
        there = _there(path)
        if there is not None and _is_right(store, hold, path, there):
            with translated(path):
                sync_directory(path.parent)  # whoever put it there may have died before this
            return Delivered(path, hold.image, Reason("delivered", "it is there already"))
        reason = _link(hold, path) or _copy(store, hold, path)
        hold.confirm()
        return Delivered(path, hold.image, reason)


@contextmanager
def _path_lock(config: Config, path: Path) -> Iterator[None]:
    # The lock of a disk of that path, so that nobody makes a disk where an image is put; as there, without a deadline.
    home = next(iter(config.caches.values()))
    home.prepare()
    lock = home.paths.disk_lock(path)
    with translated(lock), locks.exclusive(lock, timeout=math.inf):
        yield


def _version_id(image: BaseImage) -> str | None:
    return None if image.record is None else image.record.version_id


def _there(path: Path) -> os.stat_result | None:
    with translated(path):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
    if not is_regular(status):
        raise InvalidName(f"{path} is no plain file, so no image is put there", hint="remove it, or use another path")
    return status


def _is_right(store: Store, hold: Hold, path: Path, there: os.stat_result) -> bool:
    """Whether the path has the image already: by a link, or by a copy that nobody has changed."""
    with translated(hold.image.path):
        mine = os.lstat(hold.image.path)
    if os.path.samestat(mine, there):
        return True
    copy = copies.recorded(store, path)
    return copy is not None and copy.is_of(there) and copy.is_from(hold.image)


def _link(hold: Hold, path: Path) -> Reason | None:
    """Link the image to the path; None where no link can be."""
    with _temporary(path) as temporary, translated(path):
        if not link(hold.image.path, temporary):  # crash: a temporary, removed by the next delivery
            return None
        os.rename(temporary, path)  # crash: what was there, or the image
        sync_directory(path.parent)  # crash: the image for good
    return Reason("linked", "a hard link to the image")


def _copy(store: Store, hold: Hold, path: Path) -> Reason:
    with _temporary(path) as temporary, translated(path, needed=hold.image.allocated):
        source = open_regular(hold.image.path)
        try:
            target = create(temporary, _COPY_MODE)  # crash: a temporary, removed by the next delivery
            try:
                copy_sparse(source, target, hold.image.size)  # crash: the same
                adopt(target, path.parent, _COPY_MODE)
                os.fsync(target)  # crash: the same, durable
                status = os.fstat(target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        copies.record(store, path=path, status=status, image=hold.image)
        os.rename(temporary, path)  # crash: what was there, or the image; the record is of the image's own file
        sync_directory(path.parent)  # crash: the image for good
    return Reason("copied", "no link can be made there, so it is a copy")


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    # Its own name each time: whoever has another configuration may have another lock for this path.
    own = f".{path_key(path)[:16]}-{crc32(os.uname().nodename.encode()):08x}-"
    _sweep(path.parent, own)
    temporary = path.with_name(f"{own}{os.getpid()}-{threading.get_native_id()}.underlay")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _sweep(directory: Path, own: str) -> None:
    """Remove what deliveries to this path left whose processes have died on this host."""
    with suppress(OSError):
        for name in os.listdir(directory):
            process = name.removeprefix(own).partition("-")[0]
            if name.startswith(own) and name.endswith(".underlay") and not os.path.exists(f"/proc/{process}"):
                with suppress(OSError):
                    os.unlink(directory / name)
