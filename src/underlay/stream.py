"""One pass over an image's bytes: full buffers in; digests, inspection and the sparse file are consumers of the same stream.

The *stored digest* is the sha256 over two sha256 digests: that of the data in the stored file's 64 KiB blocks that are not all
zero, one block after the other, and that of where they are, which is the beginning and the end of each run of neighbouring such
blocks, as eight little-endian bytes each. Holes cost nothing, and whether zeros are stored as a hole or written out does not
matter. Of a file without a block of zeros, the first of the two is the digest of its bytes, so one pass of hashing gives both.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Protocol

from underlay.contracts import ByteStream
from underlay.files import data_extents, read_full, start_writeback
from underlay.model import Digest

BUFFER_BYTES = 1 << 20
BLOCK_BYTES = 64 << 10
WRITEBACK_BYTES = 8 << 20
_ZEROS = bytes(BLOCK_BYTES)
_PEEK = 16
_RUN = Struct("<QQ")


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


class Running(Protocol):
    """A digest that is being computed, as those of hashlib are."""

    def update(self, content: memoryview | bytes, /) -> None:
        """Take the next bytes."""
        ...

    def digest(self) -> bytes:
        """The digest of all that came so far."""
        ...

    def copy(self) -> "Running":
        """Another that goes on from here."""
        ...


@dataclass(slots=True)
class ServedDigest:
    """A digest of the bytes as served."""

    algorithm: str
    running: "hashlib._Hash" = field(init=False)

    def __post_init__(self) -> None:
        self.running = hashlib.new(self.algorithm, usedforsecurity=False)

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes."""
        self.running.update(chunk)

    def result(self) -> Digest:
        """The digest so far."""
        return Digest(self.algorithm, self.running.hexdigest())


@dataclass(slots=True)
class StoredDigest:
    """The stored digest of data that comes run by run, in order.

    Attributes:
        data: of the data so far. places: of the runs that have ended. run: the one that has begun, beginning and end.
    """

    data: Running = field(default_factory=hashlib.sha256)
    places: Running = field(default_factory=hashlib.sha256)
    run: tuple[int, int] | None = None

    def add(self, offset: int, run: memoryview) -> None:
        """Take the next run of blocks that are not all zero, or a part of one."""
        self.place(offset, offset + len(run))
        self.data.update(run)

    def place(self, start: int, end: int) -> None:
        """Note only that there is data from ``start`` to ``end``."""
        if self.run is not None and self.run[1] == start:
            start = self.run[0]
        elif self.run is not None:
            self.places.update(_RUN.pack(*self.run))
        self.run = (start, end)

    def result(self) -> str:
        """The digest of all that came, as ``sha256:hex``."""
        places = self.places.copy()
        if self.run is not None:
            places.update(_RUN.pack(*self.run))
        return f"sha256:{hashlib.sha256(self.data.digest() + places.digest()).hexdigest()}"


@dataclass(slots=True)
class ServedAndStored:
    """The sha256 of bytes that are stored as they are served, and the stored digest.

    As long as there was no block of zeros both are one, and are computed once: hashing is what a fetch over a fast network
    waits for (measured: a third of its time).
    """

    served: ServedDigest = field(default_factory=lambda: ServedDigest("sha256"))
    _stored: StoredDigest = field(default_factory=StoredDigest)
    _size: int = 0
    _is_dense: bool = True

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes, a whole number of blocks but for the last."""
        runs = list(filled_runs(chunk))
        if self._is_dense and runs == [(0, len(chunk))]:
            self._stored.place(self._size, self._size + len(chunk))
            self.served.feed(chunk)
        else:
            self._feed_apart(chunk, runs)
        self._size += len(chunk)

    def stored(self) -> str:
        """The stored digest of all that came, as ``sha256:hex``."""
        if self._is_dense:
            self._stored.data = self.served.running.copy()
        return self._stored.result()

    def _feed_apart(self, chunk: memoryview, runs: list[tuple[int, int]]) -> None:
        if self._is_dense:
            self._stored.data = self.served.running.copy()
            self._is_dense = False
        self.served.feed(chunk)
        for start, end in runs:
            self._stored.add(self._size + start, chunk[start:end])


@dataclass(slots=True)
class Digests:
    """Every digest that is wanted of one stream, and its stored digest.

    Attributes:
        algorithms: of the bytes as served; sha256 is among them.
    """

    algorithms: Sequence[str]
    _sha256: ServedAndStored = field(default_factory=ServedAndStored)
    _others: Sequence[ServedDigest] = ()

    def __post_init__(self) -> None:
        self._others = [ServedDigest(algorithm) for algorithm in self.algorithms if algorithm != "sha256"]

    @property
    def consumers(self) -> tuple[ServedAndStored | ServedDigest, ...]:
        """What has to be fed with every byte, each by itself: in a pipeline they are computed side by side."""
        return (self._sha256, *self._others)

    def served(self) -> tuple[Digest, ...]:
        """The digests so far, in the order of `algorithms`."""
        found = {digest.algorithm: digest for digest in (self._sha256.served, *self._others)}
        return tuple(found[algorithm].result() for algorithm in self.algorithms)

    def stored(self) -> str:
        """The stored digest so far, as ``sha256:hex``."""
        return self._sha256.stored()


@dataclass(slots=True)
class SparseWriter:
    """Writes a stream into a file, leaving holes for zero blocks.

    Attributes:
        fd: of a file that is empty, but for what is there already.
        kept: bytes that are there already, and are the stream's first; they are not written again.
        size: bytes so far.
        is_passing: the file is likely to go before the disk would have to have it, so it is not written out early.
    """

    fd: int
    kept: int = 0
    size: int = 0
    is_passing: bool = False
    _synced: int = 0

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes, a whole number of blocks but for the last.

        Raises:
            OSError
        """
        for start, end in filled_runs(chunk):
            if self.size + end > self.kept:
                _write_all(self.fd, chunk[start:end], self.size + start)
        self.size += len(chunk)
        if self.size - self._synced >= WRITEBACK_BYTES and not self.is_passing:
            # The disk has its share of the work while the rest is still to come; measured, a fifth of the whole time is saved.
            start_writeback(self.fd, self._synced, self.size - self._synced)
            self._synced = self.size

    def finish(self) -> None:
        """Give the file its length.

        Raises:
            OSError
        """
        os.ftruncate(self.fd, self.size)


@dataclass(slots=True)
class StoredReader:
    """Reads a file for its stored digest, extent by extent, as far as its bytes are final.

    Attributes:
        fd: of a file that has its length, though not yet all of its bytes.
        done: bytes from the beginning on that have been read, a whole number of blocks until the end.
    """

    fd: int
    done: int = 0
    _digest: StoredDigest = field(default_factory=StoredDigest)
    _buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(BUFFER_BYTES)))

    def advance(self, settled: int) -> None:
        """Read what is final by now: the whole blocks before ``settled``.

        Raises:
            OSError
        """
        self._read(settled // BLOCK_BYTES * BLOCK_BYTES)

    def finish(self) -> str:
        """The digest, as ``sha256:hex``, now that all of the file is final.

        Raises:
            OSError
        """
        self._read(os.fstat(self.fd).st_size)
        return self._digest.result()

    def _read(self, upto: int) -> None:
        for start, end in block_ranges(self.fd, self.done, upto):
            position = start
            while position < end and (length := read_full(self.fd, self._buffer[: end - position], position)):
                for run_start, run_end in filled_runs(self._buffer[:length]):
                    self._digest.add(position + run_start, self._buffer[run_start:run_end])
                position += length
        self.done = max(self.done, upto)


def stored_digest(fd: int) -> str:
    """The stored digest of a file, read extent by extent.

    Raises:
        OSError
    """
    return StoredReader(fd).finish()


def served_digest(fd: int, algorithm: str) -> Digest:
    """The digest of a file's bytes from its beginning to its end."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    position = 0
    while length := os.preadv(fd, [buffer], position):
        digest.update(buffer[:length])
        position += length
    return Digest(algorithm, digest.hexdigest())


def block_ranges(fd: int, begin: int, size: int) -> Iterator[tuple[int, int]]:
    """The file's data from ``begin`` to ``size``, rounded out to whole blocks, no block twice."""
    done = begin
    for start, end in data_extents(fd, size, start=begin):
        start = max(start // BLOCK_BYTES * BLOCK_BYTES, done)
        end = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, size)
        if start < end:
            yield start, end
            done = end


def filled_runs(chunk: memoryview) -> Iterator[tuple[int, int]]:
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


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
