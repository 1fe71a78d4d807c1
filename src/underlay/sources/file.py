"""Images from files of this host: ``file:///absolute/path``, below the directories that are allowed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec

from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id
from underlay.plainfiles import FileStream, opened, settled, validator_of

_HINT = "add its directory to allowed_paths under [sources.file] in the configuration"


class FileSource(msgspec.Struct, frozen=True, kw_only=True):
    """Files below ``allowed_paths``; symlinks are followed only to files that are allowed as well.

    Which those are, below a wide path such as ``/``, `underlay.plainfiles` says.
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
        with opened(str(ref), ref.location, allowed=self.allowed_paths, hint=_HINT) as fd:
            status = settled(fd)
            return ImageVersion(ref=ref, size=status.st_size, validator=validator_of(status))

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[FileStream]:
        """The file's bytes from ``offset`` on.

        Raises:
            as `describe`; SourceChanged when the file is not the one that was described, or changes while it is read.
        """
        assert version.size is not None
        assert version.validator is not None
        what = str(version.ref)
        with opened(what, version.ref.location, allowed=self.allowed_paths, hint=_HINT) as fd:
            stream = FileStream(fd, what, version.size, version.validator, offset)
            stream.check_unchanged()
            yield stream
