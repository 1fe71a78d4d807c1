"""What an L2 table maps, as pieces: guest bytes that the file holds in one place."""

from array import array
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

from underlay.errors import UnsafeImage
from underlay.formats.qcow2.entries import ALL_ZEROS, ALLOCATED, COMPRESSED, OFFSET_MASK, SUBCLUSTERS, compressed_range
from underlay.formats.qcow2.header import Header

RUN_BYTES = 4 << 20
"""A run of plain clusters is no longer than this: while the image arrives, a run waits for its last byte."""


class Piece(NamedTuple):
    """Guest bytes that the file holds in one place. A tuple, because an image has thousands of them; they sort by their place.

    Attributes:
        host: file offset of its first byte, which begins a cluster unless it is compressed.
        end: behind its last byte, or behind the last sector that it reaches into when it is compressed.
        guest: disk offset of its first byte. length: guest bytes, none beyond the end of the disk.
        compressed: it is one compressed cluster; else whole plain clusters, or parts of one.
        parts: of the one cluster of a piece with extended L2 entries, a bit for each subcluster that is there.
    """

    host: int
    end: int
    guest: int
    length: int
    compressed: bool = False
    parts: int = ALLOCATED


def pieces_of(table: "array[int]", header: Header, guest: int, *, what: str) -> list[Piece]:
    """The pieces that an L2 table maps, in the order of their places.

    Args:
        guest: disk offset of the first byte that the table maps.

    Raises:
        UnsafeImage: a cluster that begins in the middle of one, a subcluster that is both allocated and zeros, a zero cluster
            in version 2, all of which QEMU calls corrupt too; two clusters at one place.
    """
    if not any(table):
        return []
    clusters = -(-(header.disk_bytes - guest) // header.cluster_bytes)  # entries beyond the disk are nobody's
    find = _extended if header.extended_l2 else _standard
    found = [*find(table, header, guest, clusters, what)]
    found.sort()
    if len({piece.host for piece in found}) < len(found):
        raise _corrupt(what, "two clusters of the disk begin at one byte of the file")
    return found


def _standard(table: Sequence[int], header: Header, guest: int, clusters: int, what: str) -> Iterator[Piece]:
    entries = table[:clusters]
    plain = [0 if entry & COMPRESSED else entry for entry in entries]
    zeros = reduce(or_, plain, 0) & ALL_ZEROS
    if zeros and header.version < 3:
        raise _corrupt(what, "it has a zero cluster, which its version does not know")
    offsets = [0 if entry & ALL_ZEROS else entry & OFFSET_MASK for entry in plain]
    yield from _runs(offsets, header, guest, what)
    yield from _compressed(entries, header, guest)


def _extended(table: Sequence[int], header: Header, guest: int, clusters: int, what: str) -> Iterator[Piece]:
    entries, bitmaps = table[: 2 * clusters : 2], table[1 : 2 * clusters : 2]
    offsets = [0] * len(entries)
    for index, (entry, bitmap) in enumerate(zip(entries, bitmaps, strict=True)):
        parts = 0 if entry & COMPRESSED else bitmap & ALLOCATED
        if not parts:
            continue
        offset = entry & OFFSET_MASK
        if parts & bitmap >> SUBCLUSTERS or not offset:
            raise _corrupt(what, "one of its subclusters is two things at once")
        if parts == ALLOCATED:
            offsets[index] = offset
        else:
            yield _parts(offset, parts, header, guest + index * header.cluster_bytes, what)
    yield from _runs(offsets, header, guest, what)
    yield from _compressed(entries, header, guest)


def _parts(offset: int, parts: int, header: Header, guest: int, what: str) -> Piece:
    _prove_aligned(offset, header, what)
    length = min(parts.bit_length() * header.subcluster_bytes, header.disk_bytes - guest)
    return Piece(offset, offset + length, guest, length, parts=parts)


def _runs(offsets: Sequence[int], header: Header, guest: int, what: str) -> Iterator[Piece]:
    """Plain clusters, those together that are neighbours on the disk and in the file."""
    _prove_aligned(reduce(or_, offsets, 0), header, what)
    cluster, total, index = header.cluster_bytes, len(offsets), 0
    most = max(1, RUN_BYTES // cluster)
    while index < total:
        offset, count = offsets[index], 1
        if offset:
            last = min(most, total - index)
            while count < last and offsets[index + count] == offset + count * cluster:
                count += 1
            start = guest + index * cluster
            length = min(count * cluster, header.disk_bytes - start)
            yield Piece(offset, offset + length, start, length)
        index += count


def _compressed(entries: Sequence[int], header: Header, guest: int) -> Iterator[Piece]:
    cluster = header.cluster_bytes
    for index, entry in enumerate(entries):
        if entry & COMPRESSED:
            host, end = compressed_range(entry, header.cluster_bits)
            start = guest + index * cluster
            yield Piece(host, end, start, min(cluster, header.disk_bytes - start), compressed=True)


def _prove_aligned(offset: int, header: Header, what: str) -> None:
    if offset % header.cluster_bytes:
        raise _corrupt(what, "one of its clusters begins in the middle of another")


def _corrupt(what: str, why: str) -> UnsafeImage:
    return UnsafeImage(what, rule="corrupt", why=why)
