"""Parallels images: written as QEMU and ploop read them, read with distrust, and grown so that no crash harms them."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from machine import GIB, MIB, PATIENCE, qemu_img_json
from underlay.errors import DiskInUse, DiskUnrecorded, InvalidSize, Unsupported
from underlay.extents import own_bytes
from underlay.files import allocated_bytes
from underlay.formats import parallels

pytestmark = pytest.mark.component("qemu-img")


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def raw(path: Path, size: int, *data: tuple[int, int]) -> Path:
    """A raw file with random bytes at these offsets, of these lengths, and holes elsewhere."""
    random = Random(size)
    with path.open("wb") as file:
        for offset, length in data:
            file.seek(offset)
            file.write(random.randbytes(length))
        file.truncate(size)
    return path


def written(source: Path, size: int, *, share: bool = True) -> Path:
    """An image of a raw file."""
    target = source.with_suffix(".hds" if share else ".apart.hds")
    with opened(source, os.O_RDONLY) as origin, opened(target, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        parallels.write(origin, fd, length=source.stat().st_size, size=size, share=share)
    return target


def header_of(path: Path) -> parallels.Header:
    with path.open("rb") as file:
        return parallels.parse_header(file.read(parallels.HEADER_BYTES), what="the image")


def expect_same(source: Path, image: Path, *, may_leak: bool = False) -> None:
    """QEMU finds the image whole, and in it the raw file's content with zeros behind it."""
    check = ["qemu-img", "check", "-q", "-f", "parallels", os.fspath(image)]
    assert subprocess.run(check, check=False, timeout=PATIENCE).returncode in ((0, 3) if may_leak else (0,))
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "parallels", source, image], check=True, timeout=PATIENCE)


def grown(image: Path, size: int) -> parallels.Header:
    with opened(image) as fd:
        parallels.grow(fd, size, what="the image")
    return header_of(image)


LAYOUTS = {
    "empty": (8 * MIB, []),
    "dense": (4 * MIB, [(0, 4 * MIB)]),
    "a byte in each of two clusters": (8 * MIB, [(0, 1), (7 * MIB + 4095, 1)]),
    "over a border": (8 * MIB, [(3 * MIB - 4096, 8192)]),
    "two pieces of one cluster": (8 * MIB, [(5 * MIB, 4096), (5 * MIB + 65536, 4096)]),
    "an odd end": (5 * MIB + 777, [(MIB, MIB), (5 * MIB, 777)]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_shows_what_the_raw_file_holds(tmp_path: Path, layout: str) -> None:
    size, data = LAYOUTS[layout]
    source = raw(tmp_path / "source", size, *data)

    image = written(source, 12 * MIB)

    expect_same(source, image)
    header = header_of(image)
    assert (MIB, 12, 12 * MIB, 1) == (header.cluster, header.entries, header.size, header.first)
    assert qemu_img_json("info", "-f", "parallels", image)["virtual-size"] == 12 * MIB


def test_clusters_without_data_are_not_there_and_those_that_are_have_no_holes(tmp_path: Path) -> None:
    source = raw(tmp_path / "source", 512 * MIB, (100 * MIB + 5, 1), (400 * MIB, 2 * MIB))

    image = written(source, 512 * MIB)

    assert 4 * MIB == image.stat().st_size <= allocated_bytes(image.stat())
    expect_same(source, image)


def test_the_table_of_a_large_disk_has_as_many_clusters_as_it_needs(tmp_path: Path) -> None:
    source = raw(tmp_path / "source", 4 * MIB, (0, 1), (3 * MIB, 1))

    image = written(source, parallels.MAX_BYTES)

    assert 5 == header_of(image).first
    expect_same(source, image)


@pytest.mark.component("root", "btrfs")
def test_clusters_are_shared_with_the_raw_file_where_that_can_be(mounted: Callable[..., Path]) -> None:
    directory = mounted("btrfs")
    source = raw(directory / "source", 128 * MIB, (0, 128 * MIB))
    os.sync()
    free = os.statvfs(directory).f_bfree * os.statvfs(directory).f_frsize

    image = written(source, 128 * MIB)

    os.sync()
    assert free - os.statvfs(directory).f_bfree * os.statvfs(directory).f_frsize < 8 * MIB
    expect_same(source, image)
    with opened(image) as fd:
        assert 2 * MIB > own_bytes(fd)
    apart = written(source, 128 * MIB, share=False)
    with opened(apart) as fd:
        os.fsync(fd)
        assert 128 * MIB <= own_bytes(fd)
    expect_same(source, apart)


def test_the_largest_size_has_a_bound() -> None:
    parallels.refuse_size(parallels.MAX_BYTES)
    with pytest.raises(InvalidSize, match="1099510579201 bytes"):
        parallels.refuse_size(parallels.MAX_BYTES + 1)


# -------------------------------------------------------------------------------------------------------------------- headers

GOOD = struct.pack("<16s5IQ3IQ", b"WithouFreSpacExt", 2, 16, 32, 2048, 16, 16 * 2048, 0, 2048, 0, 0)


def changed(offset: int, value: bytes) -> bytes:
    return GOOD[:offset] + value + GOOD[offset + len(value) :]


BAD = {
    "cut short": GOOD[:63],
    "nothing": b"",
    "another's": changed(0, b"QFI\xfb"),
    "version": changed(16, struct.pack("<I", 3)),
    "no clusters": changed(28, struct.pack("<I", 0)),
    "clusters of 2 TiB": changed(28, struct.pack("<I", 0xFFFFFFFF)),
    "a table that is too short": changed(32, struct.pack("<I", 15)),
    "no sectors": changed(36, struct.pack("<Q", 0)),
    "more sectors than a number has bytes": changed(36, struct.pack("<Q", (1 << 64) - 1)),
    "data in the header": changed(48, struct.pack("<I", 0)),
    "data off the clusters": changed(48, struct.pack("<I", 2049)),
    "data in the table": changed(28, struct.pack("<2I", 1, 600_000))[:48] + struct.pack("<I", 1) + GOOD[52:],
}


@pytest.mark.parametrize("bad", BAD)
def test_a_header_that_contradicts_itself_is_none(bad: str) -> None:
    with pytest.raises(DiskUnrecorded, match=r"the image is recorded as parallels, and is none"):
        parallels.parse_header(BAD[bad], what="the image")


def test_a_good_header_is_read() -> None:
    header = parallels.parse_header(GOOD, what="the image")

    assert (MIB, 16, 16 * MIB, 1, False) == (header.cluster, header.entries, header.size, header.first, header.is_old)


def test_an_image_of_qemus_own_is_read(tmp_path: Path) -> None:
    image = tmp_path / "image.hds"
    options = ["-o", "cluster_size=4096"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "parallels", *options, image, "24M"], check=True, timeout=PATIENCE)

    header = header_of(image)

    assert (4096, 6144, 24 * MIB) == (header.cluster, header.entries, header.size)


# -------------------------------------------------------------------------------------------------------------------- growing


def with_small_clusters(directory: Path) -> tuple[Path, Path]:
    """A raw file and QEMU's image of it, with clusters so small that a longer table does not fit before the data."""
    source = raw(directory / "source", 2 * MIB, (0, MIB), (MIB + 65536, 4096))
    image = directory / "image.hds"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "parallels", "-o", "cluster_size=4096", str(source), str(image)]
    subprocess.run(argv, check=True, timeout=PATIENCE)
    return source, image


def test_a_grown_image_shows_zeros_behind_what_it_had(tmp_path: Path) -> None:
    source = raw(tmp_path / "source", 4 * MIB, (0, MIB), (3 * MIB, 5))
    image = written(source, 4 * MIB)
    length = image.stat().st_size

    header = grown(image, 16 * MIB)

    assert (16, 16 * MIB, 1) == (header.entries, header.size, header.first)
    assert length == image.stat().st_size
    expect_same(source, image)
    said = [part for text in ("write -P 7 15M 1M", "read -P 7 15M 1M", "read -P 0 8M 7M") for part in ("-c", text)]
    command = ["qemu-io", "-f", "parallels", *said, os.fspath(image)]
    assert b"failed" not in subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE).stdout
    expect_same_start(source, image)


def expect_same_start(source: Path, image: Path) -> None:
    """After a guest wrote behind it, the beginning is still the raw file's."""
    target = image.with_suffix(".out")
    subprocess.run(["qemu-img", "convert", "-f", "parallels", "-O", "raw", image, target], check=True, timeout=PATIENCE)
    content = source.read_bytes()
    assert content == target.read_bytes()[: len(content)]


def test_clusters_in_the_way_of_a_longer_table_move_to_the_end(tmp_path: Path) -> None:
    source, image = with_small_clusters(tmp_path)
    first = header_of(image).first

    header = grown(image, 64 * MIB)

    assert (16384, 64 * MIB) == (header.entries, header.size)
    assert first < header.first == 17
    expect_same(source, image)
    header = grown(image, GIB)
    assert 257 == header.first
    expect_same(source, image)


def with_entries(directory: Path, entries: list[int], *, first: int = 1, size: int = 4 * MIB, length: int = 6 * MIB) -> Path:
    """An image with this table, and with a byte of its own number in each cluster's place in the file."""
    header = struct.pack("<16s5IQ3IQ", b"WithouFreSpacExt", 2, 16, 0, 2048, len(entries), size // 512, 0, first * 2048, 0, 0)
    image = directory / "image.hds"
    with image.open("wb") as file:
        for number in range(length // MIB):
            file.write(bytes([number]) * MIB)
        file.truncate(length)
        file.seek(0)
        file.write((header + struct.pack(f"<{len(entries)}I", *entries)).ljust(MIB, b"\0"))
    return image


DAMAGED = {
    "two entries name one cluster": ([1, 2, 2, 0], 1),
    "an entry names the table": ([2, 1, 3, 4], 2),
    "the data begin behind what entries name": ([1, 2, 3, 4], 3),
    "an entry names the end of the file": ([1, 2, 6, 0], 1),
    "an entry names what no file has": ([1, 2, 0xFFFFFFFF, 0], 1),
    "the data begin behind the file": ([0, 0, 0, 0], 7),
    "the data begin in the far distance": ([0, 0, 0, 0], 0xFFFFF800 // 2048),
}


@pytest.mark.parametrize("size", [8 * MIB, 512 * GIB], ids=["in its table", "with a longer table"])
@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_table_is_left_alone(tmp_path: Path, damaged: str, size: int) -> None:
    entries, first = DAMAGED[damaged]
    image = with_entries(tmp_path, entries, first=first)
    before = image.read_bytes()

    with pytest.raises(DiskUnrecorded, match=r"the table of the image is damaged"):
        grown(image, size)

    assert before == image.read_bytes()


def test_a_table_that_is_cut_short_is_left_alone(tmp_path: Path) -> None:
    image = with_entries(tmp_path, [0] * 4)
    os.truncate(image, parallels.HEADER_BYTES + 8)
    before = image.read_bytes()

    with pytest.raises(DiskUnrecorded, match=r"the table of the image is damaged"):
        grown(image, 8 * MIB)

    assert before == image.read_bytes()


@pytest.mark.parametrize("stale", [[5, 3, 0xFFFFFFFF], [1] * 12])
def test_what_a_table_has_behind_the_disk_is_not_shown_when_the_disk_grows(tmp_path: Path, stale: list[int]) -> None:
    image = with_entries(tmp_path, [1, 0, 3, 4, *stale])
    source = tmp_path / "source"
    source.write_bytes(b"".join(bytes([number]) * MIB for number in (1, 0, 3, 4)))

    assert 10 * MIB == grown(image, 10 * MIB).size

    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "parallels", source, image], check=True, timeout=PATIENCE)


def test_what_lies_between_a_table_and_the_data_stays(tmp_path: Path) -> None:
    image = with_entries(tmp_path, [2, 3, 4, 5], first=2)
    before = image.read_bytes()[MIB:]

    grown(image, 8 * MIB)

    assert before == image.read_bytes()[MIB:]


def test_where_clusters_were_that_moved_there_are_zeros_behind_the_table_too(tmp_path: Path) -> None:
    """Whoever makes the table longer next may take them for entries, and the data begin nowhere behind the end of the file."""
    source, image = with_small_clusters(tmp_path)

    header = grown(image, 20 * MIB)

    gap = image.read_bytes()[parallels.HEADER_BYTES + 4 * header.entries : header.first * header.cluster]
    assert bytes(len(gap)) == gap != b""
    expect_same(source, image)


def test_an_image_without_clusters_grows_again_and_again(tmp_path: Path) -> None:
    image = with_entries(tmp_path, [0] * 4, length=MIB)

    for size in (300 * GIB, 600 * GIB, 900 * GIB):
        assert size == grown(image, size).size

    assert 4 == header_of(image).first
    assert image.stat().st_size == 4 * MIB


def test_an_image_that_is_as_large_is_left_as_it_is(tmp_path: Path) -> None:
    image = with_entries(tmp_path, [1, 2, 3, 4])
    before = image.read_bytes()

    grown(image, 3 * MIB)

    assert before == image.read_bytes()


@pytest.mark.parametrize("in_use", [0, 0x312E3276, 0x746F6E59, 1])
def test_an_image_that_was_not_closed_is_left_alone(tmp_path: Path, in_use: int) -> None:
    image = with_entries(tmp_path, [1, 2, 3, 4])
    with image.open("r+b") as file:
        file.seek(44)
        file.write(struct.pack("<I", in_use))
    before = image.read_bytes()

    if in_use in (0, 0x312E3276):  # closed, in the words of two versions of the format
        assert 8 * MIB == grown(image, 8 * MIB).size
    else:
        with pytest.raises(DiskInUse, match="not closed"):
            grown(image, 8 * MIB)
        assert before == image.read_bytes()


def test_what_is_not_grown_here_is_refused(tmp_path: Path) -> None:
    source = raw(tmp_path / "source", 4 * MIB, (0, MIB))
    image = written(source, 4 * MIB)
    content = image.read_bytes()
    for offset, value, why in (
        (0, b"WithoutFreeSpace", "old form"),
        (56, struct.pack("<Q", 2048), "bitmaps"),
        (28, struct.pack("<3IQ2I", 1, 8192, 8192, 0, 0, 1)[:8], "too large"),
    ):
        image.write_bytes(content[:offset] + value + content[offset + len(value) :])
        before = image.read_bytes()
        with pytest.raises(Unsupported, match=why):
            grown(image, parallels.MAX_BYTES)
        assert before == image.read_bytes()


_MOST = 20  # times that one system call is made at most; only a broken test comes so far
_GROW = """
import os, sys
from underlay.formats import parallels
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    parallels.grow(fd, int(sys.argv[2]), what="the image")
except OSError:
    sys.exit(3)
"""


@pytest.mark.component("strace")
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC"])
@pytest.mark.parametrize("call", ["pwrite64", "fsync"])
def test_whoever_is_stopped_while_an_image_grows_leaves_it_as_it_reads(tmp_path: Path, call: str, fault: str) -> None:
    source, image = with_small_clusters(tmp_path)
    content = image.read_bytes()
    for number in range(1, _MOST):
        image.write_bytes(content)
        strace = ["strace", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
        child = [sys.executable, "-c", _GROW, str(image), str(16 * MIB)]
        ended = subprocess.run([*strace, *child], capture_output=True, timeout=PATIENCE, check=False)
        if ended.returncode == 0:
            break
        assert ended.returncode == (-9 if fault.startswith("signal") else 3), ended.stderr
        expect_same(source, image, may_leak=True)
        assert header_of(image).size in (2 * MIB, 16 * MIB)
        grown(image, 16 * MIB)
        expect_same(source, image)
        assert 16 * MIB == header_of(image).size
    assert 1 < number < _MOST
    expect_same(source, image)
