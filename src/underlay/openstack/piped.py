"""The bytes that an image service writes into a file, as a stream to read from: it writes from a thread of its own."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from underlay.contracts import ByteStream
from underlay.errors import SourceUnavailable

_PIECE = 1 << 20


@contextmanager
def piped(
    write: Callable[[BinaryIO], None], translated: Callable[[], AbstractContextManager[None]], *, offset: int = 0
) -> Iterator[ByteStream]:
    """The stream of what is written, which ends with the context.

    Args:
        write: writes everything into the file that it is given.
        translated: in which context its error is raised, at the end of what it has written.
        offset: bytes that are passed over.

    Raises:
        SourceUnavailable: the machine has no thread left that could write.
    """
    # A pair of sockets and no pipe: a service may use sendfile(2), which stops at what a pipe takes at a time.
    reader, writer = socket.socketpair()
    with ThreadPoolExecutor(1, "underlay-piped") as pool, reader:  # the reader is closed first, which ends the writer
        stream = _Piped(reader, _begun(pool, write, writer), translated)
        stream.skip(offset)
        yield stream


def _begun(pool: ThreadPoolExecutor, write: Callable[[BinaryIO], None], writer: socket.socket) -> "Future[None]":
    try:
        return pool.submit(_write, write, writer)
    except RuntimeError as error:  # "can't start new thread", and who reads cannot write as well
        writer.close()
        hint = "raise the limit on processes and threads, or try again later"
        raise SourceUnavailable("an image service cannot be read from: the machine has no thread left", hint=hint) from error


def _write(write: Callable[[BinaryIO], None], writer: socket.socket) -> None:
    with writer:
        try:
            with writer.makefile("wb") as file:
                write(file)
        finally:
            # A process that was forked meanwhile has the socket too; the end is told whoever has it.
            with suppress(OSError):
                writer.shutdown(socket.SHUT_WR)


@dataclass(frozen=True, slots=True)
class _Piped:
    reader: socket.socket
    transfer: "Future[None]"
    translated: Callable[[], AbstractContextManager[None]]

    def readinto(self, buffer: memoryview, /) -> int:
        length = self.reader.recv_into(buffer)
        if length == 0:
            with self.translated():
                self.transfer.result()
        return length

    def skip(self, length: int) -> None:
        buffer = memoryview(bytearray(min(length, _PIECE)))
        while length and (read := self.readinto(buffer[:length])):
            length -= read
