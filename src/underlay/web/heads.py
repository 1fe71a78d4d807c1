"""Connections by urllib3 on which a step of an answer, its head or the next piece of its body, has one time-out as a whole.

A socket's own time-out begins anew with each byte, so a server that sends a byte now and then would hold us for days: in the
head, in a proxy's answer to CONNECT, or in what frames the chunks of a body. A connection that is kept is used again within a
minute only, and that it turns out to be broken then has an error of its own. The library is extended by inheritance, which is
how it wants to be.
"""

import io
import socket
import ssl
import time
from http.client import HTTPResponse
from typing import Any, cast

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import HTTPResponse as Response

_KEPT = 60.0  # seconds; balancers and address translation forget a silent connection after some minutes, and tell nobody
_BROKEN = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class TooSlow(TimeoutError):
    """Something came again and again, and a step was not done in its time all the same."""


class Dropped(ConnectionError):
    """A connection that had brought an answer broke before the head of the next one was there."""


class _Raw:
    """A socket's bytes for `io.BufferedReader`, which wants a raw file's methods and no class; each step has its deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self.raw = raw
        self.sock = sock
        self.timeout = sock.gettimeout()
        self.began: float | None = None

    def begin_step(self) -> None:
        self.began = None

    def readinto(self, buffer: memoryview, /) -> int | None:
        if self.timeout is None:
            return self.raw.readinto(buffer)
        if self.began is None:  # the socket's own time-out bounds the first piece
            self.began = time.monotonic()
            return self.raw.readinto(buffer)
        return self._read_in_time(buffer, self.began + self.timeout - time.monotonic())

    def _read_in_time(self, buffer: memoryview, left: float) -> int | None:
        if left <= 0:
            raise TooSlow
        self.sock.settimeout(left)
        try:
            length = self.raw.readinto(buffer)
        except TimeoutError as error:
            raise TooSlow from error
        self.sock.settimeout(self.timeout)
        return length

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        self.raw.flush()

    def close(self) -> None:
        self.raw.close()

    @property
    def closed(self) -> bool:
        return self.raw.closed


class _Answered(HTTPResponse):
    """An answer whose head is the first step; the head of a proxy's answer to CONNECT is read of one as well."""

    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._raw = _Raw(self.fp.detach(), sock)
        self.fp = io.BufferedReader(cast("io.RawIOBase", self._raw))

    def read1(self, n: int | None = -1) -> bytes:
        self._raw.begin_step()
        return super().read1(-1 if n is None else n)


class _Plain(HTTPConnection):
    response_class = _Answered
    answered: float | None = None  # when the last head came by this very connection

    def connect(self) -> None:
        self.answered = None
        super().connect()

    @property
    def is_connected(self) -> bool:
        """Whether it may be used again, which is what the pool wants to know."""
        is_young = self.answered is None or time.monotonic() - self.answered < _KEPT
        return is_young and super().is_connected

    def getresponse(self) -> Response:  # type: ignore[override]  # as the library's own
        try:
            response = super().getresponse()
        except _BROKEN as error:
            if self.answered is None:
                raise
            raise Dropped(*error.args) from error
        self.answered = time.monotonic()
        return response

    def send(self, data: Any) -> None:
        try:
            super().send(data)
        except BrokenPipeError:  # the library looks for an answer all the same
            raise
        except _BROKEN as error:
            if self.answered is None:
                raise
            raise Dropped(*error.args) from error


class _Secure(_Plain, HTTPSConnection):
    """The same by TLS."""


class PlainPool(HTTPConnectionPool):
    """Connections to one server."""

    ConnectionCls = _Plain


class SecurePool(HTTPSConnectionPool):
    """Connections to one server by TLS."""

    ConnectionCls = _Secure
