"""Files that survive: durable writes, renames that replace nothing, copies that keep holes, attributes, and what bytes cost.

One of the two doors to fcntl. Functions take paths or descriptors and hold no locks; who may call them under a cache root is
`underlay.store`'s business. Beside each durable step stands what a crash there leaves.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from underlay.errors import CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed, UnderlayError

ATTRIBUTE = "user.underlay"

# What file systems answer when they cannot do a thing at all, as opposed to failing at it.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EXDEV})
_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100
_COPY_CHUNK = 64 << 20


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
    what = f"{error.filename or where}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientSpace(os.fspath(where), needed=needed, free=_free_or_zero(where), reclaimable=0)
    if error.errno == errno.EROFS:
        return CacheNotWritable(what, hint="mount the file system read-write, or use another directory")
    if error.errno in (errno.EACCES, errno.EPERM):
        return CacheNotWritable(what, hint=f"run as the owner of {where}, or as a member of its group")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CacheMissing(what, hint="make the directory, or correct the configuration")
    return StorageFailed(what, hint="look into the kernel's log for errors of that file system")


def _free_or_zero(where: Path) -> int:
    try:
        return free_bytes(where)
    except OSError:
        return 0


# ---------------------------------------------------------------------------------------------------------- making and naming


def create(path: Path, mode: int) -> int:
    """A new file's descriptor, read-write and close-on-exec; owner and group follow its directory, whatever the umask.

    Raises:
        FileExistsError, OSError
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        _adopt(fd, path.parent, mode)
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


def make_directory(path: Path, mode: int) -> bool:
    """Make a directory whose owner and group follow its parent; False when it was there."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _adopt(fd, path.parent, mode)
    finally:
        os.close(fd)
    return True


def adopt(path: Path, mode: int) -> None:
    """Give a file that a tool made its directory's owner and group, and this mode.

    Raises:
        OSError
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _adopt(fd, path.parent, mode)
    finally:
        os.close(fd)


def _adopt(fd: int, parent: Path, mode: int) -> None:
    owner = os.stat(parent)
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

    Raises:
        OSError
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = create(temporary, mode)  # crash: a dot file that nobody reads; swept with its directory's leftovers
    try:
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)  # crash: old or new content, each whole
    except BaseException:
        os.unlink(temporary)
        raise
    sync_directory(path.parent)


def write_in_place_of(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a small file at once but not durably: for what only matters while we live, such as progress."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = create(temporary, mode)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
    os.rename(temporary, path)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def rename_no_replace(source: Path, target: Path) -> None:
    """Rename within a file system; an existing target of any kind is left alone.

    renameat2(2), or link and unlink where the file system does not have it.

    Raises:
        FileExistsError, OSError
    """
    code = _renameat2(source, target)
    if code == 0:
        return
    if code not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))
    os.link(source, target, follow_symlinks=False)  # crash: both names; the source lies in tmp/ and is swept
    os.unlink(source)


def _renameat2(source: Path, target: Path) -> int:
    status = _libc().renameat2(_AT_FDCWD, bytes(source), _AT_FDCWD, bytes(target), _RENAME_NOREPLACE)
    return ctypes.get_errno() if status else 0


def remove_tree(path: Path) -> None:
    """Remove a directory of our own with the files in it (one level); what is gone already is a success."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                os.unlink(entry.path)
        os.rmdir(path)
    except FileNotFoundError:
        return


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


def read_attribute(target: int | Path) -> bytes | None:
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


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """``(start, end)`` byte offsets of the file's data, holes left out."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


def copy_sparse(source: int, target: int, size: int) -> None:
    """Copy ``size`` bytes into an empty target of that length, keeping holes: reflink, else extent by extent in the kernel.

    A whole-file copy_file_range would write the holes out on ext4, so each extent is copied for itself.

    Raises:
        OSError
    """
    if reflink(source, target):
        os.ftruncate(target, size)
        return
    os.ftruncate(target, size)
    for start, end in data_extents(source, size):
        _copy_extent(source, target, start, end)


def _copy_extent(source: int, target: int, start: int, end: int) -> None:
    position = start
    while position < end:
        copied = _copy_chunk(source, target, position, min(end - position, _COPY_CHUNK))
        if copied == 0:
            raise OSError(errno.EIO, f"the source ended at byte {position} while it was copied")
        position += copied


def _copy_chunk(source: int, target: int, position: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length, position, position)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, position, length)


# --------------------------------------------------------------------------------------------------------------------- costs


def free_bytes(path: Path) -> int:
    """Bytes that may still be written on the file system of ``path``; what is kept back for root is left to root."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


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
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not is_regular(os.fstat(fd)):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return fd


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system that a path lies on.

    Attributes:
        key: equal for two paths exactly when they draw on the same free space.
        kind: as in the mount table (ext4, xfs, nfs4 …); empty when the table does not say.
    """

    key: str
    kind: str


def file_system(path: Path) -> FileSystem:
    """Which file system a path lies on.

    The device number says it, except on btrfs, where each subvolume has its own: there it is the mount's source.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device = os.fstat(fd).st_dev
        mount_id = _mount_id(fd)
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = os.fsdecode(line).split()
            if fields[0] == mount_id:
                kind, source = fields[fields.index("-") + 1 :][:2]
                return FileSystem(key=source if kind == "btrfs" else f"device {device}", kind=kind)
    return FileSystem(key=f"device {device}", kind="")


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(line.split()[1] for line in lines if line.startswith("mnt_id:"))
