"""Files that survive: durable writes, renames that replace nothing, copies that keep holes, attributes, and what bytes cost.

One of the two doors to fcntl. Functions take paths or descriptors and hold no locks; who may call them under a cache root is
`underlay.store`'s business. Beside each durable step stands what a crash there leaves.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from underlay import later
from underlay.errors import CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed, UnderlayError
from underlay.filesystems import free_bytes

if TYPE_CHECKING:
    import ctypes
else:  # for calls that Python does not have, which no listing makes
    ctypes = later.module("ctypes")

ATTRIBUTE = "user.underlay"

# What file systems answer when they cannot do a thing at all, as opposed to failing at it.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EXDEV})
_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
_BLKZEROOUT = 0x127F  # linux/fs.h, _IO(0x12, 127)
_ZEROED_AT_ONCE = 1 << 30
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100
_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE = 1, 2  # linux/fs.h
_COPY_CHUNK = 64 << 20
_BUFFER = 1 << 20
_BLOCK = 64 << 10
_FINE_CHANGES = 16  # more than a coarse clock ticks in that time
_ZEROS = bytes(_BLOCK)
_PEEK = 16

# What open(2) answers to O_TMPFILE where it does not exist: the last two from a kernel or a file system that never heard of it.
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.EINVAL})


@contextmanager
def translated(where: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError about our own storage into the error that says what to do about it.

    Args:
        where: the directory or file that the work is about.
        needed: bytes that the work was to write, for the message when the file system is full.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(error, where, needed=needed) from error


def storage_error(error: OSError, where: Path, *, needed: int | None = None) -> UnderlayError:
    """The error that an OSError about our own storage means."""
    named = error.filename if isinstance(error.filename, str | os.PathLike) else where  # a call on a descriptor names a number
    what = f"{os.fspath(named)}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientSpace(os.fspath(where), needed=needed, free=_free_or_zero(where), reclaimable={})
    if error.errno == errno.EROFS:
        return CacheNotWritable(what, hint="mount the file system read-write, or use another directory")
    if error.errno in (errno.EACCES, errno.EPERM):
        return CacheNotWritable(what, hint=f"run as the owner of {where}, or as a member of its group")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CacheMissing(what, hint="make the directory, or correct the configuration")
    return StorageFailed(what, hint="look into the kernel's log for errors of that file system")


def _free_or_zero(where: Path) -> int:
    """Free bytes where the path is, or was to be."""
    for path in (where, *where.parents):
        with suppress(OSError):
            return free_bytes(path)
    return 0


# ---------------------------------------------------------------------------------------------------------- making and naming


def create(path: Path, mode: int) -> int:
    """A new file's descriptor, read-write and close-on-exec; owner and group follow its directory, whatever the umask.

    The name appears with the owner and the mode, so a lock file that root makes is at no moment one that others may not open;
    only on a file system without unnamed files does it appear a moment earlier.

    Raises:
        FileExistsError, OSError
    """
    try:
        fd = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in _NO_UNNAMED_FILES:
            return _create_named(path, mode)
        raise
    try:
        adopt(fd, path.parent, mode)
        _give_name(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _give_name(fd: int, path: Path) -> None:
    try:
        # A directory descriptor, though the path is absolute, makes Python call linkat(2), which follows the link in /proc.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise


def _create_named(path: Path, mode: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        adopt(fd, path.parent, mode)
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


def clock_of(directory: Path) -> datetime:
    """The time by the clock that gives a directory's files their mtimes, told by a file without a name.

    Raises:
        OSError: also where a file system has no such files.
    """
    fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        # Once it was looked at, a kernel with fine times gives the next change the finest that it has: no file made before this
        # is younger then.
        os.fstat(fd)
        os.fchmod(fd, 0o600)
        return datetime.fromtimestamp(os.fstat(fd).st_ctime, UTC)
    finally:
        os.close(fd)


def has_fine_times(directory: Path) -> bool:
    """Whether each change gives a file times of its own once they were looked at (Linux 6.13), told by a file without a name.

    Elsewhere two changes within one tick of the kernel's clock leave the same times.
    """
    try:
        fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        seen = {os.fstat(fd).st_ctime_ns}
        for _ in range(_FINE_CHANGES):
            os.fchmod(fd, 0o600)
            seen.add(os.fstat(fd).st_ctime_ns)
        return len(seen) == _FINE_CHANGES + 1
    finally:
        os.close(fd)


def make_directory(path: Path, mode: int) -> bool:
    """Make a directory whose owner and group follow its parent; False when it was there."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        adopt(fd, path.parent, mode)
    finally:
        os.close(fd)
    return True


def keep_directory(path: Path, mode: int) -> bool:
    """As `make_directory`, and give one of ours that is there what a crash in its making may have kept from it.

    Raises:
        OSError: also when something else has the name.
    """
    if make_directory(path, mode):
        return True
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() in (0, os.fstat(fd).st_uid):
            adopt(fd, path.parent, mode)
    finally:
        os.close(fd)
    return False


def adopt(fd: int, directory: Path, mode: int) -> None:
    """Give an open file a directory's owner and group as far as we may, and this mode.

    Raises:
        OSError
    """
    owner = os.stat(directory)
    mine = os.fstat(fd)
    uid = owner.st_uid if os.geteuid() == 0 else -1
    if owner.st_gid != mine.st_gid or uid not in (-1, mine.st_uid):
        with suppress(PermissionError):  # not our group: the file keeps the creator's, as a plain open(2) would leave it
            os.fchown(fd, uid, owner.st_gid)
    os.fchmod(fd, mode)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a small file: after a crash it has the old content or the new, never a mixture.

    The caller holds a lock that excludes other writers of it.

    Raises:
        OSError
    """
    with _replacing(path, content, mode) as fd:
        os.fsync(fd)  # crash: the dot file
    sync_directory(path.parent)


def write_in_place_of(path: Path, content: bytes, *, mode: int) -> None:
    """As `write_durably`, but not durably: for what only matters while we live, such as progress.

    Raises:
        OSError
    """
    with _replacing(path, content, mode):
        pass


@contextmanager
def _replacing(path: Path, content: bytes, mode: int) -> Iterator[int]:
    temporary = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = create(temporary, mode)  # crash: a dot file that nobody reads; the next writer removes it
    try:
        try:
            write_all(fd, content)
            yield fd
        finally:
            os.close(fd)
        os.rename(temporary, path)  # crash: old or new content, each whole
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def start_writeback(fd: int, start: int, length: int) -> None:
    """Have the kernel begin to write out these bytes; nothing is waited for, and nothing is promised (sync_file_range(2)).

    That it cannot is no error here: what fails to be written is noted with the file, and `check_writeback` or an fsync tells.
    """
    if call := getattr(_libc(), "sync_file_range", None):
        call(fd, ctypes.c_int64(start), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def check_writeback(fd: int) -> None:
    """Have an error told that the kernel met since the file was opened as it wrote some of it out; nothing more is written.

    A page that could not be written may have been given up since, and is read as a hole or as what was there before.

    Raises:
        OSError
    """
    call = getattr(_libc(), "sync_file_range", None)
    if call is not None and call(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WAIT_BEFORE) == 0:
        return
    code = ctypes.get_errno() if call is not None else errno.ENOSYS
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    os.fdatasync(fd)  # which tells as well, and writes all of it first


def write_all(fd: int, content: bytes) -> None:
    """Write the whole content at the descriptor's position; a file system that is nearly full takes a part of it first.

    Raises:
        OSError
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def write_at(fd: int, content: bytes | memoryview, offset: int) -> None:
    """As `write_all`, at an offset; where the descriptor is positioned does not matter and does not change.

    Raises:
        OSError
    """
    rest = memoryview(content)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def read_full(fd: int, buffer: memoryview, position: int) -> int:
    """Fill a buffer from an offset on; the bytes read, fewer only at the end of the file.

    A file system may answer with less than was asked for, and the kernel does where a read fails halfway: the error comes with
    the next one. Whoever took a short answer for the end would lose bytes and never hear of it.

    Raises:
        OSError
    """
    length = 0
    while length < len(buffer) and (received := os.preadv(fd, [buffer[length:]], position + length)):
        length += received
    return length


def read_padded(fd: int, length: int, position: int) -> bytearray:
    """So many bytes from an offset on; behind the end of the file there are zeros.

    Raises:
        OSError
    """
    content = bytearray(length)
    read_full(fd, memoryview(content), position)
    return content


@cache
def _libc() -> "ctypes.CDLL":
    return ctypes.CDLL(None, use_errno=True)


def rename_no_replace(source: Path, target: Path) -> None:
    """Rename within a file system; an existing target of any kind is left alone.

    renameat2(2), or link and unlink where the file system does not have it. A directory has no links: there, an empty one that
    somebody makes under the target's name at this very moment is lost.

    Raises:
        FileExistsError, OSError
    """
    code = _renameat2(source, target)
    if code == 0:
        return
    if code not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))
    if source.is_dir() and not source.is_symlink():
        _rename_directory(source, target)
        return
    os.link(source, target, follow_symlinks=False)  # crash: both names; the source lies in tmp/ and is swept
    os.unlink(source)


def _rename_directory(source: Path, target: Path) -> None:
    """As `rename_no_replace`, of a directory: rename(2) replaces nothing but an empty one, which is looked for before."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)) from error
        raise


# What link(2) answers where a link cannot be, as opposed to where nothing can be written: another file system, one without
# links, a file of another user (fs.protected_hardlinks), as many links as an inode can have.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})


def link(source: Path, target: Path) -> bool:
    """Give a file a second name; False where no link can be.

    Raises:
        FileExistsError, OSError
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise OSError(error.errno, os.strerror(error.errno or 0), os.fspath(target)) from error  # which is what cannot be made
    return True


def _renameat2(source: Path, target: Path) -> int:
    call = getattr(_libc(), "renameat2", None)  # a C library may be older than the kernel
    if call is None:
        return errno.ENOSYS
    status = call(_AT_FDCWD, bytes(source), _AT_FDCWD, bytes(target), _RENAME_NOREPLACE)
    return ctypes.get_errno() if status else 0


_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path, *, nested: bool = False) -> None:
    """Remove a directory of our own with the files in it; what is gone already is a success.

    A symlink is not followed: what has the directory's name may have been put there by who owns the one above.

    Args:
        nested: with the directories in it as well, as far as they are on its own file system.

    Raises:
        OSError: among others, there is a directory in it that is not to be removed.
    """
    with suppress(FileNotFoundError):
        fd = os.open(path, _ENTER)
        try:
            _empty(fd, os.fstat(fd).st_dev if nested else None)
        finally:
            os.close(fd)
        os.rmdir(path)


def _empty(directory: int, device: int | None) -> None:
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):
            try:
                os.unlink(name, dir_fd=directory)
            except IsADirectoryError:
                _remove_within(directory, name, device)


def _remove_within(directory: int, name: str, device: int | None) -> None:
    """Remove a directory and what is in it; ``device`` is that of the file system that it has to be on, None: there is none."""
    fd = os.open(name, _ENTER, dir_fd=directory)
    try:
        if os.fstat(fd).st_dev != device:
            raise OSError(errno.ENOTEMPTY, f"{os.strerror(errno.ENOTEMPTY)}: {name} is a directory of somebody else's")
        _empty(fd, device)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


# ---------------------------------------------------------------------------------------------------------------- attributes


def write_attribute(fd: int, value: bytes) -> bool:
    """Set our attribute on an open file; False where the file system keeps no user attributes."""
    try:
        os.setxattr(fd, ATTRIBUTE, value)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
            return False
        raise
    return True


def drop_attribute(fd: int) -> None:
    """Take our attribute off an open file; one that has none is a success."""
    try:
        os.removexattr(fd, ATTRIBUTE)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise


def read_attribute(target: int | str | Path) -> bytes | None:
    """Our attribute of a file, not following a symlink; None when it has none."""
    try:
        if isinstance(target, int):
            return os.getxattr(target, ATTRIBUTE)
        return os.getxattr(target, ATTRIBUTE, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM):
            return None
        raise


def keeps_attributes(directory: Path) -> bool:
    """Whether the file system keeps user attributes, told without writing: one that does not says so to a reader too."""
    try:
        os.getxattr(directory, ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
            return False
        if error.errno != errno.ENODATA:
            raise
    return True


# -------------------------------------------------------------------------------------------------------------------- copying


def reflink(source: int, target: int) -> bool:
    """Make the target share all of the source's blocks; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def data_extents(fd: int, size: int, *, start: int = 0) -> Iterator[tuple[int, int]]:
    """``(start, end)`` byte offsets of the file's data from ``start`` to ``size``, holes left out."""
    end = start
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        if start >= size:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


def fill_holes(fd: int, size: int) -> None:
    """Write zeros where the file has holes, up to ``size`` bytes, so that all of it is there.

    Raises:
        OSError
    """
    position = 0
    for start, end in [*data_extents(fd, size), (size, size)]:
        write_zeros(fd, position, start)
        position = max(position, end)


def write_zeros(fd: int, start: int, end: int) -> None:
    """Write zeros from one offset to another, if that is behind it.

    Raises:
        OSError
    """
    zeros = memoryview(bytes(min(_BUFFER, max(0, end - start))))
    for position in range(start, end, _BUFFER):
        write_at(fd, zeros[: end - position], position)


def zero_out(device: int, start: int, end: int) -> None:
    """Have a block device hold zeros from ``start`` to ``end``, both multiples of its sectors.

    The device may do it by itself. What was there is overwritten, never only given up (BLKZEROOUT, which does not unmap).

    Raises:
        OSError
    """
    while start < end:
        length = min(end - start, _ZEROED_AT_ONCE)
        fcntl.ioctl(device, _BLKZEROOUT, struct.pack("=QQ", start, length))
        start += length


def device_bytes(device: int) -> int:
    """How large a block device is.

    Raises:
        OSError
    """
    return os.lseek(device, 0, os.SEEK_END)


def copy_sparse(source: int, target: int, size: int) -> None:
    """Copy ``size`` bytes into an empty target of that length, keeping holes: reflink, else extent by extent in the kernel.

    A whole-file copy_file_range would write the holes out on ext4, so each extent is copied for itself. Where a file system
    does not tell where the holes are (NFS before 4.2, many FUSE ones), zero blocks are left out.

    Raises:
        OSError: EIO when the source is shorter.
    """
    if os.fstat(source).st_size < size:
        raise OSError(errno.EIO, f"the source has fewer than {size} bytes")
    if reflink(source, target):
        os.ftruncate(target, size)
        return
    os.ftruncate(target, size)
    extents = list(data_extents(source, size))
    if extents == [(0, size)] and allocated_bytes(os.fstat(source)) < size:
        _copy_data(source, target, size)
        return
    for start, end in extents:
        _copy_extent(source, target, start, end)


def copy_range(source: int, target: int, start: int, length: int, *, to: int, share: bool = True) -> None:
    """Copy bytes of one file to an offset of another, where there are none yet, keeping the holes between them.

    In the kernel if it can, which shares the blocks on file systems that have reflinks, else through our memory. Neither file's
    position is used, so other threads may read and write them meanwhile.

    Args:
        share: whether the two may have blocks in common; if not, all goes through our memory.

    Raises:
        OSError: EIO when the source's data end meanwhile.
    """
    for data, end in data_extents(source, start + length, start=start):
        position = data
        while position < end:
            copy = _copy_some if share else _copy_through_memory
            position += copy(source, target, position, end - position, position - start + to)


def _copy_some(source: int, target: int, position: int, length: int, to: int) -> int:
    with _if_supported():
        if copied := os.copy_file_range(source, target, min(length, _COPY_CHUNK), position, to):
            return copied
    return _copy_through_memory(source, target, position, length, to)


def _copy_through_memory(source: int, target: int, position: int, length: int, to: int) -> int:
    piece = os.pread(source, min(length, _BUFFER), position)
    if not piece:
        raise _ended(position)
    write_sparse(target, memoryview(piece), to)
    return len(piece)


def _copy_data(source: int, target: int, size: int) -> None:
    buffer = memoryview(bytearray(_BUFFER))
    position = 0
    while position < size:
        length = os.preadv(source, [buffer[: size - position]], position)
        if length == 0:
            raise _ended(position)
        write_sparse(target, buffer[:length], position)
        position += length


def write_sparse(fd: int, content: memoryview, position: int) -> None:
    """Write at an offset where there is nothing yet; blocks of 64 KiB that are all zero stay a hole.

    Raises:
        OSError
    """
    run = 0
    for start in range(0, len(content), _BLOCK):
        block = content[start : start + _BLOCK]
        if _is_zero(block):
            write_at(fd, content[run:start], position + run)
            run = start + len(block)
    write_at(fd, content[run:], position + run)


def _is_zero(block: memoryview) -> bool:
    # Memoryviews compare element by element, bytes at the speed of memory. Most blocks fail the peek.
    return bytes(block[:_PEEK]) == _ZEROS[: min(_PEEK, len(block))] and bytes(block) == _ZEROS[: len(block)]


def _ended(position: int) -> OSError:
    return OSError(errno.EIO, f"the source ended at byte {position} while it was copied")


def _copy_extent(source: int, target: int, start: int, end: int) -> None:
    position = start
    while position < end:
        copied = _copy_chunk(source, target, position, min(end - position, _COPY_CHUNK))
        if copied == 0:
            raise _ended(position)
        position += copied


def _copy_chunk(source: int, target: int, position: int, length: int) -> int:
    """Copy in the kernel if it can between these two files, else through our memory. A call that copies nothing cannot."""
    with _if_supported():
        if copied := os.copy_file_range(source, target, length, position, position):
            return copied
    with _if_supported():
        os.lseek(target, position, os.SEEK_SET)
        if copied := os.sendfile(target, source, position, length):
            return copied
    return os.pwrite(target, os.pread(source, min(length, _BUFFER), position), position)


@contextmanager
def _if_supported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


# --------------------------------------------------------------------------------------------------------------------- costs


def allocated_bytes(status: os.stat_result) -> int:
    """Bytes that a file occupies (shared extents counted as if they were its own)."""
    return status.st_blocks * 512


def is_regular(status: os.stat_result) -> bool:
    """Whether this is a plain file, not a symlink, directory, FIFO, socket or device."""
    return stat.S_ISREG(status.st_mode)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a plain file without following a symlink or waiting on a FIFO.

    Raises:
        FileNotFoundError, OSError: ELOOP for a symlink, EINVAL for any other kind of file.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:
        # Somebody holds a lease on it, as `underlay.locks.opened_elsewhere` does for a moment. Only plain files have leases.
        fd = os.open(path, flags)
    if not is_regular(os.fstat(fd)):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return fd


def read_regular(path: Path) -> bytes:
    """A plain file's content, from a directory in which others may put what they like.

    Raises:
        as `open_regular`
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()
