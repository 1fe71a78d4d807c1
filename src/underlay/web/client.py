"""A client of web servers by urllib3: bounded redirects, never from https to http, credentials for one host only, no decoding.

The library is imported with the first request, because a command that finds its image cached needs none.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

import msgspec

from underlay.errors import ConfigError, SourceRefused, SourceUnavailable
from underlay.once import Once
from underlay.refs.web import DEFAULT_PORTS
from underlay.values import hiding
from underlay.web.credentials import Credential, credential_for, is_same_server, without_userinfo
from underlay.web.pace import Pace
from underlay.web.status import check_status, printable, translated

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_URL_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F))  # what a redirect's URL may hold as it stands
_ALWAYS = MappingProxyType({"Accept-Encoding": "identity", "User-Agent": "underlay"})
_PAST_CACHES = MappingProxyType({"Cache-Control": "no-cache", "Pragma": "no-cache"})  # RFC 9111, 5.2.1.4 and 5.4
_REPEATABLE = frozenset({"GET", "HEAD"})
_SECRET_FIELDS = frozenset({"authorization", "x-auth-token", "cookie"})
_FORM = "application/x-www-form-urlencoded"
_CONNECTIONS = 8  # kept open to one host
_PIECE = 64 << 10
_DOCUMENT_PACE = 8 << 10  # bytes a second that a small document brings at least, after a grace of the low speed's time


def _pool(web: "Web", proxy: str | None) -> "PoolManager":
    import urllib3

    from underlay.web.heads import PlainPool, SecurePool

    timeout = urllib3.Timeout(connect=web.connect_timeout, read=web.read_timeout)
    make = urllib3.PoolManager if proxy is None else partial(urllib3.ProxyManager, **_through(proxy))
    pool = make(
        timeout=timeout,
        retries=False,
        cert_reqs="CERT_REQUIRED",
        ca_certs=web.ca_file,
        cert_file=web.client_cert,
        key_file=web.client_key,
        maxsize=_CONNECTIONS,
    )
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pool


def _on_a_live_connection(ask: Callable[[], "BaseHTTPResponse"]) -> "BaseHTTPResponse":
    """The answer to a request that may be repeated (RFC 9112, 9.3.1).

    That a kept connection is broken says nothing of the server. It is kept no longer, so the next try is on a new one unless
    another thread took that meanwhile.
    """
    from urllib3.exceptions import ProtocolError

    from underlay.web.heads import Dropped

    for _ in range(_CONNECTIONS):
        try:
            return ask()
        except ProtocolError as error:
            if not any(isinstance(cause, Dropped) for cause in error.args):
                raise
    return ask()


def _through(proxy: str) -> dict[str, Any]:
    credential = credential_for(proxy, {})
    headers = {} if credential is None else {"Proxy-Authorization": credential.header}
    return {"proxy_url": without_userinfo(proxy), "proxy_headers": headers}


class Web(msgspec.Struct, frozen=True, kw_only=True):
    """A client of web servers. Safe to share between threads and across forks.

    Attributes:
        connect_timeout: seconds for each step of a connection: to an address, through a proxy, into TLS.
        read_timeout: seconds until the head of an answer is there whole, and from one piece of a body to the next.
        low_speed_limit, low_speed_time: a body of fewer bytes a second than the limit over so many seconds has stalled.
        ca_file: certificates to trust instead of the system's. client_cert, client_key: files that tell a server who we are.
        proxies: URLs by the scheme of what is asked for. no_proxy: hosts and domains that are asked directly; ``*``: all.
        credentials: by ``host:port`` or ``host``, in lower case.
        unusable: what is wrong with its configuration, which is said when it is used.
        parallel, range_size: how many ranges of a body are asked for at once, and bytes of each; 1: the body in one request.
    """

    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    low_speed_limit: int = 1024
    low_speed_time: float = 60.0
    max_redirects: int = 5
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    proxies: Mapping[str, str] = msgspec.field(default_factory=dict)
    no_proxy: tuple[str, ...] = ()
    credentials: Mapping[str, Credential] = msgspec.field(default_factory=dict)
    unusable: ConfigError | None = None
    parallel: int = 1
    range_size: int = 4 << 20
    _pools: "Once[PoolManager]" = msgspec.field(default_factory=Once)

    __repr__, __rich_repr__ = hiding("proxies", "credentials", "unusable", "_pools")

    def check_usable(self) -> None:
        """Make sure that it can be used as it is configured.

        Raises:
            ConfigError
        """
        if self.unusable is not None:
            raise ConfigError(self.unusable.message, hint=self.unusable.hint)

    @contextmanager
    def answer(
        self, what: str, method: str, url: str, *, headers: Mapping[str, str] = _ALWAYS, given_for: str | None = None
    ) -> Iterator["Answer"]:
        """The answer behind all redirects. Its status is not judged: see `check_status`.

        Args:
            what: how messages call the thing that is asked for.
            url: may have credentials in it, which are sent and never told.
            headers: further fields; an Authorization, X-Auth-Token or Cookie goes to the server that it was given for alone.
            given_for: the URL whose server credentials and such fields are for, when it is not ``url``.

        Raises:
            SourceRefused, SourceUnavailable, UntrustedCertificate, ConfigError: the certificates.
        """
        self.check_usable()
        answer = self._answer(what, method, url, headers, given_for or url)
        try:
            yield answer
        finally:
            answer.close()

    def _answer(self, what: str, method: str, url: str, headers: Mapping[str, str], given_for: str) -> "Answer":
        for _ in range(self.max_redirects + 1):
            is_meant = is_same_server(given_for, url)
            credential = credential_for(given_for, self.credentials) if is_meant else None
            allowed = headers if is_meant else _without_secrets(headers)
            answer = self._request(what, method, url, _fields(allowed, credential), credential)
            if answer.status not in _REDIRECTS:
                return answer
            answer.close()
            url = _redirected(what, url, answer.headers.get("Location", ""))
        raise SourceRefused(f"{what} redirects more than {self.max_redirects} times")

    @contextmanager
    def submit(self, what: str, url: str, form: Mapping[str, str]) -> Iterator["Answer"]:
        """The answer to a form that is sent by POST, whose status is not judged.

        A form may hold a secret, so it goes to this URL alone: no redirect is followed, and no credential is added.

        Raises:
            as `answer`
        """
        with self.send(what, "POST", url, urlencode(form).encode(), headers={"Content-Type": _FORM}) as answer:
            yield answer

    @contextmanager
    def send(
        self, what: str, method: str, url: str, content: bytes | Iterable[bytes], *, headers: Mapping[str, str]
    ) -> Iterator["Answer"]:
        """The answer to what is sent, whose status is not judged.

        It goes to this URL alone: no redirect is followed, and no credential is added.

        Args:
            content: whole, or in pieces, of which a Content-Length in the headers says how many bytes they are.

        Raises:
            as `answer`
        """
        self.check_usable()
        answer = self._request(what, method, url, {**_ALWAYS, **headers}, None, content=content)
        try:
            if answer.status in _REDIRECTS:
                raise SourceRefused(f"{what} redirects what was to stay between us and {host_of(url)}")
            yield answer
        finally:
            answer.close()

    def _request(
        self,
        what: str,
        method: str,
        url: str,
        headers: dict[str, str],
        credential: Credential | None,
        *,
        content: bytes | Iterable[bytes] | None = None,
    ) -> "Answer":
        host = host_of(url)
        with translated(what, host, self):
            ask = partial(
                self._connections(self._proxy_for(url)).request,
                method,
                without_userinfo(url),
                body=content,
                headers=headers,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            response = _on_a_live_connection(ask) if method in _REPEATABLE else ask()
        shown, pace = _shown(headers, credential), Pace(what, host, self.low_speed_limit, self.low_speed_time)
        return Answer(what=what, url=url, shown=shown, response=response, web=self, pace=pace)

    def _connections(self, proxy: str | None) -> "PoolManager":
        """Those through a proxy; None: without one."""
        # Copies with other options share what is kept, so the options are of the key.
        options = (self.connect_timeout, self.read_timeout, self.ca_file, self.client_cert, self.client_key)
        return self._pools.get((proxy, *options), lambda: _pool(self, proxy))

    def _proxy_for(self, url: str) -> str | None:
        proxy = self.proxies.get(urlsplit(url).scheme)
        return None if proxy is None or _is_among(url, self.no_proxy) else proxy

    def document(self, what: str, url: str, *, limit: int, headers: Mapping[str, str] = _ALWAYS, fresh: bool = False) -> bytes:
        """A small document, whole.

        Args:
            limit: bytes that it may have at most.
            fresh: caches on the way are asked to ask the server.

        Raises:
            ImageNotFound, NotAuthorized, SourceUnavailable, SourceRefused, UntrustedCertificate, BodyTruncated
        """
        asked = {**headers, **_PAST_CACHES} if fresh else headers
        with self.answer(what, "GET", url, headers=asked) as answer:
            check_status(what, answer)
            answer.check_encoding()
            return answer.read(limit)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of a server.

    Attributes:
        url: of the last request, behind all redirects; may carry a signature, so it is never printed.
        shown: which credential was sent, as messages say it; None without one.
    """

    what: str
    url: str
    shown: str | None
    response: "BaseHTTPResponse"
    web: Web
    pace: Pace

    __repr__, __rich_repr__ = hiding("url", "response", "web", "pace")

    @property
    def status(self) -> int:
        """The status code."""
        return self.response.status

    @property
    def reason(self) -> str:
        """What the server calls its status."""
        return self.response.reason or ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The fields; names in any case."""
        return self.response.headers

    def check_encoding(self) -> None:
        """Make sure that the body is sent as it is.

        Raises:
            SourceRefused
        """
        encoding = self.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise SourceRefused(
                f"{self.what} is sent with the content encoding {printable(encoding)} although none was asked for"
            )

    def readinto(self, buffer: memoryview, /) -> int:
        """What has come of the body, at least a byte of it; 0 at its end.

        Raises:
            SourceUnavailable: it broke, or has stalled. BodyTruncated
        """
        began = time.monotonic()
        with translated(self.what, host_of(self.url), self.web):
            piece = self.response.read1(len(buffer))
        buffer[: len(piece)] = piece
        if piece:
            self.pace.check(len(piece), time.monotonic() - began)
        return len(piece)

    def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            SourceRefused: it has more than ``limit`` bytes. SourceUnavailable: also of one that does not get done.
            BodyTruncated
        """
        body, buffer, began = bytearray(), memoryview(bytearray(_PIECE)), time.monotonic()
        while length := self.readinto(buffer):
            body += buffer[:length]
            if len(body) > limit:
                raise SourceRefused(f"{self.what} has more than {limit} bytes, which is no such document")
            seconds = time.monotonic() - began
            if seconds > self.web.low_speed_time + len(body) / _DOCUMENT_PACE:
                slow = f"only {len(body)} bytes of it came within {seconds:.0f} s"
                raise SourceUnavailable(f"{self.what}: {host_of(self.url)}: {slow}", hint="try again later")
        return bytes(body)

    def cut(self) -> None:
        """End the reading of another thread: what it waits for comes no more."""
        with suppress(OSError, ValueError, RuntimeError):  # it has ended by itself
            self.response.shutdown()

    def close(self) -> None:
        """Let go of it.

        Only a body that is known to be read to its end leaves a connection that can be used again, and the library takes the
        next request on it only when the end has been looked for.
        """
        self.response.drain_conn() if self.response.length_remaining == 0 else self.response.close()


def host_of(url: str) -> str:
    """The host of a URL with its port, for messages."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _is_among(url: str, hosts: Sequence[str]) -> bool:
    """Whether a URL's host, with its port or without, is named, or is in a domain that is."""
    host, place = urlsplit(url).hostname or "", host_of(url).lower()
    names = [name.strip().lower().lstrip(".") for name in hosts]
    return any(name == "*" or name in (host, place) or (name and host.endswith(f".{name}")) for name in names)


def _without_secrets(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _SECRET_FIELDS}


def _fields(headers: Mapping[str, str], credential: Credential | None) -> dict[str, str]:
    ours = {} if credential is None else {"Authorization": credential.header}
    return {**_ALWAYS, **ours, **headers}


def _shown(headers: Mapping[str, str], credential: Credential | None) -> str | None:
    if credential is not None and headers.get("Authorization") == credential.header:
        return credential.origin
    return None


def _redirected(what: str, url: str, location: str) -> str:
    target = _target(url, location) if location else None
    if target is None:
        raise SourceRefused(f"{what} redirects to something that is no web address")
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
        raise SourceRefused(f"{what} redirects from https to http", hint="use a URL that stays with https")
    return without_userinfo(target)


def _target(url: str, location: str) -> str | None:
    try:
        # A header's bytes beyond ASCII are the URL's own, unquoted; the library reads them as Latin-1.
        target = urljoin(url, quote(location.encode("latin-1"), safe=_URL_CHARACTERS))
        parts = urlsplit(target)
        _ = parts.port
    except ValueError:
        return None
    return target if parts.hostname and parts.scheme in DEFAULT_PORTS else None
