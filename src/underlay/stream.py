"""One pass over an image's bytes: full buffers in; digests, inspection and the sparse file are consumers of the same stream.

The *stored digest* is sha256 over ``(offset, data)`` of the stored file's 64 KiB blocks that are not all zero, the offset as
eight little-endian bytes. Holes cost nothing, and whether zeros are stored as a hole or written out does not matter.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from underlay.contracts import ByteStream
from underlay.files import data_extents, start_writeback
from underlay.model import Digest

BUFFER_BYTES = 1 << 20
BLOCK_BYTES = 64 << 10
WRITEBACK_BYTES = 8 << 20
_ZEROS = bytes(BLOCK_BYTES)
_PEEK = 16


def filled(stream: ByteStream) -> Iterator[memoryview]:
    """The stream in full buffers of `BUFFER_BYTES`, the last one shorter; each is valid until the next is asked for."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while True:
        length = 0
        while length < BUFFER_BYTES and (received := stream.readinto(buffer[length:])):
            length += received
        if length:
            yield buffer[:length]
        if length < BUFFER_BYTES:
            return


@dataclass(slots=True)
class Digests:
    """Digests of the bytes as served."""

    algorithms: Sequence[str]
    _hashes: list["hashlib._Hash"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in self.algorithms]

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes."""
        for running in self._hashes:
            running.update(chunk)

    def result(self) -> tuple[Digest, ...]:
        """The digests so far, in the order of `algorithms`."""
        return tuple(Digest(running.name, running.hexdigest()) for running in self._hashes)


@dataclass(slots=True)
class SparseWriter:
    """Writes a stream into a file, leaving holes for zero blocks, and computes the stored digest on the way.

    Attributes:
        fd: of a file that is empty, but for what is there already.
        kept: bytes that are there already, and are the stream's first; they are not written again.
        size: bytes so far.
    """

    fd: int
    kept: int = 0
    size: int = 0
    _synced: int = 0
    _stored: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes, a whole number of blocks but for the last.

        Raises:
            OSError
        """
        for start, end in _data_runs(chunk):
            _update(self._stored, self.size + start, chunk[start:end])
            if self.size + end > self.kept:
                _write_all(self.fd, chunk[start:end], self.size + start)
        self.size += len(chunk)
        if self.size - self._synced >= WRITEBACK_BYTES:
            # The disk has its share of the work while the rest is still to come; measured, a fifth of the whole time is saved.
            start_writeback(self.fd, self._synced, self.size - self._synced)
            self._synced = self.size

    def finish(self) -> str:
        """Give the file its length; the stored digest as ``sha256:hex``.

        Raises:
            OSError
        """
        os.ftruncate(self.fd, self.size)
        return f"sha256:{self._stored.hexdigest()}"


def stored_digest(fd: int) -> str:
    """The stored digest of a file, read extent by extent.

    Raises:
        OSError
    """
    digest = hashlib.sha256()
    size = os.fstat(fd).st_size
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for start, end in _block_ranges(fd, size):
        position = start
        while position < end and (length := _read_full(fd, buffer[: end - position], position)):
            for run_start, run_end in _data_runs(buffer[:length]):
                _update(digest, position + run_start, buffer[run_start:run_end])
            position += length
    return f"sha256:{digest.hexdigest()}"


def _read_full(fd: int, buffer: memoryview, position: int) -> int:
    # A file system may answer with less than was asked for; a piece that is no whole number of blocks would shift the rest.
    length = 0
    while length < len(buffer) and (received := os.preadv(fd, [buffer[length:]], position + length)):
        length += received
    return length


def served_digest(fd: int, algorithm: str) -> Digest:
    """The digest of a file's bytes from its beginning to its end."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    position = 0
    while length := os.preadv(fd, [buffer], position):
        digest.update(buffer[:length])
        position += length
    return Digest(algorithm, digest.hexdigest())


def _block_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The file's data rounded out to whole blocks, no block twice."""
    done = 0
    for start, end in data_extents(fd, size):
        start = max(start // BLOCK_BYTES * BLOCK_BYTES, done)
        end = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, size)
        if start < end:
            yield start, end
            done = end


def _data_runs(chunk: memoryview) -> Iterator[tuple[int, int]]:
    """Neighbouring blocks that are not all zero, as ``(start, end)`` offsets in the chunk."""
    run_start = None
    for start in range(0, len(chunk), BLOCK_BYTES):
        if _is_zero(chunk[start : start + BLOCK_BYTES]):
            if run_start is not None:
                yield run_start, start
            run_start = None
        elif run_start is None:
            run_start = start
    if run_start is not None:
        yield run_start, len(chunk)


def _is_zero(block: memoryview) -> bool:
    # Comparing memoryviews goes element by element; bytes compare at the speed of memory. Most blocks fail the peek.
    if bytes(block[:_PEEK]) != _ZEROS[: min(_PEEK, len(block))]:
        return False
    return bytes(block) == _ZEROS[: len(block)]


def _update(digest: "hashlib._Hash", offset: int, run: memoryview) -> None:
    for start in range(0, len(run), BLOCK_BYTES):
        digest.update((offset + start).to_bytes(8, "little"))
        digest.update(run[start : start + BLOCK_BYTES])


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
