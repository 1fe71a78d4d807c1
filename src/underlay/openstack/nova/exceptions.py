"""What Nova's callers catch: Nova's own exceptions where Nova is around us, else our errors as they are.

One table says which error of ours is which of Nova's; our message is the reason that it gives. An error that Nova has no word
for stays ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

from underlay.errors import (
    DiskNotFound,
    DiskTooSmall,
    DiskUnrecorded,
    ImageNotFound,
    ImageRefused,
    InvalidForm,
    NotAuthorized,
    SourceError,
    SourceRefused,
    UnderlayError,
    Unsupported,
)

# Which of ours is which of Nova's while an image is fetched, while a disk is made or changed, and where a type of images
# cannot be used at all; the first that fits.
OF_FETCHES: Sequence[tuple[type[UnderlayError], str]] = (
    (ImageNotFound, "ImageNotFound"),
    (NotAuthorized, "ImageNotAuthorized"),
    (SourceRefused, "ImageUnacceptable"),
    (ImageRefused, "ImageUnacceptable"),
    (SourceError, "CouldNotFetchImage"),
)
OF_DISKS: Sequence[tuple[type[UnderlayError], str]] = (
    (DiskTooSmall, "FlavorDiskSmallerThanImage"),
    (DiskNotFound, "DiskNotFound"),
    (DiskUnrecorded, "InvalidDiskInfo"),
    (ImageRefused, "InvalidDiskInfo"),
    (Unsupported, "ImageUnacceptable"),
    (InvalidForm, "ImageUnacceptable"),
)
OF_TYPES: Sequence[tuple[type[UnderlayError], str]] = ((Unsupported, "InternalError"),)
_REASONLESS = frozenset({"InternalError", "CouldNotFetchImage"})  # their own messages have no place for a reason


@contextmanager
def in_nova_s_words(of: str, meanings: Sequence[tuple[type[UnderlayError], str]]) -> Iterator[None]:
    """Say what fails within as Nova would; what Nova itself has said is said again as it was.

    Args:
        of: the image or the disk, as the exception calls it.
    """
    try:
        yield
    except UnderlayError as error:
        theirs = _theirs(error, of, meanings)
        if theirs is None:
            raise
        raise theirs from (theirs.__cause__ if theirs is error.__cause__ else error)


def _theirs(error: UnderlayError, of: str, meanings: Sequence[tuple[type[UnderlayError], str]]) -> Exception | None:
    try:
        module = import_module("nova.exception")
    except ImportError:
        return None
    if (cause := error.__cause__) is not None and isinstance(cause, cast("type[Exception]", module.NovaException)):
        return cause
    name = next((name for kind, name in meanings if isinstance(error, kind)), None)
    if name is None:
        return None
    arguments = _arguments(error, of)
    made: Exception = getattr(module, name)(arguments["reason"] if name in _REASONLESS else None, **arguments)
    return made


def _arguments(error: UnderlayError, of: str) -> Mapping[str, Any]:
    reason = error.message if error.hint is None else f"{error.message}; {error.hint}"
    sizes: dict[str, int] = {}
    if isinstance(error, DiskTooSmall):
        sizes = {"flavor_size": error.size, "image_size": max(error.virtual_size, error.min_disk)}
    return {"image_id": of, "location": of, "reason": reason, **sizes}
