"""Compressed images: what the real tools write is read, in any pieces; what is broken, endless or something else is refused."""

import gzip
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path

import pytest
import zstandard

from compressing import COMPRESS, decompressed, pieces_of
from underlay.errors import UnsafeImage
from underlay.formats.compressed import MAGIC_BYTES, OUTPUT_BYTES, WINDOW_LIMIT, Decompressor, compression_of
from underlay.testing.bootimage import write_raw

ALL = pytest.mark.parametrize("compression", COMPRESS)
TEXT = b"The quick brown fox jumps over the lazy dog.\n" * 9
NOISE = random.Random(1).randbytes(300_000)
IMAGE = NOISE + bytes(3 << 20) + TEXT * 2000 + NOISE  # some of it does not compress, some of it is nothing

BLOCK = 128 << 10  # the most that a zstd block stands for
RLE = 1
SKIPPABLE = b"\x50\x2a\x4d\x18"


def refusal(compression: str, served: bytes, *, step: int = 1 << 20) -> UnsafeImage:
    with pytest.raises(UnsafeImage) as caught:
        decompressed(compression, pieces_of(served, step))
    assert str(caught.value).startswith(f"image is refused by rule {caught.value.rule}: ")
    return caught.value


def skippable(content: bytes) -> bytes:
    return SKIPPABLE + struct.pack("<I", len(content)) + content


def zstd_block(kind: int, size: int, content: bytes, *, last: bool = False) -> bytes:
    return struct.pack("<I", size << 3 | kind << 1 | last)[:3] + content


def zstd_frame(window: int, *blocks: bytes) -> bytes:
    """A frame without checksum; the window by its descriptor's byte (RFC 8878, 3.1.1.1.2)."""
    return b"\x28\xb5\x2f\xfd" + bytes([0, window]) + b"".join(blocks)


def gzip_member(flags: int, content: bytes) -> bytes:
    """A member with every field that its flags want (RFC 1952, 2.3)."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff"
    header += struct.pack("<H5s", 5, b"extra") if flags & 4 else b""
    header += b"name\0" if flags & 8 else b""
    header += b"comment\0" if flags & 16 else b""
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) if flags & 2 else b""
    deflate = zlib.compressobj(wbits=-15)
    return header + deflate.compress(content) + deflate.flush() + struct.pack("<II", zlib.crc32(content), len(content))


def xz_with(content: bytes, *, filter_id: int = 0x21, dictionary: int) -> bytes:
    """An xz stream whose first block says this of its filter and its dictionary (The .xz File Format, 3.1 and 5.3.1)."""
    served = bytearray(COMPRESS["xz"](content))
    length = (served[12] + 1) * 4
    assert b"\x21\x01" == served[14:16]
    served[14], served[16] = filter_id, dictionary
    end = 12 + length - 4
    served[end : end + 4] = struct.pack("<I", zlib.crc32(served[12:end]))
    return bytes(served)


# ------------------------------------------------------------------------------------------------------------- what tools write


def tool(compression: str, *argv: str) -> object:
    marks = pytest.mark.component(argv[0])
    return pytest.param(compression, argv, marks=marks, id=" ".join(argv))


@pytest.mark.parametrize(
    ("compression", "argv"),
    [
        tool("gzip", "gzip", "-c"),
        tool("gzip", "gzip", "-1", "-c"),
        tool("gzip", "pigz", "-c", "-p", "2"),
        tool("gzip", "pigz", "-c", "-9", "-i", "-b", "128"),
        tool("xz", "xz", "-c", "-0"),
        tool("xz", "xz", "-c", "-9", "-T1"),
        tool("xz", "xz", "-c", "-1", "-T2", "--block-size=200KiB"),
        tool("xz", "xz", "-c", "-1", "--check=none"),
        tool("xz", "xz", "-c", "-1", "--check=sha256", "--x86", "--lzma2"),
        tool("xz", "pixz", "-1", "-t"),
        tool("zstd", "zstd", "-q", "-c"),
        tool("zstd", "zstd", "-q", "-c", "--no-check", "-1"),
        tool("zstd", "zstd", "-q", "-c", "--long=27", "-1"),
        tool("zstd", "zstd", "-q", "-c", "--ultra", "-20", "--stream-size=4555728"),
        tool("zstd", "pzstd", "-q", "-c", "-p", "2"),
        tool("bzip2", "bzip2", "-c"),
        tool("bzip2", "pbzip2", "-c", "-1", "-p2"),
    ],
)
def test_what_a_tool_writes_is_recognised_and_read(compression: str, argv: Sequence[str]) -> None:
    served = subprocess.run(argv, input=IMAGE, capture_output=True, check=True).stdout

    assert compression == compression_of(served[:MAGIC_BYTES])
    assert IMAGE == decompressed(compression, pieces_of(served))
    assert IMAGE == decompressed(compression, pieces_of(served, 4099))


@pytest.mark.component("gzip")
def test_a_file_with_its_name_in_its_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "image.img").write_bytes(TEXT)
    subprocess.run(["gzip", "-N", tmp_path / "image.img"], check=True)
    served = (tmp_path / "image.img.gz").read_bytes()

    assert b"image.img\0" in served[: MAGIC_BYTES + 10]
    assert TEXT == decompressed("gzip", pieces_of(served, 1))


@ALL
@pytest.mark.parametrize("content", [b"", b"x", TEXT, bytes(OUTPUT_BYTES), bytes(OUTPUT_BYTES + 1), IMAGE], ids=len)
def test_what_a_library_writes_is_recognised_and_read(compression: str, content: bytes) -> None:
    served = COMPRESS[compression](content)

    assert compression == compression_of(served[:MAGIC_BYTES])
    assert content == decompressed(compression, pieces_of(served))


@ALL
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_the_pieces_in_which_a_stream_comes_do_not_matter(compression: str, step: int) -> None:
    served = COMPRESS[compression](TEXT) + COMPRESS[compression](NOISE[:500]) + COMPRESS[compression](b"")

    assert TEXT + NOISE[:500] == decompressed(compression, pieces_of(served, step))


@pytest.mark.parametrize("flags", range(32))
@pytest.mark.parametrize("step", [1, 11, 1000])
def test_every_optional_field_of_a_gzip_header_is_read_over_in_any_pieces(flags: int, step: int) -> None:
    assert TEXT * 2 == decompressed("gzip", pieces_of(gzip_member(flags, TEXT) * 2, step))


@ALL
def test_many_small_members_are_read_to_the_end(compression: str) -> None:
    served = COMPRESS[compression](b"1") + COMPRESS[compression](b"") * 3000 + COMPRESS[compression](b"2")

    assert b"12" == decompressed(compression, pieces_of(served))


@ALL
def test_decompressors_work_beside_each_other_in_threads(compression: str) -> None:
    served = COMPRESS[compression](IMAGE)

    with ThreadPoolExecutor(4) as threads:
        found = threads.map(
            lambda step: decompressed(compression, pieces_of(served, step)), [1 << 14, 1 << 16, 1 << 18, 1 << 20]
        )
        assert [IMAGE] * 4 == list(found)


# ----------------------------------------------------------------------------------------------------------- what is recognised


def test_disks_and_boot_sectors_are_not_taken_for_compressed(tmp_path: Path) -> None:
    write_raw(tmp_path / "boot.img", size=1 << 20, message="hello")
    beginnings = [
        (tmp_path / "boot.img").read_bytes()[:MAGIC_BYTES],
        bytes(MAGIC_BYTES),
        b"\xeb\x3c\x90mkfs.fat\0\x02\x01\x01\0",  # FAT
        b"\xeb\x63\x90" + bytes(13),  # GRUB
        b"\x33\xc0\x8e\xd0\xbc\x00\x7c\x8e\xc0\x8e\xd8\xbe\x00\x7c\xbf\x00",  # Windows
        b"QFI\xfb\0\0\0\x03" + bytes(8),
        b"KDMV\1\0\0\0" + bytes(8),
        b"vhdxfile" + bytes(8),
        b"conectix" + bytes(8),
        b"LUKS\xba\xbe\0\2" + bytes(8),
        b"070701",  # an initramfs
        b"",
    ]

    assert [None] * len(beginnings) == [compression_of(beginning) for beginning in beginnings]


@pytest.mark.parametrize(
    "beginning",
    [
        b"\x1f\x8b\x08",
        b"\x1f\x8b\x08\x20" + bytes(12),  # a reserved flag
        b"\x1f\x8b\x07\x00" + bytes(12),  # no method that there is
        b"\x1f\x9d\x90\x00" + bytes(12),  # compress
        b"BZh9 is how bzip2 begins",
        b"BZh0\x31\x41\x59\x26\x53\x59" + bytes(6),
        b"BZ09\x31\x41\x59\x26\x53\x59" + bytes(6),
        b"\xfd7zXZ\0\0\x10" + bytes(8),
        b"\xfd7zXZ\0\1\4" + bytes(8),
        b"\xfd7zXZ\0\0",
        b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfd\x08" + bytes(11),  # the reserved bit
        b"\x27\xb5\x2f\xfd\x00" + bytes(11),  # zstd before its format was settled
        SKIPPABLE + bytes(12),
        SKIPPABLE + struct.pack("<I", 4) + bytes(4) + b"\x04\x22\x4d\x18",  # LZ4's
        b"\x5d\0\0\x80\0" + b"\xff" * 8 + bytes(3),  # lzma, which has no magic number
        b"PK\3\4" + bytes(12),
    ],
    ids=range(17),
)
def test_what_only_looks_like_a_compression_is_none(beginning: bytes) -> None:
    assert compression_of(beginning) is None


@ALL
def test_more_bytes_than_the_magic_ones_change_nothing(compression: str) -> None:
    served = COMPRESS[compression](IMAGE)

    assert compression == compression_of(served) == compression_of(served[:MAGIC_BYTES])


# -------------------------------------------------------------------------------------------------------------- what is refused


@ALL
def test_a_stream_that_is_cut_anywhere_is_refused(compression: str) -> None:
    served = COMPRESS[compression](TEXT)

    assert {"cut-short"} == {refusal(compression, served[:length]).rule for length in range(len(served))}


@ALL
def test_a_stream_that_is_cut_in_a_later_member_is_refused(compression: str) -> None:
    first, second = COMPRESS[compression](TEXT), COMPRESS[compression](NOISE[:100])

    rules = {refusal(compression, first + second[:length], step=5).rule for length in range(1, len(second))}
    assert {"cut-short"} == rules


# Bytes that say nothing of the content: gzip's time, extra flags and system (RFC 1952 asks that readers ignore them) and the
# flag for text; an unused bit of zstd's descriptor, and its window.
IDLE = {"gzip": {3, *range(4, 10)}, "xz": set[int](), "zstd": {4, 5}}


@ALL
def test_a_stream_with_any_byte_changed_is_refused_or_holds_the_same(compression: str) -> None:
    served = COMPRESS[compression](TEXT)
    passed, rules = set(), set()
    for position in range(len(served)):
        for change in (0x01, 0x10, 0x80, 0xFF):
            broken = bytearray(served)
            broken[position] ^= change
            try:
                assert TEXT == decompressed(compression, [bytes(broken)])
                passed.add(position)
            except UnsafeImage as error:
                rules.add(error.rule)

    if compression != "bzip2":  # bzip2's checksums are of the content alone, and there is more than one way to write it
        spare = {len(served) - 9} if compression == "gzip" else set()  # bits of the last byte of deflate's data
        assert passed - spare <= IDLE[compression]
    assert "corrupt-compression" in rules
    assert rules <= {"corrupt-compression", "cut-short", "trailing-bytes", "compression-window", "unknown-feature"}


@ALL
@pytest.mark.parametrize("tail", [b"x", b"\0\0\0\0garbage", TEXT, b"\x1f\x8b\x09\0", b"\xfd7zYZ\0"], ids=range(5))
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_what_follows_the_end_is_refused(compression: str, tail: bytes, step: int) -> None:
    assert "trailing-bytes" == refusal(compression, COMPRESS[compression](TEXT) + tail, step=step).rule


@pytest.mark.parametrize(("first", "second"), [("gzip", "xz"), ("zstd", "gzip"), ("bzip2", "zstd"), ("xz", "bzip2")])
def test_another_compression_behind_the_end_is_refused(first: str, second: str) -> None:
    assert "trailing-bytes" == refusal(first, COMPRESS[first](TEXT) + COMPRESS[second](TEXT)).rule


@pytest.mark.parametrize(
    ("compression", "zeros"), [("gzip", 1), ("gzip", 500), ("gzip", 200_000), ("xz", 4), ("xz", 512), ("xz", 200_000)]
)
@pytest.mark.parametrize("step", [3, 1 << 20])
def test_padding_that_a_format_has_is_read_over(compression: str, zeros: int, step: int) -> None:
    member = COMPRESS[compression](TEXT)

    assert TEXT * 2 == decompressed(compression, pieces_of(member + bytes(zeros) + member + bytes(zeros), step))


@pytest.mark.parametrize(
    ("compression", "zeros"), [("xz", 1), ("xz", 3), ("xz", 510), ("zstd", 1), ("zstd", 4), ("bzip2", 1), ("bzip2", 512)]
)
def test_padding_that_a_format_does_not_have_is_refused(compression: str, zeros: int) -> None:
    member = COMPRESS[compression](TEXT)

    assert "trailing-bytes" == refusal(compression, member + bytes(zeros)).rule
    assert "trailing-bytes" == refusal(compression, member + bytes(zeros) + member, step=7).rule


@ALL
def test_padding_in_front_is_refused(compression: str) -> None:
    assert "corrupt-compression" == refusal(compression, bytes(4) + COMPRESS[compression](TEXT)).rule


@ALL
def test_nothing_at_all_is_cut_short(compression: str) -> None:
    assert "cut-short" == refusal(compression, b"").rule


@pytest.mark.parametrize("step", [1, 1000])
def test_a_gzip_header_that_its_checksum_contradicts_is_refused(step: int) -> None:
    served = bytearray(gzip_member(2 | 8, TEXT))
    served[12] ^= 1

    assert "header" in str(refusal("gzip", bytes(served), step=step))


def test_a_reserved_flag_in_a_later_gzip_member_is_refused() -> None:
    assert "corrupt-compression" == refusal("gzip", gzip_member(0, TEXT) + gzip_member(0x40, TEXT)).rule


def test_a_gzip_header_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    endless = chain([b"\x1f\x8b\x08\x08" + bytes(5) + b"\xff"], repeat(b"n" * 4096))
    with pytest.raises(UnsafeImage, match="longer than"):
        decompressed("gzip", endless)


# ------------------------------------------------------------------------------------------------------------ bombs and windows


def outputs(compression: str, pieces: Iterator[bytes]) -> Iterator[int]:
    """Length of each decompressed piece; none is kept."""
    decompressor = Decompressor("image", compression)
    for piece in pieces:
        yield from map(len, decompressor.feed(memoryview(piece)))
    yield from map(len, decompressor.finish())


def bomb(compression: str) -> tuple[bytes, int]:
    """A stream that stands for far more than itself, and for how much."""
    match compression:
        case "zstd":
            return zstd_frame(
                0x80, *[zstd_block(RLE, BLOCK, b"\0")] * (8192 - 1), zstd_block(RLE, BLOCK, b"\0", last=True)
            ), 1 << 30
        case "gzip":
            from isal import igzip_lib

            return igzip_lib.compress(bytes(512 << 20), level=3, flag=igzip_lib.COMP_GZIP), 512 << 20
        case _:
            return COMPRESS[compression](bytes(32 << 20)) * 8, 256 << 20


@ALL
def test_a_bomb_is_never_expanded_at_once(compression: str) -> None:
    served, size = bomb(compression)
    assert len(served) < size // 200

    tracemalloc.start()
    try:
        assert size == sum(outputs(compression, iter([served])))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * OUTPUT_BYTES  # of which xz's dictionary is 8


@ALL
def test_no_more_is_decompressed_than_is_asked_for(compression: str) -> None:
    """A caller that stops, because the limit of the virtual size is reached, pays for what it has seen and not for the rest."""
    served = COMPRESS[compression](bytes(64 << 20))
    code = f"""
import sys, resource
from underlay.formats.compressed import Decompressor
pieces = Decompressor("image", "{compression}").feed(memoryview(sys.stdin.buffer.read()))
next(pieces)
before = resource.getrusage(resource.RUSAGE_SELF)
seen = [bytes(next(pieces)[:1]) for _ in range(3)]
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime - before.ru_utime < 0.5, after.ru_maxrss - before.ru_maxrss < 8192)
"""
    told = subprocess.run([sys.executable, "-c", code], input=served, capture_output=True, check=True)

    assert b"True True\n" == told.stdout


def test_a_zstd_window_over_the_limit_is_refused_before_any_memory_is_taken() -> None:
    content = zstd_block(0, len(TEXT), TEXT, last=True)

    assert TEXT == decompressed("zstd", [zstd_frame((27 - 10) << 3, content)])
    for window in ((27 - 10) << 3 | 1, (31 - 10) << 3, 0xFF):
        error = refusal("zstd", zstd_frame(window, content))
        assert "compression-window" == error.rule
        assert "over the limit of 128 MiB" in str(error)


@pytest.mark.component("zstd")
def test_what_zstd_writes_with_a_longer_window_is_refused_as_by_zstd_itself() -> None:
    served = subprocess.run(["zstd", "-q", "-c", "-1", "--long=28"], input=TEXT, capture_output=True, check=True).stdout
    told = subprocess.run(["zstd", "-q", "-dc"], input=served, capture_output=True, check=False)

    assert told.returncode != 0
    assert "compression-window" == refusal("zstd", served).rule


def test_an_xz_dictionary_over_the_limit_is_refused() -> None:
    """30 is 128 MiB, 31 is 192 MiB, 40 is 4 GiB."""
    assert 2 << 26 == WINDOW_LIMIT
    assert TEXT == decompressed("xz", [xz_with(TEXT, dictionary=30)])
    for dictionary in (31, 40):
        error = refusal("xz", xz_with(TEXT, dictionary=dictionary))
        assert "compression-window" == error.rule
        assert "128 MiB" in str(error)


def test_an_xz_filter_that_nobody_knows_is_refused() -> None:
    assert "unknown-feature" == refusal("xz", xz_with(TEXT, filter_id=0x7E, dictionary=20)).rule


# ---------------------------------------------------------------------------------------------------------------- zstd's frames


@pytest.mark.parametrize("step", [1, 6, 1 << 20])
def test_skippable_frames_are_read_over_wherever_they_stand(step: int) -> None:
    frame = COMPRESS["zstd"](TEXT)
    served = skippable(b"size") + frame + skippable(b"") + skippable(NOISE[:3000]) + frame + skippable(b"index")

    assert "zstd" == compression_of(served[:MAGIC_BYTES])
    assert TEXT * 2 == decompressed("zstd", pieces_of(served, step))


def test_a_skippable_frame_is_not_held() -> None:
    pieces = chain([SKIPPABLE + struct.pack("<I", 64 << 20)], repeat(bytes(1 << 20), 64), [COMPRESS["zstd"](TEXT)])

    tracemalloc.start()
    try:
        assert TEXT == decompressed("zstd", pieces)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * OUTPUT_BYTES


@pytest.mark.parametrize("length", range(1, 14))
def test_a_skippable_frame_that_is_cut_is_refused(length: int) -> None:
    served = COMPRESS["zstd"](TEXT) + skippable(b"123456")[:length]

    assert "cut-short" == refusal("zstd", served, step=1).rule


def test_a_frame_of_blocks_without_content_ends() -> None:
    empty = zstd_block(0, 0, b"")
    served = zstd_frame(0, *[empty] * 1000, zstd_block(0, 3, b"end"), *[empty] * 1000, zstd_block(0, 0, b"", last=True))

    assert b"end" == decompressed("zstd", [served]) == decompressed("zstd", pieces_of(served, 1))


@pytest.mark.parametrize(("kind", "size"), [(0, BLOCK + 1), (RLE, BLOCK + 1), (2, (1 << 21) - 1), (3, 5)])
def test_a_zstd_block_that_cannot_be_is_refused(kind: int, size: int) -> None:
    served = zstd_frame(0x80, zstd_block(kind, size, bytes(min(size, 1000)), last=True))

    assert "corrupt-compression" == refusal("zstd", served).rule


def test_a_zstd_frame_that_wants_a_dictionary_is_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        b"image %d of the fleet, with a kernel and a ramdisk " % number * 3 for number in range(2000)
    ]
    dictionary = zstandard.train_dictionary(2048, samples)
    served = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT)

    error = refusal("zstd", served)
    assert "unknown-feature" == error.rule
    assert str(dictionary.dict_id()) in str(error)


@pytest.mark.parametrize("size", [0, 255, 256, 257, 65_791, 65_792, 65_793, 300_000])
def test_every_form_of_a_zstd_frames_content_size_is_read(size: int) -> None:
    for checksum in (False, True):
        for size_is_written in (False, True):
            compressor = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size_is_written)
            assert NOISE[:size] == decompressed("zstd", [compressor.compress(NOISE[:size])])


# ---------------------------------------------------------------------------------------------------------------- what it costs


def test_the_libraries_are_imported_on_use() -> None:
    code = (
        "import sys; from underlay.formats.compressed import Decompressor, compression_of; compression_of(bytes(16)); "
        "Decompressor('image', 'gzip'); print({'isal', 'zstandard', 'lzma', 'bz2'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert "set()" == told.stdout.strip()


def test_the_python_gzip_module_reads_what_our_members_are_made_of() -> None:
    """The members that the tests make are right by another reader's judgement, header checksum and all."""
    assert TEXT * 32 == gzip.decompress(b"".join(gzip_member(flags, TEXT) for flags in range(32)))


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "bzip2"])
def test_members_without_end_that_hold_nothing_are_refused(compression: str) -> None:
    empty = COMPRESS[compression](b"")
    assert "corrupt-compression" == refusal(compression, empty * 20_000).rule


@ALL
@pytest.mark.parametrize("content", [b"", b"x"])
def test_much_content_before_them_is_no_credit_for_members_that_hold_nothing(compression: str, content: bytes) -> None:
    bomb, small = COMPRESS[compression](bytes(32 << 20)), COMPRESS[compression](content)

    assert "corrupt-compression" == refusal(compression, bomb + small * 11_000).rule


@ALL
def test_any_number_of_members_that_hold_enough_is_read(compression: str) -> None:
    member = COMPRESS[compression](TEXT[:1] * 1024)

    assert 12_000 * 1024 == len(decompressed(compression, pieces_of(member * 12_000)))
