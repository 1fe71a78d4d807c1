"""What the making of a disk for Nova has to know of its base image, of a disk that is there, and of a file to be written."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from underlay import diskchanges, extfs, fileview, qemuimg
from underlay.contracts import BackendTraits, Observer
from underlay.errors import DiskUnrecorded, Unsupported
from underlay.files import allocated_bytes, make_directory, open_regular, translated
from underlay.model import BaseImage, DiskSpec, InstanceDisk
from underlay.openstack.nova import templates
from underlay.store import Store
from underlay.values import replace

_MODE, _DISK_MODE = 0o755, 0o644
_CONVERTED = {"vmdk": "vmdk", "vdi": "vdi", "ploop": "parallels"}
"""Formats that a disk is written in by way of a raw file, with QEMU's names for them."""


def make_cache_directory(store: Store) -> None:
    """Make the directory of the cache unless it is there, as Nova does; the one above it has to be.

    Raises:
        CacheMissing, CacheNotWritable
    """
    with translated(store.root):
        if not os.path.lexists(store.root):
            make_directory(store.root, _MODE)


def wanted(spec: DiskSpec, traits: BackendTraits, image: BaseImage, size: int | None) -> DiskSpec:
    """The disk that is to be made of an image, which a file system that fills a local raw disk grows with, as in Nova."""
    grows = bool(size) and traits.disk_format == "raw" and not traits.overlays and not traits.shared_storage
    return replace(spec, size=size or None, grow_filesystem=grows and has_file_system(image.path))


def open_to_nova(path: Path) -> None:
    """Give a disk's file the mode that Nova's have: Nova goes on looking at it when libvirt has given it to QEMU's user.

    Raises:
        CacheMissing, CacheNotWritable
    """
    with translated(path):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fchmod(fd, _DISK_MODE)  # crash before this: a disk that Nova makes its own again when its domain has ended
        finally:
            os.close(fd)


def can_be(path: Path, disk_format: str, store: Store) -> bool:
    """Whether a disk of which nothing is recorded may be what its type of images says: an overlay reads from the cache only.

    So a guest that has written a header onto what once was a raw disk does not get to other files of the host.
    """
    if disk_format != "qcow2":
        return disk_format == "raw"
    try:
        with translated(path):
            backing, _ = fileview.backing_of(path)
    except DiskUnrecorded:
        return False
    return backing is None or Path(os.path.realpath(backing)).parent == Path(os.path.realpath(store.root))


def has_file_system(path: Path) -> bool:
    """Whether a raw file is one file system that can be grown safely."""
    with translated(path):
        fd = open_regular(path)
        try:
            extfs.check(fd, size=os.fstat(fd).st_size, backend="flat", what=path.name)
        except Unsupported:
            return False
        finally:
            os.close(fd)
    return True


def size_of(disk: InstanceDisk) -> int:
    """Bytes that the guest of a disk sees.

    Raises:
        DiskUnrecorded
    """
    if disk.size is None:
        what = f"nothing says what format {disk.path} has, so nothing tells its size"
        raise DiskUnrecorded(what, hint="Nova records it in disk.info beside the disk")
    return disk.size


def restore_backing(store: Store, image: BaseImage, disk: InstanceDisk, observer: Observer, holding: ExitStack) -> None:
    """Make the resized copy of an image anew that a disk of an older Nova stands on, where it is gone.

    Raises:
        as `underlay.openstack.nova.templates.ensure`
    """
    backing = disk.base_path if disk.format == "qcow2" else None
    if backing is None or os.path.lexists(backing):
        return
    resized = re.fullmatch(rf"{re.escape(image.name)}_(\d{{1,6}})", backing.name, re.ASCII)
    if resized and Path(os.path.abspath(backing)).parent == store.root:
        templates.resized(store, image, int(resized[1]), observer, holding)


def raw_file(path: Path) -> BaseImage:
    """A raw file of ours that is in no cache, for a disk to be made of.

    Raises:
        CacheMissing, StorageFailed: it cannot be read.
    """
    with translated(path):
        fd = open_regular(path)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
    return BaseImage(
        name=path.name,
        cache=path.parent,
        format="raw",
        size=status.st_size,
        virtual_size=status.st_size,
        allocated=allocated_bytes(status),
        last_used=datetime.now(UTC),
        record=None,
    )


@contextmanager
def extraction(target: Path, out_format: str) -> Iterator[tuple[Path, str]]:
    """Where a disk is to be extracted to, and in which format, so that the target then has the wanted one.

    Raises:
        DiskExists: the target is there. ToolError, InsufficientSpace; StorageFailed: what was written is not what was read.
    """
    converted = _CONVERTED.get(out_format)
    if converted is None:
        yield target, out_format
        return
    with diskchanges.new_file(target) as written, TemporaryDirectory(prefix=".underlay-", dir=target.parent) as directory:
        raw = Path(directory) / "raw"
        yield raw, "raw"
        before, after = qemuimg.node(raw, format="raw"), qemuimg.node(written, format=converted)
        qemuimg.convert(before, written, format=converted)
        fileview.prove(before, after, target)
