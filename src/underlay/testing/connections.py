"""What the servers of `underlay.testing` have in common: a listener that ends whole, and a ledger of what was asked."""

import contextlib
import io
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

from underlay.values import replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request that was answered.

    Attributes:
        path: as asked, with its query.
        headers: with lower-case names.
        status: of the answer; 0: it was never answered.
        content: that was posted.
        sent: bytes of the body that have been given to the network so far, without what frames them.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    sent: int
    content: bytes = b""


class Ledger:
    """What was asked, between the test's thread and those of the connections.

    Attributes:
        changed: notified at each request and each piece of a body.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._requests: list[Request] = []

    def begin(self, handler: BaseHTTPRequestHandler, status: int, content: bytes = b"") -> int:
        """Record a request that is about to be answered; its number is for `add_sent`."""
        headers = MappingProxyType({name.lower(): value for name, value in handler.headers.items()})
        method, path = handler.command, handler.path
        request = Request(method=method, path=path, headers=headers, status=status, sent=0, content=content)
        with self.changed:
            self._requests.append(request)
            self.changed.notify_all()
            return len(self._requests) - 1

    def add_sent(self, number: int, length: int) -> None:
        """Count bytes of the answer's body, before they are sent: what a client has received is never missing in the count."""
        with self.changed:
            request = self._requests[number]
            self._requests[number] = replace(request, sent=request.sent + length)
            self.changed.notify_all()

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request so far, in the order in which their answers began."""
        with self.changed:
            return tuple(self._requests)

    def count(self, method: str, path: str) -> int:
        """How many requests of this method the path has had, whatever they were answered. The query does not matter."""
        return sum(1 for request in self.requests if request.method == method and plain_path(request.path) == path)

    def bodies(self, path: str) -> int:
        """How many GETs were answered with content of the path, whole or a range of it."""
        return sum(1 for request in self.requests if plain_path(request.path) == path and _has_content(request))

    def sent(self, path: str) -> int:
        """Bytes of the path that were given to the network, over all requests."""
        return sum(request.sent for request in self.requests if plain_path(request.path) == path)

    def wait_until_sent(self, path: str, length: int, *, seconds: float = 60) -> None:
        """Wait until `sent` is at least ``length`` for the path.

        Raises:
            TimeoutError
        """
        with self.changed:
            if not self.changed.wait_for(lambda: self.sent(path) >= length, timeout=seconds):
                raise TimeoutError(f"{self.sent(path)} bytes of {path} were sent in {seconds:g} s, not {length}")


class Listener(ThreadingHTTPServer):
    """Listens on 127.0.0.1, a thread for each connection; knows the open connections, so that it can drop them.

    Attributes:
        ended: set when no connection shall wait for anything any more.
        port: that it listens on.
    """

    request_queue_size = 256
    daemon_threads = False

    def __init__(
        self, connection: Callable[..., BaseHTTPRequestHandler], *, tls: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        self.ended = threading.Event()
        self._context = tls
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), connection)
        self.port: int = self.server_address[1]

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection."""
        connection, address = self.socket.accept()
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._open_lock:
            self._open.add(connection)
        return connection, address

    def finish_request(self, request: object, client_address: object) -> None:
        """Answer a connection's requests; the handshake is the connection's thread's, not the listener's."""
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: object) -> None:
        """Close a connection."""
        assert isinstance(request, socket.socket)
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        """Break every connection off."""
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nothing to report; the thread's own mistakes are."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(listener: Listener) -> Iterator[None]:
    """Accept connections until the block ends; then none is left, and no thread."""
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, name="testing-listener")
    thread.start()
    try:
        yield
    finally:
        listener.shutdown()
        thread.join()
        listener.drop_connections()
        listener.ended.set()
        listener.server_close()  # waits for the connections' threads


def end_head(handler: BaseHTTPRequestHandler, *, rate: float | None, ended: threading.Event) -> None:
    """Send the head that a handler has put together.

    Args:
        rate: bytes a second, each sent alone; None: all of it at once. ended: nothing more is sent once it is set.
    """
    if rate is None:
        handler.end_headers()
        return
    connection, head = handler.wfile, io.BytesIO()
    handler.wfile = head
    handler.end_headers()
    handler.wfile = connection
    for byte in head.getvalue():
        if ended.wait(1 / rate):
            break
        connection.write(bytes([byte]))


def plain_path(path: str) -> str:
    """The path without its query."""
    return path.partition("?")[0]


def _has_content(request: Request) -> bool:
    return request.method == "GET" and request.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
