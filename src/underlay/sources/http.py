"""Images over HTTP and HTTPS, by urllib3: no decoding, bounded redirects, never from https to http.

A ``HEAD`` describes; where a server refuses it, as for a presigned URL, a ``GET`` of one byte does. What was described is
compared with what is then sent, so one version's bytes are never taken for another's.
"""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http.client import IncompleteRead
from typing import ClassVar
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, SSLError

from underlay.errors import (
    BodyTruncated,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    UntrustedCertificate,
)
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEAD_REFUSED = frozenset({400, 403, 405, 501})  # 403: the signature of a presigned URL covers the method
_TRY_LATER = frozenset({408, 425, 429})
_NO_PROXY_DECODING = {"Accept-Encoding": "identity", "User-Agent": "underlay"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSource:
    """Web servers.

    Attributes:
        connect_timeout, read_timeout: seconds; the latter between two pieces of a body.
        ca_file: certificates to trust instead of the system's.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"http", "https"})
    revalidate_after: float = 300.0
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    max_redirects: int = 5
    ca_file: str | None = None
    _pool: urllib3.PoolManager = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        timeout = urllib3.Timeout(connect=self.connect_timeout, read=self.read_timeout)
        pool = urllib3.PoolManager(timeout=timeout, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=self.ca_file, maxsize=4)
        object.__setattr__(self, "_pool", pool)

    def fixed_id(self, ref: ImageRef) -> str | None:
        """None: what a URL serves may change."""
        return None

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The ref and its content's digest."""
        return content_version_id(ref, sha256)

    def describe(self, ref: ImageRef) -> ImageVersion:
        """What the URL serves now; a strong ETag is the validator, else Last-Modified when it is old enough to tell.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, UntrustedCertificate, SourceUnavailable
        """
        with self._answer(ref, "HEAD") as response:
            if response.status not in _HEAD_REFUSED:
                _check_status(ref, response)
                return _version(ref, response.headers, size=_length(response.headers))
        with self._answer(ref, "GET", headers={"Range": "bytes=0-0"}) as response:
            _check_status(ref, response)
            headers = response.headers
            return _version(ref, headers, size=_total(headers) if response.status == 206 else _length(headers))

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator["_HttpStream"]:
        """The body as sent, from ``offset`` on.

        Raises:
            as `describe`; SourceChanged when the server now has other bytes, or does not serve from ``offset``.
        """
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        with self._answer(version.ref, "GET", headers=ranged) as response:
            _check_status(version.ref, response)
            if offset and response.status != 206:
                raise SourceChanged(f"{version.ref} is not served from byte {offset} on")
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise SourceRefused(f"{version.ref} is sent with the content encoding {encoding} although none was asked for")
            validator = _validator(response.headers, size=_total(response.headers) if offset else _length(response.headers))
            if version.validator and validator and validator != version.validator:
                raise SourceChanged(f"{version.ref} changed after it was described", hint="try again")
            yield _HttpStream(version.ref, response)

    @contextmanager
    def _answer(self, ref: ImageRef, method: str, *, headers: Mapping[str, str] | None = None) -> Iterator[BaseHTTPResponse]:
        response = self._request(ref, method, dict(headers or {}))
        try:
            yield response
        finally:
            # An unread body is not worth reading; the connection goes with it. A whole one goes back to the pool.
            response.close() if response.length_remaining else response.release_conn()

    def _request(self, ref: ImageRef, method: str, headers: dict[str, str]) -> BaseHTTPResponse:
        url = ref.location
        for _ in range(self.max_redirects + 1):
            with _translated(ref):
                response = self._pool.request(
                    method,
                    _without_userinfo(url),
                    headers=_NO_PROXY_DECODING | headers | _authorization(ref, url),
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            if response.status not in _REDIRECTS:
                return response
            response.close()
            url = _redirected(ref, url, response.headers.get("Location", ""))
        raise SourceRefused(f"{ref} redirects more than {self.max_redirects} times")


@dataclass(slots=True)
class _HttpStream:
    ref: ImageRef
    response: BaseHTTPResponse

    def readinto(self, buffer: memoryview, /) -> int:
        with _translated(self.ref):
            piece = self.response.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _version(ref: ImageRef, headers: Mapping[str, str], *, size: int | None) -> ImageVersion:
    return ImageVersion(ref=ref, size=size, validator=_validator(headers, size=size))


def _validator(headers: Mapping[str, str], *, size: int | None) -> str | None:
    etag = headers.get("ETag", "")
    if etag.startswith('"'):
        return f"etag:{etag}"
    modified = headers.get("Last-Modified")
    if modified is None or not _is_settled(modified, headers.get("Date")):
        return None
    return f"modified:{modified};length:{size};{etag}"


def _is_settled(modified: str, date: str | None) -> bool:
    """Whether a Last-Modified is strong: older than the answer by more than its own resolution (RFC 9110, 8.8.2.2)."""
    try:
        return date is not None and parsedate_to_datetime(date) - parsedate_to_datetime(modified) > timedelta(seconds=1)
    except (TypeError, ValueError):
        return False


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _total(headers: Mapping[str, str]) -> int | None:
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isascii() and total.isdigit() else None


def _check_status(ref: ImageRef, response: BaseHTTPResponse) -> None:
    status = response.status
    if status in (200, 206):
        return
    answer = f"{ref}: the server answers {status} {response.reason or ''}".rstrip()
    if status in (404, 410):
        raise ImageNotFound(answer, hint="check the URL")
    if status in (401, 403, 407):
        raise NotAuthorized(answer, hint="put credentials into the URL, as https://user:password@host/…")
    if status >= 500 or status in _TRY_LATER:
        raise SourceUnavailable(answer, hint="try again later")
    raise SourceRefused(answer)


def _redirected(ref: ImageRef, url: str, location: str) -> str:
    target = urljoin(url, location)
    scheme, host = urlsplit(target).scheme, urlsplit(target).hostname
    if not location or scheme not in ("http", "https") or not host:
        raise SourceRefused(f"{ref} redirects to something that is no web address")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise SourceRefused(f"{ref} redirects from https to http", hint="use a URL that stays with https")
    return target


def _authorization(ref: ImageRef, url: str) -> dict[str, str]:
    """Basic credentials of the ref's own URL, for the host that they were given for and no other."""
    given, asked = urlsplit(ref.location), urlsplit(url)
    if given.username is None or (given.scheme, given.hostname, given.port) != (asked.scheme, asked.hostname, asked.port):
        return {}
    credentials = f"{unquote(given.username)}:{unquote(given.password or '')}"
    return dict(urllib3.make_headers(basic_auth=credentials))


def _without_userinfo(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def _translated(ref: ImageRef) -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        raise _meaning(ref, error) from error


def _meaning(ref: ImageRef, error: HTTPError) -> SourceError:
    if isinstance(error, SSLError) and _untrusted(error):
        return UntrustedCertificate(
            f"{ref}: the server's certificate is not trusted: {error}", hint="set ca_file under [sources.http]"
        )
    if isinstance(error, IncompleteRead) or any(isinstance(cause, IncompleteRead) for cause in error.args):
        return BodyTruncated(f"{ref}: the body ended before its announced length", hint="try again")
    return SourceUnavailable(f"{ref}: {error}", hint="try again later")


def _untrusted(error: SSLError) -> bool:
    causes = (error.__cause__, error.__context__, *error.args)
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes)
