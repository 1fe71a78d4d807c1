"""Reading qcow2: header, extensions, safety rules, and how much of the guest's disk an image holds.

Numbers and names follow QEMU's docs/interop/qcow2.txt. Everything here distrusts its input: each offset, length and count is
checked against the file before it is used.
"""

import os
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from underlay.errors import UnsafeImage

MAGIC = b"QFI\xfb"

# magic, version, backing offset, backing length, cluster bits, size, crypt method, L1 entries, L1 offset, refcount table
# offset, refcount table clusters, snapshots, snapshots offset
_HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
# incompatible, compatible, autoclear features, refcount order, header length
_HEADER_V3 = struct.Struct(">QQQII")
_COMPRESSION_OFFSET = _HEADER_V2.size + _HEADER_V3.size  # one byte, in headers that are long enough
_EXTENSION = struct.Struct(">II")
_EXTENSION_END, _EXTENSION_DATA_FILE, _EXTENSION_ENCRYPTION = 0x00000000, 0x44415441, 0x0537BE77

INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_COMPRESSION = 1 << 3
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
_KNOWN_INCOMPATIBLE = 0b11111

_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ALL_ZEROS = 1 << 0
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20  # QCOW_MAX_REFTABLE_SIZE
_MAX_REFCOUNT_ORDER = 6
_MAX_SNAPSHOTS = 65536  # QCOW_MAX_SNAPSHOTS
_ZLIB, _ZSTD = 0, 1
_SUBCLUSTERS, _LEAST_EXTENDED_BITS = 32, 14
_ALLOCATED = 0xFFFF_FFFF
_BLOCK = 4096  # what a file system allocates at least
MAX_BACKING_NAME = 1023
HEADER_BYTES = 64 << 10
"""As much of a file's beginning as the header, its extensions and a backing name can take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A qcow2 header.

    Attributes:
        size: the guest's bytes. cluster_bits: log2 of the cluster size. l1_entries: 8-byte entries of the L1 table.
        refcount_clusters: of the refcount table. snapshots: how many internal ones there are.
        crypt_method: 0 none, 1 AES, 2 LUKS. incompatible: feature bits; 0 in version 2. compression: 0 zlib, 1 zstd.
        extensions: type and length of each header extension, in order.
    """

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    compression: int
    extensions: tuple[tuple[int, int], ...]

    @property
    def extended_l2(self) -> bool:
        """Whether L2 entries are 16 bytes and say for each subcluster what it is."""
        return bool(self.incompatible & INCOMPATIBLE_EXTENDED_L2)

    @property
    def cluster_bytes(self) -> int:
        """Size of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_coverage(self) -> int:
        """Guest bytes that one L2 table maps."""
        entries = self.cluster_bytes // (16 if self.extended_l2 else 8)
        return entries << self.cluster_bits


def parse_header(beginning: bytes, *, what: str = "the qcow2 image") -> Header:
    """Read the header from the first `HEADER_BYTES` of an image (or all of a shorter one).

    Args:
        what: how messages call the image.

    Raises:
        UnsafeImage: the header is malformed, of an unknown version, or its extensions leave their cluster.
    """
    if beginning[:4] != MAGIC:
        raise UnsafeImage(what, rule="qcow2-header", why="it is no qcow2")
    if len(beginning) < _HEADER_V2.size:
        raise UnsafeImage(what, rule="cut-short", why="the qcow2 header is cut short")
    fields = _HEADER_V2.unpack_from(beginning)
    (_, version, backing_offset, backing_length, cluster_bits, size, crypt_method, l1_entries, l1_offset, *others) = fields
    refcount_offset, refcount_clusters, snapshots, snapshots_offset = others
    if version not in (2, 3):
        raise UnsafeImage(what, rule="qcow2-version", why=f"qcow version {version} is not supported")
    if not 9 <= cluster_bits <= 21:
        why = f"its cluster size of 2^{cluster_bits} bytes is outside 512 bytes to 2 MiB"
        raise UnsafeImage(what, rule="qcow2-header", why=why)
    first_cluster = beginning[: 1 << cluster_bits]
    incompatible, header_length, compression = 0, _HEADER_V2.size, _ZLIB
    if version == 3:
        incompatible, header_length, compression = _version_3(first_cluster, what)
    return Header(
        version=version,
        backing_offset=backing_offset,
        backing_length=backing_length,
        cluster_bits=cluster_bits,
        size=size,
        crypt_method=crypt_method,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        refcount_offset=refcount_offset,
        refcount_clusters=refcount_clusters,
        snapshots=snapshots,
        snapshots_offset=snapshots_offset,
        incompatible=incompatible,
        compression=compression,
        extensions=tuple(_extensions(first_cluster, header_length, end=backing_offset or len(first_cluster), what=what)),
    )


def _version_3(first_cluster: bytes, what: str) -> tuple[int, int, int]:
    """Incompatible features, header length and compression type."""
    if len(first_cluster) < _COMPRESSION_OFFSET:
        raise UnsafeImage(what, rule="cut-short", why="the qcow2 header is cut short")
    incompatible, _, _, refcount_order, length = _HEADER_V3.unpack_from(first_cluster, _HEADER_V2.size)
    if not _COMPRESSION_OFFSET <= length <= len(first_cluster):
        raise UnsafeImage(what, rule="qcow2-header", why=f"its header length of {length} bytes cannot be")
    if refcount_order > _MAX_REFCOUNT_ORDER:
        raise UnsafeImage(what, rule="qcow2-header", why=f"its refcounts of 2^{refcount_order} bits cannot be")
    return incompatible, length, first_cluster[_COMPRESSION_OFFSET] if length > _COMPRESSION_OFFSET else _ZLIB


def _extensions(cluster: bytes, offset: int, *, end: int, what: str) -> Iterator[tuple[int, int]]:
    end = min(end, len(cluster))
    while offset + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(cluster, offset)
        if kind == _EXTENSION_END:
            return
        offset += _EXTENSION.size + (length + 7) // 8 * 8
        if offset > end:
            raise UnsafeImage(what, rule="qcow2-header", why="a header extension leaves the first cluster")
        yield kind, length


def check_safety(header: Header, *, what: str = "the qcow2 image") -> None:
    """Refuse what would make a tool open another file, guess, or allocate without bound.

    Raises:
        UnsafeImage
    """
    for rule, why in _complaints(header):
        raise UnsafeImage(what, rule=rule, why=why)


def _complaints(header: Header) -> Iterator[tuple[str, str]]:
    extensions = dict(header.extensions)
    if header.backing_offset or header.backing_length:
        yield "backing-file", "it names a backing file"
    if header.incompatible & INCOMPATIBLE_DATA_FILE or _EXTENSION_DATA_FILE in extensions:
        yield "data-file", "it names an external data file"
    if unknown := header.incompatible & ~_KNOWN_INCOMPATIBLE:
        yield "unknown-feature", f"it needs features that are not known (bits {unknown:#x})"
    if header.compression not in (_ZLIB, _ZSTD):
        yield "unknown-feature", f"its compression type {header.compression} is not known"
    if (header.compression != _ZLIB) != bool(header.incompatible & INCOMPATIBLE_COMPRESSION):
        yield "qcow2-header", "its compression type and its feature bits disagree"
    if header.incompatible & INCOMPATIBLE_CORRUPT:
        yield "corrupt", "it is marked corrupt"
    if header.crypt_method or _EXTENSION_ENCRYPTION in extensions:
        yield "encrypted", "encrypted images are not supported"
    if header.extended_l2 and header.cluster_bits < _LEAST_EXTENDED_BITS:
        yield "qcow2-header", "its clusters are too small for extended L2 entries"
    if header.l1_entries * 8 > _MAX_L1_BYTES:
        yield "absurd-size", f"its L1 table of {header.l1_entries} entries is larger than QEMU allows"
    if not 0 < header.refcount_clusters * header.cluster_bytes <= _MAX_REFCOUNT_TABLE_BYTES:
        yield "absurd-size", f"its refcount table of {header.refcount_clusters} clusters cannot be"
    if header.snapshots > _MAX_SNAPSHOTS:
        yield "absurd-size", f"its {header.snapshots} snapshots are more than QEMU allows"
    if header.size > header.l1_entries * header.l2_coverage:
        yield "absurd-size", f"its virtual size of {header.size} bytes does not fit its tables"


def backing_name(beginning: bytes, header: Header, *, what: str = "the qcow2 image") -> str | None:
    """The recorded name of the backing file as QEMU reads it; None when there is none.

    Raises:
        UnsafeImage: the name lies outside the beginning, or is longer than the 1023 bytes that QEMU reads.
    """
    if not header.backing_offset:
        return None
    end = header.backing_offset + header.backing_length
    if header.backing_length > MAX_BACKING_NAME or end > min(len(beginning), header.cluster_bytes):
        raise UnsafeImage(what, rule="qcow2-header", why="its backing file's name lies outside the first cluster")
    name = beginning[header.backing_offset : end].partition(b"\0")[0]
    return os.fsdecode(name) or None


def mapped_bytes(fd: int, header: Header, *, what: str = "the qcow2 image") -> int:
    """Guest bytes that the image holds data for, in blocks of 4 KiB: an upper bound of what its raw form allocates.

    Reads the L1 and L2 tables (8 bytes for each cluster, 16 with extended L2), and proves that each table and each cluster
    that a guest would read lies inside the file, which ``qemu-img convert`` does not: it turns a file that is cut short into
    wrong content.

    Raises:
        UnsafeImage: a table or a cluster lies outside the file, or tables overlap (which would let a small file ask for work
            without bound).
    """
    file = _File(fd, os.fstat(fd).st_size, header, what)
    file.must_have_table(header.refcount_offset, header.refcount_clusters * header.cluster_bytes)
    file.must_have_table(header.snapshots_offset, header.snapshots)  # a snapshot's entry is of no fixed length
    l1_table = file.table(header.l1_offset, header.l1_entries * 8)
    # Entries beyond the virtual size belong to a virtual machine's saved state, which nobody reads here.
    in_use = l1_table[: -(-header.size // header.l2_coverage)]
    offsets = [entry & _OFFSET_MASK for entry in in_use]
    named = [offset for offset in offsets if offset]
    if len(set(named)) != len(named):
        raise file.refused("corrupt", "two entries of its L1 table share one L2 table")
    mapped = 0
    for index, offset in enumerate(offsets):
        if offset:
            mapped += _mapped_by(file, file.table(offset, header.cluster_bytes), index * header.l2_coverage)
    return min(mapped, -(-header.size // _BLOCK) * _BLOCK)


@dataclass(frozen=True, slots=True)
class _File:
    """An open image, and how messages call it."""

    fd: int
    size: int
    header: Header
    what: str

    def table(self, offset: int, length: int) -> "array[int]":
        """Big-endian 8-byte entries."""
        self.must_have_table(offset, length)
        table = array("Q", os.pread(self.fd, length, offset))
        if sys.byteorder == "little":
            table.byteswap()
        return table

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


def _mapped_by(file: _File, table: "array[int]", guest_offset: int) -> int:
    """Bytes that one L2 table maps, each cluster proven to lie in the file."""
    if file.header.extended_l2:
        return _mapped_subclusters(file, table, guest_offset)
    cluster, zero = file.header.cluster_bytes, _ALL_ZEROS if file.header.version >= 3 else 0
    _prove_compressed(file, table)
    plain = [0 if entry & (_COMPRESSED | zero) else entry & _OFFSET_MASK for entry in table]
    if max(plain) + cluster > file.size:
        for index, offset in enumerate(plain):
            if offset:
                _prove_plain(file, offset, cluster, guest_offset + index * cluster)
    used = [bool(offset or entry & _COMPRESSED) for offset, entry in zip(plain, table, strict=True)]
    if cluster >= _BLOCK:
        return sum(used) * cluster
    return sum(any(used[start : start + _BLOCK // cluster]) for start in range(0, len(used), _BLOCK // cluster)) * _BLOCK


def _mapped_subclusters(file: _File, table: "array[int]", guest_offset: int) -> int:
    """As `_mapped_by` for extended L2 entries, whose second half has a bit for each of a cluster's 32 allocated subclusters."""
    cluster = file.header.cluster_bytes
    subcluster = cluster // _SUBCLUSTERS
    entries = table[::2]
    _prove_compressed(file, entries)
    mapped = 0
    for index, (entry, bitmap) in enumerate(zip(entries, table[1::2], strict=True)):
        allocated = bitmap & _ALLOCATED
        if entry & _COMPRESSED:
            mapped += cluster
        elif allocated:
            needed = allocated.bit_length() * subcluster
            _prove_plain(file, entry & _OFFSET_MASK, needed, guest_offset + index * cluster)
            mapped += _blocks(allocated, subcluster)
    return mapped


def _blocks(allocated: int, subcluster: int) -> int:
    """Bytes of the blocks that the allocated subclusters lie in."""
    together = max(1, _BLOCK // subcluster)
    mask = (1 << together) - 1
    return sum(bool(allocated >> start & mask) for start in range(0, _SUBCLUSTERS, together)) * together * subcluster


def _prove_plain(file: _File, offset: int, length: int, guest_offset: int) -> None:
    # A writer need not write out what of the last cluster lies beyond the end of the disk.
    file.must_reach(offset + min(length, file.header.size - guest_offset))


def _prove_compressed(file: _File, entries: "array[int]") -> None:
    """Each compressed cluster begins its last sector in the file; how much of that it fills is not recorded."""
    ends = (_last_sector(entry, file.header.cluster_bits) + 1 for entry in entries if entry & _COMPRESSED)
    file.must_reach(max(ends, default=0))


def _last_sector(entry: int, cluster_bits: int) -> int:
    """Offset of the last 512-byte sector that a compressed cluster reaches into."""
    offset_bits = 62 - (cluster_bits - 8)
    offset = entry & ((1 << offset_bits) - 1)
    more_sectors = (entry & (_COMPRESSED - 1)) >> offset_bits
    return offset // 512 * 512 + more_sectors * 512
