"""Images from files of this host: ``file:///absolute/path``, below the directories that the configuration allows."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged, SourceRefused, SourceUnavailable
from underlay.files import open_regular
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Files below ``allowed_paths``; symlinks are followed only to files that are allowed as well."""

    schemes: ClassVar[frozenset[str]] = frozenset({"file"})
    allowed_paths: tuple[Path, ...] = ()
    revalidate_after: float = 0.0

    def fixed_id(self, ref: ImageRef) -> str | None:
        """None: a file may change."""
        return None

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The ref and its content's digest."""
        return content_version_id(ref, sha256)

    def describe(self, ref: ImageRef) -> ImageVersion:
        """What the file is now; its identity and times are the validator.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
        """
        with _opened(ref, self.allowed_paths) as fd:
            status = os.fstat(fd)
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
        try:
            length = os.preadv(self.fd, [buffer], self.position)
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


@contextmanager
def _opened(ref: ImageRef, allowed_paths: tuple[Path, ...]) -> Iterator[int]:
    try:
        fd = open_regular(Path(os.path.realpath(ref.location)))
    except FileNotFoundError as error:
        raise ImageNotFound(f"{ref} does not exist") from error
    except PermissionError as error:
        raise NotAuthorized(f"{ref} may not be read", hint="give the user that runs this read permission") from error
    except OSError as error:
        raise SourceRefused(f"{ref} is not a plain file: {error.strerror}") from error
    with closing(os.fdopen(fd, "rb", buffering=0)):
        # Judged by what was opened, not by what was asked for: a path may change between a look and an open.
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if not any(path.is_relative_to(allowed) for allowed in allowed_paths):
            raise SourceRefused(
                f"{ref} lies outside the allowed paths",
                hint="add its directory to allowed_paths under [sources.file] in the configuration",
            )
        yield fd
