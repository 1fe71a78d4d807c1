"""Images of qcow2 that are broken in one way each, and the rule that each of them breaks."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import corpus
from qcow2_layouts import Kind, Layout, build


def layout(**changes: object) -> Layout:
    kinds = [Kind.PLAIN, Kind.COMPRESSED, Kind.ABSENT, Kind.ZERO, Kind.COMPRESSED, Kind.PLAIN, Kind.ZERO_ALLOCATED, Kind.PLAIN]
    return replace(Layout(kinds=kinds, seed=3), **changes)  # type: ignore[arg-type]


def l2_entries(image: bytes | bytearray) -> tuple[int, list[int]]:
    """Where the first L2 table is, and its entries."""
    (l1,) = struct.unpack_from(">Q", image, corpus.QCOW2_L1_OFFSET)
    l2 = struct.unpack_from(">Q", image, l1)[0] & 0x00FF_FFFF_FFFF_FE00
    return l2, list(struct.unpack_from(">8Q", image, l2))


def changed(tmp_path: Path, change: Callable[[bytearray], None], made: Layout | None = None) -> Path:
    image = bytearray(build(made or layout())[0])
    change(image)
    (tmp_path / "image").write_bytes(image)
    return tmp_path / "image"


def entry_set(index: int, value: Callable[[Sequence[int]], int]) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        l2, entries = l2_entries(image)
        struct.pack_into(">Q", image, l2 + index * 8, value(entries))

    return change


def l1_of(image: bytearray) -> int:
    return int(struct.unpack_from(">Q", image, corpus.QCOW2_L1_OFFSET)[0])


BROKEN: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "two-plain-clusters-in-one": (entry_set(2, lambda entries: entries[0]), "corrupt"),
    "two-plain-clusters-overlap": (entry_set(2, lambda entries: entries[0] + 512), "corrupt"),
    "two-compressed-clusters-in-one": (entry_set(2, lambda entries: entries[1]), "corrupt"),
    "a-plain-cluster-over-compressed-data": (
        entry_set(2, lambda entries: (entries[1] & (1 << 54) - 1) // 65536 * 65536),
        "corrupt",
    ),
    "a-cluster-in-the-header": (entry_set(2, lambda _: 1 << 9), "corrupt"),
    "compressed-data-in-the-header": (entry_set(2, lambda _: 1 << 62), "corrupt"),
    "a-cluster-behind-the-end": (entry_set(2, lambda _: 1 << 30), "cut-short"),
    "a-cluster-behind-every-end": (entry_set(2, lambda _: 0x00FF_FFFF_FFFF_0000), "cut-short"),
    "compressed-data-behind-the-end": (entry_set(2, lambda _: 1 << 62 | 1 << 30), "cut-short"),
}


def in_l2(image: bytearray) -> None:
    l2, _ = l2_entries(image)
    struct.pack_into(">Q", image, l2 + 16, l2)


def in_l1(image: bytearray) -> None:
    struct.pack_into(">Q", image, l2_entries(image)[0] + 16, l1_of(image))


def l2_is_l1(image: bytearray) -> None:
    struct.pack_into(">Q", image, l1_of(image), l1_of(image))


def l2_is_the_header(image: bytearray) -> None:
    struct.pack_into(">Q", image, l1_of(image), 1 << 9)


def l2_is_behind_the_end(image: bytearray) -> None:
    struct.pack_into(">Q", image, l1_of(image), 1 << 40)


def l1_is_behind_the_end(image: bytearray) -> None:
    struct.pack_into(">Q", image, corpus.QCOW2_L1_OFFSET, 1 << 40)


def l1_is_the_header(image: bytearray) -> None:
    struct.pack_into(">Q", image, corpus.QCOW2_L1_OFFSET, 0)


def in_the_refcount_table(image: bytearray) -> None:
    (refcounts,) = struct.unpack_from(">Q", image, corpus.QCOW2_REFCOUNT_OFFSET)
    struct.pack_into(">Q", image, l2_entries(image)[0] + 16, refcounts)


def no_refcount_block(image: bytearray) -> None:
    (refcounts,) = struct.unpack_from(">Q", image, corpus.QCOW2_REFCOUNT_OFFSET)
    struct.pack_into(">Q", image, refcounts, 0)


def a_refcount_block_behind_the_end(image: bytearray) -> None:
    (refcounts,) = struct.unpack_from(">Q", image, corpus.QCOW2_REFCOUNT_OFFSET)
    struct.pack_into(">Q", image, refcounts, 1 << 40)


def a_refcount_too_low(image: bytearray) -> None:
    (refcounts,) = struct.unpack_from(">Q", image, corpus.QCOW2_REFCOUNT_OFFSET)
    (block,) = struct.unpack_from(">Q", image, refcounts)
    cluster = (l2_entries(image)[1][0] & 0x00FF_FFFF_FFFF_FE00) >> 16
    struct.pack_into(">H", image, block + cluster * 2, 0)


def broken_data(image: bytearray) -> None:
    offset = l2_entries(image)[1][1] & (1 << 54) - 1
    image[offset : offset + 6] = b"\xff" * 6


def data_of_less_than_a_cluster(image: bytearray) -> None:
    offset = l2_entries(image)[1][1] & (1 << 54) - 1
    image[offset : offset + 2] = b"\x03\x00"  # an empty deflate stream


BROKEN |= {
    "a-cluster-in-an-l2-table": (in_l2, "corrupt"),
    "a-cluster-in-the-l1-table": (in_l1, "corrupt"),
    "a-cluster-in-the-refcount-table": (in_the_refcount_table, "corrupt"),
    "an-l2-table-that-is-the-l1-table": (l2_is_l1, "corrupt"),
    "an-l2-table-in-the-header": (l2_is_the_header, "corrupt"),
    "an-l2-table-behind-the-end": (l2_is_behind_the_end, "cut-short"),
    "an-l1-table-behind-the-end": (l1_is_behind_the_end, "cut-short"),
    "an-l1-table-that-is-the-header": (l1_is_the_header, "corrupt"),
    "no-refcounts": (no_refcount_block, "corrupt"),
    "refcounts-behind-the-end": (a_refcount_block_behind_the_end, "cut-short"),
    "a-refcount-of-0": (a_refcount_too_low, "corrupt"),
    "broken-compressed-data": (broken_data, "corrupt"),
    "compressed-data-of-less-than-a-cluster": (data_of_less_than_a_cluster, "corrupt"),
}
