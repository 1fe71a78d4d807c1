"""Which clusters of the file are in use, and how often: none may be two things, and each must be counted by its refcount."""

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import add, gt

from underlay.errors import UnsafeImage
from underlay.files import read_padded
from underlay.formats.qcow2.header import INCOMPATIBLE_DIRTY, Header
from underlay.formats.qcow2.pieces import Piece
from underlay.formats.qcow2.tables import TableFile

MOST_CLUSTERS = 16 << 20
"""Clusters of a file that are kept track of, at 1 byte each and 4 more in an image with compressed ones: 1 TiB of 64 KiB."""

_BLOCK_OFFSET = 0xFFFF_FFFF_FFFF_FE00
_TYPES = {3: "B", 4: "H", 5: "I", 6: "Q"}  # by the refcount order


@dataclass(slots=True)
class HostClusters:
    """The clusters of a file that something of the disk lies in.

    Internal snapshots share clusters with the disk, and what they alone use is not looked at, so a refcount may be higher than
    what is counted here; it may not be lower.
    """

    header: Header
    what: str
    _whole: bytearray = field(default_factory=bytearray)  # 1: a table or a plain cluster
    _packed: "array[int]" = field(default_factory=lambda: array("I"))  # how many compressed clusters reach into it

    def take(self, piece: Piece) -> None:
        """The piece lies in its clusters, which the file has.

        Raises:
            UnsafeImage: something else does too.
        """
        if piece.compressed:
            self._pack(piece)
        else:
            self.take_whole(piece.host, piece.end)

    def take_whole(self, start: int, end: int) -> None:
        """A table or plain clusters lie from ``start`` to ``end``.

        Raises:
            UnsafeImage: something else does too.
        """
        first, last = start >> self.header.cluster_bits, -(-end >> self.header.cluster_bits)
        self._reach(last)
        if self._whole.find(1, first, last) >= 0:
            raise self._corrupt("two parts of it lie in one cluster of the file")
        self._whole[first:last] = b"\1" * (last - first)

    def _pack(self, piece: Piece) -> None:
        first, last = piece.host >> self.header.cluster_bits, (piece.end - 1) >> self.header.cluster_bits
        self._reach(last + 1)
        if len(self._packed) < len(self._whole):
            self._packed.frombytes(bytes((len(self._whole) - len(self._packed)) * self._packed.itemsize))
        for cluster in range(first, last + 1):
            self._packed[cluster] += 1

    def _reach(self, clusters: int) -> None:
        if len(self._whole) < clusters:
            self._whole.extend(bytes(clusters - len(self._whole)))

    def prove(self, file: TableFile) -> None:
        """Hold what has been taken against itself and against the refcounts, now that the file is whole.

        A file that was not closed by its writer may have refcounts that lag behind (lazy refcounts), which it says itself.

        Raises:
            UnsafeImage
        """
        blocks = self._refcount_blocks(file)
        if any(whole and packed for whole, packed in zip(self._whole, self._packed, strict=False)):
            raise self._corrupt("compressed data lie in a cluster of the file that is something else")
        if self.header.incompatible & INCOMPATIBLE_DIRTY:
            return
        counted = self._block_bytes * 8 >> self.header.refcount_order
        for index, start in enumerate(range(0, len(self._whole), counted)):
            refcounts = self._refcounts(file.fd, blocks[index]) if index < len(blocks) and blocks[index] else ()
            if self._counts_less(refcounts, start, min(start + counted, len(self._whole))):
                raise self._corrupt("a refcount says that a cluster is not used as often as it is")

    def _refcount_blocks(self, file: TableFile) -> list[int]:
        """Where the refcounts of the clusters that are in use lie; the blocks themselves are such."""
        table_bytes = self.header.refcount_clusters * self._block_bytes
        blocks = [entry & _BLOCK_OFFSET for entry in file.table(self.header.refcount_offset, table_bytes)]
        self.take_whole(self.header.refcount_offset, self.header.refcount_offset + table_bytes)
        for offset in blocks:
            if offset:
                file.must_have_table(offset, self._block_bytes)
                self.take_whole(offset, offset + self._block_bytes)
        return blocks

    @property
    def _block_bytes(self) -> int:
        return self.header.cluster_bytes

    def _refcounts(self, fd: int, offset: int) -> Sequence[int]:
        return read_refcounts(fd, offset, self._block_bytes, order=self.header.refcount_order)

    def _counts_less(self, refcounts: Sequence[int], start: int, end: int) -> bool:
        used: Sequence[int] = self._whole[start:end]
        if packed := self._packed[start:end]:
            packed.frombytes(bytes((end - start - len(packed)) * packed.itemsize))
            used = list(map(add, used, packed))
        return any(map(gt, used, refcounts)) if refcounts else any(used)

    def _corrupt(self, why: str) -> UnsafeImage:
        return UnsafeImage(self.what, rule="corrupt", why=why)


def read_refcounts(fd: int, offset: int, length: int, *, order: int) -> Sequence[int]:
    """The refcounts of a refcount block, each of ``1 << order`` bits; of those under a byte the lowest bits come first.

    Raises:
        OSError
    """
    content = read_padded(fd, length, offset)
    if order in _TYPES:
        table = array(_TYPES[order], content)
        if sys.byteorder == "little":
            table.byteswap()
        return table
    bits = 1 << order
    mask = (1 << bits) - 1
    return [byte >> shift & mask for byte in content for shift in range(0, 8, bits)]
