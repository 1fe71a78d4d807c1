"""The source: reads a stream's index and product lists, verified by its signature, and serves the file that a ref means.

Nothing of a stream is kept here. What a description was made of is told apart by the validators of its documents, so that a
stream which has not changed is not read again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import msgspec

from underlay import gpgv
from underlay.contracts import ByteStream
from underlay.errors import ImageNotFound, SignatureRefused, SourceChanged, SourceRefused
from underlay.model import Digest, ImageRef, ImageVersion
from underlay.naming import content_version_id
from underlay.sources.simplestreams.choice import Chosen, Wanted, choose, wanted_of
from underlay.sources.simplestreams.documents import (
    DOWNLOADS,
    PRODUCTS,
    Index,
    Product,
    digests_of,
    is_signed,
    is_strong,
    place,
    read_index,
    read_products,
    size_of,
    without_signature,
)
from underlay.web import Web, check_status, open_body, printable
from underlay.web.validators import body_length, condition, validator_of

MAX_INDEX = 1 << 20
MAX_PRODUCTS = 64 << 20
"""Bytes of a document; Ubuntu's releases have a product list of several MiB."""

_MAX_LISTS = 16  # of downloads, in one index
_SIGNED_INDEX, _PLAIN_INDEX = "streams/v1/index.sjson", "streams/v1/index.json"
_STREAM = "stream:"  # how validators begin
_NOT_MODIFIED = 304


@dataclass(frozen=True, slots=True, kw_only=True)
class SimplestreamsSource:
    """Product streams on web servers.

    Attributes:
        keyrings: files of the public keys by which streams are to be signed; without any, no signature is looked at.
        require_signature: with keyrings, a stream without a signature is refused.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"simplestreams"})
    revalidate_after: float = 300.0
    stale_if_error: bool = True
    keyrings: tuple[Path, ...] = ()
    require_signature: bool = True
    web: Web = field(default_factory=Web)

    def fixed_id(self, ref: ImageRef) -> str | None:
        """None: a stream moves."""
        return None

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The ref and its content's digest."""
        return content_version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """The newest version of the product, with its digests and its size, as the stream promises them.

        Raises:
            ImageNotFound: no stream, no such product, or no such file of it. SourceRefused: several, or it is no stream.
            SignatureRefused: it is not signed by a key of the keyrings. ConfigError: a keyring. NotAuthorized,
            UntrustedCertificate, SourceUnavailable, ToolMissing, ToolFailed, ToolTimedOut
        """
        seen = _seen(known[-1]) if known else None
        if seen is not None and self._is_unchanged(ref, seen):
            return ImageVersion(ref=ref, id=_id(ref, [seen.digest]), validator=known[-1])
        return self._described(ref)

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """The file's bytes as served, from ``offset`` on.

        Raises:
            as `describe`; SourceChanged when the stream has moved on from a version that was described without its place.
        """
        if version.found_at is None:
            now = self._described(version.ref)
            if now.validator is None or _digest_of(now.validator) != _digest_of(version.validator):
                raise SourceChanged(f"{version.ref} has moved to another version since it was described", hint="try again")
            version = now
        what, given_for = str(version.ref), _base(version.ref)
        assert version.found_at is not None
        proven = bool(version.digests)
        body = open_body(
            self.web, what, version.found_at, offset=offset, size=version.size, given_for=given_for, proves_itself=proven
        )
        with body as stream:
            yield stream

    def _described(self, ref: ImageRef) -> ImageVersion:
        what = str(ref)
        index = self._index(ref)
        lists = self._lists(ref, index)
        chosen = choose([one.products for one in lists], _wanted(ref), what=what)
        listed = lists[chosen.listed]
        return _version(ref, chosen, index, listed, must_be_strong=self._must_be_signed)

    @property
    def _must_be_signed(self) -> bool:
        return bool(self.keyrings) and self.require_signature

    # ------------------------------------------------------------------------------------------------------- documents

    def _index(self, ref: ImageRef) -> "_Document":
        """The index: with keyrings the signed one; where there is none, the other, if that will do."""
        first, second = (_SIGNED_INDEX, _PLAIN_INDEX) if self.keyrings else (_PLAIN_INDEX, _SIGNED_INDEX)
        try:
            return self._document(ref, first, MAX_INDEX)
        except ImageNotFound as error:
            if self._must_be_signed:
                raise SignatureRefused(
                    f"{ref}: the stream has no signed index ({_SIGNED_INDEX})",
                    hint="check the URL; a stream that nobody signs needs require_signature = false",
                ) from error
        try:
            return self._document(ref, second, MAX_INDEX)
        except ImageNotFound as error:
            hint = f"check the URL: {_PLAIN_INDEX} must lie below it"
            raise ImageNotFound(f"{ref}: there is no stream", hint=hint) from error

    def _lists(self, ref: ImageRef, index: "_Document") -> "list[_List]":
        """The product lists that may have what is wanted."""
        paths = _paths(read_index(index.text, what=str(ref)), _wanted(ref))
        if len(paths) > _MAX_LISTS:
            raise SourceRefused(f"{ref}: the stream has {len(paths)} lists of images, more than {_MAX_LISTS}")
        return [self._list(ref, content_id, path) for content_id, path in paths.items()]

    def _list(self, ref: ImageRef, content_id: str, path: str) -> "_List":
        document = self._document(ref, path, MAX_PRODUCTS)
        found = read_products(document.text, what=str(ref))
        if document.signer is not None and found.content_id != content_id:  # signed, but in place of another list
            raise SignatureRefused(f"{path} of {ref} is signed as {printable(found.content_id)!r}, not as the index calls it")
        return _List(document=document, products=found.products)

    def _document(self, ref: ImageRef, path: str, limit: int) -> "_Document":
        """A document of the stream, as far as it is signed."""
        what, url = str(ref), place(_base(ref), path, what=str(ref))
        with self.web.answer(what, "GET", url, headers={}, given_for=_base(ref)) as answer:
            check_status(what, answer)
            answer.check_encoding()
            text = answer.read(limit)
            validator = validator_of(answer.headers, size=body_length(answer.headers))
        text, signer = self._verified(text, f"{path} of {what}")
        return _Document(path=path, text=text, signer=signer, validator=validator)

    def _verified(self, text: bytes, what: str) -> tuple[bytes, str | None]:
        if self.keyrings and is_signed(text):
            signed, signer = gpgv.verify_inline(text, keyrings=self.keyrings, what=what)
            return signed, signer.primary
        if self._must_be_signed:
            hint = "check the URL; a stream that nobody signs needs require_signature = false"
            raise SignatureRefused(f"{what} is not signed", hint=hint)
        return without_signature(text), None

    def _is_unchanged(self, ref: ImageRef, seen: "_Seen") -> bool:
        """Whether the server says that neither the index nor the product list has changed since a version was described."""
        if self.keyrings and seen.signer is None:
            return False  # what nobody verified then is to be verified now
        return all(self._is_same(ref, one) for one in (seen.index, seen.products))

    def _is_same(self, ref: ImageRef, seen: "_SeenDocument") -> bool:
        if seen.validator is None:
            return False
        url = place(_base(ref), seen.path, what=str(ref))
        with self.web.answer(str(ref), "HEAD", url, headers=condition([seen.validator]), given_for=_base(ref)) as answer:
            if answer.status == 200:
                return validator_of(answer.headers, size=body_length(answer.headers)) == seen.validator
            return answer.status == _NOT_MODIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """What was read of one document.

    Attributes:
        text: what its signature covers, or all of it. signer: fingerprint of the key; None: nobody verified it.
    """

    path: str
    text: bytes = field(repr=False)
    signer: str | None
    validator: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _List:
    """A product list, and the document that it was read from."""

    document: _Document
    products: Mapping[str, Product]


class _SeenDocument(msgspec.Struct, frozen=True, array_like=True):
    path: str
    validator: str | None


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    """What a description was made of: the validator that we give to a version."""

    digest: str
    signer: str | None
    index: _SeenDocument
    products: _SeenDocument


def _seen(validator: str) -> _Seen | None:
    try:
        return msgspec.json.decode(validator.removeprefix(_STREAM), type=_Seen)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def _digest_of(validator: str | None) -> str | None:
    seen = None if validator is None else _seen(validator)
    return seen.digest if seen else None


def _base(ref: ImageRef) -> str:
    return ref.location.partition("#")[0]


def _wanted(ref: ImageRef) -> Wanted:
    return wanted_of(ref.location.partition("#")[2])


def _paths(index: Index, wanted: Wanted) -> dict[str, str]:
    """The paths of the lists of images by what they contain, without those which say that they have not the product."""
    return {
        content_id: entry.path
        for content_id, entry in index.index.items()
        if entry.datatype == DOWNLOADS
        and entry.format == PRODUCTS
        and (wanted.product is None or entry.products is None or wanted.product in entry.products)
    }


def _id(ref: ImageRef, digests: Sequence[str]) -> str | None:
    sha256 = next((one.removeprefix("sha256:") for one in digests if one.startswith("sha256:")), None)
    return None if sha256 is None else content_version_id(ref, sha256)


def _version(ref: ImageRef, chosen: Chosen, index: _Document, listed: _List, *, must_be_strong: bool) -> ImageVersion:
    what, item = f"{ref}: {chosen.product} {chosen.version}", chosen.item
    digests = digests_of(item, what=what)
    if must_be_strong and not any(map(is_strong, digests)):
        raise SignatureRefused(
            f"{what} has no digest that its signature could vouch for", hint="ask its publisher for a sha256"
        )
    assert item.path is not None
    signer = listed.document.signer if index.signer else None
    return ImageVersion(
        ref=ref,
        id=_id(ref, [str(one) for one in digests]),
        size=size_of(item, what=what),
        digests=digests,
        validator=_validator(digests, signer, index, listed.document),
        properties={
            "product": chosen.product,
            "version": chosen.version,
            "ftype": item.ftype or "",
            "signed_by": signer or "nobody",
        },
        found_at=place(_base(ref), item.path, what=what),
    )


def _validator(digests: Sequence[Digest], signer: str | None, index: _Document, listed: _Document) -> str | None:
    """What tells the version apart: its digest. What else is in it saves reading the documents again."""
    if not digests:
        return None
    best = next((one for one in digests if one.algorithm == "sha256"), digests[0])
    documents = (_SeenDocument(one.path, one.validator) for one in (index, listed))
    return _STREAM + msgspec.json.encode(_Seen(str(best), signer, *documents)).decode()
