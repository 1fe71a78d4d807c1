"""An instance disk that is one file: made whole or not at all, recorded, described, grown, removed.

What the backends that keep disks as files share; each adds only how the file's content comes about. The caller holds the disk's
lock and, to create, its base's.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from underlay import diskinfo, qemuimg
from underlay.attributes import decode_disk_record, encode_record
from underlay.contracts import BackendTraits
from underlay.errors import DiskExists, DiskNotFound, DiskTooSmall, DiskUnrecorded, ShrinkRefused, UnsafeImage
from underlay.files import (
    adopt,
    allocated_bytes,
    open_regular,
    read_attribute,
    rename_no_replace,
    sync_directory,
    translated,
    write_attribute,
)
from underlay.formats import qcow2
from underlay.model import LAYOUT, BaseImage, DiskRecord, DiskSpec, InstanceDisk

_MODE = 0o640


def size_for(base: BaseImage, want: DiskSpec) -> int:
    """Bytes that the guest is to see.

    Raises:
        DiskTooSmall
    """
    if want.size is None:
        return base.virtual_size
    if want.size < base.virtual_size:
        raise DiskTooSmall(f"the disk {want.path}", size=want.size, virtual_size=base.virtual_size)
    return want.size


def existing(base: BaseImage, want: DiskSpec, traits: BackendTraits) -> InstanceDisk | None:
    """The wanted disk when it is there already, None when nothing is.

    Raises:
        DiskExists: something else is there.
        DiskTooSmall
    """
    size = size_for(base, want)
    try:
        found = describe(want)
    except DiskNotFound:
        return None
    if (found.format, found.size, found.base) == (traits.disk_format, size, base.name):
        return found
    raise DiskExists(
        f"the disk {want.path} exists: {found.format or 'unrecorded'} of {found.size} bytes on {found.base}, "
        f"wanted {traits.disk_format} of {size} bytes on {base.name}",
        hint="remove it, or choose another name",
    )


@contextmanager
def publishing(base: BaseImage, want: DiskSpec, traits: BackendTraits) -> Iterator[Path]:
    """Make a disk: the context writes the path that it is given, and on success that file becomes the disk.

    Raises:
        DiskExists: somebody without our lock made one meanwhile. CacheNotWritable, InsufficientSpace, StorageFailed.
    """
    temporary = want.path.with_name(f".{want.path.name}.underlay")
    record = DiskRecord(
        layout=LAYOUT,
        instance=want.instance,
        name=want.name,
        backend=traits.name,
        format=traits.disk_format,
        base=base.name,
        cache=os.fspath(base.cache),
        version_id=base.record.version_id if base.record else None,
    )
    with translated(want.path):
        temporary.unlink(missing_ok=True)  # what a crash left; the lock is ours
        try:
            yield temporary  # crash: a temporary, removed by the next attempt
            _make_durable(temporary, record)  # crash: the same
            rename_no_replace(temporary, want.path)  # crash: the whole disk
            sync_directory(want.path.parent)
        except FileExistsError as error:
            raise DiskExists(
                f"the disk {want.path} appeared while it was made", hint="remove it, or choose another name"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def _make_durable(path: Path, record: DiskRecord) -> None:
    adopt(path, _MODE)
    fd = open_regular(path, os.O_RDWR)
    try:
        write_attribute(fd, encode_record(record))
        os.fsync(fd)
    finally:
        os.close(fd)


def describe(want: DiskSpec) -> InstanceDisk:
    """The disk at ``want.path``; its format is what is recorded, never what its header claims.

    Raises:
        DiskNotFound: nothing is there. DiskExists: something that is not a plain file is.
    """
    with _opened(want.path) as fd:
        status = os.fstat(fd)
        record = decode_disk_record(read_attribute(fd))
        disk_format = record.format if record else diskinfo.recorded_format(want.path)
        size, backing = _size_and_backing(fd, disk_format)
    base = record.base if record else (backing.name if backing else None)
    return InstanceDisk(
        instance=want.instance,
        name=want.name,
        path=want.path,
        backend=record.backend if record else (disk_format or "unknown"),
        format=disk_format,
        size=size,
        allocated=allocated_bytes(status),
        base=base,
        base_path=backing or (Path(record.cache) / record.base if record else None),
    )


def recorded(path: Path) -> DiskRecord | None:
    """What the disk's attribute says.

    Raises:
        DiskNotFound, DiskExists
    """
    with _opened(path) as fd:
        return decode_disk_record(read_attribute(fd))


def grow(disk: InstanceDisk, size: int) -> None:
    """Make the disk larger; its own size is a success. The caller knows that nobody has it open.

    Raises:
        ShrinkRefused, DiskUnrecorded, ToolFailed
    """
    if disk.format is None or disk.size is None:
        raise DiskUnrecorded(
            f"nothing says what format {disk.path} has, so no tool may open it",
            hint="only a disk that Underlay or Nova recorded",
        )
    if size < disk.size:
        raise ShrinkRefused(f"{disk.path} has {disk.size} bytes and is never made smaller, to {size} bytes or any size")
    if size > disk.size:
        qemuimg.resize(disk.path, format=disk.format, size=size)
        with translated(disk.path):
            fd = open_regular(disk.path)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def remove(disk: InstanceDisk) -> None:
    """Remove the disk's file, durably; one that is gone is a success."""
    with translated(disk.path), suppress(FileNotFoundError):
        disk.path.unlink()
        sync_directory(disk.path.parent)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = open_regular(path)
    except FileNotFoundError as error:
        raise DiskNotFound(f"there is no disk {path}") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise DiskExists(f"{path} is not a plain file", hint="remove it, or choose another name") from error
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def _size_and_backing(fd: int, disk_format: str | None) -> tuple[int | None, Path | None]:
    if disk_format == "raw":
        return os.fstat(fd).st_size, None
    if disk_format != "qcow2":
        return None, None
    beginning = os.pread(fd, qcow2.HEADER_BYTES, 0)
    try:
        header = qcow2.parse_header(beginning)
        name = qcow2.backing_name(beginning, header)
    except UnsafeImage:
        return None, None
    return header.size, Path(name) if name else None
