"""The qcow2 tables: proof that all that a guest would read lies in the file, and how much of its disk they map."""

import os
import sys
from array import array
from collections.abc import Iterator
from heapq import merge
from itertools import pairwise

import msgspec

from underlay.errors import UnsafeImage
from underlay.files import read_padded
from underlay.formats.qcow2.entries import ALL_ZEROS, ALLOCATED, COMPRESSED, OFFSET_MASK, SECTOR, SUBCLUSTERS, compressed_range
from underlay.formats.qcow2.header import Header

_BLOCK = 4096  # what a file system allocates at least
_WINDOW = 1 << 13  # entries of the L1 table that are looked at together: it may have four million


def mapped_bytes(fd: int, header: Header, *, what: str = "the qcow2 image") -> int:
    """Guest bytes that the image holds data for, in blocks of 4 KiB: an upper bound of what its raw form allocates.

    Reads the L1 and L2 tables (8 bytes for each cluster, 16 with extended L2), and proves that each table and each cluster
    that a guest would read lies inside the file, which ``qemu-img convert`` does not: it turns a file that is cut short into
    wrong content.

    Raises:
        UnsafeImage: a table or a cluster lies outside the file, or tables overlap (which would let a small file ask for work
            without bound).
    """
    file = TableFile(fd, os.fstat(fd).st_size, header, what)
    file.must_have_table(header.refcount_offset, header.refcount_clusters * header.cluster_bytes)
    file.must_have_table(header.snapshots_offset, header.snapshots)  # a snapshot's entry is of no fixed length
    file.must_have_table(header.l1_offset, header.l1_entries * 8)
    if _share_a_table(file):
        raise file.refused("corrupt", "two entries of its L1 table share one L2 table")
    mapped = 0
    for first, window in l1_windows(fd, header, header.size):
        for index, entry in enumerate(window, first):
            if offset := entry & OFFSET_MASK:
                mapped += _mapped_by(file, file.table(offset, header.cluster_bytes), index * header.l2_coverage)
    return min(mapped, -(-header.size // _BLOCK) * _BLOCK)


def l1_windows(fd: int, header: Header, size: int) -> "Iterator[tuple[int, array[int]]]":
    """The L1 table of a disk of ``size`` bytes in pieces, so that no more memory is taken than one needs; where each begins.

    Entries beyond the disk belong to a virtual machine's saved state, which nobody reads here.

    Raises:
        OSError
    """
    in_use = min(-(-size // header.l2_coverage), header.l1_entries)
    for first in range(0, in_use, _WINDOW):
        yield first, read_table(fd, header.l1_offset + first * 8, min(_WINDOW, in_use - first) * 8)


def _share_a_table(file: "TableFile") -> bool:
    """Whether two entries of the L1 table name one L2 table. Takes no more memory than the L1 table itself."""
    named = (
        sorted(entry & OFFSET_MASK for entry in window) for _, window in l1_windows(file.fd, file.header, file.header.size)
    )
    in_order = merge(*[array("Q", offsets) for offsets in named])
    return any(offset == following != 0 for offset, following in pairwise(in_order))


class TableFile(msgspec.Struct, frozen=True):
    """An open image that is whole, and how messages call it."""

    fd: int
    size: int
    header: Header
    what: str

    def table(self, offset: int, length: int) -> "array[int]":
        """Big-endian 8-byte entries."""
        self.must_have_table(offset, length)
        return read_table(self.fd, offset, length)

    def must_have_table(self, offset: int, length: int) -> None:
        """Refuse a table that does not begin a cluster, or is not whole."""
        if length:
            if offset % self.header.cluster_bytes:
                raise self.refused("corrupt", f"its table at byte {offset} does not begin a cluster")
            self.must_reach(offset + length)

    def must_reach(self, end: int) -> None:
        """Refuse a file that ends before ``end``."""
        if end > self.size:
            raise self.refused("cut-short", f"its tables point to byte {end} of a file of {self.size} bytes")

    def refused(self, rule: str, why: str) -> UnsafeImage:
        """The error for a broken rule."""
        return UnsafeImage(self.what, rule=rule, why=why)


def read_table(fd: int, offset: int, length: int) -> "array[int]":
    """Big-endian 8-byte entries of a file that holds them all; behind the end of one that still grows there are zeros.

    Raises:
        OSError
    """
    table = array("Q", read_padded(fd, length, offset))
    if sys.byteorder == "little":
        table.byteswap()
    return table


def _mapped_by(file: TableFile, table: "array[int]", guest_offset: int) -> int:
    """Bytes that one L2 table maps, each cluster proven to lie in the file."""
    if file.header.extended_l2:
        return _mapped_subclusters(file, table, guest_offset)
    if not any(table):
        return 0
    cluster, zero = file.header.cluster_bytes, ALL_ZEROS if file.header.version >= 3 else 0
    _prove_compressed(file, table)
    plain = [0 if entry & (COMPRESSED | zero) else entry & OFFSET_MASK for entry in table]
    if max(plain) + cluster > file.size:
        for index, offset in enumerate(plain):
            if offset:
                _prove_plain(file, offset, cluster, guest_offset + index * cluster)
    used = [bool(offset or entry & COMPRESSED) for offset, entry in zip(plain, table, strict=True)]
    if cluster >= _BLOCK:
        return sum(used) * cluster
    return sum(any(used[start : start + _BLOCK // cluster]) for start in range(0, len(used), _BLOCK // cluster)) * _BLOCK


def _mapped_subclusters(file: TableFile, table: "array[int]", guest_offset: int) -> int:
    """As `_mapped_by` for extended L2 entries, whose second half has a bit for each of a cluster's 32 allocated subclusters."""
    cluster = file.header.cluster_bytes
    subcluster = cluster // SUBCLUSTERS
    entries = table[::2]
    _prove_compressed(file, entries)
    mapped = 0
    for index, (entry, bitmap) in enumerate(zip(entries, table[1::2], strict=True)):
        allocated = bitmap & ALLOCATED
        if entry & COMPRESSED:
            mapped += cluster
        elif allocated:
            needed = allocated.bit_length() * subcluster
            _prove_plain(file, entry & OFFSET_MASK, needed, guest_offset + index * cluster)
            mapped += _blocks(allocated, subcluster)
    return mapped


def _blocks(allocated: int, subcluster: int) -> int:
    """Bytes of the blocks that the allocated subclusters lie in."""
    together = max(1, _BLOCK // subcluster)
    mask = (1 << together) - 1
    return sum(bool(allocated >> start & mask) for start in range(0, SUBCLUSTERS, together)) * together * subcluster


def _prove_plain(file: TableFile, offset: int, length: int, guest_offset: int) -> None:
    # A writer need not write out what of the last cluster lies beyond the end of the disk.
    file.must_reach(offset + min(length, file.header.size - guest_offset))


def _prove_compressed(file: TableFile, entries: "array[int]") -> None:
    """Each compressed cluster begins its last sector in the file; how much of that it fills is not recorded."""
    ends = (compressed_range(entry, file.header.cluster_bits)[1] for entry in entries if entry & COMPRESSED)
    last = max(ends, default=0)
    if last:
        file.must_reach(last - SECTOR + 1)
