"""What Ironic's callers catch: Ironic's own exceptions where Ironic is installed, else ours of the same names.

One table says which error of ours is which of Ironic's; our message is the reason that it gives.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import MappingProxyType
from typing import Any, cast

from underlay.errors import (
    BadInput,
    BodyTooLong,
    BodyTruncated,
    DigestMismatch,
    ExtraMissing,
    ImageRefused,
    InsufficientSpace,
    InvalidDigest,
    InvalidName,
    SignatureRefused,
    SourceChanged,
    SourceError,
    SourceUnavailable,
    ToolError,
    UnderlayError,
)

_MIB = 1 << 20


class IronicException(Exception):
    """The base of all that follow, as in Ironic: a message, or the class's own made of the arguments.

    Attributes:
        kwargs: the arguments.
    """

    _msg_fmt = "Something went wrong with an image."

    def __init__(self, message: object = None, **kwargs: Any) -> None:
        self.kwargs = kwargs
        super().__init__(message or self._msg_fmt % kwargs)


class InsufficientDiskSpace(IronicException):
    """A file system has no room; ``required`` and ``actual`` are MiB."""

    _msg_fmt = "%(path)s has no room: %(required)s MiB are needed, %(actual)s MiB are free."


class ImageDownloadFailed(IronicException):
    """The image could not be brought to where it was wanted."""

    _msg_fmt = "The image %(image_href)s could not be fetched: %(reason)s"


class ImageRefValidationFailed(IronicException):
    """The image's name means nothing, or its source does not answer to it."""

    _msg_fmt = "The image %(image_href)s cannot be used: %(reason)s"


class ImageNotFound(IronicException):
    """There is no such image."""

    _msg_fmt = "There is no image %(image_id)s."


class ImageUnacceptable(IronicException):
    """The image is not one that may be used."""

    _msg_fmt = "The image %(image_id)s is unacceptable: %(reason)s"


class InvalidImage(ImageUnacceptable):
    """Its content is not safe, or not what it was to be."""

    _msg_fmt = "The image is not valid."


class ImageChecksumError(InvalidImage):
    """The checksum is none, or another than the image's."""

    _msg_fmt = "The image's checksum is invalid or another one."


class ImageChecksumAlgorithmFailure(InvalidImage):
    """The checksum's algorithm is not known, or not allowed."""

    _msg_fmt = "The algorithm of the image's checksum cannot be used."


class ImageChecksumURLNotSupported(InvalidImage):
    """Lists of checksums are not allowed."""

    _msg_fmt = "Lists of checksums are not supported."


class ImageChecksumFileReadFailure(InvalidImage):
    """A file could not be read to tell its checksum."""

    _msg_fmt = "The image could not be read for its checksum."


class ImageMatchFailure(InvalidImage):
    """Nothing tells which of several images is meant."""

    _msg_fmt = "Nothing tells which image is meant."


class ImageConvertFailed(IronicException):
    """The image could not be brought into raw form."""

    _msg_fmt = "The image %(image_id)s could not be converted: %(reason)s"


class InsufficientMemory(IronicException):
    """The host has too little memory for a conversion."""

    _msg_fmt = "There is too little memory: %(required)s are needed, %(free)s are free."


class InstanceDeployFailure(IronicException):
    """An instance could not be deployed."""

    _msg_fmt = "The instance could not be deployed: %(reason)s"


class ImageHostRateLimitFailure(IronicException):
    """A registry has had too many requests."""

    _msg_fmt = "The registry of %(image_ref)s refuses further requests for now."


OURS: Mapping[str, type[IronicException]] = MappingProxyType(
    {
        one.__name__: one
        for one in (
            IronicException,
            InsufficientDiskSpace,
            ImageDownloadFailed,
            ImageRefValidationFailed,
            ImageNotFound,
            ImageUnacceptable,
            InvalidImage,
            ImageChecksumError,
            ImageChecksumAlgorithmFailure,
            ImageChecksumURLNotSupported,
            ImageChecksumFileReadFailure,
            ImageMatchFailure,
            ImageConvertFailed,
            InsufficientMemory,
            InstanceDeployFailure,
            ImageHostRateLimitFailure,
        )
    }
)
"""Ours by name; `exception_class` says which is thrown."""

# Which of ours is which of Ironic's; the first that fits.
_MEANINGS: Sequence[tuple[type[UnderlayError], str]] = (
    (InvalidName, "ImageDownloadFailed"),  # of the place that it was to be put at
    (InvalidDigest, "ImageChecksumError"),
    (BadInput, "ImageRefValidationFailed"),
    (BodyTruncated, "ImageDownloadFailed"),
    (BodyTooLong, "ImageDownloadFailed"),
    (SourceChanged, "ImageDownloadFailed"),
    (SourceError, "ImageRefValidationFailed"),
    (DigestMismatch, "ImageChecksumError"),
    (SignatureRefused, "ImageChecksumError"),
    (ImageRefused, "InvalidImage"),
    (ExtraMissing, "ImageRefValidationFailed"),
    (ToolError, "ImageConvertFailed"),
    (UnderlayError, "ImageDownloadFailed"),
)
_WITH_A_REASON = frozenset({"ImageDownloadFailed", "ImageRefValidationFailed", "ImageConvertFailed"})
_USERINFO = re.compile(r"//[^/]*@")


def exception_class(name: str) -> type[Exception]:
    """Ironic's exception of this name where Ironic is installed, else ours."""
    try:
        module = import_module("ironic.common.exception")
    except ImportError:
        return OURS[name]
    return cast("type[Exception]", getattr(module, name))


def failure(name: str, reason: str, *, href: str) -> Exception:
    """Ironic's exception of this name, about this image."""
    shown = _USERINFO.sub("//", href).partition("?")[0]  # a password or a signature may be in the rest
    arguments: dict[str, Any] = {"image_href": shown, "image_id": shown, "reason": reason}
    one = exception_class(name)
    # A class whose own message has no place for a reason is given the reason as its message.
    return one(**arguments) if name in _WITH_A_REASON else one(reason, **arguments)


def no_room(path: str, reason: str, *, required: int, actual: int) -> Exception:
    """Ironic's exception of a file system without room: sizes in bytes, which it has in MiB and we do not round."""
    arguments: dict[str, Any] = {"path": path, "required": required / _MIB, "actual": actual / _MIB}
    return exception_class("InsufficientDiskSpace")(reason, **arguments)


@contextmanager
def translated(href: str, *, where: str, is_transferring: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Say what fails within as Ironic would; what Ironic's own image service has said is said again as it was.

    Args:
        where: the directory whose file system has to have room.
        is_transferring: whether the image's bytes were on their way when it failed.
    """
    try:
        yield
    except UnderlayError as error:
        raise _meaning(error, href, where, is_transferring=is_transferring()) from error
    except OSError as error:
        raise failure("ImageDownloadFailed", str(error), href=href) from error


def _meaning(error: UnderlayError, href: str, where: str, *, is_transferring: bool) -> Exception:
    cause = error.__cause__
    if isinstance(cause, exception_class("IronicException")):
        return cause
    reason = error.message if error.hint is None else f"{error.message}; {error.hint}"
    if isinstance(error, InsufficientSpace) and error.needed is not None:
        return no_room(where, reason, required=error.needed, actual=error.free)
    if isinstance(error, SourceUnavailable) and is_transferring:
        return failure("ImageDownloadFailed", reason, href=href)
    return failure(next(name for kind, name in _MEANINGS if isinstance(error, kind)), reason, href=href)
