"""Images from files of this host: ``file:///absolute/path``, below the directories that are allowed.

A file is judged by where it really lies, and before it is opened for reading, because that alone can set a device going.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged, SourceError, SourceRefused, SourceUnavailable
from underlay.files import is_regular, reflink
from underlay.filesystems import KERNEL_KINDS, file_system
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id

_NEVER = (Path("/proc"), Path("/sys"))
_BY_NAME_ONLY = (Path("/boot"), Path("/dev"), Path("/etc"), Path("/run"))
_OURS = ".underlay"
_TICK_NS = 20_000_000  # the kernel's clock for file times moves in steps of 10 ms at most


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Files below ``allowed_paths``; symlinks are followed only to files that are allowed as well.

    A wide allowed path such as ``/`` does not reach into ``/boot``, ``/dev``, ``/etc`` and ``/run``: one of theirs has to be
    named. Nothing is served from ``/proc`` and ``/sys``, wherever they are mounted, nor from a cache's ``.underlay``.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"file"})
    allowed_paths: tuple[Path, ...] = ()
    revalidate_after: float = 0.0
    stale_if_error: bool = True

    def fixed_id(self, ref: ImageRef) -> str | None:
        """None: a file may change."""
        return None

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The ref and its content's digest."""
        return content_version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the file is now; its identity and times are the validator.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
        """
        with _opened(ref, self.allowed_paths) as fd:
            status = _settled(fd)
            return ImageVersion(ref=ref, size=status.st_size, validator=_validator(status))

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator["_FileStream"]:
        """The file's bytes from ``offset`` on.

        Raises:
            as `describe`; SourceChanged when the file is not the one that was described, or changes while it is read.
        """
        with _opened(version.ref, self.allowed_paths) as fd:
            stream = _FileStream(fd, version, offset)
            stream.check_unchanged()
            yield stream


@dataclass(slots=True)
class _FileStream:
    fd: int
    version: ImageVersion
    position: int

    def clone_into(self, target: int) -> bool:
        """Make an empty file share all blocks of this one: see `underlay.contracts.ClonableStream`."""
        if self.position or not reflink(self.fd, target):
            return False
        self.check_unchanged()  # what was shared was the described version
        return True

    def readinto(self, buffer: memoryview, /) -> int:
        assert self.version.size is not None
        left = max(0, self.version.size - self.position)
        try:
            length = os.preadv(self.fd, [buffer[:left]], self.position)
        except OSError as error:
            raise SourceUnavailable(f"{self.version.ref} cannot be read: {error.strerror}") from error
        if length == 0:
            self.check_unchanged()
        self.position += length
        return length

    def check_unchanged(self) -> None:
        if _validator(os.fstat(self.fd)) != self.version.validator:
            raise SourceChanged(f"{self.version.ref} changed while it was fetched", hint="try again when it is complete")


def _validator(status: os.stat_result) -> str:
    return f"stat:{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _settled(fd: int) -> os.stat_result:
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
def _opened(ref: ImageRef, allowed_paths: tuple[Path, ...]) -> Iterator[int]:
    path = Path(os.path.realpath(ref.location))
    _check_allowed(ref, path, allowed_paths)  # first, so that nothing is told of what is not allowed
    with _found(ref, path) as found:
        # Judged once more by what was found: a path may change between a look and an open.
        _check_allowed(ref, Path(os.readlink(f"/proc/self/fd/{found}")), allowed_paths)
        _check_plain(ref, found)
        fd = _open(ref, f"/proc/self/fd/{found}", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _found(ref: ImageRef, path: Path) -> Iterator[int]:
    """The file without opening it, as open(2) has it for O_PATH: what it is can be asked, and nothing be read."""
    found = _open(ref, path, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield found
    finally:
        os.close(found)


def _open(ref: ImageRef, path: str | Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise _meaning(ref, error) from error


def _check_allowed(ref: ImageRef, path: Path, allowed_paths: tuple[Path, ...]) -> None:
    if not _is_allowed(path, [Path(os.path.realpath(allowed)) for allowed in allowed_paths]):
        raise SourceRefused(
            f"{ref} lies outside the allowed paths",
            hint="add its directory to allowed_paths under [sources.file] in the configuration",
        )


def _is_allowed(path: Path, allowed_paths: Sequence[Path]) -> bool:
    if _OURS in path.parts or any(path.is_relative_to(never) for never in _NEVER):
        return False
    special = next((special for special in _BY_NAME_ONLY if path.is_relative_to(special)), Path("/"))
    return any(path.is_relative_to(allowed) and allowed.is_relative_to(special) for allowed in allowed_paths)


def _check_plain(ref: ImageRef, found: int) -> None:
    # A file of the kernel's looks like a plain one, and reading it may do anything.
    if not is_regular(os.fstat(found)) or file_system(found).kind in KERNEL_KINDS:
        raise SourceRefused(f"{ref} is not a plain file")


def _meaning(ref: ImageRef, error: OSError) -> SourceError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return ImageNotFound(f"{ref} does not exist")
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotAuthorized(f"{ref} may not be read", hint="give the user that runs this read permission")
    if error.errno == errno.ELOOP:
        return SourceRefused(f"{ref} is not a plain file")
    return SourceUnavailable(f"{ref} cannot be opened: {error.strerror}", hint="try again later")
