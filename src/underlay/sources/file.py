"""Images from files of this host: ``file:///absolute/path``, below the directories that the configuration allows."""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged, SourceError, SourceRefused, SourceUnavailable
from underlay.files import open_regular
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id

# What open(2) and `open_regular` say of a symlink, a directory, a FIFO, a socket, a device without a driver.
_NOT_PLAIN = frozenset({errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EISDIR})

_TICK_NS = 20_000_000  # the kernel's clock for file times moves in steps of 10 ms at most


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Files below ``allowed_paths``; symlinks are followed only to files that are allowed as well."""

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
    _check_allowed(ref, path, allowed_paths)  # before it is opened: that alone can set a device going
    try:
        fd = open_regular(path)
    except OSError as error:
        raise _meaning(ref, error) from error
    try:
        # Judged once more by what was opened: a path may change between a look and an open.
        _check_allowed(ref, Path(os.readlink(f"/proc/self/fd/{fd}")), allowed_paths)
        yield fd
    finally:
        os.close(fd)


def _check_allowed(ref: ImageRef, path: Path, allowed_paths: tuple[Path, ...]) -> None:
    if not any(path.is_relative_to(os.path.realpath(allowed)) for allowed in allowed_paths):
        raise SourceRefused(
            f"{ref} lies outside the allowed paths",
            hint="add its directory to allowed_paths under [sources.file] in the configuration",
        )


def _meaning(ref: ImageRef, error: OSError) -> SourceError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return ImageNotFound(f"{ref} does not exist")
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotAuthorized(f"{ref} may not be read", hint="give the user that runs this read permission")
    if error.errno in _NOT_PLAIN:
        return SourceRefused(f"{ref} is not a plain file")
    return SourceUnavailable(f"{ref} cannot be opened: {error.strerror}", hint="try again later")
