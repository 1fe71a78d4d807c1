"""A loopback relay in front of a real web server, which passes on what is asked and answered, and misbehaves as it is told.

The server behind it is what the test is about, and knows nothing of it: an image service, a registry, an object store. A fault
is a frozen `Fault`, and holds for requests of a method whose path has a pattern's form.

::

    with relaying("http://127.0.0.1:5000") as relay:
        relay.misbehave("/v2/*/blobs/*", Fault(cut_after=100_000))
        source.describe(parse_ref(relay.url("/v2/debian/manifests/12")))
        assert 1 == relay.ledger.count("GET", "/v2/debian/manifests/12")

The Host field goes on as the client sent it, so a server that names itself in an answer by that field names the relay. A
``Location`` that names the server is turned to the relay; bodies are never changed. It speaks plain HTTP to either side.
"""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from underlay.testing.connections import Ledger, Listener, end_head, plain_path, running

_PATIENCE = 60.0  # seconds that the server behind may take for anything
_PIECE = 256 << 10
_RATE_STEPS = 20  # pieces a second under a rate limit
_NO_LINGERING = struct.pack("ii", 1, 0)  # socket(7): on, for 0 seconds, so that closing resets
_LAST_CHUNK = b"0\r\n\r\n"
_NO_ANSWER = 0  # what the ledger has as the status of a request that was never answered

# What is about one connection and not about the message (RFC 9110, 7.6.1; Proxy-Connection is an old habit).
_OF_THE_CONNECTION = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
)
_OF_RANGES = frozenset({"range", "if-range"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How a request is misanswered. Without a field set, it is passed on as it is.

    Attributes:
        status: answered in place of the server, which is not asked.
        silent: the request is taken and never answered.
        reset: the connection is reset when the request has come, as by a balancer that has forgotten it.
        lost: the server is asked, and its answer is lost: the connection is reset in its place.
        cut_after: the connection closes after so many bytes of the body.
        stall_after: nothing more comes after so many bytes of the body.
        rate: bytes a second of the body. head_rate: of the head.
        ranges: False: the server is not told of a Range, and the client not that the server knows them.
        length: the Content-Length that is announced. More than there is: the connection closes early; less: no more is sent.
        headers: fields of the answer in place of the server's; None leaves a field out.
        times: so many requests, then the fault is over; None: each.
    """

    status: int | None = None
    silent: bool = False
    reset: bool = False
    lost: bool = False
    cut_after: int | None = None
    stall_after: int | None = None
    rate: float | None = None
    head_rate: float | None = None
    ranges: bool = True
    length: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    times: int | None = None


class Relay:
    """A relay that runs; `relaying` starts and ends it.

    Attributes:
        base: its URL without a path.
        ledger: what was asked.
    """

    def __init__(self, upstream: str) -> None:
        self.ledger = Ledger()
        self._upstream = upstream
        self._rules = _Rules()
        self._listening = contextlib.ExitStack()
        self._reserved: socket.socket | None = None
        self._port = 0
        self.base = ""

    def url(self, path: str) -> str:
        """Where a client finds ``path``, already quoted."""
        return self.base + path

    def misbehave(self, pattern: str, fault: Fault, *, method: str = "*") -> None:
        """From the next request on, those of ``method`` for paths like ``pattern`` are misanswered; the newest rule wins.

        Args:
            pattern: as the shell's, where ``*`` stands for slashes too; the query does not matter.
            method: a pattern as well.
        """
        self._rules.add(method, pattern, fault)

    def behave(self) -> None:
        """From the next request on, everything is passed on as it is."""
        self._rules.clear()

    def go_away(self) -> None:
        """Break every connection off and refuse new ones, until `come_back`."""
        if self._reserved is not None:
            return
        # The port is bound anew before it is given up, so nobody else gets it; who does not listen refuses.
        self._reserved = _bound(self._port)
        self._listening.close()

    def come_back(self) -> None:
        """Listen again, at the same address."""
        self._listen()
        if self._reserved is not None:
            self._reserved.close()
        self._reserved = None

    def end(self) -> None:
        """Go away for good; for `relaying`."""
        self._listening.close()
        if self._reserved is not None:
            self._reserved.close()

    def _listen(self) -> None:
        listener = _Listener(self._upstream, self._rules, self.ledger, port=self._port)
        self._listening.enter_context(running(listener))
        self._port = listener.port
        self.base = f"http://127.0.0.1:{self._port}"


@contextlib.contextmanager
def relaying(upstream: str) -> Iterator[Relay]:
    """Relay on a free port of 127.0.0.1, from threads of this process, until the block ends.

    Args:
        upstream: the server's URL, ``http://HOST:PORT``; it need not run yet. While it does not answer, the relay answers 502.
    """
    relay = Relay(upstream)
    relay.come_back()
    try:
        yield relay
    finally:
        relay.end()


def _bound(port: int) -> socket.socket:
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", port))
    return reserved


# --------------------------------------------------------------------------------------------------------------- the rules


@dataclass(slots=True)
class _Rule:
    method: str
    pattern: str
    fault: Fault
    left: int | None

    def holds_for(self, method: str, path: str) -> bool:
        return self.left != 0 and fnmatchcase(method, self.method) and fnmatchcase(path, self.pattern)


class _Rules:
    """Who misbehaves how, between the test's thread and those of the connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []

    def add(self, method: str, pattern: str, fault: Fault) -> None:
        with self._lock:
            self._rules.insert(0, _Rule(method, pattern, fault, fault.times))

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def take(self, method: str, path: str) -> Fault:
        """How this request is misanswered, and one time less of it."""
        with self._lock:
            rule = next((rule for rule in self._rules if rule.holds_for(method, path)), None)
            if rule is None:
                return Fault()
            if rule.left is not None:
                rule.left -= 1
            return rule.fault


# --------------------------------------------------------------------------------------------------------- the connections


class _Listener(Listener):
    allow_reuse_port = True

    def __init__(self, upstream: str, rules: _Rules, ledger: Ledger, *, port: int) -> None:
        self.upstream = upstream
        self.rules = rules
        self.ledger = ledger
        super().__init__(_Connection, port=port)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: the requests are recorded."""

    def _relay(self) -> None:
        fault = self.server.rules.take(self.command, plain_path(self.path))
        if fault.silent:
            self._begin(_NO_ANSWER)
            self._wait()
        elif fault.reset:
            self._begin(_NO_ANSWER)
            self._reset()
        elif fault.status is not None:
            self._refuse(fault.status, fault.headers)
        else:
            self._ask_and_pass_on(fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _relay  # noqa: N815  # the library's names

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
        # The streams of the handler hold the socket open, and what ends it later would take leave first.
        os.close(self.connection.detach())

    def _ask_and_pass_on(self, fault: Fault) -> None:
        address = urlsplit(self.server.upstream)
        assert address.hostname is not None
        with contextlib.closing(HTTPConnection(address.hostname, address.port, timeout=_PATIENCE)) as connection:
            try:
                answer = self._ask(connection, fault)
            except (OSError, HTTPException):
                self._fail()
                return
            with answer:
                if fault.lost:
                    self._begin(_NO_ANSWER)
                    self._reset()
                else:
                    self._pass_on(answer, fault)

    def _ask(self, connection: HTTPConnection, fault: Fault) -> HTTPResponse:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _OF_THE_CONNECTION and (fault.ranges or name.lower() not in _OF_RANGES):
                connection.putheader(name, value)
        chunked = "Transfer-Encoding" in self.headers
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for piece in self._sent_by_client():
            connection.send(_chunk(piece) if chunked else piece)
        if chunked:
            connection.send(_LAST_CHUNK)
        return connection.getresponse()

    def _sent_by_client(self) -> Iterator[bytes]:
        """The request's body, in pieces."""
        if "Transfer-Encoding" not in self.headers:
            yield from self._pieces(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield from self._pieces(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            """A trailer, which nobody needs."""

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length > 0 and (piece := self.rfile.read(min(_PIECE, length))):
            yield piece
            length -= len(piece)

    def _pass_on(self, answer: HTTPResponse, fault: Fault) -> None:
        number = self._begin(answer.status)
        length = _announced(answer) if fault.length is None else fault.length
        self.send_response_only(answer.status, answer.reason)
        for name, value in _fields(answer, fault, self.server.upstream, self._base()):
            self.send_header(name, value)
        has_body = self.command != "HEAD" and answer.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        chunked = has_body and length is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif length is not None:
            self.send_header("Content-Length", str(length))
        end_head(self, rate=fault.head_rate, ended=self.server.ended)
        if has_body:
            self._send_body(answer, fault, number, length)

    def _send_body(self, answer: HTTPResponse, fault: Fault, number: int, length: int | None) -> None:
        """Pass the body on, up to where the fault ends it; what is less than announced ends the connection."""
        end = fault.cut_after if length is None or (fault.cut_after is not None and fault.cut_after < length) else length
        started, done = time.monotonic(), 0
        piece: bytes | None = None
        while done != fault.stall_after and (piece := _read(answer, _wanted(fault, done, end))):
            self.server.ledger.add_sent(number, len(piece))
            self._send_piece(piece, chunked=length is None)
            done += len(piece)
            if fault.rate is not None:
                self.server.ended.wait(max(0.0, started + done / fault.rate - time.monotonic()))
        if done == fault.stall_after:
            self._wait()
        elif length is not None:
            self.close_connection |= done < length
        elif done == fault.cut_after or piece is None:
            self.close_connection = True
        else:
            self.wfile.write(_LAST_CHUNK)

    def _send_piece(self, piece: bytes, *, chunked: bool) -> None:
        self.wfile.write(_chunk(piece) if chunked else piece)

    def _refuse(self, status: int, headers: Mapping[str, str | None]) -> None:
        """Answer in place of the server, once the client has said what it had to say."""
        for _ in self._sent_by_client():
            """Nobody hears it."""
        self._begin(status)
        self.send_response_only(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _fail(self) -> None:
        """The server does not answer; how much of the request it took is not known, so the connection ends."""
        self._begin(HTTPStatus.BAD_GATEWAY)
        self.close_connection = True
        self.send_response_only(HTTPStatus.BAD_GATEWAY)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def _begin(self, status: int) -> int:
        return self.server.ledger.begin(self, status)

    def _base(self) -> str:
        return f"http://{self.headers.get('Host', f'127.0.0.1:{self.server.port}')}"

    def _wait(self) -> None:
        """Send nothing until the relay goes away."""
        self.close_connection = True
        self.server.ended.wait()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _read(answer: HTTPResponse, length: int) -> bytes | None:
    """Some bytes of the body; none at its end, None where the server behind breaks off in the middle of its chunks."""
    try:
        return answer.read1(length)
    except (OSError, HTTPException):
        return None


def _announced(answer: HTTPResponse) -> int | None:
    text = answer.getheader("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _fields(answer: HTTPResponse, fault: Fault, upstream: str, base: str) -> Iterator[tuple[str, str]]:
    """The answer's fields as the client gets them, but for its length."""
    replaced = {name.lower() for name in fault.headers}
    for name, value in answer.getheaders():
        if name.lower() in _OF_THE_CONNECTION | replaced | {"content-length"}:
            continue
        if name.lower() == "location" and value.startswith(f"{upstream}/"):
            value = base + value.removeprefix(upstream)
        if name.lower() == "accept-ranges" and not fault.ranges:
            value = "none"
        yield name, value
    yield from ((name, value) for name, value in fault.headers.items() if value is not None)


def _wanted(fault: Fault, done: int, end: int | None) -> int:
    """How many bytes to take at once: up to the next stall or the end, and few under a rate limit; 0 at the end."""
    wanted = _PIECE if end is None else min(_PIECE, end - done)
    if fault.rate is not None:
        wanted = min(wanted, max(1, int(fault.rate / _RATE_STEPS)))
    if fault.stall_after is not None and done < fault.stall_after:
        wanted = min(wanted, fault.stall_after - done)
    return wanted
