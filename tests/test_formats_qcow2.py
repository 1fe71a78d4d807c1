"""Reading qcow2: the header of a real image, the backing file's name, and what its tables say that a raw form would take."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import corpus
from corpus import GIB, KIB, MIB, u32, u64
from underlay.errors import UnsafeImage
from underlay.files import allocated_bytes, data_extents
from underlay.formats import qcow2

needs_qemu_img = pytest.mark.component("qemu-img")
needs_qemu_io = pytest.mark.component("qemu-img", "qemu-io")

BLOCK = 4 * KIB


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def header_of(path: Path) -> qcow2.Header:
    return qcow2.parse_header(path.read_bytes()[: qcow2.HEADER_BYTES])


def mapped(path: Path) -> int:
    with opened(path) as fd:
        return qcow2.mapped_bytes(fd, header_of(path), what="the image")


def rule_against(path: Path) -> str:
    with pytest.raises(UnsafeImage, match=r"^the image is refused by rule ") as refusal:
        mapped(path)
    return refusal.value.rule


def blocks_of_the_map(path: Path, size: int) -> int:
    """Bytes of 4 KiB blocks that hold data, as ``qemu-img map`` lists it."""
    argv = ["qemu-img", "map", "-f", "qcow2", "--output", "json", os.fspath(path)]
    extents = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    blocks: set[int] = set()
    for extent in extents:
        if extent["data"]:
            end = extent["start"] + extent["length"]
            blocks.update(range(extent["start"] // BLOCK, -(-end // BLOCK)))
    assert all(block * BLOCK < size for block in blocks)
    return len(blocks) * BLOCK


def data_bytes(path: Path) -> int:
    """Bytes of the blocks that a file system holds for a raw file."""
    with opened(path) as fd:
        extents = list(data_extents(fd, path.stat().st_size))
    return sum(-(-end // BLOCK) * BLOCK - start // BLOCK * BLOCK for start, end in extents)


# ------------------------------------------------------------------------------------------------------------------- the header


@needs_qemu_img
def test_the_header_of_a_real_image_is_read(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", 5 * GIB, options="cluster_size=128k,extended_l2=on")

    header = header_of(image)

    assert (3, 17, 5 * GIB, 0) == (header.version, header.cluster_bits, header.size, header.crypt_method)
    assert (0, 0, None) == (header.backing_offset, header.backing_length, qcow2.backing_name(image.read_bytes(), header))
    assert header.extended_l2
    assert 128 * KIB // 16 * 128 * KIB == header.l2_coverage
    assert 128 * KIB == header.cluster_bytes
    assert 5 * GIB <= header.l1_entries * header.l2_coverage


@needs_qemu_img
def test_a_version_2_header_has_no_features(tmp_path: Path) -> None:
    header = header_of(corpus.create(tmp_path / "image", "qcow2", GIB, options="compat=0.10"))

    assert (2, 0, 0, False) == (header.version, header.incompatible, header.compression, header.extended_l2)
    assert 64 * KIB // 8 * 64 * KIB == header.l2_coverage


@needs_qemu_img
def test_the_compression_type_is_read(tmp_path: Path) -> None:
    header = header_of(corpus.create(tmp_path / "image", "qcow2", MIB, options="compression_type=zstd"))

    assert (1, qcow2.INCOMPATIBLE_COMPRESSION) == (header.compression, header.incompatible)


@needs_qemu_img
def test_header_extensions_are_listed(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB, backing=corpus.raw(tmp_path / "base", MIB))

    assert 0xE2792ACA in dict(header_of(image).extensions)  # the backing file's format


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "cluster_size=2M", "cluster_size=4k", "compat=0.10"])
def test_the_name_of_the_backing_file_is_read(options: str, tmp_path: Path) -> None:
    base = corpus.raw(tmp_path / "ein Abbild: größer,=", MIB)
    image = corpus.create(tmp_path / "image", "qcow2", MIB, backing=base, options=options)

    assert os.fspath(base) == qcow2.backing_name(image.read_bytes()[: qcow2.HEADER_BYTES], header_of(image))


@needs_qemu_img
def test_a_backing_files_name_of_1023_bytes_is_read_and_a_longer_one_refused(tmp_path: Path) -> None:
    directory = tmp_path
    while len(bytes(directory)) < 800:
        directory = directory / ("d" * 100)
        directory.mkdir()
    base = corpus.raw(directory / ("n" * (1022 - len(bytes(directory)))), MIB)
    image = corpus.create(tmp_path / "image", "qcow2", MIB, backing=base)

    assert 1023 == len(bytes(base))
    assert os.fspath(base) == qcow2.backing_name(image.read_bytes(), header_of(image))
    corpus.patched(image, (corpus.QCOW2_BACKING_OFFSET + 8, u32(1024)))
    with pytest.raises(UnsafeImage, match="qcow2-header"):
        qcow2.backing_name(image.read_bytes(), header_of(image))


@needs_qemu_img
def test_a_backing_files_name_ends_where_it_ends_for_qemu(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB, backing=corpus.raw(tmp_path / "base", MIB))
    header = header_of(image)

    corpus.patched(image, (header.backing_offset + len(bytes(tmp_path)), b"\0"))

    assert os.fspath(tmp_path) == qcow2.backing_name(image.read_bytes(), header)


@needs_qemu_img
def test_a_backing_files_name_outside_the_first_cluster_is_refused(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB, backing=corpus.raw(tmp_path / "base", MIB))

    corpus.patched(image, (corpus.QCOW2_BACKING_OFFSET, u64(64 * KIB - 3)))

    with pytest.raises(UnsafeImage, match="qcow2-header"):
        qcow2.backing_name(image.read_bytes(), header_of(image))


@pytest.mark.parametrize("beginning", [b"", b"QFI", b"QFI\xfa" + bytes(200), bytes(1000)])
def test_what_has_no_signature_is_no_qcow2(beginning: bytes) -> None:
    with pytest.raises(UnsafeImage, match=r"^the qcow2 image is refused by rule qcow2-header: it is no qcow2$"):
        qcow2.parse_header(beginning)


# --------------------------------------------------------------------------------------------------- what a raw form would take


LAYOUTS = {
    "plain": "",
    "version-2": "compat=0.10",
    "512": "cluster_size=512",
    "1k": "cluster_size=1k",
    "2k": "cluster_size=2k",
    "4k": "cluster_size=4k",
    "8k": "cluster_size=8k",
    "2M": "cluster_size=2M",
    "lazy": "lazy_refcounts=on",
    "extended-16k": "extended_l2=on,cluster_size=16k",
    "extended-64k": "extended_l2=on",
    "extended-2M": "extended_l2=on,cluster_size=2M",
    "zstd": "compression_type=zstd",
    "version-2-512": "compat=0.10,cluster_size=512",
}


@needs_qemu_img
@pytest.mark.parametrize("form", ["plain", "compressed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mapped_bytes_are_what_qemu_img_maps_and_bound_what_it_allocates(layout: str, form: str, tmp_path: Path) -> None:
    disk = corpus.scattered(tmp_path / "disk")
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options=LAYOUTS[layout], compressed=form == "compressed")

    bound = mapped(image)

    assert blocks_of_the_map(image, 8 * MIB) == bound
    # Within a cluster qemu-img leaves holes for zeros, so large clusters promise more than is written.
    converted = corpus.to_raw(image, tmp_path / "raw", "qcow2")
    assert data_bytes(converted) <= bound
    assert disk.read_bytes() == converted.read_bytes()


@needs_qemu_img
@pytest.mark.parametrize("layout", ["plain", "version-2", "512", "extended-64k", "zstd"])
def test_the_bound_is_close_where_clusters_are_full(layout: str, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", 16 * MIB, [(2 * MIB, corpus.prose(3 * MIB)), (9 * MIB, corpus.noise(2 * MIB))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options=LAYOUTS[layout])

    allocated = allocated_bytes(corpus.to_raw(image, tmp_path / "raw", "qcow2").stat())

    assert 5 * MIB == mapped(image)
    assert 5 * MIB <= allocated <= 5 * MIB + 64 * KIB  # and the file system's own blocks


@needs_qemu_io
@pytest.mark.parametrize("options", ["", "cluster_size=512", "extended_l2=on", "preallocation=metadata", "preallocation=full"])
def test_zeroed_discarded_and_rewritten_clusters_count_as_qemu_img_counts_them(options: str, tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", 8 * MIB, options=options)
    corpus.qemu_io(
        image,
        "write -P 1 0 1M",
        "write -z 128k 256k",
        "write -z -u 512k 128k",
        "discard 700k 200k",
        "write -P 2 600k 512",
        "write -P 3 5M 1000",
        "write -z 6M 1M",
        "write -P 4 6400k 4k",
    )

    bound = mapped(image)

    assert blocks_of_the_map(image, 8 * MIB) == bound
    assert data_bytes(corpus.to_raw(image, tmp_path / "raw", "qcow2")) <= bound


@needs_qemu_io
def test_what_only_a_snapshot_holds_is_not_counted(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", 8 * MIB)
    corpus.qemu_io(image, "write -P 1 0 4M")
    corpus.qemu_img("snapshot", "-c", "before", image)
    corpus.qemu_io(image, "write -P 2 6M 64k", "discard 0 4M")

    assert blocks_of_the_map(image, 8 * MIB) == mapped(image) == 64 * KIB


@needs_qemu_img
@pytest.mark.parametrize("size", [512, 5000 // 512 * 512, 3_000_320])
def test_the_last_block_of_a_disk_counts_whole(size: int, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", size, [(0, corpus.noise(size))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2")

    assert -(-size // BLOCK) * BLOCK == mapped(image)
    assert allocated_bytes(corpus.to_raw(image, tmp_path / "raw", "qcow2").stat()) <= mapped(image)


@needs_qemu_img
def test_an_empty_image_maps_nothing(tmp_path: Path) -> None:
    assert 0 == mapped(corpus.create(tmp_path / "image", "qcow2", 100 * GIB))


@needs_qemu_img
def test_an_image_with_many_tables_is_counted(tmp_path: Path) -> None:
    pieces = [(offset, b"x") for offset in range(0, 4 * GIB, 512 * MIB)]
    image = corpus.convert(corpus.raw(tmp_path / "disk", 4 * GIB, pieces), tmp_path / "image", "qcow2")

    assert 8 == len([entry for entry in corpus.l1_table(image)[1] if entry])
    assert 8 * 64 * KIB == mapped(image)


# -------------------------------------------------------------------------------------------------------------------- cut short


def full_image(path: Path, *, options: str = "", compressed: bool = False) -> Path:
    content = corpus.prose(3_000_000) if compressed else corpus.noise(3_000_000)
    return corpus.convert(
        corpus.raw(path / "disk", 3_000_320, [(0, content)]), path / "image", "qcow2", options=options, compressed=compressed
    )


@needs_qemu_img
@pytest.mark.parametrize("form", ["plain", "compressed"])
@pytest.mark.parametrize("options", ["", "compat=0.10", "cluster_size=512", "extended_l2=on", "compression_type=zstd"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_an_image_cut_short_is_refused(part: float, options: str, form: str, tmp_path: Path) -> None:
    image = full_image(tmp_path, options=options, compressed=form == "compressed")
    assert 3_000_320 <= mapped(image)

    corpus.cut(image, int(image.stat().st_size * part))

    assert "cut-short" == rule_against(image)


@needs_qemu_img
def test_qemu_img_itself_makes_wrong_content_of_an_image_cut_short(tmp_path: Path) -> None:
    """Why the tables are read at all."""
    image = full_image(tmp_path)
    whole = corpus.to_raw(image, tmp_path / "whole", "qcow2").read_bytes()

    corpus.cut(image, image.stat().st_size // 2)

    assert whole != corpus.to_raw(image, tmp_path / "half", "qcow2").read_bytes()


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "compat=0.10", "cluster_size=512", "cluster_size=2M"])
def test_a_plain_cluster_that_lacks_its_last_byte_is_cut_short(options: str, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", 4 * MIB, [(0, corpus.noise(4 * MIB))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options=options)

    corpus.cut(image, image.stat().st_size - 1)

    assert "cut-short" == rule_against(image)


@needs_qemu_img
@pytest.mark.parametrize("before", [0, 64 * KIB, 512 * MIB])
@pytest.mark.parametrize(("options", "unit", "counted"), [("", 64 * KIB, 64 * KIB), ("extended_l2=on", 2 * KIB, 40 * KIB)])
def test_what_of_the_last_cluster_lies_beyond_the_disk_need_not_be_there(
    options: str, unit: int, counted: int, before: int, tmp_path: Path
) -> None:
    disk = corpus.raw(tmp_path / "disk", before + 39_936, [(before, corpus.noise(39_936))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options=options)

    corpus.cut(image, image.stat().st_size - -39_936 % unit)

    assert (10 * BLOCK if before == 0 else counted) == mapped(image)
    assert 39_936 <= data_bytes(corpus.to_raw(image, tmp_path / "raw", "qcow2"))
    assert "cut-short" == rule_against(corpus.cut(image, image.stat().st_size - 1))


@needs_qemu_img
def test_what_lies_beyond_the_virtual_size_is_not_looked_at(tmp_path: Path) -> None:
    """A saved virtual machine's memory, which no conversion reads."""
    pieces = [(0, b"x"), (512 * MIB, b"x")]
    image = corpus.convert(corpus.raw(tmp_path / "disk", GIB, pieces), tmp_path / "image", "qcow2")
    offset, _ = corpus.l1_table(image)
    assert 2 * 64 * KIB == mapped(image)

    corpus.patched(image, (corpus.QCOW2_SIZE, u64(512 * MIB)), (offset + 8, u64(2**50)))

    assert 64 * KIB == mapped(image)
    assert "cut-short" == rule_against(corpus.patched(image, (corpus.QCOW2_SIZE, u64(512 * MIB + 512))))


@needs_qemu_img
def test_subclusters_that_are_not_allocated_need_not_be_there(tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", 4 * MIB, [(0, corpus.noise(2 * KIB))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options="extended_l2=on")

    assert BLOCK == mapped(image)
    assert "cut-short" == rule_against(corpus.cut(image, image.stat().st_size - 1))


@needs_qemu_img
def test_a_compressed_cluster_without_its_last_sector_is_cut_short(tmp_path: Path) -> None:
    image = full_image(tmp_path, compressed=True)

    corpus.cut(image, image.stat().st_size - 512)

    assert "cut-short" == rule_against(image)


@needs_qemu_img
@pytest.mark.parametrize("which", ["l1", "l2"])
def test_a_table_that_is_not_whole_in_the_file_is_cut_short(which: str, tmp_path: Path) -> None:
    image = full_image(tmp_path)
    l1_offset, entries = corpus.l1_table(image)
    end = l1_offset + 8 * len(entries) if which == "l1" else (entries[0] & 0x00FF_FFFF_FFFF_FE00) + 64 * KIB

    corpus.cut(image, end - 1)

    assert "cut-short" == rule_against(image)


# --------------------------------------------------------------------------------------------------------------- crafted tables


@needs_qemu_img
def test_two_entries_that_share_a_table_are_refused(tmp_path: Path) -> None:
    pieces = [(0, b"x"), (512 * MIB, b"x")]
    image = corpus.convert(corpus.raw(tmp_path / "disk", GIB, pieces), tmp_path / "image", "qcow2")
    offset, entries = corpus.l1_table(image)

    corpus.patched(image, (offset, u64(entries[0]) * 2))

    assert "corrupt" == rule_against(image)


@needs_qemu_img
def test_tables_that_overlap_without_being_the_same_are_refused(tmp_path: Path) -> None:
    """Else a file of a few MiB could ask for reading it thousands of times over."""
    pieces = [(0, b"x"), (512 * MIB, b"x")]
    image = corpus.convert(corpus.raw(tmp_path / "disk", GIB, pieces), tmp_path / "image", "qcow2")
    offset, entries = corpus.l1_table(image)

    corpus.patched(image, (offset + 8, u64(entries[0] - 512)))

    assert "corrupt" == rule_against(image)


@needs_qemu_img
def test_an_l1_table_that_begins_no_cluster_is_refused(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB)

    corpus.patched(image, (corpus.QCOW2_L1_OFFSET, u64(corpus.l1_table(image)[0] - 8)))

    assert "corrupt" == rule_against(image)


@needs_qemu_img
@pytest.mark.parametrize(
    ("patch", "rule"),
    [
        ((corpus.QCOW2_REFCOUNT_OFFSET, u64(2**40)), "cut-short"),
        ((corpus.QCOW2_REFCOUNT_OFFSET, u64(65536 + 512)), "corrupt"),
        ((corpus.QCOW2_SNAPSHOTS, u32(1) + u64(2**40)), "cut-short"),
        ((corpus.QCOW2_SNAPSHOTS, u32(1) + u64(512)), "corrupt"),
    ],
    ids=range(4),
)
def test_the_other_tables_lie_in_the_file_as_well(patch: tuple[int, bytes], rule: str, tmp_path: Path) -> None:
    assert rule == rule_against(corpus.patched(full_image(tmp_path), patch))


@needs_qemu_img
@pytest.mark.parametrize("entry", [u64(2**56 - 512), u64((1 << 63) | (1 << 40))])
def test_tables_and_clusters_far_outside_the_file_are_cut_short(entry: bytes, tmp_path: Path) -> None:
    image = full_image(tmp_path)
    l1_offset, entries = corpus.l1_table(image)
    l2_offset = entries[0] & 0x00FF_FFFF_FFFF_FE00
    whole = image.read_bytes()

    assert "cut-short" == rule_against(corpus.patched(image, (l2_offset + 8, entry)))
    image.write_bytes(whole)
    far = u64(2**55)
    assert "cut-short" == rule_against(corpus.patched(image, (l1_offset, far)))
    image.write_bytes(whole)
    assert "cut-short" == rule_against(corpus.patched(image, (corpus.QCOW2_L1_OFFSET, far)))


@needs_qemu_img
def test_many_entries_for_one_cluster_promise_no_more_than_the_disk_has(tmp_path: Path) -> None:
    image = corpus.convert(corpus.raw(tmp_path / "disk", 8 * MIB, [(0, b"x")]), tmp_path / "image", "qcow2")
    l2_offset = corpus.l1_table(image)[1][0] & 0x00FF_FFFF_FFFF_FE00
    entry = image.read_bytes()[l2_offset : l2_offset + 8]

    corpus.patched(image, (l2_offset, entry * 8192))

    assert 8 * MIB == mapped(image)
