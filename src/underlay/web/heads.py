"""Connections by urllib3 on which a step of an answer, its head or the next piece of its body, has one time-out as a whole.

A socket's own time-out begins anew with each byte, so a server that sends a byte now and then would hold us for days: in the
head, in a proxy's answer to CONNECT, or in what frames the chunks of a body. The library is extended by inheritance, which is
how it wants to be.
"""

import io
import socket
import time
from http.client import HTTPResponse
from typing import cast

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class TooSlow(TimeoutError):
    """Something came again and again, and a step was not done in its time all the same."""


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


class _Secure(HTTPSConnection):
    response_class = _Answered


class PlainPool(HTTPConnectionPool):
    """Connections to one server."""

    ConnectionCls = _Plain


class SecurePool(HTTPSConnectionPool):
    """Connections to one server by TLS."""

    ConnectionCls = _Secure
