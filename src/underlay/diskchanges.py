"""What becomes of a disk that is there, other than growing and going: written out, flattened, rebased, kept as a snapshot.

All under the disk's lock, as in `underlay.instances`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from underlay import extfs, fileview, instances
from underlay.config import Config
from underlay.contracts import DiskBackend
from underlay.errors import DiskExists, InvalidForm, Unsupported
from underlay.files import adopt, make_directory, open_regular, remove_tree, rename_no_replace, sync_directory, translated
from underlay.model import BaseImage, DiskSpec, Extraction, InstanceDisk
from underlay.naming import plain_name
from underlay.store import Store, images, roots

EXTRACTION_FORMATS = frozenset({"raw", "qcow2"})
_MODE, _PRIVATE_MODE = 0o640, 0o700


def extract(
    config: Config, backend: DiskBackend, want: DiskSpec, target: Path, extraction: Extraction, *, assume_closed: bool
) -> None:
    """Write what a disk's guest sees into a new file, which needs no other: whole, or not at all.

    Args:
        target: an absolute path, in a directory that is there.

    Raises:
        DiskExists: something has that name. InvalidForm, InvalidName; DiskNotFound, DiskInUse, DiskUnrecorded, ToolFailed,
        InsufficientSpace, CacheMissing, CacheNotWritable
    """
    _check_extraction(extraction)
    instances.check_place(config, target)
    with instances.closed(config, backend, want, assume_closed=assume_closed) as disk:
        with new_file(target) as temporary:
            backend.extract(disk, temporary, extraction)


def _check_extraction(want: Extraction) -> None:
    if want.format not in EXTRACTION_FORMATS:
        known = ", ".join(sorted(EXTRACTION_FORMATS))
        raise InvalidForm(f"no disk is extracted as {want.format!r}", hint=f"known formats: {known}")
    if want.compressed and want.format == "raw":
        raise InvalidForm("a raw file cannot be compressed", hint="ask for qcow2")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path to write a file at, which then gets its name, durably; it lies in a directory that nobody else may enter.

    Raises:
        DiskExists: something has that name. CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
    """
    directory = target.with_name(f".{target.name}.underlay")
    with translated(target.parent):
        if os.path.lexists(target):
            raise DiskExists(f"{target} is there", hint="remove it, or choose another name")
        remove_tree(directory)  # what a crash left; two of the same target fail on the second line
        if not make_directory(directory, _PRIVATE_MODE):
            raise DiskExists(f"{target} is being written", hint="wait for it, or choose another name")
        try:
            temporary = directory / "content"
            yield temporary  # crash: a directory that the next attempt removes
            publish(temporary, target)
        finally:
            remove_tree(directory)


def publish(temporary: Path, target: Path) -> None:
    """Give a written file its name, durably, and never another file's.

    Raises:
        DiskExists: something has that name. OSError
    """
    fd = open_regular(temporary)
    try:
        adopt(fd, target.parent, _MODE)
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        rename_no_replace(temporary, target)  # crash: the whole file
    except FileExistsError as error:
        raise DiskExists(f"{target} appeared while it was written", hint="choose another name") from error
    try:
        sync_directory(target.parent)
    except OSError:
        target.unlink()  # a name that may not last is not handed out
        raise


def resize_with_filesystem(
    config: Config, backend: DiskBackend, want: DiskSpec, size: int, *, assume_closed: bool
) -> InstanceDisk:
    """Grow a raw disk, and the file system that fills it: what its guest has written is read by e2fsck and resize2fs.

    Raises:
        Unsupported: the disk is not raw, or its file system cannot be grown safely; then nothing is done. As
        `underlay.instances.resize`.
    """
    name = backend.traits.name
    with instances.closed(config, backend, want, assume_closed=assume_closed) as disk:
        told = backend.attachment(disk)
        if told.format != "raw" or told.type == "network":
            raise Unsupported(name, "grow a file system: only a raw disk's is reached", hint="leave it to the guest")
        path = Path(told.source)
        with translated(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                extfs.check(fd, size=disk.size or 0, backend=name, what=str(path))
            finally:
                os.close(fd)
            backend.resize(disk, size)  # crash: a larger disk, whose file system the next attempt grows
            extfs.grow(path)
            fileview.sync(path)
        return backend.describe(want)


def flatten(config: Config, backend: DiskBackend, want: DiskSpec, *, assume_closed: bool) -> InstanceDisk:
    """Have a disk stand alone: from then on it keeps no base image.

    Raises:
        DiskNotFound, DiskInUse, DiskUnrecorded, ToolFailed, InsufficientSpace
    """
    with instances.closed(config, backend, want, assume_closed=assume_closed) as disk:
        return backend.flatten(disk)


def rebase(
    config: Config, backend: DiskBackend, base: BaseImage, want: DiskSpec, *, store: Store, assume_closed: bool
) -> InstanceDisk:
    """Put a disk on another base image of ``store``; what its guest sees stays as it is.

    Holds the lock of the new base shared. The old one is needed until the end, and the disk keeps it by its header until then.

    Raises:
        as `DiskBackend.rebase`; NotCached: the new base is gone. DiskNotFound, DiskInUse, LockTimeout
    """
    with images.held(store, base.name) as hold:
        with instances.closed(config, backend, want, assume_closed=assume_closed) as disk:
            images.mark_used(store, base.name)
            before = instances.roots_of(config, disk)
            if instances.is_scanned(config, disk.path):
                roots.note(store, disk.path.parent.parent)
            else:
                roots.add(store, base.name, disk.path)  # crash: two roots, one of them of a base that is needed no more
            hold.confirm()
            rebased = backend.rebase(disk, hold.image)
            for old, name in before:
                if (old.root, name) != (store.root, base.name):
                    roots.retire(old, name, disk.path)
    return rebased


def snapshot(config: Config, backend: DiskBackend, want: DiskSpec, name: str) -> str:
    """Have a lasting image of a disk made within its storage; its location.

    Raises:
        as `DiskBackend.snapshot`; InvalidName
    """
    plain_name(name, what="a snapshot")
    if not backend.traits.snapshots:
        raise Unsupported(backend.traits.name, "keep a snapshot within its storage")
    with instances.locked(config, backend, want):
        return backend.snapshot(backend.describe(want), name)
