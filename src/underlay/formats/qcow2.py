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
_EXTENSION = struct.Struct(">II")
_EXTENSION_END, _EXTENSION_DATA_FILE = 0x00000000, 0x44415441

INCOMPATIBLE_DIRTY = 1 << 0
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_COMPRESSION = 1 << 3
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
_KNOWN_INCOMPATIBLE = 0b11111

_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ALL_ZEROS = 1 << 0
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE
MAX_BACKING_NAME = 1023
HEADER_BYTES = 64 << 10
"""As much of a file's beginning as the header, its extensions and a backing name can take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A qcow2 header.

    Attributes:
        size: the guest's bytes. cluster_bits: log2 of the cluster size. l1_entries: 8-byte entries of the L1 table.
        crypt_method: 0 none, 1 AES, 2 LUKS. incompatible: feature bits; 0 in version 2.
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
    incompatible: int
    extensions: tuple[tuple[int, int], ...]

    @property
    def extended_l2(self) -> bool:
        """Whether L2 entries are 16 bytes and say for each subcluster what it is."""
        return bool(self.incompatible & INCOMPATIBLE_EXTENDED_L2)

    @property
    def l2_coverage(self) -> int:
        """Guest bytes that one L2 table maps."""
        entries = (1 << self.cluster_bits) // (16 if self.extended_l2 else 8)
        return entries << self.cluster_bits


def parse_header(beginning: bytes) -> Header:
    """Read the header from the first `HEADER_BYTES` of an image (or all of a shorter one).

    Raises:
        UnsafeImage: the header is malformed, of an unknown version, or its extensions leave their cluster.
    """
    if len(beginning) < _HEADER_V2.size or beginning[:4] != MAGIC:
        raise _refused("qcow2-header", "the qcow2 header is cut short")
    fields = _HEADER_V2.unpack_from(beginning)
    (_, version, backing_offset, backing_length, cluster_bits, size, crypt_method, l1_entries, l1_offset, *_) = fields
    if version not in (2, 3):
        raise _refused("qcow2-version", f"qcow version {version} is not supported")
    if not 9 <= cluster_bits <= 21:
        raise _refused("qcow2-header", f"its cluster size of 2^{cluster_bits} bytes is outside 512 bytes to 2 MiB")
    incompatible, header_length = 0, _HEADER_V2.size
    if version == 3:
        if len(beginning) < _HEADER_V2.size + _HEADER_V3.size:
            raise _refused("qcow2-header", "the qcow2 header is cut short")
        incompatible, _, _, _, header_length = _HEADER_V3.unpack_from(beginning, _HEADER_V2.size)
        if header_length < _HEADER_V2.size + _HEADER_V3.size or header_length > (1 << cluster_bits):
            raise _refused("qcow2-header", f"its header length of {header_length} bytes cannot be")
    first_cluster = beginning[: 1 << cluster_bits]
    return Header(
        version=version,
        backing_offset=backing_offset,
        backing_length=backing_length,
        cluster_bits=cluster_bits,
        size=size,
        crypt_method=crypt_method,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        incompatible=incompatible,
        extensions=tuple(_extensions(first_cluster, header_length, end=backing_offset or len(first_cluster))),
    )


def _extensions(cluster: bytes, offset: int, *, end: int) -> Iterator[tuple[int, int]]:
    end = min(end, len(cluster))
    while offset + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(cluster, offset)
        if kind == _EXTENSION_END:
            return
        offset += _EXTENSION.size + (length + 7) // 8 * 8
        if offset > end:
            raise _refused("qcow2-header", "a header extension leaves the first cluster")
        yield kind, length


def check_safety(header: Header) -> None:
    """Refuse what would make a tool open another file, guess, or allocate without bound.

    Raises:
        UnsafeImage
    """
    if header.backing_offset or header.backing_length:
        raise _refused("backing-file", "it names a backing file")
    if header.incompatible & INCOMPATIBLE_DATA_FILE or _EXTENSION_DATA_FILE in dict(header.extensions):
        raise _refused("data-file", "it names an external data file")
    unknown = header.incompatible & ~_KNOWN_INCOMPATIBLE
    if unknown:
        raise _refused("unknown-feature", f"it needs features that are not known (bits {unknown:#x})")
    if header.incompatible & INCOMPATIBLE_CORRUPT:
        raise _refused("corrupt", "it is marked corrupt")
    if header.crypt_method:
        raise _refused("encrypted", "encrypted images are not supported")
    if header.l1_entries * 8 > _MAX_L1_BYTES:
        raise _refused("absurd-size", f"its L1 table of {header.l1_entries} entries is larger than QEMU allows")
    if header.size > header.l1_entries * header.l2_coverage:
        raise _refused("absurd-size", f"its virtual size of {header.size} bytes does not fit its tables")


def backing_name(beginning: bytes, header: Header) -> str | None:
    """The recorded name of the backing file; None when there is none.

    Raises:
        UnsafeImage: the name lies outside the first cluster, or is longer than the 1023 bytes that QEMU reads.
    """
    if not header.backing_offset:
        return None
    end = header.backing_offset + header.backing_length
    if header.backing_length > MAX_BACKING_NAME or end > min(len(beginning), 1 << header.cluster_bits):
        raise _refused("qcow2-header", "its backing file's name lies outside the first cluster")
    return os.fsdecode(beginning[header.backing_offset : end])


def mapped_bytes(fd: int, header: Header) -> int:
    """Guest bytes that the image holds data for: an upper bound of what its raw form allocates.

    Reads the L1 and L2 tables (8 bytes for each cluster, 16 with extended L2), and proves that each table and each cluster
    lies inside the file, which ``qemu-img convert`` does not: it turns a file that is cut short into wrong content.

    Raises:
        UnsafeImage: a table or a cluster lies outside the file, or a table is used twice (which would also let a small file
            ask for work without bound).
    """
    file_size = os.fstat(fd).st_size
    cluster = 1 << header.cluster_bits
    l1_table = _table(fd, header.l1_offset, header.l1_entries * 8, file_size)
    offsets = [offset for entry in l1_table if (offset := entry & _OFFSET_MASK)]
    if len(set(offsets)) != len(offsets):
        raise _refused("corrupt", "two entries of its L1 table share one L2 table")
    tables = (_table(fd, offset, cluster, file_size) for offset in offsets)
    mapped = sum(_mapped_clusters(table, header, file_size) for table in tables)
    return min(mapped * cluster, header.size)


def _mapped_clusters(table: "array[int]", header: Header, file_size: int) -> int:
    entries = table[::2] if header.extended_l2 else table
    compressed = [entry for entry in entries if entry & _COMPRESSED]
    plain = [entry for entry in entries if entry and not entry & _COMPRESSED]
    furthest = max(
        max((entry & _OFFSET_MASK for entry in plain), default=0),
        max((_last_sector(entry, header.cluster_bits) for entry in compressed), default=0),
    )
    if furthest >= file_size:
        raise _cut_short(furthest, file_size)
    if header.version >= 3 and not header.extended_l2:
        plain = [entry for entry in plain if not entry & _ALL_ZEROS]
    return len(plain) + len(compressed)


def _last_sector(entry: int, cluster_bits: int) -> int:
    """Offset of the last 512-byte sector that a compressed cluster reaches into."""
    offset_bits = 62 - (cluster_bits - 8)
    offset = entry & ((1 << offset_bits) - 1)
    more_sectors = (entry & (_COMPRESSED - 1)) >> offset_bits
    return offset // 512 * 512 + more_sectors * 512


def _table(fd: int, offset: int, length: int, file_size: int) -> "array[int]":
    if offset + length > file_size:
        raise _cut_short(offset + length, file_size)
    table = array("Q", os.pread(fd, length, offset))
    if sys.byteorder == "little":
        table.byteswap()
    return table


def _cut_short(offset: int, file_size: int) -> UnsafeImage:
    return _refused("cut-short", f"its tables point to byte {offset} of a file of {file_size} bytes")


def _refused(rule: str, why: str) -> UnsafeImage:
    return UnsafeImage("the qcow2 image", rule=rule, why=why)
