"""Our own conversion of qcow2: byte for byte what qemu-img makes of every kind of image, and a refusal of every broken one."""

import os
import random
import struct
import subprocess
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import corpus
from corpus import GIB, KIB, MIB, u64
from qcow2_broken import BROKEN, a_refcount_too_low, changed, entry_set, l2_entries, layout
from qcow2_layouts import Kind, Layout, build
from underlay.errors import UnsafeImage
from underlay.extents import extents
from underlay.files import allocated_bytes
from underlay.formats import qcow2
from underlay.formats.qcow2.convert import convert, converting, obstacle
from underlay.formats.qcow2.entries import COMPRESSED, OFFSET_MASK, compressed_range
from underlay.formats.qcow2.hostclusters import read_refcounts
from underlay.formats.qcow2.tables import read_table
from underlay.stream import SparseWriter
from underlay.values import replace

BITMAPS = 0x23852875  # the header extension that says where they are
needs_qemu_img = pytest.mark.component("qemu-img")
needs_qemu_io = pytest.mark.component("qemu-img", "qemu-io")


@contextmanager
def opened(path: Path, target: Path) -> Iterator[tuple[int, int]]:
    with path.open("rb") as source, target.open("w+b") as raw:
        yield source.fileno(), raw.fileno()


def header_of(path: Path) -> qcow2.Header:
    header = qcow2.parse_header(path.read_bytes()[: qcow2.HEADER_BYTES])
    qcow2.check_safety(header)
    return header


def converted(image: Path) -> Path:
    target = image.with_name(f"{image.name}.ours")
    with opened(image, target) as (source, raw):
        convert(source, raw, header_of(image), what="the image")
    return target


def judged(image: Path) -> Path:
    return corpus.to_raw(image, image.with_name(f"{image.name}.judged"), "qcow2")


def rule_against(image: Path) -> str:
    with pytest.raises(UnsafeImage, match=r"^the image is refused by rule ") as refusal:
        converted(image)
    return refusal.value.rule


def assert_as_qemu_img(image: Path) -> None:
    assert judged(image).read_bytes() == converted(image).read_bytes()


# ---------------------------------------------------------------------------------------------------------- every kind of image

OPTIONS = {
    "version-3": "",
    "version-2": "compat=0.10",
    "512": "cluster_size=512",
    "version-2-512": "compat=0.10,cluster_size=512",
    "1k": "cluster_size=1k",
    "4k": "cluster_size=4k",
    "32k": "cluster_size=32k",
    "128k": "cluster_size=128k",
    "2M": "cluster_size=2M",
    "extended-16k": "extended_l2=on,cluster_size=16k",
    "extended-64k": "extended_l2=on",
    "extended-2M": "extended_l2=on,cluster_size=2M",
    "zstd": "compression_type=zstd",
    "zstd-512": "compression_type=zstd,cluster_size=512",
    "zstd-2M": "compression_type=zstd,cluster_size=2M",
    "zstd-extended": "compression_type=zstd,extended_l2=on",
    "refcounts-of-1-bit": "refcount_bits=1",
    "refcounts-of-2-bits": "refcount_bits=2",
    "refcounts-of-8-bits": "refcount_bits=8",
    "refcounts-of-64-bits": "refcount_bits=64",
    "lazy": "lazy_refcounts=on",
}
FORMS = [
    pytest.param(options, form, id=f"{name}-{form}")
    for name, options in OPTIONS.items()
    for form in ("plain", "compressed")
    # Compressed clusters share clusters of the file, more than such refcounts can count.
    if (form, options) not in (("compressed", "refcount_bits=1"), ("compressed", "refcount_bits=2"))
]


@needs_qemu_img
@pytest.mark.parametrize(("options", "form"), FORMS)
def test_it_is_what_qemu_img_makes(options: str, form: str, tmp_path: Path) -> None:
    disk = corpus.scattered(tmp_path / "disk")
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options=options, compressed=form == "compressed")

    ours = converted(image)

    assert disk.read_bytes() == ours.read_bytes()
    assert_as_qemu_img(image)
    with image.open("rb") as file:
        assert allocated_bytes(ours.stat()) <= qcow2.mapped_bytes(file.fileno(), header_of(image)) + 64 * KIB  # its own blocks


@needs_qemu_io
@pytest.mark.parametrize(
    "options",
    [
        "", "compat=0.10", "cluster_size=512", "cluster_size=2M", "lazy_refcounts=on",
        "extended_l2=on", "extended_l2=on,cluster_size=16k", "compression_type=zstd",
        "preallocation=metadata", "preallocation=falloc", "preallocation=full", "preallocation=metadata,extended_l2=on",
    ],
)  # fmt: skip
def test_what_a_guest_has_zeroed_discarded_and_rewritten_is_as_qemu_img_has_it(options: str, tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", 8 * MIB, options=options)
    compressed = () if "preallocation" in options else ("write -c -P 7 2M 2M",)  # which QEMU only writes where nothing is
    corpus.qemu_io(
        image,
        *compressed,
        "write -P 1 0 1M",
        "write -z 128k 256k",
        "write -z -u 512k 128k",
        "discard 700k 200k",
        "write -P 2 600k 512",
        "write -P 8 3M 1k",
        "write -P 3 5M 1000",
        "write -z 6M 1M",
        "write -P 4 6400k 4k",
    )

    assert_as_qemu_img(image)


@needs_qemu_io
@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_internal_snapshots_are_left_out(form: str, tmp_path: Path) -> None:
    image = corpus.convert(corpus.scattered(tmp_path / "disk"), tmp_path / "image", "qcow2", compressed=form == "compressed")
    corpus.qemu_img("snapshot", "-c", "before", image)
    corpus.qemu_io(image, "write -P 5 1M 128k", "write -P 6 2M 4k", "discard 4M 1M")
    corpus.qemu_img("snapshot", "-c", "between", image)
    corpus.qemu_io(image, "write -P 9 0 100k")

    assert_as_qemu_img(image)


@needs_qemu_io
@pytest.mark.parametrize("options", ["", "cluster_size=4k", "extended_l2=on"])
@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_dirty_bitmaps_that_are_kept_in_the_image_are_left_out(options: str, form: str, tmp_path: Path) -> None:
    disk = corpus.scattered(tmp_path / "disk")
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options=options, compressed=form == "compressed")
    for name, granularity in (("daily", "64k"), ("fine", "512"), ("empty", "2M")):
        corpus.qemu_img("bitmap", "--add", "-g", granularity, image, name)
        corpus.qemu_io(image, "write -P 5 1M 128k", "discard 4M 1M", "write -P 9 7M 512")
    corpus.qemu_img("bitmap", "--disable", image, "daily")
    corpus.qemu_img("bitmap", "--clear", image, "empty")
    assert (BITMAPS, 24) in header_of(image).extensions

    assert_as_qemu_img(image)


@needs_qemu_io
def test_an_image_that_was_not_closed_is_converted(tmp_path: Path) -> None:
    """Its refcounts may lag behind, which a dirty image says of itself."""
    image = corpus.create(tmp_path / "image", "qcow2", 8 * MIB, options="lazy_refcounts=on")
    commands = ["-c", "write -P 1 1M 1M", "-c", "flush", "-c", "sigraise 9"]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, os.fspath(image)], check=False, capture_output=True)
    assert header_of(image).incompatible & qcow2.INCOMPATIBLE_DIRTY

    assert_as_qemu_img(image)


@needs_qemu_img
@pytest.mark.parametrize("form", ["plain", "compressed"])
@pytest.mark.parametrize("size", [512, 65_536, 65_536 + 512, 3_000_320, 2 * MIB + 512])
def test_a_disk_of_any_number_of_sectors_ends_where_it_ends(size: int, form: str, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", size, [(0, corpus.prose(size))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=form == "compressed")

    assert disk.read_bytes() == converted(image).read_bytes()


@needs_qemu_img
def test_a_size_that_is_no_whole_number_of_sectors_is_rounded_as_qemu_rounds_it(tmp_path: Path) -> None:
    image = corpus.convert(corpus.scattered(tmp_path / "disk"), tmp_path / "image", "qcow2")

    corpus.patched(image, (corpus.QCOW2_SIZE, u64(8 * MIB - 100)))

    assert 8 * MIB - 512 == converted(image).stat().st_size
    assert_as_qemu_img(image)


@needs_qemu_img
@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_a_large_disk_with_data_here_and_there(form: str, tmp_path: Path) -> None:
    pieces = [(offset, corpus.prose(100_000)) for offset in range(0, 40 * GIB, 3 * GIB)]
    disk = corpus.raw(tmp_path / "disk", 40 * GIB, pieces)
    image = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=form == "compressed")

    ours = converted(image)

    corpus.qemu_img("compare", "-f", "raw", "-F", "raw", disk, ours)
    assert allocated_bytes(ours.stat()) <= len(pieces) * 192 * KIB


@needs_qemu_img
def test_zeros_that_are_stored_are_holes_of_the_raw_form(tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", 8 * MIB, [(0, corpus.noise(64 * KIB)), (4 * MIB, corpus.noise(64 * KIB))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options="preallocation=full")
    assert 8 * MIB <= allocated_bytes(image.stat())
    with image.open("rb") as served, (tmp_path / "stored").open("x+b") as stored:
        writer = SparseWriter(stored.fileno())
        writer.feed(memoryview(served.read()))
        writer.finish()

    ours = converted(tmp_path / "stored")

    assert disk.read_bytes() == ours.read_bytes()
    assert allocated_bytes(ours.stat()) <= 4 * 64 * KIB  # the blocks of the file are not those of the disk


@needs_qemu_io
@pytest.mark.parametrize("options", ["", "cluster_size=2M", "compression_type=zstd"])
def test_zeros_that_are_compressed_are_holes_of_the_raw_form(options: str, tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", 8 * MIB, options=options)
    corpus.qemu_io(image, "write -c -P 0 0 8M")

    assert_as_qemu_img(image)
    assert 0 == allocated_bytes(converted(image).stat())


@pytest.mark.component("root", "qemu-img")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.component(kind)) for kind in ("xfs", "btrfs")])
def test_plain_clusters_share_the_images_blocks_where_the_file_system_can(
    kind: str, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    root = mounted(kind)
    disk = corpus.raw(tmp_path / "disk", 32 * MIB, [(MIB, corpus.noise(20 * MIB))])
    image = corpus.convert(disk, root / "image", "qcow2")
    os.sync()

    ours = converted(image)

    with ours.open("rb") as file:
        found = list(extents(file.fileno()) or ())
    assert 20 * MIB == sum(extent.length for extent in found if extent.shared)
    assert disk.read_bytes() == ours.read_bytes()


@pytest.mark.component("root", "tmpfs")
@pytest.mark.component("qemu-img")
def test_between_two_file_systems_the_bytes_are_copied(mounted: Callable[..., Path], tmp_path: Path) -> None:
    disk = corpus.scattered(tmp_path / "disk")
    image = corpus.convert(disk, tmp_path / "image", "qcow2")
    target = mounted("tmpfs") / "raw"

    with opened(image, target) as (source, raw):
        convert(source, raw, header_of(image))

    assert disk.read_bytes() == target.read_bytes()
    assert allocated_bytes(target.stat()) < 6 * MIB


@needs_qemu_img
@pytest.mark.parametrize("window_bits", [9, 15])
def test_compressed_data_may_point_as_far_back_as_qemu_lets_them(window_bits: int, tmp_path: Path) -> None:
    image, disk = build(Layout(kinds=[Kind.COMPRESSED] * 4, window_bits=window_bits))
    (tmp_path / "image").write_bytes(image)

    assert disk == converted(tmp_path / "image").read_bytes()
    assert_as_qemu_img(tmp_path / "image")


@needs_qemu_img
def test_compressed_data_of_more_than_a_cluster_are_read_as_far_as_it_goes(tmp_path: Path) -> None:
    def with_more(image: bytearray) -> None:
        offset = l2_entries(image)[1][1] & (1 << 54) - 1
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        packed = packer.compress(b"more" * 64 * KIB) + packer.flush()
        image[offset : offset + len(packed)] = packed

    plain = layout(kinds=[Kind.ABSENT, Kind.COMPRESSED, Kind.ABSENT], gap=2 * KIB)
    image = changed(tmp_path, with_more, plain)

    assert b"more" * 16 * KIB == converted(image).read_bytes()[64 * KIB : 128 * KIB]
    assert_as_qemu_img(image)


# ---------------------------------------------------------------------------------------------------------------- broken images


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_refused(case: str, tmp_path: Path) -> None:
    change, rule = BROKEN[case]

    assert rule == rule_against(changed(tmp_path, change))


def test_the_layout_that_is_broken_above_is_whole_before(tmp_path: Path) -> None:
    image = changed(tmp_path, lambda _: None)

    assert build(layout())[1] == converted(image).read_bytes()


def test_a_refcount_of_a_dirty_image_says_nothing(tmp_path: Path) -> None:
    image = changed(tmp_path, a_refcount_too_low, layout(dirty=True))

    assert build(layout())[1] == converted(image).read_bytes()


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4, 5, 6])
def test_a_refcount_of_any_width_is_read(order: int, tmp_path: Path) -> None:
    plain = Layout(kinds=[Kind.PLAIN] * 20, cluster_bits=12, refcount_order=order, seed=1)
    image = changed(tmp_path, lambda _: None, plain)
    assert build(plain)[1] == converted(image).read_bytes()

    def change(content: bytearray) -> None:
        (refcounts,) = struct.unpack_from(">Q", content, corpus.QCOW2_REFCOUNT_OFFSET)
        (block,) = struct.unpack_from(">Q", content, refcounts)
        bits = 1 << order
        bit = ((l2_entries(content)[1][5] & 0x00FF_FFFF_FFFF_FE00) >> 12) * bits
        if bits < 8:
            content[block + bit // 8] &= ~(1 << bit % 8)
        else:
            content[block + (bit + bits) // 8 - 1] = 0

    assert "corrupt" == rule_against(changed(tmp_path, change, plain))


def test_a_zero_cluster_in_version_2_is_refused(tmp_path: Path) -> None:
    plain = Layout(kinds=[Kind.PLAIN] * 8, version=2)

    assert "corrupt" == rule_against(changed(tmp_path, entry_set(2, lambda entries: entries[2] | 1), plain))


def test_a_subcluster_that_is_two_things_is_refused(tmp_path: Path) -> None:
    extended = Layout(kinds=[Kind.PLAIN] * 4, extended=True, parts={0: (0b1, 0b10)})

    def change(image: bytearray) -> None:
        l2, _ = l2_entries(image)
        struct.pack_into(">Q", image, l2 + 8, 1 << 32 | 1)

    assert "corrupt" == rule_against(changed(tmp_path, change, extended))


def test_subclusters_without_a_cluster_are_refused(tmp_path: Path) -> None:
    extended = Layout(kinds=[Kind.PLAIN, Kind.ABSENT], extended=True)

    def change(image: bytearray) -> None:
        l2, _ = l2_entries(image)
        struct.pack_into(">QQ", image, l2 + 16, 0, 7)

    assert "corrupt" == rule_against(changed(tmp_path, change, extended))


@pytest.mark.parametrize("form", ["zlib", "zstd"])
def test_an_image_cut_at_any_cluster_is_refused_or_lacks_nothing(form: str, tmp_path: Path) -> None:
    made = layout(zstd=form == "zstd")
    image, disk = build(made)
    whole = 0
    for size in range(len(image) - 1, 64 * KIB, -16 * KIB):
        (tmp_path / "image").write_bytes(image[:size])
        try:
            assert disk == converted(tmp_path / "image").read_bytes(), size
            whole += 1
        except UnsafeImage as error:
            assert error.rule in ("cut-short", "corrupt")  # noqa: PT017 - which rule it is depends on what was cut
    assert whole <= 1  # behind the last cluster there may be nothing of use


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "compression_type=zstd", "compat=0.10"])
def test_a_compressed_image_cut_in_its_last_data_is_refused(options: str, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", MIB, [(0, corpus.noise(32 * KIB)), (MIB - 64 * KIB, corpus.noise(32 * KIB))])
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options=options, compressed=True)
    header = header_of(image)
    with image.open("rb") as file:
        entries = qcow2_last_compressed(file.fileno(), header)

    corpus.cut(image, entries - 600)

    assert rule_against(image) in ("cut-short", "corrupt")


def qcow2_last_compressed(fd: int, header: qcow2.Header) -> int:
    (l1,) = read_table(fd, header.l1_offset, 8)
    table = read_table(fd, l1 & OFFSET_MASK, header.cluster_bytes)
    return max(compressed_range(entry, header.cluster_bits)[1] for entry in table if entry & COMPRESSED)


@needs_qemu_img
def test_a_zstd_frame_that_claims_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    made = Layout(kinds=[Kind.COMPRESSED], zstd=True)

    def change(image: bytearray) -> None:
        offset = l2_entries(image)[1][0] & (1 << 54) - 1
        # RFC 8878, 3.1.1.1: no single segment, no content size, a window of 2^41 bytes.
        image[offset : offset + 6] = b"\x28\xb5\x2f\xfd\x00\xf8"

    assert "corrupt" == rule_against(changed(tmp_path, change, made))


# ----------------------------------------------------------------------------------------------------- what is left to qemu-img


@needs_qemu_img
def test_what_this_converter_does_not_know_it_says_beforehand(tmp_path: Path) -> None:
    header = header_of(corpus.create(tmp_path / "image", "qcow2", MIB))

    assert obstacle(header, MIB) is None
    assert "not implemented" in str(obstacle(replace(header, incompatible=1 << 7), MIB))
    assert "not implemented" in str(obstacle(replace(header, incompatible=qcow2.INCOMPATIBLE_DATA_FILE), MIB))
    assert "not implemented" in str(obstacle(replace(header, compression=2), MIB))
    assert "another file" in str(obstacle(replace(header, backing_offset=512), MIB))
    assert "a key" in str(obstacle(replace(header, crypt_method=2), MIB))
    assert "clusters" in str(obstacle(header, 2 << 40))


@needs_qemu_img
def test_a_conversion_that_is_given_up_leaves_no_thread(tmp_path: Path) -> None:
    image = corpus.convert(corpus.scattered(tmp_path / "disk"), tmp_path / "image", "qcow2", compressed=True)

    with opened(image, tmp_path / "raw") as (source, raw):
        with converting(source, raw, header_of(image)) as conversion:
            next(conversion.advance(image.stat().st_size))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("underlay-convert")]


@needs_qemu_img
def test_a_full_file_system_is_its_own_error(mounted: Callable[..., Path], tmp_path: Path) -> None:
    image = corpus.convert(
        corpus.raw(tmp_path / "disk", 8 * MIB, [(0, corpus.prose(8 * MIB))]), tmp_path / "image", "qcow2", compressed=True
    )
    with opened(image, mounted("tmpfs", 4 * MIB) / "raw") as (source, raw), pytest.raises(OSError, match="No space left"):
        convert(source, raw, header_of(image))


def test_a_table_is_read_to_its_end_in_however_many_answers_it_comes() -> None:
    """A short answer is not the end of the file: what was taken for it would be read as clusters that are not allocated."""
    with open("/proc/kallsyms", "rb") as file:  # which answers with less than a page (seq_file)
        content = file.read(64 * KIB)
        assert len(os.pread(file.fileno(), 64 * KIB, 0)) < 64 * KIB
        table = read_table(file.fileno(), 0, 64 * KIB)
        refcounts = read_refcounts(file.fileno(), 0, 64 * KIB, order=4)

    assert [*struct.unpack(f">{8 * KIB}Q", content)] == [*table]
    assert [*struct.unpack(f">{32 * KIB}H", content)] == [*refcounts]


# ------------------------------------------------------------------------------------------------------------------ many tables

TABLES = 1 << 15  # of 512 bytes each, and an entry of the L1 table for each


def many_tables(path: Path, *, shared: bool = False) -> Path:
    """A small file of many L2 tables, nearly all of which are empty and holes of the file."""
    cluster, l1 = 512, MIB
    tables = [l1 + TABLES * 8 + index * cluster for index in range(TABLES)]
    random.Random(0).shuffle(tables)
    end = l1 + TABLES * (8 + cluster)
    if shared:
        tables[-1] = tables[0]
    header = struct.pack(">4sIQIIQIIQQIIQ", qcow2.MAGIC, 3, 0, 0, 9, TABLES * 64 * cluster, 0, TABLES, l1, 512, 1, 0, 0)
    header += struct.pack(">QQQII", qcow2.INCOMPATIBLE_DIRTY, 0, 0, 4, 104)
    pieces = [(0, header), (l1, struct.pack(f">{TABLES}Q", *tables)), (tables[7], u64(end)), (end, corpus.noise(cluster))]
    return corpus.raw(path, end + cluster, pieces)


def test_however_many_tables_a_file_has_they_take_little_memory(tmp_path: Path) -> None:
    image = many_tables(tmp_path / "image")
    header = header_of(image)
    with opened(image, tmp_path / "raw") as (source, raw):
        tracemalloc.start()
        try:
            assert 4 * KIB == qcow2.mapped_bytes(source, header)
            _, proving = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            convert(source, raw, header)
            _, converting_ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert TABLES * 32 * KIB == (tmp_path / "raw").stat().st_size
    with (tmp_path / "raw").open("rb") as file:
        file.seek(7 * 32 * KIB)
        assert corpus.noise(512) == file.read(512)
    assert max(proving, converting_) <= 6 * MIB


def test_two_entries_of_a_long_table_may_not_share_what_they_name(tmp_path: Path) -> None:
    image = many_tables(tmp_path / "image", shared=True)
    with image.open("rb") as file, pytest.raises(UnsafeImage, match="share one L2 table"):
        qcow2.mapped_bytes(file.fileno(), header_of(image))
    assert "corrupt" == rule_against(image)
