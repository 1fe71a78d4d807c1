"""The qcow2 header: its fields and extensions, the rules about them, and the backing file's name."""

import os
import struct
from collections.abc import Iterator

import msgspec

from underlay.errors import UnsafeImage

MAGIC = b"QFI\xfb"

# magic, version, backing offset, backing length, cluster bits, size, crypt method, L1 entries, L1 offset, refcount table
# offset, refcount table clusters, snapshots, snapshots offset
_HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
# incompatible, compatible, autoclear features, refcount order, header length
_HEADER_V3 = struct.Struct(">QQQII")
_COMPRESSION_OFFSET = _HEADER_V2.size + _HEADER_V3.size  # one byte, in headers that are long enough
_EXTENSION = struct.Struct(">II")
EXTENSION_BACKING_FORMAT = 0xE2792ACA
_HEADER_LENGTH, _HEADER_LENGTH_OFFSET = struct.Struct(">I"), 100  # in version 3
_EXTENSION_END, _EXTENSION_DATA_FILE, _EXTENSION_ENCRYPTION = 0x00000000, 0x44415441, 0x0537BE77

INCOMPATIBLE_DIRTY = 1 << 0
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_COMPRESSION = 1 << 3
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
_KNOWN_INCOMPATIBLE = 0b11111

_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20  # QCOW_MAX_REFTABLE_SIZE
_MAX_REFCOUNT_ORDER = 6
_REFCOUNT_ORDER_V2 = 4  # 16 bits
_MAX_SNAPSHOTS = 65536  # QCOW_MAX_SNAPSHOTS
ZLIB, ZSTD = 0, 1
_LEAST_EXTENDED_BITS = 14
MAX_BACKING_NAME = 1023
HEADER_BYTES = 64 << 10
"""As much of a file's beginning as the header, its extensions and a backing name can take."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """A qcow2 header.

    Attributes:
        size: the guest's bytes. cluster_bits: log2 of the cluster size. l1_entries: 8-byte entries of the L1 table.
        refcount_clusters: of the refcount table. snapshots: how many internal ones there are.
        crypt_method: 0 none, 1 AES, 2 LUKS. incompatible: feature bits; 0 in version 2. compression: 0 zlib, 1 zstd.
        refcount_order: log2 of the bits of a refcount.
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
    refcount_order: int
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
    def disk_bytes(self) -> int:
        """What a guest sees: whole sectors."""
        return self.size // 512 * 512

    @property
    def subcluster_bytes(self) -> int:
        """Size of each of the 32 parts of a cluster that extended L2 entries tell apart."""
        return self.cluster_bytes // 32

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
    incompatible, refcount_order, header_length, compression = 0, _REFCOUNT_ORDER_V2, _HEADER_V2.size, ZLIB
    if version == 3:
        incompatible, refcount_order, header_length, compression = _version_3(first_cluster, what)
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
        refcount_order=refcount_order,
        compression=compression,
        extensions=tuple(_extensions(first_cluster, header_length, end=backing_offset or len(first_cluster), what=what)),
    )


def _version_3(first_cluster: bytes, what: str) -> tuple[int, int, int, int]:
    """Incompatible features, refcount order, header length and compression type."""
    if len(first_cluster) < _COMPRESSION_OFFSET:
        raise UnsafeImage(what, rule="cut-short", why="the qcow2 header is cut short")
    incompatible, _, _, refcount_order, length = _HEADER_V3.unpack_from(first_cluster, _HEADER_V2.size)
    if not _COMPRESSION_OFFSET <= length <= len(first_cluster):
        raise UnsafeImage(what, rule="qcow2-header", why=f"its header length of {length} bytes cannot be")
    if refcount_order > _MAX_REFCOUNT_ORDER:
        raise UnsafeImage(what, rule="qcow2-header", why=f"its refcounts of 2^{refcount_order} bits cannot be")
    compression = first_cluster[_COMPRESSION_OFFSET] if length > _COMPRESSION_OFFSET else ZLIB
    return incompatible, refcount_order, length, compression


def backing_format(beginning: bytes, header: Header) -> str | None:
    """The recorded format of the backing file, as QEMU calls it; None: whoever opens it would have to guess."""
    offset = _HEADER_V2.size if header.version == 2 else _HEADER_LENGTH.unpack_from(beginning, _HEADER_LENGTH_OFFSET)[0]
    for kind, length in header.extensions:
        if kind == EXTENSION_BACKING_FORMAT:
            content = beginning[offset + _EXTENSION.size :][:length]
            return content.decode("ascii", errors="replace") or None
        offset += _EXTENSION.size + (length + 7) // 8 * 8
    return None


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
    if header.compression not in (ZLIB, ZSTD):
        yield "unknown-feature", f"its compression type {header.compression} is not known"
    if (header.compression != ZLIB) != bool(header.incompatible & INCOMPATIBLE_COMPRESSION):
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
