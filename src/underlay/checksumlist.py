"""The digest that an image is to have by a list that its publisher publishes, such as SHA256SUMS, with its signature verified.

A list that is signed by a key of the configured keyrings is believed wherever it came from. Caches in between may serve a list
and its signature, or a list and its image, of different days; what does not fit is therefore asked for once more, past them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from underlay import gpgv
from underlay.checksums import find_checksum, is_checksum_url, name_in_url
from underlay.config import Config
from underlay.contracts import ImageSource, Observer
from underlay.errors import (
    ConfigError,
    DigestMismatch,
    ImageNotFound,
    InvalidDigest,
    NotAuthorized,
    SignatureRefused,
    SourceError,
    SourceRefused,
)
from underlay.gpgv import Signer
from underlay.model import Digest, Event, ImageRef, Level
from underlay.refs import is_ref, parse_ref
from underlay.stream import filled
from underlay.web import Web

LIMIT = 1 << 20
"""Bytes of a list; one that lists ten thousand images is not as long."""

SIGNATURES = (".gpg", ".asc", ".sign", ".sig")
"""What publishers append to a list's URL for its signature: Ubuntu, openSUSE, Debian, Arch Linux."""

_WEB = frozenset({"http", "https"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksumList:
    """A list, and what it is asked for.

    Attributes:
        at: where it is. of: the image that it is to list, by the last segment of its ref's path.
        signature: where its signature is; None: in the list itself, or beside it.
        keyrings: whose signature is trusted; without any, a list is believed as it comes.
        require_signature: with keyrings, a list without a signature is refused.
        web: asks web servers. sources: the source of any other scheme: not only web servers have lists.
        observer: hears what the list says.
    """

    at: ImageRef
    of: ImageRef
    signature: ImageRef | None = None
    keyrings: tuple[Path, ...] = ()
    require_signature: bool = True
    web: Web
    sources: Callable[[str], ImageSource]
    observer: Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What a list says.

    Attributes:
        signer: whose signature it has; None: none was verified.
    """

    digest: Digest
    signer: Signer | None


def expected(
    ref: ImageRef,
    checksum: str | Digest | None,
    signature: str | None,
    *,
    config: Config,
    sources: Callable[[str], ImageSource],
    observer: Observer,
) -> Digest | ChecksumList | None:
    """What an image is to have by what a caller gives: a digest, the list that has it, or None. No I/O.

    Args:
        checksum: a digest, ``algorithm:hex``, or where a list is. signature: where that list's signature is, or None.

    Raises:
        InvalidDigest, InvalidRef
    """
    if isinstance(checksum, str) and is_list(checksum):
        return ChecksumList(
            at=parse_ref(checksum),
            of=ref,
            signature=None if signature is None else parse_ref(signature),
            keyrings=config.keyrings,
            require_signature=config.require_signature,
            web=config.web,
            sources=sources,
            observer=observer,
        )
    if signature is not None:
        raise InvalidDigest("a signature is of a list of checksums, and none is given", hint="give its URL as the checksum")
    return Digest.parse(checksum) if isinstance(checksum, str) else checksum


def is_list(checksum: str) -> bool:
    """Whether what stands in a checksum's place says where a list is."""
    return is_checksum_url(checksum) or (is_ref(checksum) and "://" in checksum)


def ask(wanted: ChecksumList) -> Listed:
    """What the list says of the image; it is told as an event.

    A list whose signature is of other bytes is asked for again, past caches, with its signature.

    Raises:
        InvalidDigest: it does not list the image, or is no list.
        SignatureRefused: it is not signed by a key of the keyrings. ConfigError: they cannot be used, or a signature is named
            and there are none.
        ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable, UntrustedCertificate: of the list or its signature.
        ToolMissing, ToolFailed, ToolTimedOut: gpgv.
    """
    try:
        listed = _asked(wanted, fresh=False)
    except SignatureRefused as error:
        if not error.altered:
            raise
        listed = _asked(wanted, fresh=True)
    signed = f"signed by {listed.signer}" if listed.signer else "unsigned"
    detail, fields = f"{wanted.at} lists {listed.digest}, {signed}", _fields(wanted)
    wanted.observer.event(Event(code="checksum-listed", level=Level.INFO, detail=detail, fields=fields))
    return listed


def ask_again(wanted: ChecksumList, before: Listed, mismatch: DigestMismatch) -> Listed:
    """What the list says when it is asked past caches, because the image has another digest; told as an event.

    Raises:
        DigestMismatch: it says the same, or cannot be asked; the message says which side is stale or wrong.
        SignatureRefused, InvalidDigest: of the list as it is now.
    """
    if mismatch.expected != str(before.digest):  # what the source itself promises
        raise mismatch
    try:
        listed = _asked(wanted, fresh=True)
    except SourceError as error:
        raise _judged(wanted, mismatch, f"{wanted.at} cannot be asked again past caches ({error})") from error
    if listed.digest == before.digest:
        why = f"{wanted.at} still lists that when it is asked past caches, so the image is what is stale or wrong"
        raise _judged(wanted, mismatch, why)
    detail = f"{wanted.at} had been stale: it lists {listed.digest} now, and no longer {before.digest}"
    wanted.observer.event(Event(code="checksum-list-stale", level=Level.WARNING, detail=detail, fields=_fields(wanted)))
    return listed


def _judged(wanted: ChecksumList, mismatch: DigestMismatch, why: str) -> DigestMismatch:
    hint = "try again later, or fetch from where the publisher's own files are"
    return DigestMismatch(str(wanted.of), expected=mismatch.expected, actual=mismatch.actual, why=why, hint=hint)


def _fields(wanted: ChecksumList) -> dict[str, str]:
    return {"ref": str(wanted.of), "list": str(wanted.at)}


def _asked(wanted: ChecksumList, *, fresh: bool) -> Listed:
    reader = _Reader(wanted.web, wanted.sources, fresh)
    signed, signer = _verified(wanted, reader, reader.read(wanted.at, limit=LIMIT))
    digest = find_checksum(signed.decode(errors="replace"), name_in_url(wanted.of.canonical), what=str(wanted.at))
    return Listed(digest=digest, signer=signer)


def _verified(wanted: ChecksumList, reader: "_Reader", text: bytes) -> tuple[bytes, Signer | None]:
    """What of a list is to be believed, and whose signature it has."""
    if not wanted.keyrings and wanted.signature is None:
        return text, None
    what = str(wanted.at)
    if wanted.signature is None and gpgv.is_inline(text):
        return gpgv.verify_inline(text, keyrings=wanted.keyrings, what=what)
    signature = _signature(wanted, reader)
    if signature is not None:
        return text, gpgv.verify_detached(text, signature, keyrings=wanted.keyrings, what=what)
    if wanted.require_signature:
        raise SignatureRefused(
            f"{what} is not signed: no signature is in it, or beside it ({', '.join(SIGNATURES)})",
            hint="name its signature with --signature, or set require_signature = false under [checksums]",
        )
    return text, None


def _signature(wanted: ChecksumList, reader: "_Reader") -> bytes | None:
    """The list's detached signature; None when none is beside it."""
    if wanted.signature is None:
        beside = (reader.signature(_appended(wanted.at, suffix)) for suffix in SIGNATURES)
        return next((found for found in beside if found is not None), None)
    if not wanted.keyrings:
        why = f"no keyring says whose signature of {wanted.at} to trust"
        raise ConfigError(why, hint="name files of public keys as keyrings under [checksums]")
    return reader.read(wanted.signature, limit=gpgv.MAX_SIGNATURE)


def _appended(ref: ImageRef, suffix: str) -> ImageRef:
    """The ref with something appended to its path, which a query may follow."""
    url = urlsplit(ref.location if ref.scheme in _WEB else ref.canonical)
    return parse_ref(url._replace(path=url.path + suffix).geturl())


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads small files from where they are.

    Attributes:
        fresh: past caches.
    """

    web: Web
    sources: Callable[[str], ImageSource]
    fresh: bool

    def read(self, ref: ImageRef, *, limit: int) -> bytes:
        """The whole file.

        Raises:
            SourceRefused: it is longer than ``limit`` bytes. ImageNotFound, NotAuthorized, SourceUnavailable, UnknownScheme
        """
        if ref.scheme in _WEB:
            return self.web.document(str(ref), ref.location, limit=limit, fresh=self.fresh)
        source, content = self.sources(ref.scheme), bytearray()
        with source.open(source.describe(ref)) as stream:
            for piece in filled(stream):
                content += piece
                if len(content) > limit:
                    raise SourceRefused(f"{ref} has more than {limit} bytes, which is no such document")
        return bytes(content)

    def signature(self, ref: ImageRef) -> bytes | None:
        """A detached signature that may be there; None when it is not, or something else is."""
        try:
            found = self.read(ref, limit=gpgv.MAX_SIGNATURE)
        except (ImageNotFound, NotAuthorized, SourceRefused):  # a bucket that may not be listed denies what is not in it
            return None
        return found if gpgv.is_signature(found) else None
