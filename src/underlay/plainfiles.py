"""Plain files of this host as images: opened only below allowed directories, and never read while somebody changes them.

A file is judged by where it really lies, and before it is opened for reading, because that alone can set a device going. A wide
allowed path such as ``/`` does not reach into ``/boot``, ``/dev``, ``/etc`` and ``/run``: one of theirs has to be named. From
``/proc`` and ``/sys``, wherever they are mounted, nothing is opened, nor from a cache's ``.underlay``.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged, SourceError, SourceRefused, SourceUnavailable
from underlay.files import is_regular, reflink
from underlay.filesystems import KERNEL_KINDS, file_system

_NEVER = (Path("/proc"), Path("/sys"))
_BY_NAME_ONLY = (Path("/boot"), Path("/dev"), Path("/etc"), Path("/run"))
_OURS = ".underlay"
_TICK_NS = 20_000_000  # the kernel's clock for file times moves in steps of 10 ms at most


class FileStream(msgspec.Struct):
    """The bytes of an open file from ``position`` on, up to the size that it had.

    Attributes:
        what: how messages call the file. size: bytes. validator: as `validator_of` had it.
    """

    fd: int
    what: str
    size: int
    validator: str
    position: int

    def clone_into(self, target: int) -> bool:
        """Make an empty file share all blocks of this one: see `underlay.contracts.ClonableStream`."""
        if self.position or not reflink(self.fd, target):
            return False
        self.check_unchanged()  # what was shared was the described version
        return True

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer``; 0 at the end.

        Raises:
            SourceUnavailable: it cannot be read. SourceChanged
        """
        left = max(0, self.size - self.position)
        try:
            length = os.preadv(self.fd, [buffer[:left]], self.position)
        except OSError as error:
            raise SourceUnavailable(f"{self.what} cannot be read: {error.strerror}") from error
        if length == 0:
            self.check_unchanged()
        self.position += length
        return length

    def check_unchanged(self) -> None:
        """Make sure that it is still what it was.

        Raises:
            SourceChanged
        """
        if validator_of(os.fstat(self.fd)) != self.validator:
            raise SourceChanged(f"{self.what} changed while it was fetched", hint="try again when it is complete")


@contextmanager
def opened(what: str, path: str, *, allowed: tuple[Path, ...], hint: str) -> Iterator[int]:
    """A descriptor of a plain file; symlinks are followed only to files that are allowed as well.

    Args:
        what: how messages call the file. hint: what to do about one that is not allowed.

    Raises:
        ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
    """
    real = Path(os.path.realpath(path))
    _check_allowed(what, real, allowed, hint)  # first, so that nothing is told of what is not allowed
    with _found(what, real) as found:
        # Judged once more by what was found: a path may change between a look and an open.
        _check_allowed(what, Path(os.readlink(f"/proc/self/fd/{found}")), allowed, hint)
        _check_plain(what, found)
        fd = _open(what, f"/proc/self/fd/{found}", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def validator_of(status: os.stat_result) -> str:
    """What changes whenever the file does: its identity, its size and its times."""
    return f"stat:{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def settled(fd: int) -> os.stat_result:
    """The file's status at a moment from which on every change gives it another time.

    A write within the clock step of the last one leaves the times as they are, so a file written just now is waited for.
    """
    status = os.fstat(fd)
    age = time.time_ns() - status.st_ctime_ns
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)
        status = os.fstat(fd)
    return status


@contextmanager
def _found(what: str, path: Path) -> Iterator[int]:
    """The file without opening it, as open(2) has it for O_PATH: what it is can be asked, and nothing be read."""
    found = _open(what, path, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield found
    finally:
        os.close(found)


def _open(what: str, path: str | Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise _meaning(what, error) from error


def _check_allowed(what: str, path: Path, allowed: tuple[Path, ...], hint: str) -> None:
    if not _is_allowed(path, [Path(os.path.realpath(one)) for one in allowed]):
        raise SourceRefused(f"{what} lies outside the allowed paths", hint=hint)


def _is_allowed(path: Path, allowed_paths: Sequence[Path]) -> bool:
    if _OURS in path.parts or any(path.is_relative_to(never) for never in _NEVER):
        return False
    special = next((special for special in _BY_NAME_ONLY if path.is_relative_to(special)), Path("/"))
    return any(path.is_relative_to(allowed) and allowed.is_relative_to(special) for allowed in allowed_paths)


def _check_plain(what: str, found: int) -> None:
    # A file of the kernel's looks like a plain one, and reading it may do anything.
    if not is_regular(os.fstat(found)) or file_system(found).kind in KERNEL_KINDS:
        raise SourceRefused(f"{what} is not a plain file")


def _meaning(what: str, error: OSError) -> SourceError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return ImageNotFound(f"{what} does not exist")
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotAuthorized(f"{what} may not be read", hint="give the user that runs this read permission")
    if error.errno == errno.ELOOP:
        return SourceRefused(f"{what} is not a plain file")
    return SourceUnavailable(f"{what} cannot be opened: {error.strerror}", hint="try again later")
