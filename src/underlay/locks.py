"""Locks between processes and threads: OFD record locks on files that are never removed. The second door to fcntl.

An *open file description* lock (fcntl(2), F_OFD_SETLK) conflicts with Nova's POSIX locks and with other threads' locks alike,
and closing another descriptor of the file does not drop it, as it would a POSIX lock. Each acquire has a descriptor of its own.

A forked child inherits the description and with it the lock. So a holder unlocks explicitly before it closes, a child closes
what it inherited without unlocking, and the one table that this takes is `_held` below: the descriptor table is the process's
own, hence so is this. No thread can fork while another is between a descriptor and its entry. A killed holder's locks are free
at once.
"""

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from underlay import later
from underlay.errors import LockLost, LockTimeout
from underlay.files import create
from underlay.filesystems import NETWORK_KINDS, file_system

if TYPE_CHECKING:
    import random
    import signal
else:  # who waits for no lock, and asks of no file whether it is open, needs neither
    random = later.module("random")
    signal = later.module("signal")

_SHARED, _EXCLUSIVE, _UNLOCKED = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
_WHOLE_FILE = (0, 0)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid (0 for OFD locks)
_FIRST_WAIT, _LONGEST_WAIT = 0.001, 0.05  # seconds between tries; jitter spreads the waiters
LOCK_MODE = 0o664

# QEMU marks an image that it has open by shared locks on bytes 100 to 299 (block/file-posix.c, RAW_LOCK_PERM_BASE and
# RAW_LOCK_SHARED_BASE). They show to anybody who can open the file, and across NFS.
_QEMU_BYTES = (100, 200)

# File systems where a lease only speaks for this host, or for this layer.
_LEASE_PROVES_NOTHING = NETWORK_KINDS | {"overlay"}

_held: set[int] = set()
_forking = threading.RLock()  # reentrant: a signal's handler may fork while its thread opens a lock file


class Lock(msgspec.Struct, frozen=True, eq=False):
    """A lock that is held, for as long as the context manager that gave it."""

    path: Path
    fd: int
    pid: int

    def confirm(self) -> None:
        """Make sure that the lock file is still the one that we locked; Nova removes lock files, and may while we hold one.

        Raises:
            LockLost
        """
        if os.getpid() != self.pid or not _is_current(self.path, self.fd):
            raise LockLost(f"the lock file {self.path} was replaced while it was held", hint="try again")


@contextmanager
def exclusive(path: Path, *, timeout: float) -> Iterator[Lock]:
    """Hold a lock alone; wait up to ``timeout`` seconds for it.

    Raises:
        LockTimeout, OSError
    """
    lock = _acquire(path, _EXCLUSIVE, timeout)
    try:
        yield lock
    finally:
        _release(lock)


@contextmanager
def shared(path: Path, *, timeout: float) -> Iterator[Lock]:
    """Hold a lock together with other sharers; wait up to ``timeout`` seconds for it. Reading the lock file is enough.

    Raises:
        LockTimeout, OSError
    """
    lock = _acquire(path, _SHARED, timeout)
    try:
        yield lock
    finally:
        _release(lock)


@contextmanager
def try_exclusive(path: Path, *, number: int | None = None) -> Iterator[Lock | None]:
    """Hold a lock alone if nobody has it now, else yield None.

    Args:
        number: of one of many locks that one file is for, each of them a byte of it that need not be there, below 2**63 - 1;
            None: the file is for one.

    Raises:
        OSError
    """
    lock = _try(path, _EXCLUSIVE, _WHOLE_FILE if number is None else (number, 1))
    try:
        yield lock
    finally:
        if lock is not None:
            _release(lock)


def is_held(path: Path) -> bool:
    """Whether anybody, in this process or another, holds the lock now. A lock file that is not there is not held."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return _conflicts(fd, _WHOLE_FILE)
    finally:
        os.close(fd)


def opened_elsewhere(path: Path) -> bool | None:
    """Whether anybody else has the file open: QEMU by its lock bytes, anybody by a lease; None when that cannot be told.

    The lease is taken and dropped at once. Should somebody open the file in between, the kernel signals us: SIGURG instead of
    the default SIGIO, which would kill.

    Raises:
        FileNotFoundError, OSError
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except BlockingIOError:  # somebody holds a lease on it, so has it open
        return True
    try:
        if _conflicts(fd, _QEMU_BYTES):
            return True
        kind = file_system(fd).kind
        if kind in _LEASE_PROVES_NOTHING or kind.startswith("fuse"):
            return None
        return _lease_refused(fd)
    finally:
        os.close(fd)


@contextmanager
def image_held(fd: int) -> Iterator[bool]:
    """Keep QEMU from opening an image while the context lasts, as qemu-img does that changes one; False: it is open already.

    Args:
        fd: of the image, open for writing.

    Raises:
        OSError
    """
    is_held = _set(fd, _EXCLUSIVE, _QEMU_BYTES)
    try:
        yield is_held
    finally:
        if is_held:
            _set(fd, _UNLOCKED, _QEMU_BYTES)


def _lease_refused(fd: int) -> bool | None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        if error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _acquire(path: Path, kind: int, timeout: float) -> Lock:
    deadline = time.monotonic() + timeout
    wait = _FIRST_WAIT
    while (lock := _try(path, kind)) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise LockTimeout(f"{path} is locked by somebody else since {timeout:g} s", hint="try again later")
        time.sleep(min(left, wait * random.uniform(0.5, 1)))
        wait = min(2 * wait, _LONGEST_WAIT)
    return lock


def _try(path: Path, kind: int, byte_range: tuple[int, int] = _WHOLE_FILE) -> Lock | None:
    with _forking:
        fd = _open(path, kind)
        _held.add(fd)
    try:
        if _set(fd, kind, byte_range):
            if _is_current(path, fd):
                return Lock(path, fd, os.getpid())
            _set(fd, _UNLOCKED)  # somebody removed the file between our open and our lock: the next try opens the new one
    except BaseException:
        _close(fd)
        raise
    _close(fd)
    return None


def _open(path: Path, kind: int) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR)
    except FileNotFoundError:
        pass
    except OSError as error:
        if kind == _SHARED and error.errno in (errno.EACCES, errno.EROFS):
            return os.open(path, flags | os.O_RDONLY)
        raise
    try:
        return create(path, LOCK_MODE)
    except FileExistsError:
        return _open(path, kind)  # somebody else made it just now


def _set(fd: int, kind: int, byte_range: tuple[int, int] = _WHOLE_FILE) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, *byte_range, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _conflicts(fd: int, byte_range: tuple[int, int]) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(_EXCLUSIVE, os.SEEK_SET, *byte_range, 0))
    return bool(_FLOCK.unpack(answer)[0] != _UNLOCKED)


def _is_current(path: Path, fd: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def _release(lock: Lock) -> None:
    if os.getpid() != lock.pid:
        return  # a forked child leaving its parent's frame: the description is the parent's, and ours is closed already
    _set(lock.fd, _UNLOCKED)
    _close(lock.fd)


def _close(fd: int) -> None:
    with _forking:
        _held.discard(fd)
        os.close(fd)


def _drop_inherited() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_drop_inherited)
