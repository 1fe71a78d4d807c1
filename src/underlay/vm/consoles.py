"""A machine's serial line: what its guest writes, and what is typed to it.

What the guest writes is kept in a file, whoever listens, so it is read there: nothing is lost or seen twice between what it
wrote before and what it writes now. What is typed goes to the line itself, and what comes back from there is passed over.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from underlay.compute.errors import InstanceNotFound, InstanceNotRunning, OperationFailed
from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.library import library

_PIECE = 1 << 16
_PIECES = 16  # that are passed over at a time: who writes without end is not waited for
_MESSAGE = 1 << 10  # bytes that are typed at a time
_PATIENCE = 10.0  # seconds


@dataclass(slots=True)
class Written:
    """What a guest has written, a piece at a time.

    The file is begun again when the guest is started anew, and libvirt's virtlogd begins another when it is long.

    Attributes:
        log: the file, which may not be there yet.
    """

    log: Path
    _file: BinaryIO | None = field(default=None)

    def rest(self, size: int = _PIECE) -> bytes:
        """Something of what has come since it was last asked, so many bytes at most; nothing while nothing has."""
        file = self._opened()
        piece = b"" if file is None else file.read(size)
        if piece or file is None or not self._is_another(file):
            return piece
        self.close()
        return self.rest(size)

    def skip_to_last(self, size: int) -> None:
        """Begin with so many bytes of its end."""
        if (file := self._opened()) is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO | None:
        if self._file is None:
            with suppress(FileNotFoundError):
                self._file = self.log.open("rb", buffering=0)
        return self._file

    def _is_another(self, file: BinaryIO) -> bool:
        try:
            there = os.stat(self.log)
        except FileNotFoundError:
            return False
        return not os.path.samestat(there, os.fstat(file.fileno())) or there.st_size < file.tell()


@dataclass(slots=True)
class Line:
    """A way to the serial line, which nobody waits for: what is typed goes on its way in the turns that the line is given.

    Attributes:
        read: something of what came; nothing when nothing has; raises EOFError when the way has ended, or what broke it.
        write: how many of these bytes it took.
        lost_at: on the monotonic clock, since when nothing typed arrives: the guest has ended, libvirt has, or somebody was
            let in instead. None: it goes there.
    """

    read: Callable[[], bytes]
    write: Callable[[bytes], int]
    lost_at: float | None = None
    _typed: bytes = b""

    def type(self, typed: bytes) -> None:
        """Have bytes typed."""
        self._typed += typed

    def turn(self) -> None:
        """Type what can be, and pass over what comes back: QEMU would wait for who is at the line and reads nothing."""
        if self.lost_at is not None:
            return
        try:
            for _ in range(_PIECES):
                if not self.read():
                    break
            while self._typed and (taken := self.write(self._typed[:_MESSAGE])):
                self._typed = self._typed[taken:]
        except (EOFError, OSError, library().libvirtError):
            self.lost_at = time.monotonic()


@contextmanager
def line_to(connection: Connection, uuid: str) -> Iterator[Line]:
    """The serial line of a machine, for who types; let go of before the connection is closed.

    Raises:
        InstanceNotRunning, InstanceNotFound, HypervisorUnavailable; OperationFailed: somebody else is at the line.
    """
    domain = Domain(connection, uuid)
    if not domain.is_active():
        raise InstanceNotRunning(instance_id=uuid)
    listens = guestxml.serial_listens_at(domain.xml())
    with _by_libvirt(connection, uuid) if listens is None else _by_port(*listens) as line:
        yield line


@contextmanager
def _by_libvirt(connection: Connection, uuid: str) -> Iterator[Line]:
    """Through libvirt, which lets one in at a time."""
    libvirt = library()

    def opened(handle: Any) -> Any:
        stream = handle.newStream(libvirt.VIR_STREAM_NONBLOCK)
        handle.lookupByUUIDString(uuid).openConsole(None, stream, 0)
        return stream

    def read() -> bytes:
        came: bytes | int = stream.recv(_PIECE)
        return _some(came) if isinstance(came, bytes) else b""  # a number says that nothing has come

    stream = connection.ask(opened, missing=InstanceNotFound(instance_id=uuid))
    try:
        yield Line(read, lambda typed: max(0, int(stream.send(typed))))  # a negative number: not now
    finally:
        with suppress(libvirt.libvirtError):  # it ended with the guest
            stream.abort()


@contextmanager
def _by_port(host: str, port: int) -> Iterator[Line]:
    """At the port of its own that a configuration with ``serial_console_enabled`` gives a guest."""

    def read() -> bytes:
        with suppress(BlockingIOError):
            return _some(line.recv(_PIECE))
        return b""

    def write(typed: bytes) -> int:
        with suppress(BlockingIOError):
            return line.send(typed)
        return 0

    with _connected(host, port) as line:
        line.setblocking(False)  # noqa: FBT003 - Python's own signature
        yield Line(read, write)


def _some(came: bytes) -> bytes:
    if not came:
        raise EOFError
    return came


def _connected(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=_PATIENCE)
    except OSError as error:
        raise OperationFailed(f"the serial line cannot be reached at {host}:{port}: {error}") from error


def read_from(log: Path, *, last: int) -> "closing[Written]":
    """What a guest has written, from so many bytes before its end on."""
    written = Written(log)
    written.skip_to_last(last)
    return closing(written)
