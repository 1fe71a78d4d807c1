"""Glance by way of the Nova around us: with the request's own credentials, Nova's client and Nova's check of signatures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, BinaryIO, ClassVar

from underlay.contracts import ByteStream
from underlay.errors import (
    ImageNotFound,
    InvalidDigest,
    NotAuthorized,
    SignatureRefused,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
)
from underlay.model import Digest, ImageRef, ImageVersion
from underlay.openstack.piped import piped

_GIB = 1 << 30

# Which of Nova's exceptions is which of ours; the first that fits.
_MEANINGS: Sequence[tuple[str, type[UnderlayError]]] = (
    ("ImageNotFound", ImageNotFound),
    ("ImageNotAuthorized", NotAuthorized),
    ("Forbidden", NotAuthorized),
    ("CertificateValidationFailed", SignatureRefused),
    ("ImageUnacceptable", SourceRefused),
    ("Invalid", SourceRefused),
    ("NovaException", SourceUnavailable),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NovaImages:
    """Images that Nova's image API gives.

    Attributes:
        context: of the request. trusted_certs: certificates by which the image has to be signed, as the request has them.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"glance"})
    revalidate_after: float = 0.0
    stale_if_error: bool = False
    context: Any = field(default=None, repr=False)
    trusted_certs: Any = field(default=None, repr=False)

    def fixed_id(self, ref: ImageRef) -> str | None:
        """The UUID."""
        return ref.location

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The UUID."""
        return ref.location

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What Glance says of the image.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
        """
        return self.described(ref, with_locations=False)

    def described(self, ref: ImageRef, *, with_locations: bool) -> ImageVersion:
        """As `describe`; with the image's locations in Glance's storage, which not every Glance tells."""
        with _translated(ref):
            shown = _api().get(self.context, ref.location, include_locations=with_locations)
        return ImageVersion(
            ref=ref,
            id=ref.location,
            size=shown.get("size") or None,
            disk_format=shown.get("disk_format"),
            digests=_digests(shown),
            min_disk=(shown.get("min_disk") or 0) * _GIB,
            resumable=False,  # Nova's client sends what is there, from its beginning
            locations=tuple(location["url"] for location in shown.get("locations") or ()),
        )

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """The bytes that Glance sends, from ``offset`` on.

        Raises:
            as `describe`; SignatureRefused: at the end.
        """

        def write(file: BinaryIO) -> None:
            _api().download(self.context, version.ref.location, data=_Sink(file), trusted_certs=self.trusted_certs)

        with piped(write, partial(_translated, version.ref), offset=offset) as stream:
            yield stream


@dataclass(frozen=True, slots=True)
class _Sink:
    """A file for Nova to write to, which it empties when a signature is wrong: what was sent cannot be taken back."""

    file: BinaryIO

    def write(self, content: bytes) -> int:
        return self.file.write(content)

    def truncate(self, size: int) -> int:
        return size


def _api() -> Any:
    return import_module("nova.image.glance").API()


def _digests(shown: Mapping[str, Any]) -> tuple[Digest, ...]:
    """The strongest digest that Glance promises."""
    more = shown.get("properties") or {}  # where Nova leaves what Glance's older schema does not have
    algorithm = shown.get("os_hash_algo") or more.get("os_hash_algo")
    value = shown.get("os_hash_value") or more.get("os_hash_value")
    for promised in (f"{algorithm}:{value}", f"md5:{shown.get('checksum')}"):
        with suppress(InvalidDigest):
            return (Digest.parse(promised),)
    return ()


def _translated(ref: ImageRef) -> AbstractContextManager[None]:
    return _saying(ref, _signature_errors())


@contextmanager
def _saying(ref: ImageRef, of_signatures: tuple[type[Exception], ...]) -> Iterator[None]:
    nova = import_module("nova.exception")
    try:
        yield
    except nova.NovaException as error:
        kind = next(ours for name, ours in _MEANINGS if isinstance(error, getattr(nova, name)))
        raise kind(f"{ref}: {error}") from error
    except of_signatures as error:
        raise SignatureRefused(
            f"{ref}: its signature is not that of its bytes: {str(error) or type(error).__name__}"
        ) from error
    except OSError as error:  # what the library for the web raises is one, too
        raise SourceUnavailable(f"{ref}: {error}", hint="try again later") from error


def _signature_errors() -> tuple[type[Exception], ...]:
    return (
        import_module("cryptography.exceptions").InvalidSignature,
        import_module("cursive.exception").SignatureVerificationError,
    )
