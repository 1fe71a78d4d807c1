"""qcow2 to raw, by threads, from a file that is whole or one that still arrives.

Tables and clusters are taken in the order in which they lie in the file, as soon as the file reaches so far; those of a very
long L1 table are taken in pieces of it. Of a file that is whole, everything has arrived: then this is a plain conversion. Plain
clusters are copied by the kernel, which shares them where the file system can; zeros are left as holes of the target.

Nothing here probes, and nothing follows a name: `obstacle` says beforehand what is not for this module.
"""

import os
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate, count

from underlay.errors import UnsafeImage
from underlay.files import copy_range, read_padded, write_sparse
from underlay.formats.qcow2.entries import OFFSET_MASK, SECTOR, SUBCLUSTERS
from underlay.formats.qcow2.header import (
    INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_DIRTY,
    INCOMPATIBLE_EXTENDED_L2,
    ZLIB,
    ZSTD,
    Header,
)
from underlay.formats.qcow2.hostclusters import MOST_CLUSTERS, HostClusters
from underlay.formats.qcow2.inflate import inflate
from underlay.formats.qcow2.pieces import Piece, pieces_of
from underlay.formats.qcow2.tables import TableFile, l1_windows, read_table
from underlay.threads import submit

THREADS = 2
_IMPLEMENTED = INCOMPATIBLE_DIRTY | INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2
_BATCH_BYTES = 1 << 20  # guest bytes that a thread makes at a time: enough that waking it costs nothing, and it fits the cache
_BATCHES = 4  # for each thread, the one at work included
_FS_BLOCK = 4096  # what a file system allocates at least
_NOTHING_LEFT = 1 << 64


def obstacle(header: Header, size: int) -> str | None:
    """Why an image with this header, of ``size`` bytes so far, is to be left to qemu-img; None: it is not.

    Most of it inspection refuses long before; a conversion does not rely on that.
    """
    if unknown := header.incompatible & ~_IMPLEMENTED:
        return f"its features {unknown:#x} are not implemented"
    if header.compression not in (ZLIB, ZSTD):
        return f"its compression type {header.compression} is not implemented"
    if header.backing_offset or header.crypt_method:
        return "it needs another file or a key"
    if size >> header.cluster_bits > MOST_CLUSTERS:
        return f"it has more than {MOST_CLUSTERS} clusters"
    return None


@contextmanager
def converting(
    source: int, target: int, header: Header, *, what: str = "the qcow2 image", threads: int = THREADS
) -> Iterator["Conversion"]:
    """A conversion of an image that arrives in the file ``source`` into the empty file ``target``.

    When the context ends, its threads have.
    """
    with ThreadPoolExecutor(threads, "underlay-convert") as pool:
        try:
            yield Conversion(source=source, target=target, header=header, what=what, _pool=pool, _most=threads * _BATCHES)
        finally:
            pool.shutdown(cancel_futures=True)


def convert(source: int, target: int, header: Header, *, what: str = "the qcow2 image", threads: int = THREADS) -> None:
    """Write the guest's view of a whole image into an empty file. Durability is the caller's.

    Raises:
        UnsafeImage: its tables or its data are broken. OSError
    """
    size = os.fstat(source).st_size
    with converting(source, target, header, what=what, threads=threads) as conversion:
        for _ in conversion.advance(size):
            pass
        conversion.finish(size)


@dataclass(slots=True, eq=False)
class _Queue:
    """Places in the order of the file, and the least guest offset of those that are left."""

    places: Sequence[Piece]
    least: Sequence[int]
    next: int = 0

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> "_Queue":
        least = [*accumulate((piece.guest for piece in reversed(pieces)), min)]
        return cls(pieces, [*least[::-1], _NOTHING_LEFT])

    def ready(self, arrived: int) -> Iterator[list[Piece]]:
        """Take those that have arrived, in batches."""
        while batch := self._batch(arrived):
            self.next += len(batch)
            yield batch

    def _batch(self, arrived: int) -> list[Piece]:
        batch: list[Piece] = []
        length = 0
        for index in range(self.next, len(self.places)):
            piece = self.places[index]
            if piece.end > arrived or (batch and not _joins(batch[0], piece, length)):
                break
            batch.append(piece)
            length += piece.length
        return batch


def _joins(first: Piece, piece: Piece, length: int) -> bool:
    """Whether a compressed cluster is read together with those before it."""
    near = piece.end - first.host <= _BATCH_BYTES
    return first.compressed and piece.compressed and near and length + piece.length <= _BATCH_BYTES


@dataclass(slots=True, eq=False, kw_only=True)
class Conversion:
    """What of an image is known, waits for its bytes, is at work and done. `converting` makes one; one thread uses it.

    Attributes:
        mapped: bytes that the raw form may come to occupy, as far as its tables are known.
        waiting: clusters and runs of them that are known, and whose bytes have not all come.
    """

    source: int
    target: int
    header: Header
    what: str
    _pool: ThreadPoolExecutor
    _most: int
    mapped: int = 0
    waiting: int = 0
    _clusters: HostClusters = field(init=False)
    _l1: "Iterator[tuple[int, array[int]]] | None" = None  # what is left of it; None: it has not arrived
    _unknown: int = 0  # guest offset from which on nothing is known of the L1 table
    _tables: _Queue = field(default_factory=lambda: _Queue.of(()))  # L2 tables of what is known of it, that are not known yet
    _queues: list[tuple[int, int, _Queue]] = field(default_factory=list)  # a heap, by the end of the next piece
    _at_work: "deque[tuple[Future[None], int]]" = field(default_factory=deque)  # and the least guest offset of each
    _numbers: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        self._clusters = HostClusters(self.header, self.what)

    @property
    def settled(self) -> int:
        """Guest bytes from the beginning on that are final in the target."""
        while self._at_work and self._at_work[0][0].done():
            self._at_work.popleft()[0].result()
        left = [queue.least[queue.next] for queue in (self._tables, *(queue for _, _, queue in self._queues))]
        return min(*left, *(least for _, least in self._at_work), self._unknown, self.header.disk_bytes)

    def advance(self, arrived: int) -> Iterator[int]:
        """Convert all that is here now that the file has ``arrived`` bytes; `settled` at each step.

        The first step after a table is known comes before anything of what it maps is written.

        Raises:
            UnsafeImage, OSError
        """
        while self._learn(arrived):
            yield self.settled
            yield from self._run(arrived)
        yield from self._run(arrived)

    def _learn(self, arrived: int) -> bool:
        """Read the next table, if it has arrived."""
        if self._tables.next == len(self._tables.places):
            return self._learn_l1(arrived)
        place = self._tables.places[self._tables.next]
        if place.end > arrived:
            return False
        self._clusters.take(place)
        table = read_table(self.source, place.host, self.header.cluster_bytes)
        pieces = pieces_of(table, self.header, place.guest, what=self.what)
        self.mapped = min(self.mapped + sum(map(_occupied, pieces)), self.header.disk_bytes)
        self.waiting += len(pieces)
        self._wait(_Queue.of(pieces))
        self._tables.next += 1  # only now: until its pieces are known, nothing behind its first byte is settled
        return True

    def _learn_l1(self, arrived: int) -> bool:
        """Read more of the L1 table, if it has arrived and there is more."""
        if self._l1 is None:
            header = self.header
            end = header.l1_offset + header.l1_entries * 8
            if end > arrived:
                return False
            self._clusters.take_whole(0, header.cluster_bytes)
            self._clusters.take_whole(header.l1_offset, end)
            self._l1 = l1_windows(self.source, header, header.disk_bytes)
        first, window = next(self._l1, (0, None))
        if window is None:
            self._unknown = _NOTHING_LEFT
            return False
        self._tables = _Queue.of(sorted(self._l2_places(window, first)))
        self._unknown = (first + len(window)) * self.header.l2_coverage
        return True

    def _l2_places(self, window: Sequence[int], first: int) -> Iterator[Piece]:
        header = self.header
        for index, entry in enumerate(window, first):
            if offset := entry & OFFSET_MASK:
                if offset % header.cluster_bytes:
                    raise self._refused("corrupt", f"its table at byte {offset} does not begin a cluster")
                yield Piece(offset, offset + header.cluster_bytes, index * header.l2_coverage, header.l2_coverage)

    def _run(self, arrived: int) -> Iterator[int]:
        """Convert the known clusters that have arrived; `settled` each time that a thread has got more to do."""
        while self._queues and self._queues[0][0] <= arrived:
            _, _, queue = self._queues[0]
            for batch in queue.ready(arrived):
                self._begin(batch, arrived)
                yield self.settled
            heappop(self._queues)
            self._wait(queue)

    def _wait(self, queue: _Queue) -> None:
        if queue.next < len(queue.places):
            heappush(self._queues, (queue.places[queue.next].end, next(self._numbers), queue))

    def _begin(self, batch: list[Piece], arrived: int) -> None:
        self.waiting -= len(batch)
        for piece in batch:
            self._clusters.take(piece)
        while len(self._at_work) >= self._most:
            self._at_work.popleft()[0].result()
        work = submit(self._pool, self._convert, batch, arrived)
        self._at_work.append((work, min(piece.guest for piece in batch)))

    def finish(self, size: int) -> None:
        """Prove that nothing of the image is missing or counted wrongly now that its ``size`` bytes have been advanced over.

        The target has the disk's length then.

        Raises:
            UnsafeImage, OSError
        """
        file = TableFile(self.source, size, self.header, self.what)
        file.must_have_table(self.header.l1_offset, self.header.l1_entries * 8)
        for place in self._tables.places[self._tables.next :]:
            file.must_reach(place.end)
        for _, _, queue in self._queues:
            for piece in queue.places[queue.next :]:
                self._finish(piece, file)
        self._queues.clear()
        while self._at_work:
            self._at_work.popleft()[0].result()
        self._clusters.prove(file)
        os.ftruncate(self.target, self.header.disk_bytes)

    def _finish(self, piece: Piece, file: TableFile) -> None:
        # A compressed cluster need not fill the last sector that it reaches into; whether all of it is there, its data tell.
        file.must_reach(piece.end - SECTOR + 1 if piece.compressed else piece.end)
        self._begin([piece], file.size)

    # ---------------------------------------------------------------------------------------------------------- in the threads

    def _convert(self, batch: Sequence[Piece], arrived: int) -> None:
        if batch[0].compressed:
            self._inflate(batch, arrived)
        else:
            for piece in batch:
                self._copy(piece)

    def _copy(self, piece: Piece) -> None:
        if piece.parts.bit_count() == SUBCLUSTERS:
            copy_range(self.source, self.target, piece.host, piece.length, to=piece.guest)
            return
        part = self.header.subcluster_bytes
        for first, last in _runs_of_bits(piece.parts):
            length = min(last * part, piece.length) - first * part
            if length > 0:
                copy_range(self.source, self.target, piece.host + first * part, length, to=piece.guest + first * part)

    def _inflate(self, batch: Sequence[Piece], arrived: int) -> None:
        start, end = batch[0].host, min(max(piece.end for piece in batch), arrived)
        # Zeros at the end of a file that grows are not there yet, though they have arrived.
        data = memoryview(read_padded(self.source, end - start, start))
        for piece in batch:
            packed = data[piece.host - start : piece.end - start]
            # Written one by one, so that the next can be inflated into the memory of the last.
            cluster = inflate(packed, self.header.cluster_bytes, compression=self.header.compression, what=self.what)
            write_sparse(self.target, memoryview(cluster)[: piece.length], piece.guest)

    def _refused(self, rule: str, why: str) -> UnsafeImage:
        return UnsafeImage(self.what, rule=rule, why=why)


def _occupied(piece: Piece) -> int:
    """Bytes of the blocks that the piece's guest bytes lie in."""
    return (-(-(piece.guest + piece.length) // _FS_BLOCK) - piece.guest // _FS_BLOCK) * _FS_BLOCK


def _runs_of_bits(bits: int) -> Iterator[tuple[int, int]]:
    """Where runs of set bits begin and end."""
    first = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        length = (~bits & bits + 1).bit_length() - 1
        yield first + skip, first + skip + length
        bits >>= length
        first += skip + length
