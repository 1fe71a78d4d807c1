"""A machine's serial line: what its guest writes, and what is typed to it.

What the guest writes is kept in a file, whoever listens, so it is read there: nothing is lost or seen twice between what it
wrote before and what it writes now. What is typed goes to the line itself, and what comes back from there is passed over.
"""

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from underlay.compute.errors import InstanceNotFound, InstanceNotRunning
from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.library import library

_PIECE = 1 << 16


@dataclass(slots=True)
class Written:
    """What a guest has written, a piece at a time.

    The file is begun again when the guest is started anew, and libvirt's virtlogd begins another when it is long.

    Attributes:
        log: the file, which may not be there yet.
    """

    log: Path
    _file: BinaryIO | None = field(default=None)

    def rest(self) -> bytes:
        """Something of what has come since it was last asked; nothing while nothing has."""
        file = self._opened()
        piece = b"" if file is None else file.read(_PIECE)
        if piece or file is None or not self._is_another(file):
            return piece
        self.close()
        return self.rest()

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


@dataclass(frozen=True, slots=True)
class _Line:
    """A way to the serial line: bytes are read, none at its end; bytes are written; it is let go of."""

    read: Callable[[], bytes]
    write: Callable[[bytes], object]
    end: Callable[[], object]


@contextmanager
def typing_to(connection: Connection, uuid: str) -> Iterator[Callable[[bytes], None]]:
    """A function by which bytes are typed to the serial line of a machine, which never waits for the guest to read them.

    Raises:
        InstanceNotRunning, InstanceNotFound, HypervisorUnavailable; OperationFailed: somebody else is at the line.
    """
    line = _line(connection, uuid)
    typed: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for work in (lambda: _pass_over(line), lambda: _write_all(line, typed)):
        threading.Thread(target=work, name="underlay-vm-line", daemon=True).start()
    try:
        yield typed.put
    finally:
        typed.put(None)
        with suppress(*_broken()):
            line.end()


def _line(connection: Connection, uuid: str) -> _Line:
    domain = Domain(connection, uuid)
    if not domain.is_active():
        raise InstanceNotRunning(instance_id=uuid)
    listens = guestxml.serial_listens_at(domain.xml())
    return _by_libvirt(connection, uuid) if listens is None else _by_port(*listens)


def _by_libvirt(connection: Connection, uuid: str) -> _Line:
    """Through libvirt, which lets one in at a time."""

    def opened(handle: Any) -> Any:
        stream = handle.newStream(0)
        handle.lookupByUUIDString(uuid).openConsole(None, stream, 0)
        return stream

    stream = connection.ask(opened, missing=InstanceNotFound(instance_id=uuid))
    return _Line(lambda: bytes(stream.recv(_PIECE)), lambda data: _send(stream, data), stream.abort)


def _send(stream: Any, data: bytes) -> None:
    while data:
        data = data[stream.send(data) :]


def _by_port(host: str, port: int) -> _Line:
    """At the port of its own that a configuration with ``serial_console_enabled`` gives a guest."""
    line = socket.create_connection((host, port))
    return _Line(lambda: line.recv(_PIECE), line.sendall, line.close)


def _pass_over(line: _Line) -> None:
    """QEMU would wait for who is at the line and reads nothing."""
    with suppress(*_broken()):
        while line.read():
            pass


def _write_all(line: _Line, typed: "queue.SimpleQueue[bytes | None]") -> None:
    with suppress(*_broken()):
        while (data := typed.get()) is not None:
            line.write(data)


def _broken() -> tuple[type[BaseException], ...]:
    """How a line ends whose guest ends, or who is let go of."""
    return (OSError, library().libvirtError)


def read_from(log: Path, *, last: int) -> "closing[Written]":
    """What a guest has written, from so many bytes before its end on."""
    written = Written(log)
    written.skip_to_last(last)
    return closing(written)
