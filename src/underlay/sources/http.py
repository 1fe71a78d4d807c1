"""Images over HTTP and HTTPS, by urllib3: no decoding, bounded redirects, never from https to http.

A ``HEAD`` describes; where a server refuses it, as for a presigned URL, a ``GET`` of one byte does. What was described is
compared with what is then sent, so one version's bytes are never taken for another's. A message is made of our own words and
of the ref's canonical spelling: what the library says may hold a whole URL, and that a password or a signature.
"""

import base64
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http.client import IncompleteRead
from typing import ClassVar
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, NameResolutionError, ReadTimeoutError, SSLError

from underlay.errors import (
    BodyTruncated,
    ConfigError,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
    UntrustedCertificate,
)
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id

_ETAG, _MODIFIED = "etag:", "modified:"  # how validators begin
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEAD_REFUSED = frozenset({400, 403, 405, 501})  # 403: the signature of a presigned URL covers the method
_NOT_MODIFIED = 304
_TRY_LATER = frozenset({408, 425, 429})
_EMPTY = 416  # what a range of an empty body is answered
_LONGEST_LENGTH = 18  # digits of a length in bytes that we take for one
_LONGEST_WORDS = 60  # characters of what a server says that a message repeats
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F))  # what a redirect's URL may hold as it stands
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
    stale_if_error: bool = True
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

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the URL serves now; a strong ETag is the validator, else Last-Modified when it is old enough to tell.

        A version that is here is asked about with If-None-Match or If-Modified-Since (RFC 9110, 13.1). That nothing changed
        since a date is believed only of a server that names the very date: content may be replaced by an older one.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, UntrustedCertificate, SourceUnavailable
        """
        if condition := _condition(known):
            version = self._described(ref, condition, known)
            if version is not None:
                return version
        version = self._described(ref, {}, ())
        if version is None:
            raise SourceRefused(f"{ref}: the server answers 304 although nothing was asked about")
        return version

    def _described(self, ref: ImageRef, condition: Mapping[str, str], known: Sequence[str]) -> ImageVersion | None:
        """The description by one HEAD, or where that is refused by one GET; None when a 304 does not tell enough."""
        with self._answer(ref, "HEAD", headers=condition) as (response, url):
            if response.status == _NOT_MODIFIED:
                return _unchanged(ref, response.headers, known)
            if response.status not in _HEAD_REFUSED:
                _check_status(ref, response)
                # A length of 0 is what a program that knows no HEAD announces for every body.
                return _version(ref, response.headers, size=_length(response.headers) or None, url=url)
        with self._answer(ref, "GET", headers={"Range": "bytes=0-0", **condition}) as (response, url):
            headers = response.headers
            if response.status == _NOT_MODIFIED:
                return _unchanged(ref, headers, known)
            if response.status == _EMPTY and _total(headers) == 0:
                return _version(ref, headers, size=0, url=url)
            _check_status(ref, response)
            return _version(ref, headers, size=_total(headers) if response.status == 206 else _length(headers), url=url)

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator["_HttpStream"]:
        """The body as sent, from ``offset`` on.

        Raises:
            as `describe`; SourceChanged when the server now has other bytes, or does not serve from ``offset``.
        """
        with self._body(version, {"Range": f"bytes={offset}-"} if offset else {}) as response:
            _check_status(version.ref, response)
            if response.status != (206 if offset else 200) or _first_byte(response.headers) != offset:
                raise SourceChanged(f"{version.ref} is not served from byte {offset} on")
            encoding = response.headers.get("Content-Encoding", "").strip().lower()
            if encoding not in ("", "identity"):
                raise SourceRefused(
                    f"{version.ref} is sent with the content encoding {_printable(encoding)} although none was asked for"
                )
            if _is_other(version, response.headers):
                raise SourceChanged(f"{version.ref} changed after it was described", hint="try again")
            yield _HttpStream(version.ref, response)

    @contextmanager
    def _body(self, version: ImageVersion, headers: Mapping[str, str]) -> Iterator[BaseHTTPResponse]:
        """The answer from where the image was described: a redirect may lead to another mirror each time.

        A place that served the description only, as a link signed for HEAD does, is asked for anew.
        """
        if version.found_at is not None:
            with self._answer(version.ref, "GET", headers=headers, url=version.found_at) as (response, _):
                if response.status < 400:
                    yield response
                    return
        with self._answer(version.ref, "GET", headers=headers) as (response, _):
            yield response

    @contextmanager
    def _answer(
        self, ref: ImageRef, method: str, *, headers: Mapping[str, str] | None = None, url: str | None = None
    ) -> Iterator[tuple[BaseHTTPResponse, str]]:
        response, last = self._request(ref, method, dict(headers or {}), url or ref.location)
        try:
            yield response, last
        finally:
            # Only a body that is known to be read to its end leaves a connection that can be used again, and the library
            # takes the next request on it only when the end has been looked for.
            response.drain_conn() if response.length_remaining == 0 else response.close()

    def _request(self, ref: ImageRef, method: str, headers: dict[str, str], url: str) -> tuple[BaseHTTPResponse, str]:
        """The answer behind all redirects, and the URL that gave it."""
        for _ in range(self.max_redirects + 1):
            with _translated(ref, ca_file=self.ca_file):
                response = self._pool.request(
                    method,
                    _without_userinfo(url),
                    headers=_NO_PROXY_DECODING | headers | _authorization(ref, url),
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            if response.status not in _REDIRECTS:
                return response, url
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


def _version(ref: ImageRef, headers: Mapping[str, str], *, size: int | None, url: str) -> ImageVersion:
    found_at = None if url == ref.location else url
    validator = _validator(headers, size=size)
    return ImageVersion(ref=ref, size=size, validator=validator, no_store=_no_store(headers), found_at=found_at)


def _no_store(headers: Mapping[str, str]) -> bool:
    directives = headers.get("Cache-Control", "").lower().split(",")
    return any(directive.strip() == "no-store" for directive in directives)


def _condition(known: Sequence[str]) -> dict[str, str]:
    """The fields that ask whether what these validators meant has changed. A strong ETag tells more than a date."""
    if etags := [validator.removeprefix(_ETAG) for validator in known if validator.startswith(_ETAG)]:
        return {"If-None-Match": ", ".join(etags)}
    # Where a length is known, a plain question is answered with it too, and costs no more.
    dates = [_date(one) for one in known if one.startswith(_MODIFIED) and ";length:None;" in one]
    return {"If-Modified-Since": dates[-1]} if dates else {}


def _unchanged(ref: ImageRef, headers: Mapping[str, str], known: Sequence[str]) -> ImageVersion | None:
    """The version that a 304 means; None when it names no ETag and no date that is known here."""
    etags = [validator for validator in known if validator.startswith(_ETAG)]
    named = headers.get("ETag")
    if etags:
        # A server shall name the ETag (RFC 9110, 15.4.5). Where it does not, all of those asked about meant one version.
        meant = etags[-1] if named is None else f"{_ETAG}{named}"
        found = [meant] if meant in etags else []
    else:
        modified = headers.get("Last-Modified")
        found = [validator for validator in known if validator.startswith(_MODIFIED) and _date(validator) == modified]
    return ImageVersion(ref=ref, validator=found[-1], no_store=_no_store(headers)) if found else None


def _date(validator: str) -> str:
    return validator.removeprefix(_MODIFIED).partition(";")[0]


def _validator(headers: Mapping[str, str], *, size: int | None) -> str | None:
    etag = headers.get("ETag", "")
    if etag.startswith('"'):
        return f"{_ETAG}{etag}"
    modified = headers.get("Last-Modified")
    if modified is None or not _is_settled(modified, headers.get("Date")):
        return None
    return f"{_MODIFIED}{modified};length:{size};{etag}"


def _is_other(version: ImageVersion, headers: Mapping[str, str]) -> bool:
    """Whether the answer tells that it is not the described version, by a validator of the same kind.

    Its length is not compared: a HEAD may leave it out, and one that is wrong shows when the body has another.
    """
    sent = _validator(headers, size=version.size)
    if version.validator is None or sent is None or sent.partition(":")[0] != version.validator.partition(":")[0]:
        return False
    return sent != version.validator


def _is_settled(modified: str, date: str | None) -> bool:
    """Whether a Last-Modified is strong: older than the answer by more than its own resolution (RFC 9110, 8.8.2.2)."""
    try:
        return date is not None and parsedate_to_datetime(date) - parsedate_to_datetime(modified) > timedelta(seconds=1)
    except (TypeError, ValueError, OverflowError):
        return False


def _length(headers: Mapping[str, str]) -> int | None:
    # A body that comes in chunks has no other length (RFC 9112, 6.3).
    return None if "Transfer-Encoding" in headers else _number(headers.get("Content-Length", ""))


def _total(headers: Mapping[str, str]) -> int | None:
    return _number(headers.get("Content-Range", "").rpartition("/")[2])


def _first_byte(headers: Mapping[str, str]) -> int | None:
    """Where in the whole body this answer begins (RFC 9110, 14.4)."""
    unit, _, span = headers.get("Content-Range", "bytes 0-").strip().partition(" ")
    return _number(span.partition("-")[0].strip()) if unit.lower() == "bytes" else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_LENGTH else None


def _check_status(ref: ImageRef, response: BaseHTTPResponse) -> None:
    status = response.status
    if status in (200, 206):
        return
    answer = f"{ref}: the server answers {status} {_printable(response.reason or '')}".rstrip()
    if status in (404, 410):
        raise ImageNotFound(answer, hint="check the URL")
    if status in (401, 403, 407):
        raise NotAuthorized(answer, hint="put credentials into the URL, as https://user:password@host/…")
    if status >= 500 or status in _TRY_LATER:
        raise SourceUnavailable(answer, hint="try again later")
    raise SourceRefused(answer)


def _redirected(ref: ImageRef, url: str, location: str) -> str:
    target = _target(url, location) if location else None
    if target is None:
        raise SourceRefused(f"{ref} redirects to something that is no web address")
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
        raise SourceRefused(f"{ref} redirects from https to http", hint="use a URL that stays with https")
    return target


def _target(url: str, location: str) -> str | None:
    try:
        # A header's bytes beyond ASCII are the URL's own, unquoted; the library reads them as Latin-1.
        target = urljoin(url, quote(location.encode("latin-1"), safe=_URL_CHARACTERS))
        parts = urlsplit(target)
        _ = parts.port
    except ValueError:
        return None
    return target if parts.hostname and parts.scheme in _DEFAULT_PORTS else None


def _authorization(ref: ImageRef, url: str) -> dict[str, str]:
    """Basic credentials of the ref's own URL, for the host that they were given for and no other."""
    given = urlsplit(ref.location)
    if given.username is None or _origin(ref.location) != _origin(url):
        return {}
    credentials = f"{unquote(given.username)}:{unquote(given.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def _without_userinfo(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _printable(text: str) -> str:
    """What a server says, fit for a message."""
    return "".join(character for character in text if character.isascii() and character.isprintable())[:_LONGEST_WORDS]


@contextmanager
def _translated(ref: ImageRef, *, ca_file: str | None = None) -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        raise _meaning(ref, error, ca_file) from error


def _meaning(ref: ImageRef, error: HTTPError, ca_file: str | None) -> UnderlayError:
    causes = (error.__cause__, error.__context__, *error.args)
    if isinstance(error, SSLError):
        if ca_file is not None and (why := _unusable(ca_file)):
            return ConfigError(f"the certificates in {ca_file} cannot be used: {why}", hint="correct ca_file")
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                why = f"the server's certificate is not trusted: {cause.verify_message}"
                return UntrustedCertificate(f"{ref}: {why}", hint="set ca_file under [sources.http]")
    if any(isinstance(cause, IncompleteRead) for cause in (error, *causes)):
        return BodyTruncated(f"{ref}: the body ended before its announced length", hint="try again")
    return SourceUnavailable(f"{ref}: {_why(error, causes)}", hint="try again later")


def _unusable(ca_file: str) -> str | None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except OSError as error:
        return error.strerror or "it holds no certificate"
    return None


def _why(error: HTTPError, causes: tuple[object, ...]) -> str:
    if isinstance(error, ReadTimeoutError):
        return "the server went silent"
    if isinstance(error, NameResolutionError):
        return "the name of its host cannot be resolved"
    for cause in causes:
        if isinstance(cause, TimeoutError):
            return "the server does not answer"
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    return f"the connection failed ({type(error).__name__})"
