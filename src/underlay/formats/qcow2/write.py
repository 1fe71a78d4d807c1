"""Writing qcow2: an empty overlay on a backing file, as ``qemu-img create`` makes it.

Every rule is from QEMU's docs/interop/qcow2.rst. An empty image is four pieces: the header in the first cluster, the refcount
table, its blocks, and an L1 table that maps nothing. What is zero is not written, so the file has holes there.

The optional feature name table is left out: it names to an old reader the features that it lacks, and an overlay needs none.
"""

import os
import struct
import sys
from array import array
from pathlib import Path

import msgspec

from underlay.errors import BackingPathTooLong, InvalidSize
from underlay.files import write_at
from underlay.formats.qcow2.header import EXTENSION_BACKING_FORMAT, MAGIC, MAX_BACKING_NAME

DEFAULT_CLUSTER_BYTES = 64 << 10
"""What qemu-img takes when it is not told."""

# magic, version, backing offset, backing length, cluster bits, size, crypt method, L1 entries, L1 offset, refcount table
# offset, refcount table clusters, snapshots, snapshots offset; incompatible, compatible, autoclear features, refcount order,
# header length; compression type, which is padded to a multiple of eight bytes
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_EXTENSION = struct.Struct(">II")
_EXTENSIONS_END = bytes(_EXTENSION.size)
_NOT_ENCRYPTED = _NO_SNAPSHOTS = _NO_FEATURES = _ZLIB = 0
_REFCOUNT_ORDER = 4  # a refcount has 2^4 bits
_REFCOUNT_ONE = b"\x00\x01"
_ENTRY = 8  # bytes of an entry of the L1 and of the refcount table
_SECTOR = 512
CLUSTER_SIZES = frozenset(1 << bits for bits in range(9, 22))
"""Bytes that a cluster may have."""
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is in an empty image; the header is in its first cluster.

    Attributes:
        cluster_bytes: size of a cluster. size: the guest's bytes, whole sectors. l1_entries: of the L1 table.
        table_clusters, block_clusters, l1_clusters: of the refcount table, its blocks and the L1 table, in this order.
    """

    cluster_bytes: int
    size: int
    l1_entries: int
    table_clusters: int
    block_clusters: int
    l1_clusters: int

    @property
    def table_offset(self) -> int:
        """Where the refcount table begins."""
        return self.cluster_bytes

    @property
    def blocks_offset(self) -> int:
        """Where the first block of refcounts begins."""
        return self.table_offset + self.table_clusters * self.cluster_bytes

    @property
    def l1_offset(self) -> int:
        """Where the L1 table begins; 0 without one."""
        return self.blocks_offset + self.block_clusters * self.cluster_bytes if self.l1_clusters else 0

    @property
    def clusters(self) -> int:
        """All that are allocated."""
        return 1 + self.table_clusters + self.block_clusters + self.l1_clusters


def write_overlay(
    fd: int, *, backing: Path, backing_format: str, size: int, cluster_bytes: int = DEFAULT_CLUSTER_BYTES
) -> None:
    """Make an empty file an empty overlay. Durability is the caller's.

    Args:
        fd: of the file, open to be written.
        backing: the name that is recorded, as it is given. Nothing is opened: what it holds is the caller's to know.
        backing_format: its format, so that no reader has to guess.
        size: bytes that the guest sees, rounded up to whole sectors.
        cluster_bytes: a power of two from 512 bytes to 2 MiB.

    Raises:
        BackingPathTooLong: the name has more bytes than QEMU reads, or than the first cluster has room for.
        InvalidSize: no such clusters, or more of them than an L1 table can map.
        OSError
    """
    layout = plan_overlay(size, cluster_bytes=cluster_bytes)
    header = _first_cluster(layout, os.fsencode(backing), backing_format.encode("ascii"))
    os.ftruncate(fd, layout.clusters * cluster_bytes)
    write_at(fd, header, 0)
    write_at(fd, _refcount_table(layout), layout.table_offset)
    write_at(fd, _REFCOUNT_ONE * layout.clusters, layout.blocks_offset)


def plan_overlay(size: int, *, cluster_bytes: int = DEFAULT_CLUSTER_BYTES) -> Layout:
    """Where everything goes in an empty image of ``size`` bytes.

    Raises:
        InvalidSize
    """
    if cluster_bytes not in CLUSTER_SIZES:
        raise InvalidSize(f"qcow2 has no clusters of {cluster_bytes} bytes", hint="use a power of two from 512B to 2MiB")
    size = _parts(size, _SECTOR) * _SECTOR
    l1_entries = _parts(size, cluster_bytes // _ENTRY * cluster_bytes)
    if l1_entries * _ENTRY > _MAX_L1_BYTES:
        raise InvalidSize(
            f"a qcow2 disk with clusters of {cluster_bytes} bytes cannot have {size} bytes",
            hint=f"its greatest size is {_MAX_L1_BYTES // _ENTRY * (cluster_bytes // _ENTRY) * cluster_bytes} bytes",
        )
    l1_clusters = _parts(l1_entries * _ENTRY, cluster_bytes)
    table_clusters, block_clusters = _refcounts_for(1 + l1_clusters, cluster_bytes)
    return Layout(
        cluster_bytes=cluster_bytes,
        size=size,
        l1_entries=l1_entries,
        table_clusters=table_clusters,
        block_clusters=block_clusters,
        l1_clusters=l1_clusters,
    )


def _refcounts_for(clusters: int, cluster_bytes: int) -> tuple[int, int]:
    """Clusters of a refcount table, and of the blocks that it names, that count these clusters and themselves."""
    table, blocks = 1, 1
    while True:
        needed_blocks = _parts(clusters + table + blocks, cluster_bytes // len(_REFCOUNT_ONE))
        needed_table = _parts(needed_blocks * _ENTRY, cluster_bytes)
        if (table, blocks) == (needed_table, needed_blocks):
            return table, blocks
        table, blocks = needed_table, needed_blocks


def _first_cluster(layout: Layout, backing: bytes, backing_format: bytes) -> bytes:
    """The header, its extensions and the name of the backing file."""
    extension = _EXTENSION.pack(EXTENSION_BACKING_FORMAT, len(backing_format)) + _padded(backing_format)
    extensions = extension + _EXTENSIONS_END
    name_offset = _HEADER.size + len(extensions)
    room = min(MAX_BACKING_NAME, layout.cluster_bytes - name_offset)
    if len(backing) > room:
        raise BackingPathTooLong(
            f"the path of the backing file has {len(backing)} bytes, a qcow2 header takes {room}",
            hint="keep the cache in a directory with a shorter path",
        )
    header = _HEADER.pack(
        MAGIC, 3, name_offset, len(backing), layout.cluster_bytes.bit_length() - 1, layout.size, _NOT_ENCRYPTED,
        layout.l1_entries, layout.l1_offset, layout.table_offset, layout.table_clusters, _NO_SNAPSHOTS, 0,
        _NO_FEATURES, _NO_FEATURES, _NO_FEATURES, _REFCOUNT_ORDER, _HEADER.size, _ZLIB,
    )  # fmt: skip
    return header + extensions + backing


def _padded(content: bytes) -> bytes:
    return content.ljust(_parts(len(content), 8) * 8, b"\0")


def _refcount_table(layout: Layout) -> bytes:
    """The offset of each block, big-endian."""
    blocks, cluster = layout.blocks_offset, layout.cluster_bytes
    table = array("Q", range(blocks, blocks + layout.block_clusters * cluster, cluster))
    if sys.byteorder == "little":
        table.byteswap()
    return table.tobytes()


def _parts(whole: int, part: int) -> int:
    """How many parts of a size a whole takes."""
    return -(-whole // part)
