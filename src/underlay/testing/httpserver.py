"""A real web server on the loopback interface, which counts what it is asked and misbehaves as it is told.

What a path answers is a frozen `Served`: the body and its validators, and each fault as a field. Nothing is simulated: a
truncated body is a connection that closes early, a stall is a server that sends nothing.

::

    with serving({"/a.img": Served(b"...", etag='"1"')}) as server:
        source.describe(parse_ref(server.url("/a.img")))
        assert 0 == server.bodies("/a.img")
"""

import base64
import contextlib
import hmac
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote

from underlay.errors import ExtraMissing
from underlay.testing.connections import Ledger, Listener, Request, end_head, plain_path, running
from underlay.values import replace

__all__ = ["Certificate", "Contents", "Request", "Served", "Server", "redirect", "self_signed", "serving"]

_PIECE = 1 << 20
_LONGEST_FORM = 1 << 20
_RATE_STEPS = 20  # pieces a second under a rate limit
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")  # of one range; a request for several may be answered whole (RFC 9110, 14.2)


@dataclass(frozen=True, slots=True)
class Served:
    """What a path answers.

    Attributes:
        body: the bytes, or the file that holds them.
        etag: as sent, quotes and ``W/`` included.
        headers: further fields; one that the server would send itself replaces its.
        ranges: Range requests are honoured.
        status: of the answer; other than 200, it has no validators and no ranges.
        head_status: HEAD is answered with this status instead.
        head_length: the Content-Length that a HEAD announces, whatever the body has.
        for_get: a GET is answered by this other one: the content changes after the HEAD.
        past_caches: a request that asks past caches (``Cache-Control: no-cache``; RFC 9111, 5.2.1.4) is answered by this other
            one: a cache in between is stale.
        chunked: the body comes in chunks, its length is never announced.
        cut_after: the connection closes after so many bytes of the body.
        stall_after: nothing more comes after so many bytes of the body, for ``stall`` seconds or until `Server.resume`.
        encoding: a Content-Encoding to name; the body is sent as it is.
        credentials: ``user:password`` that a request must bring, as Basic authentication. token: a bearer token instead.
        form: fields that a POST or PUT must bring, among others, form-encoded. Nothing else can be posted to.
        rate: bytes a second of the body. head_rate: of the head.
    """

    body: bytes | Path = b""
    etag: str | None = field(default=None, kw_only=True)
    last_modified: datetime | None = field(default=None, kw_only=True)
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    ranges: bool = field(default=True, kw_only=True)
    status: int = field(default=200, kw_only=True)
    head_status: int | None = field(default=None, kw_only=True)
    head_length: int | None = field(default=None, kw_only=True)
    for_get: "Served | None" = field(default=None, kw_only=True)
    past_caches: "Served | None" = field(default=None, kw_only=True)
    chunked: bool = field(default=False, kw_only=True)
    cut_after: int | None = field(default=None, kw_only=True)
    stall_after: int | None = field(default=None, kw_only=True)
    stall: float = field(default=3600.0, kw_only=True)
    encoding: str | None = field(default=None, kw_only=True)
    credentials: str | None = field(default=None, kw_only=True)
    token: str | None = field(default=None, kw_only=True)
    form: Mapping[str, str] | None = field(default=None, kw_only=True)
    rate: float | None = field(default=None, kw_only=True)
    head_rate: float | None = field(default=None, kw_only=True)


def redirect(location: str, *, status: int = 302) -> Served:
    """An answer that redirects to ``location``: a path of this server, or any URL at all."""
    return Served(status=status, headers={"Location": location})


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A server's certificate. ``ca_file`` is what a client must trust; it holds for ``localhost`` and 127.0.0.1."""

    ca_file: Path
    key_file: Path


Contents = Mapping[str, Served | Sequence[Served]] | Path
"""Paths to what they answer (of several, each request takes the next and the last one stays), or a directory of files."""


class Server:
    """A server that runs; `serving` starts and ends it.

    Attributes:
        base: its URL without a path.
    """

    def __init__(self, base: str, answers: "_Answers", ledger: Ledger, resumed: threading.Event) -> None:
        self.base = base
        self._answers = answers
        self._ledger = ledger
        self._resumed = resumed

    def url(self, path: str, *, credentials: str | None = None) -> str:
        """Where a client finds ``path`` (already quoted), with ``user:password`` in it when given."""
        if credentials is None:
            return self.base + path
        scheme, _, authority = self.base.partition("://")
        return f"{scheme}://{quote(credentials, safe=':')}@{authority}{path}"

    def serve(self, path: str, served: Served | Sequence[Served]) -> None:
        """From the next request on, ``path`` answers this. Answers under way go on as they began."""
        self._answers.put(path, served)

    def withdraw(self, path: str) -> None:
        """From the next request on, ``path`` is 404."""
        self._answers.drop(path)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request so far, in the order in which their answers began."""
        return self._ledger.requests

    def count(self, method: str, path: str) -> int:
        """How many requests of this method the path has had, whatever they were answered. The query does not matter."""
        return self._ledger.count(method, path)

    def bodies(self, path: str) -> int:
        """How many GETs were answered with content of the path, whole or a range of it."""
        return self._ledger.bodies(path)

    def sent(self, path: str) -> int:
        """Bytes of the path that were given to the network, over all requests."""
        return self._ledger.sent(path)

    def wait_until_sent(self, path: str, length: int, *, seconds: float = 60) -> None:
        """Wait until `sent` is at least ``length`` for the path.

        Raises:
            TimeoutError
        """
        self._ledger.wait_until_sent(path, length, seconds=seconds)

    def resume(self) -> None:
        """End every stall, now and from now on."""
        self._resumed.set()


@contextlib.contextmanager
def serving(contents: Contents, *, tls: Certificate | None = None, clients: Certificate | None = None) -> Iterator[Server]:
    """Serve on a free port of 127.0.0.1, from threads of this process, until the block ends.

    Args:
        contents: what each path answers, or a directory whose files are served under their relative paths, with an ETag.
        tls: serve HTTPS at ``https://localhost:…`` with this certificate.
        clients: of those alone who show this certificate.
    """
    listener = _Listener(_Answers(contents), None if tls is None else _context(tls, clients))
    with running(listener):
        # A stall ends for good by `Server.resume`, and with the listener.
        yield Server(listener.base, listener.answers, listener.ledger, listener.ended)


def self_signed(directory: Path) -> Certificate:
    """Make a certificate for ``localhost`` and 127.0.0.1, valid for a day, in an existing directory.

    Raises:
        ExtraMissing: the ``cryptography`` package is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as error:
        raise ExtraMissing("a certificate needs the cryptography package", hint="pip install cryptography") from error
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        # The rest is what RFC 5280 wants of an authority, and what Python checks since 3.13.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(ca_file=directory / "ca.pem", key_file=directory / "key.pem")
    made.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


# -------------------------------------------------------------------------------------------------------- the connections


class _Answers:
    """What is to be answered, between the test's thread and those of the connections."""

    def __init__(self, contents: Contents) -> None:
        self._lock = threading.Lock()
        self._root = contents if isinstance(contents, Path) else None
        self._answers: dict[str, list[Served]] = {}
        if not isinstance(contents, Path):
            for path, served in contents.items():
                self.put(path, served)

    def put(self, path: str, served: Served | Sequence[Served]) -> None:
        answers = [served] if isinstance(served, Served) else list(served)
        assert answers
        with self._lock:
            self._answers[path] = answers

    def drop(self, path: str) -> None:
        with self._lock:
            del self._answers[path]

    def take(self, path: str) -> Served:
        """What this request is answered."""
        with self._lock:
            answers = self._answers.get(path) or self._answers.get(plain_path(path))
            if answers is not None:
                return answers.pop(0) if len(answers) > 1 else answers[0]
        found = None if self._root is None else _file_below(self._root, plain_path(path))
        return found or Served(status=HTTPStatus.NOT_FOUND)


class _Listener(Listener):
    def __init__(self, answers: _Answers, tls: ssl.SSLContext | None) -> None:
        self.answers = answers
        self.ledger = Ledger()
        super().__init__(_Connection, tls=tls)
        host = "localhost" if tls else "127.0.0.1"
        self.base = f"http{'s' if tls else ''}://{host}:{self.port}"


def _context(ours: Certificate, clients: Certificate | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours.ca_file, ours.key_file)
    if clients is not None:
        context.load_verify_locations(clients.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        served = self._served()
        self._reply(served.for_get or served)

    def do_HEAD(self) -> None:
        served = self._served()
        self._reply(served if served.head_status is None else replace(served, status=served.head_status))

    def do_POST(self) -> None:
        content = self.rfile.read(min(_LONGEST_FORM, int(self.headers.get("Content-Length", 0))))
        served = self._served()
        if served.form is None:
            served = Served(b"nothing can be posted here\n", status=405)
        elif not served.form.items() <= dict(parse_qsl(content.decode())).items():
            served = Served(b"who are you?\n", status=401)
        self._reply(served, content)

    do_PUT = do_POST  # noqa: N815  # the library's name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: the requests are recorded."""

    def _served(self) -> Served:
        served = self.server.answers.take(self.path)
        is_past_caches = "no-cache" in self.headers.get("Cache-Control", "").lower()
        return served.past_caches if is_past_caches and served.past_caches is not None else served

    def _reply(self, served: Served, content: bytes = b"") -> None:
        if (wanted := _authorization(served)) is not None and not self._brings(wanted):
            challenge = {"WWW-Authenticate": f'{wanted.split()[0]} realm="images", charset="UTF-8"'}
            served = Served(b"who are you?\n", status=401, headers=challenge)
        with _Body.open(served.body) as body:
            answer = self._choose(served, body.size)
            number = self.server.ledger.begin(self, answer.status, content)
            self._send_head(served, answer)
            if self.command != "HEAD" and answer.has_body:
                self._send_body(served, answer, body, number)

    def _brings(self, authorization: str) -> bool:
        return hmac.compare_digest(self.headers.get("Authorization", ""), authorization)

    def _choose(self, served: Served, size: int) -> "_Answer":
        whole = _Answer(status=served.status, start=0, stop=size, size=size)
        if served.status != HTTPStatus.OK:
            return whole
        if self._is_fresh(served):
            return replace(whole, status=HTTPStatus.NOT_MODIFIED)
        if not served.ranges or self.command != "GET" or not self._same_for_range(served):
            return whole
        return _ranged(whole, self.headers.get("Range", ""))

    def _is_fresh(self, served: Served) -> bool:
        """Whether the client already has it (RFC 9110, 13.1.2 and 13.1.3)."""
        if (tags := self.headers.get("If-None-Match")) is not None:
            ours = served.etag and served.etag.removeprefix("W/")
            return ours is not None and ours in [tag.strip().removeprefix("W/") for tag in tags.split(",")]
        since = self.headers.get("If-Modified-Since")
        return since is not None and since == _date(served.last_modified)

    def _same_for_range(self, served: Served) -> bool:
        """Whether an If-Range, if there is one, means what we serve now: by a strong validator only (RFC 9110, 13.1.5)."""
        condition = self.headers.get("If-Range")
        if condition is None:
            return True
        if condition.endswith('"'):
            return condition == served.etag and not condition.startswith("W/")
        return condition == _date(served.last_modified)

    def _send_head(self, served: Served, answer: "_Answer") -> None:
        told = {name.lower() for name in served.headers}
        ours = {"Date": self.date_time_string(), **_fields(served, answer, head=self.command == "HEAD")}.items()
        self.send_response_only(answer.status)
        for name, value in (*((name, value) for name, value in ours if name.lower() not in told), *served.headers.items()):
            self.send_header(name, value)
        end_head(self, rate=served.head_rate, ended=self.server.ended)

    def _send_body(self, served: Served, answer: "_Answer", body: "_Body", number: int) -> None:
        length = answer.stop - answer.start
        if served.cut_after is not None and served.cut_after < length:
            length = served.cut_after
            self.close_connection = True
        started, done = time.monotonic(), 0
        if served.stall_after == 0:
            self._stall(served)
        while done < length:
            piece = _piece(served, done, length)
            self.server.ledger.add_sent(number, piece)
            self._send_piece(served, body, answer.start + done, piece)
            done += piece
            if done == served.stall_after:
                self._stall(served)
            if served.rate is not None:
                time.sleep(max(0.0, started + done / served.rate - time.monotonic()))
        if served.chunked and not self.close_connection:
            self.connection.sendall(b"0\r\n\r\n")

    def _stall(self, served: Served) -> None:
        self.server.ended.wait(served.stall)

    def _send_piece(self, served: Served, body: "_Body", start: int, length: int) -> None:
        if served.chunked:
            self.connection.sendall(b"%x\r\n" % length)
        body.send(self.connection, start, length)
        if served.chunked:
            self.connection.sendall(b"\r\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """Which bytes of a body of ``size`` bytes are sent, under which status."""

    status: int
    start: int
    stop: int
    size: int

    @property
    def has_body(self) -> bool:
        return self.status != HTTPStatus.NOT_MODIFIED


def _ranged(whole: _Answer, header: str) -> _Answer:
    """The part that a Range header asks for (RFC 9110, 14.1.2); all of it when the header means nothing to us."""
    match = _RANGE.fullmatch(header)
    if match is None or match[1] == match[2] == "" or (match[1] and match[2] and int(match[2]) < int(match[1])):
        return whole
    if match[1]:
        start = int(match[1])
        stop = min(int(match[2]) + 1, whole.size) if match[2] else whole.size
    else:
        start, stop = max(0, whole.size - int(match[2])), whole.size
    if start >= whole.size:
        return replace(whole, status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, stop=0)
    return replace(whole, status=HTTPStatus.PARTIAL_CONTENT, start=start, stop=stop)


def _authorization(served: Served) -> str | None:
    """What a request's field of this name must have."""
    if served.token is not None:
        return f"Bearer {served.token}"
    return None if served.credentials is None else "Basic " + base64.b64encode(served.credentials.encode()).decode()


def _fields(served: Served, answer: _Answer, *, head: bool) -> dict[str, str]:
    fields: dict[str, str] = {}
    if answer.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_MODIFIED):
        fields |= _representation(served)
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        fields["Content-Range"] = f"bytes {answer.start}-{answer.stop - 1}/{answer.size}"
    if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        fields["Content-Range"] = f"bytes */{answer.size}"
    if not answer.has_body:
        return fields
    if served.chunked:
        return fields | {"Transfer-Encoding": "chunked"}
    length = answer.stop - answer.start
    return fields | {"Content-Length": str(served.head_length if head and served.head_length is not None else length)}


def _representation(served: Served) -> dict[str, str]:
    modified = _date(served.last_modified)
    fields = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes" if served.ranges else "none",
        "ETag": served.etag,
        "Last-Modified": modified,
        "Content-Encoding": served.encoding,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _piece(served: Served, done: int, length: int) -> int:
    """How many bytes to send at once: up to the next stall, and little under a rate limit."""
    piece = min(_PIECE, length - done)
    if served.rate is not None:
        piece = min(piece, max(1, int(served.rate / _RATE_STEPS)))
    if served.stall_after is not None and done < served.stall_after:
        piece = min(piece, served.stall_after - done)
    return piece


@dataclass(frozen=True, slots=True)
class _Body:
    size: int
    content: bytes | BinaryIO

    @classmethod
    @contextlib.contextmanager
    def open(cls, body: bytes | Path) -> Iterator["_Body"]:
        if isinstance(body, bytes):
            yield cls(len(body), body)
            return
        with body.open("rb", buffering=0) as file:
            yield cls(os.fstat(file.fileno()).st_size, file)

    def send(self, connection: socket.socket, start: int, length: int) -> None:
        if isinstance(self.content, bytes):
            connection.sendall(memoryview(self.content)[start : start + length])
        elif isinstance(connection, ssl.SSLSocket):
            connection.sendall(os.pread(self.content.fileno(), length, start))
        else:
            connection.sendfile(self.content, start, length)


def _file_below(root: Path, path: str) -> Served | None:
    file = (root / unquote(path).lstrip("/")).resolve()
    if not file.is_relative_to(root.resolve()) or not file.is_file():
        return None
    status = file.stat()
    modified = datetime.fromtimestamp(int(status.st_mtime), UTC)
    return Served(file, etag=f'"{status.st_mtime_ns:x}-{status.st_size:x}"', last_modified=modified)


def _date(time: datetime | None) -> str | None:
    return None if time is None else format_datetime(time.astimezone(UTC), usegmt=True)
