"""The directory that a ploop disk is: made whole or not at all, described by what is recorded of it, and removed.

The caller holds the disk's lock.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from underlay import filedisk
from underlay.attributes import decode_disk_record, encode_record
from underlay.disks.ploop import descriptor
from underlay.disks.ploop.descriptor import Descriptor
from underlay.errors import DiskNotFound, DiskUnrecorded, Unsupported
from underlay.files import (
    create,
    make_directory,
    open_regular,
    read_attribute,
    sync_directory,
    translated,
    write_all,
    write_attribute,
)
from underlay.formats import parallels
from underlay.formats.parallels import Header
from underlay.model import DiskRecord, DiskSpec, InstanceDisk

IMAGE = "root.hds"
FILE_MODE = 0o640
"""Of the files in a disk's directory."""
_MODE = 0o750


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is in a disk's directory.

    Attributes:
        descriptor: what describes it. header: of the image, or None when that is raw.
        size: bytes that the guest sees.
    """

    descriptor: Descriptor
    header: Header | None
    size: int


@contextmanager
def making(path: Path, record: DiskRecord) -> Iterator[Path]:
    """Make a disk: the context fills an empty directory, and on success that becomes the disk.

    The context is given the directory by its descriptor, because who owns the one above may put another under its name.

    Raises:
        DiskExists: somebody without our lock made one meanwhile.
        CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
    """
    temporary = filedisk.temporary_of(path)
    with translated(path.parent):
        filedisk.clear_away(temporary)  # what a crash left; the lock is ours
        make_directory(temporary, _MODE)  # crash: a directory, removed by the next attempt
        try:
            with _opened(temporary) as fd:
                yield Path(f"/proc/{os.getpid()}/fd/{fd}")  # crash: the same
                write_attribute(fd, encode_record(record))
                os.fsync(fd)  # crash: the same
                filedisk.put(temporary, path, fd)
        finally:
            with suppress(OSError):
                filedisk.clear_away(temporary)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A new file of a disk, open for writing, which is durable in itself when the context ends well.

    Raises:
        OSError
    """
    fd = create(path, FILE_MODE)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


def write_descriptor(directory: Path, *, size: int, cluster: int) -> None:
    """Describe a disk of one image, in a directory that is being made.

    Raises:
        OSError
    """
    with new_file(directory / descriptor.NAME) as fd:
        write_all(fd, descriptor.render(size=size, cluster=cluster, file=IMAGE))


@contextmanager
def replacing_descriptor(path: Path, said: bytes) -> Iterator[None]:
    """Describe a disk that the context changes: what it is described as then is written before, and takes its place after.

    So there is room for it, or nothing is changed.

    Raises:
        OSError
    """
    temporary = path / f".{descriptor.NAME}.new"
    temporary.unlink(missing_ok=True)  # what a crash left
    try:
        with new_file(temporary) as fd:
            write_all(fd, said)
        yield  # crash: a file that the next change removes, and a description that says less than there is; see `content`
        os.rename(temporary, path / descriptor.NAME)
        sync_directory(path)
    finally:
        temporary.unlink(missing_ok=True)


def describe(want: DiskSpec, *, backend: str, disk_format: str) -> InstanceDisk:
    """The disk at ``want.path``: a directory that its attribute or Nova's record call a disk.

    Raises:
        DiskNotFound: nothing is there. DiskExists: what is there is no disk. CacheNotWritable: we may not look.
    """
    with translated(want.path):
        try:
            with _found(want.path) as fd:
                record = decode_disk_record(read_attribute(fd))
                size, allocated = _size(want.path), _allocated(fd)
        except PermissionError:  # then only what the directory above says is known
            record, size, allocated = None, None, 0
    if record is None and filedisk.noted_format(want.path) != disk_format:
        raise filedisk.name_taken(f"{want.path} is a directory, and nothing says that it is a disk")
    base_path = filedisk.base_path_of(record)
    return InstanceDisk(
        instance=want.instance,
        name=want.name,
        path=want.path,
        backend=record.backend if record else backend,
        format=disk_format,
        size=size,
        allocated=allocated,
        base=base_path.name if base_path else None,
        base_path=base_path,
    )


def _size(path: Path) -> int | None:
    try:
        return content(path).size
    except (DiskUnrecorded, PermissionError):
        return None


def content(path: Path) -> Content:
    """Read what describes a disk, and compare it with its image.

    The image has the last word: it is what a guest sees, and the next `resize` completes a descriptor that says less, as one
    does whose disk was growing when its host went down.

    Raises:
        DiskUnrecorded: they are damaged or contradict each other. OSError
    """
    said = descriptor.parse(read_descriptor(path), where=path / descriptor.NAME)
    if said.format != "parallels":
        return Content(descriptor=said, header=None, size=said.size)
    image = path / said.files[0]
    header = parallels.parse_header(_beginning(image, parallels.HEADER_BYTES), what=os.fspath(image))
    if said.size > header.size or said.cluster != header.cluster:
        what = f"{path} is described as {said.size} bytes in clusters of {said.cluster}"
        raise DiskUnrecorded(f"{what}, and its image has {header.size} in clusters of {header.cluster}")
    return Content(descriptor=said, header=header, size=header.size)


def read_descriptor(path: Path) -> bytes:
    """The text that describes a disk, or so much of it that it is seen to be too long.

    Raises:
        DiskUnrecorded, OSError
    """
    return _beginning(path / descriptor.NAME, descriptor.LONGEST + 1)


def _beginning(path: Path, length: int) -> bytes:
    try:
        fd = open_regular(path)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        raise DiskUnrecorded(f"{path} is no plain file: {os.strerror(error.errno or 0)}") from error
    try:
        return os.pread(fd, length, 0)
    finally:
        os.close(fd)


def _allocated(fd: int) -> int:
    """Bytes that the directory and the files in it occupy."""
    total = os.fstat(fd).st_blocks
    for name in os.listdir(fd):
        with suppress(FileNotFoundError):
            total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks
    return total * 512


def remove(path: Path) -> None:
    """Remove a disk, durably; one that is gone is a success, and what is left of one that was going goes.

    Raises:
        DiskExists: what is there is no directory. Unsupported: there are directories in it. CacheNotWritable, StorageFailed
    """
    temporary = filedisk.temporary_of(path)
    with translated(path):
        filedisk.clear_away(temporary)
        with suppress(DiskNotFound), _found(path) as fd:
            _refuse_strange(fd, path)
            os.rename(path, temporary)  # crash: no disk any more, and a directory that the next `create` or `remove` removes
            sync_directory(path.parent)
            filedisk.clear_away(temporary)
            sync_directory(path.parent)


def _refuse_strange(fd: int, path: Path) -> None:
    with os.scandir(fd) as entries:
        if any(entry.is_dir(follow_symlinks=False) for entry in entries):
            what = f"remove {path}, in which there is a directory that is no part of a disk"
            raise Unsupported("ploop", what, hint="move that directory away")


@contextmanager
def _found(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DiskNotFound(f"there is no disk {path}", hint="'underlay disk list' shows those that are there") from error
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise filedisk.name_taken(f"{path} is not a directory, as a disk of the ploop backend is") from error
        raise
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
