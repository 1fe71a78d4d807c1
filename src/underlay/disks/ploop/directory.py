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
from underlay.model import DiskRecord, DiskSpec, InstanceDisk

IMAGE = "root.hds"
FILE_MODE = 0o640
"""Of the files in a disk's directory."""
_MODE = 0o750
# What open(2) and `open_regular` answer where there is no plain file, as opposed to one that cannot be opened now.
_NO_PLAIN_FILE = frozenset({errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR, errno.ENOTDIR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A disk's directory that is open: who owns the one above may put another under its name, and does not change this one.

    Attributes:
        path: its name, as errors have it. fd: of the directory.
    """

    path: Path
    fd: int

    @property
    def inside(self) -> Path:
        """The directory by its descriptor, also for programs that we run."""
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is in a disk's directory.

    Attributes:
        text: of what describes it. descriptor: what that says. size: bytes that the guest sees.
        image: of the first file, the descriptor.
    """

    text: bytes
    descriptor: Descriptor
    size: int
    image: int


@contextmanager
def making(path: Path, record: DiskRecord) -> Iterator[Held]:
    """Make a disk: the context fills an empty directory, and on success that becomes the disk.

    Raises:
        DiskExists: somebody without our lock made one meanwhile.
        CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
    """
    temporary = filedisk.temporary_of(path)
    with translated(path.parent):
        filedisk.clear_away(temporary)  # what a crash left; the lock is ours
        make_directory(temporary, _MODE)  # crash: a directory, removed by the next attempt
        try:
            with _opened(temporary) as fd, _named(Held(path=path, fd=fd)) as held:
                yield held  # crash: the same
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


def write_descriptor(held: Held, *, size: int, cluster: int) -> None:
    """Describe a disk of one image, in a directory that is being made.

    Raises:
        OSError
    """
    with new_file(held.inside / descriptor.NAME) as fd:
        write_all(fd, descriptor.render(size=size, cluster=cluster, file=IMAGE))


@contextmanager
def replacing_descriptor(held: Held, said: bytes) -> Iterator[None]:
    """Describe a disk that the context changes: what it is described as then is written before, and takes its place after.

    So there is room for it, or nothing is changed.

    Raises:
        OSError
    """
    temporary = held.inside / f".{descriptor.NAME}.new"
    temporary.unlink(missing_ok=True)  # what a crash left
    try:
        with new_file(temporary) as fd:
            write_all(fd, said)
        yield  # crash: a file that the next change removes, and a description that says less than there is; see `opened`
        os.rename(temporary, held.inside / descriptor.NAME)
        os.fsync(held.fd)
    finally:
        temporary.unlink(missing_ok=True)


def describe(want: DiskSpec, *, backend: str, disk_format: str) -> InstanceDisk:
    """The disk at ``want.path``: a directory that its attribute or Nova's record call a disk.

    Raises:
        DiskNotFound: nothing is there. DiskExists: what is there is no disk. CacheNotWritable: we may not look. StorageFailed
    """
    with translated(want.path):
        try:
            with found(want.path) as held:
                return describe_held(held, want, backend=backend, disk_format=disk_format)
        except PermissionError:  # then only what the directory above says is known
            return _disk(want, None, backend=backend, disk_format=disk_format, size=None, allocated=0)


def describe_held(held: Held, want: DiskSpec, *, backend: str, disk_format: str) -> InstanceDisk:
    """As `describe`, of a directory that is open.

    Raises:
        DiskExists, OSError
    """
    record = decode_disk_record(read_attribute(held.fd))
    size, allocated = _size(held), _allocated(held.fd)
    return _disk(want, record, backend=backend, disk_format=disk_format, size=size, allocated=allocated)


def _disk(
    want: DiskSpec, record: DiskRecord | None, *, backend: str, disk_format: str, size: int | None, allocated: int
) -> InstanceDisk:
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
        maker=record.maker if record else None,
    )


def _size(held: Held) -> int | None:
    try:
        with opened(held) as content:
            return content.size
    except (DiskUnrecorded, PermissionError):
        return None


@contextmanager
def opened(held: Held, flags: int = os.O_RDONLY) -> Iterator[Content]:
    """Read what describes a disk, open its image, and compare the two.

    The image has the last word: it is what a guest sees, and the next `resize` completes a descriptor that says less, as one
    does whose disk was growing when its host went down.

    Args:
        flags: to open the image with.

    Raises:
        DiskUnrecorded: they are damaged or contradict each other. OSError
    """
    with _plain_file(held, descriptor.NAME) as fd:
        text = os.pread(fd, descriptor.LONGEST + 1, 0)
    said = descriptor.parse(text, where=held.path / descriptor.NAME)
    with _plain_file(held, said.files[0], flags) as fd:
        yield Content(text=text, descriptor=said, size=_compared(held.path, said, fd), image=fd)


def _compared(path: Path, said: Descriptor, fd: int) -> int:
    """Bytes of the disk, which both its description and its image say."""
    what = f"{path} is described as {said.size} bytes"
    if said.format == "raw":
        if (size := os.fstat(fd).st_size) != said.size:
            raise DiskUnrecorded(f"{what}, and its image has {size}")
        return size
    header = parallels.parse_header(os.pread(fd, parallels.HEADER_BYTES, 0), what=os.fspath(path / said.files[0]))
    if said.size > header.size or said.cluster != header.cluster:
        clusters = f"and its image has {header.size} in clusters of {header.cluster}"
        raise DiskUnrecorded(f"{what} in clusters of {said.cluster}, {clusters}")
    return header.size


@contextmanager
def _plain_file(held: Held, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    try:
        fd = open_regular(held.inside / name, flags)
    except OSError as error:
        if error.errno in _NO_PLAIN_FILE:
            why = os.strerror(error.errno or 0)
            raise DiskUnrecorded(f"{held.path / name} is no plain file: {why}") from error
        raise
    try:
        yield fd
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
        with suppress(DiskNotFound), found(path) as held:
            _refuse_strange(held.fd, path)
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
def found(path: Path) -> Iterator[Held]:
    """The directory of a disk that is there, held open.

    Raises:
        DiskNotFound, DiskExists, OSError
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DiskNotFound(f"there is no disk {path}", hint="'underlay disk list' shows those that are there") from error
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise filedisk.name_taken(f"{path} is not a directory, as a disk of the ploop backend is") from error
        raise
    try:
        with _named(Held(path=path, fd=fd)) as held:
            yield held
    finally:
        os.close(fd)


@contextmanager
def _named(held: Held) -> Iterator[Held]:
    """Have errors call a directory by its name."""
    try:
        yield held
    except OSError as error:
        if isinstance(error.filename, str) and error.filename.startswith(inside := os.fspath(held.inside)):
            error.filename = os.fspath(held.path) + error.filename.removeprefix(inside)
        raise


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
