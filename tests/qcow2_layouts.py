"""Legal qcow2 images that no tool writes: tables behind their data, clusters in any order, compressed ones packed anywhere.

A layout says of each cluster of the disk what it is, and in which order the parts of the file lie; `build` makes the file, with
refcounts that are right, and what a guest reads.
"""

import random
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import zstandard

DIRTY, COMPRESSION, EXTENDED = 1 << 0, 1 << 3, 1 << 4
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
SECTOR, SUBCLUSTERS = 512, 32


class Kind(Enum):
    """What a cluster of the disk is."""

    ABSENT = 0
    PLAIN = 1
    COMPRESSED = 2
    ZERO = 3
    ZERO_ALLOCATED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An image to build.

    Attributes:
        kinds: of each cluster of the disk. parts: of plain clusters with extended L2 entries, by index: allocated subclusters,
            and those that are zeros.
        size: bytes of the disk, if its last cluster is not whole.
        window_bits: how far back compressed data may point, as a power of 2; QEMU writes with 12.
        seed: of the order in which the file's parts lie, and of what the clusters hold.
    """

    kinds: Sequence[Kind]
    cluster_bits: int = 16
    version: int = 3
    extended: bool = False
    zstd: bool = False
    dirty: bool = False
    refcount_order: int = 4
    window_bits: int = 12
    parts: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    size: int | None = None
    seed: int = 0
    gap: int = 0

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def disk_bytes(self) -> int:
        return len(self.kinds) * self.cluster if self.size is None else self.size


@dataclass(slots=True)
class _Build:
    layout: Layout
    places: dict[object, int] = field(default_factory=dict)  # first host cluster of each part
    uses: dict[int, int] = field(default_factory=dict)
    packed: dict[int, tuple[int, bytes]] = field(default_factory=dict)


def build(layout: Layout) -> tuple[bytes, bytes]:
    """The file, and what a guest reads."""
    order = random.Random(layout.seed)
    contents = {index: _content(layout, index, kind) for index, kind in enumerate(layout.kinds)}
    entries = layout.cluster // (16 if layout.extended else 8)
    tables = [index for index in range(-(-len(layout.kinds) // entries)) if _used(layout, index, entries)]
    made = _Build(layout)
    _place(made, contents, tables, order)
    image = bytearray(max(made.uses) * layout.cluster + layout.cluster)
    _write_refcounts(made, image)
    _write_header(made, image, entries)
    for table in tables:
        _write_table(made, image, table, entries)
    for index, kind in enumerate(layout.kinds):
        if kind is Kind.COMPRESSED:
            offset, data = made.packed[index]
            image[offset : offset + len(data)] = data
        elif (place := made.places.get(("data", index))) is not None:
            # What a zero cluster or a subcluster that is not allocated holds is nobody's.
            stored = (
                contents[index] if kind is Kind.PLAIN and index not in layout.parts else _stored(layout, index, contents[index])
            )
            image[place * layout.cluster : (place + 1) * layout.cluster] = stored
    disk = b"".join(_seen(layout, index, content) for index, content in contents.items())
    return bytes(image), disk[: layout.disk_bytes]


def _used(layout: Layout, table: int, entries: int) -> bool:
    return any(kind is not Kind.ABSENT for kind in layout.kinds[table * entries : (table + 1) * entries])


def _content(layout: Layout, index: int, kind: Kind) -> bytes:
    if kind in (Kind.PLAIN, Kind.ZERO_ALLOCATED):
        return random.Random(f"{layout.seed} {index}").randbytes(layout.cluster)
    if kind is Kind.COMPRESSED:
        word = random.Random(f"{layout.seed} {index}").randbytes(8)
        return (word + bytes(layout.cluster // 4) + word + bytes(layout.cluster // 4)).ljust(layout.cluster, word[:1])
    return bytes(layout.cluster)


def _stored(layout: Layout, index: int, content: bytes) -> bytes:
    if layout.kinds[index] is Kind.ZERO_ALLOCATED:
        return b"?" * layout.cluster
    if index not in layout.parts:
        return content
    return _by_part(layout, index, content, b"?")


def _seen(layout: Layout, index: int, content: bytes) -> bytes:
    kind = layout.kinds[index]
    if kind in (Kind.PLAIN, Kind.COMPRESSED):
        return _by_part(layout, index, content, b"\0") if index in layout.parts else content
    return bytes(layout.cluster)


def _by_part(layout: Layout, index: int, content: bytes, other: bytes) -> bytes:
    allocated, _ = layout.parts[index]
    part = layout.cluster // SUBCLUSTERS
    return b"".join(
        content[bit * part : (bit + 1) * part] if allocated >> bit & 1 else other * part for bit in range(SUBCLUSTERS)
    )


def _place(made: _Build, contents: Mapping[int, bytes], tables: Sequence[int], order: random.Random) -> None:
    layout = made.layout
    wholes: list[tuple[object, int]] = [("l1", 1), *((("l2", table), 1) for table in tables)]
    holders = (Kind.PLAIN, Kind.ZERO_ALLOCATED)
    wholes += [(("data", index), 1) for index, kind in enumerate(layout.kinds) if kind in holders]
    packs = [index for index, kind in enumerate(layout.kinds) if kind is Kind.COMPRESSED]
    order.shuffle(wholes)
    order.shuffle(packs)
    made.uses[0] = 1
    free = 1
    position = 0
    while wholes or packs:
        if packs and (not wholes or order.random() < 0.5):
            count = order.randrange(1, len(packs) + 1)
            position = free * layout.cluster
            for index in packs[:count]:
                position = _pack(made, index, _compressed(layout, contents[index]), position + order.choice((0, layout.gap)))
            del packs[:count]
            free = -(-position // layout.cluster)
            free = max(free, max(made.uses) + 1)
        else:
            name, clusters = wholes.pop()
            made.places[name] = free
            for cluster in range(free, free + clusters):
                made.uses[cluster] = 1
            free += clusters
    _place_refcounts(made, free)


def _pack(made: _Build, index: int, data: bytes, offset: int) -> int:
    made.packed[index] = (offset, data)
    end = (offset + len(data) - 1) // SECTOR * SECTOR + SECTOR
    for cluster in range(offset >> made.layout.cluster_bits, (end - 1 >> made.layout.cluster_bits) + 1):
        made.uses[cluster] = made.uses.get(cluster, 0) + 1
    return offset + len(data)


def _compressed(layout: Layout, content: bytes) -> bytes:
    if layout.zstd:
        return zstandard.ZstdCompressor().compress(content)
    packer = zlib.compressobj(6, zlib.DEFLATED, -layout.window_bits)
    return packer.compress(content) + packer.flush()


def _place_refcounts(made: _Build, free: int) -> None:
    counted = made.layout.cluster * 8 >> made.layout.refcount_order
    blocks = 1
    while (table := -(-blocks * 8 // made.layout.cluster)) and free + blocks + table > blocks * counted:
        blocks += 1
    made.places["refcounts"], made.places["blocks"] = free, free + table
    for cluster in range(free, free + table + blocks):
        made.uses[cluster] = 1


def _write_refcounts(made: _Build, image: bytearray) -> None:
    layout = made.layout
    table, first = made.places["refcounts"], made.places["blocks"]
    bits = 1 << layout.refcount_order
    counted = layout.cluster * 8 // bits
    most = (1 << min(bits, 16)) - 1
    for block in range(max(made.uses) - first + 1):
        struct.pack_into(">Q", image, table * layout.cluster + block * 8, (first + block) * layout.cluster)
        start = (first + block) * layout.cluster
        counts = [made.uses.get(block * counted + index, 0) for index in range(counted)]
        assert max(counts) <= most, "the layout needs wider refcounts"
        image[start : start + layout.cluster] = _encoded(counts, bits)


def _encoded(counts: Sequence[int], bits: int) -> bytes:
    if bits >= 8:
        return b"".join(count.to_bytes(bits // 8, "big") for count in counts)
    each = 8 // bits
    return bytes(
        sum(count << place * bits for place, count in enumerate(counts[start : start + each]))
        for start in range(0, len(counts), each)
    )


def _write_header(made: _Build, image: bytearray, entries: int) -> None:
    layout, cluster = made.layout, made.layout.cluster
    l1 = -(-len(layout.kinds) // entries)
    assert l1 * 8 <= cluster
    refcounts, blocks = made.places["refcounts"], made.places["blocks"]
    fields = (layout.version, 0, 0, layout.cluster_bits, layout.disk_bytes, 0, l1, made.places["l1"] * cluster)
    struct.pack_into(">4sIQIIQIIQQIIQ", image, 0, b"QFI\xfb", *fields, refcounts * cluster, blocks - refcounts, 0, 0)
    if layout.version == 3:
        features = DIRTY * layout.dirty | COMPRESSION * layout.zstd | EXTENDED * layout.extended
        struct.pack_into(">QQQIIB7x", image, 72, features, int(layout.dirty), 0, layout.refcount_order, 112, int(layout.zstd))
    for table in range(l1):
        if (place := made.places.get(("l2", table))) is not None:
            struct.pack_into(">Q", image, made.places["l1"] * cluster + table * 8, COPIED | place * cluster)


def _write_table(made: _Build, image: bytearray, table: int, entries: int) -> None:
    layout = made.layout
    width = 16 if layout.extended else 8
    for slot in range(entries):
        index = table * entries + slot
        if index < len(layout.kinds):
            start = made.places[("l2", table)] * layout.cluster + slot * width
            image[start : start + width] = _ENTRIES[layout.kinds[index]](made, index)


def _absent(made: _Build, index: int) -> bytes:
    return bytes(16 if made.layout.extended else 8)


def _plain(made: _Build, index: int) -> bytes:
    entry = struct.pack(">Q", COPIED | made.places[("data", index)] * made.layout.cluster)
    if not made.layout.extended:
        return entry
    allocated, zeros = made.layout.parts.get(index, (2**32 - 1, 0))
    return entry + struct.pack(">Q", zeros << 32 | allocated)


def _packed(made: _Build, index: int) -> bytes:
    offset, data = made.packed[index]
    shift = 62 - (made.layout.cluster_bits - 8)
    sectors = (offset + len(data) - 1) // SECTOR - offset // SECTOR
    entry = struct.pack(">Q", COMPRESSED | sectors << shift | offset)
    return entry + (bytes(8) if made.layout.extended else b"")


def _zero(made: _Build, index: int) -> bytes:
    return struct.pack(">QQ", 0, 0xFFFF_FFFF << 32) if made.layout.extended else struct.pack(">Q", ZERO)


def _zero_allocated(made: _Build, index: int) -> bytes:
    offset = COPIED | made.places[("data", index)] * made.layout.cluster
    return struct.pack(">QQ", offset, 0xFFFF_FFFF << 32) if made.layout.extended else struct.pack(">Q", offset | ZERO)


_ENTRIES: Mapping[Kind, Callable[[_Build, int], bytes]] = {
    Kind.ABSENT: _absent,
    Kind.PLAIN: _plain,
    Kind.COMPRESSED: _packed,
    Kind.ZERO: _zero,
    Kind.ZERO_ALLOCATED: _zero_allocated,
}
