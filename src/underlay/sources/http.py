"""Images over HTTP and HTTPS.

A ``HEAD`` describes; where a server refuses it, as for a presigned URL, a ``GET`` of one byte does. What was described is
compared with what is then sent, so one version's bytes are never taken for another's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from underlay.contracts import ByteStream
from underlay.errors import SourceRefused
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id
from underlay.web import Web, check_status, open_body
from underlay.web.validators import body_length, condition, unchanged_validator, validator_of, whole_length

_HEAD_REFUSED = frozenset({400, 403, 405, 501})  # 403: the signature of a presigned URL covers the method
_NOT_MODIFIED = 304
_EMPTY = 416  # what a range of an empty body is answered


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSource:
    """Web servers."""

    schemes: ClassVar[frozenset[str]] = frozenset({"http", "https"})
    revalidate_after: float = 300.0
    stale_if_error: bool = True
    web: Web = field(default_factory=Web)

    def fixed_id(self, ref: ImageRef) -> str | None:
        """None: what a URL serves may change."""
        return None

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The ref and its content's digest."""
        return content_version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the URL serves now; a strong ETag is the validator, else Last-Modified when it is old enough to tell.

        A version that is here is asked about with If-None-Match or If-Modified-Since (RFC 9110, 13.1). That nothing changed
        since a date is believed only of a server that names the very date: content may be replaced by an older one.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, UntrustedCertificate, SourceUnavailable
        """
        if asked := condition(known):
            version = self._described(ref, asked, known)
            if version is not None:
                return version
        version = self._described(ref, {}, ())
        if version is None:
            raise SourceRefused(f"{ref}: the server answers 304 although nothing was asked about")
        return version

    def _described(self, ref: ImageRef, asked: Mapping[str, str], known: Sequence[str]) -> ImageVersion | None:
        """The description by one HEAD, or where that is refused by one GET; None when a 304 does not tell enough."""
        what = str(ref)
        with self.web.answer(what, "HEAD", ref.location, headers=asked) as answer:
            if answer.status == _NOT_MODIFIED:
                return _unchanged(ref, answer.headers, known)
            if answer.status not in _HEAD_REFUSED:
                check_status(what, answer)
                # A length of 0 is what a program that knows no HEAD announces for every body.
                return _version(ref, answer.headers, size=body_length(answer.headers) or None, url=answer.url)
        with self.web.answer(what, "GET", ref.location, headers={"Range": "bytes=0-0", **asked}) as answer:
            headers = answer.headers
            if answer.status == _NOT_MODIFIED:
                return _unchanged(ref, headers, known)
            if answer.status == _EMPTY and whole_length(headers) == 0:
                return _version(ref, headers, size=0, url=answer.url)
            check_status(what, answer)
            size = whole_length(headers) if answer.status == 206 else body_length(headers)
            return _version(ref, headers, size=size, url=answer.url)

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """The body as sent, from ``offset`` on.

        It comes from where the image was described: a redirect may lead to another mirror each time. A place that served the
        description only, as a link signed for HEAD does, or that serves nothing any more is asked for anew.

        Raises:
            as `describe`; SourceChanged when the server now has other bytes.
        """
        ref = version.ref
        with open_body(
            self.web,
            str(ref),
            version.found_at or ref.location,
            offset=offset,
            size=version.size,
            validator=version.validator,
            given_for=ref.location,
            otherwise=ref.location if version.found_at else None,
        ) as body:
            yield body


def _version(ref: ImageRef, headers: Mapping[str, str], *, size: int | None, url: str) -> ImageVersion:
    found_at = None if url == ref.location else url
    validator = validator_of(headers, size=size)
    return ImageVersion(ref=ref, size=size, validator=validator, no_store=_no_store(headers), found_at=found_at)


def _unchanged(ref: ImageRef, headers: Mapping[str, str], known: Sequence[str]) -> ImageVersion | None:
    """The version that a 304 means; None when it does not tell."""
    validator = unchanged_validator(headers, known)
    return None if validator is None else ImageVersion(ref=ref, validator=validator, no_store=_no_store(headers))


def _no_store(headers: Mapping[str, str]) -> bool:
    directives = headers.get("Cache-Control", "").lower().split(",")
    return any(directive.strip() == "no-store" for directive in directives)
