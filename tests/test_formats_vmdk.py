"""The tables of a sparse VMDK: each grain that they name must be in the file, because QEMU takes a missing one for zeros."""

import os
import struct
from pathlib import Path

import pytest

import corpus
from corpus import KIB, MIB
from underlay.errors import UnsafeImage
from underlay.formats import vmdk

needs_qemu_img = pytest.mark.component("qemu-img")


def check(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        vmdk.check_tables(fd, what="the image")
    finally:
        os.close(fd)


def rule_against(path: Path) -> str:
    with pytest.raises(UnsafeImage, match=r"^the image is refused by rule ") as refusal:
        check(path)
    return refusal.value.rule


def full_image(path: Path, *, subformat: str = "monolithicSparse", size: int = 3 * MIB) -> Path:
    disk = corpus.raw(path / "disk", size, [(0, corpus.noise(size))])
    return corpus.convert(disk, path / "image", "vmdk", options=f"subformat={subformat}")


def streamed(path: Path) -> Path:
    image = full_image(path, subformat="streamOptimized")
    image.write_bytes(corpus.with_vmdk_footer(image.read_bytes()))
    return image


@needs_qemu_img
@pytest.mark.parametrize("size", [MIB, 3 * MIB, 3_000_320, 100 * MIB])
@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_a_whole_image_passes(subformat: str, size: int, tmp_path: Path) -> None:
    pieces = [(offset, corpus.noise(min(70_000, size - offset))) for offset in range(0, size, 5 * MIB)]
    disk = corpus.raw(tmp_path / "disk", size, pieces)

    check(corpus.convert(disk, tmp_path / "image", "vmdk", options=f"subformat={subformat}"))


@needs_qemu_img
def test_a_whole_image_with_its_header_at_the_end_passes(tmp_path: Path) -> None:
    image = streamed(tmp_path)

    check(image)
    assert (tmp_path / "disk").read_bytes() == corpus.to_raw(image, tmp_path / "raw", "vmdk").read_bytes()


@needs_qemu_img
@pytest.mark.parametrize("missing", [1, 512, 64 * KIB, 2 * MIB])
def test_a_sparse_image_cut_short_is_refused(missing: int, tmp_path: Path) -> None:
    image = full_image(tmp_path)

    assert "cut-short" == rule_against(corpus.cut(image, image.stat().st_size - missing))


@needs_qemu_img
@pytest.mark.parametrize("size", [99_840, 3_000_320, 32 * MIB + 99_840])
def test_what_of_the_last_grain_lies_beyond_the_disk_need_not_be_there(size: int, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", size, [(size - 1000, corpus.noise(1000))])
    image = corpus.convert(disk, tmp_path / "image", "vmdk")
    beyond = 64 * KIB - size % (64 * KIB)

    check(corpus.cut(image, image.stat().st_size - beyond))

    assert "cut-short" == rule_against(corpus.cut(image, image.stat().st_size - 1))


@needs_qemu_img
def test_qemu_img_itself_makes_wrong_content_of_an_image_cut_short(tmp_path: Path) -> None:
    """Why the tables are read at all."""
    image = full_image(tmp_path)

    corpus.cut(image, image.stat().st_size // 2)

    assert (tmp_path / "disk").read_bytes() != corpus.to_raw(image, tmp_path / "half", "vmdk").read_bytes()


@needs_qemu_img
def test_a_compressed_image_cut_short_is_refused(tmp_path: Path) -> None:
    image = full_image(tmp_path, subformat="streamOptimized")

    assert "cut-short" == rule_against(corpus.cut(image, image.stat().st_size // 2))


@needs_qemu_img
@pytest.mark.parametrize("size", [0, 511, 1535, 11 * KIB, 17 * KIB])
def test_an_image_without_its_tables_is_cut_short(size: int, tmp_path: Path) -> None:
    assert "cut-short" == rule_against(corpus.cut(full_image(tmp_path), size))


def crafted(path: Path, *, fields: dict[int, bytes]) -> Path:
    path.write_bytes(corpus.vmdk_sparse(corpus.vmdk_descriptor()))
    return corpus.patched(path, *fields.items())


FLAGS, CAPACITY, GRAIN, ENTRIES, DIRECTORY = 8, 12, 20, 44, 56


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({GRAIN: struct.pack("<Q", 0)}, "vmdk-header"),
        ({ENTRIES: struct.pack("<I", 0)}, "vmdk-header"),
        ({ENTRIES: struct.pack("<I", 513)}, "vmdk-header"),
        ({CAPACITY: struct.pack("<Q", 2**63)}, "cut-short"),
        ({DIRECTORY: struct.pack("<Q", 2**50)}, "cut-short"),
        ({24 * 512: struct.pack("<I", 2**32 - 1)}, "cut-short"),
        ({24 * 512: struct.pack("<I", 125)}, "cut-short"),
        ({25 * 512: struct.pack("<I", 2**32 - 1)}, "cut-short"),
        ({CAPACITY: struct.pack("<Q", 2 * 128 * 512), 24 * 512: struct.pack("<II", 25, 25)}, "corrupt"),
    ],
    ids=range(9),
)
def test_crafted_tables_are_refused(fields: dict[int, bytes], rule: str, tmp_path: Path) -> None:
    check(crafted(tmp_path / "sound", fields={}))

    assert rule == rule_against(crafted(tmp_path / "image", fields=fields))


def test_a_table_may_end_with_the_file(tmp_path: Path) -> None:
    check(crafted(tmp_path / "image", fields={24 * 512: struct.pack("<I", 124)}))


def test_a_compressed_grain_need_only_begin_in_the_file(tmp_path: Path) -> None:
    last_sector = {25 * 512: struct.pack("<I", 127)}

    check(crafted(tmp_path / "compressed", fields=last_sector | {FLAGS: struct.pack("<I", 1 << 16 | 1 << 17)}))
    assert "cut-short" == rule_against(crafted(tmp_path / "plain", fields=last_sector | {FLAGS: struct.pack("<I", 1 << 17)}))


def test_a_grain_of_zeros_needs_no_place_in_the_file(tmp_path: Path) -> None:
    check(crafted(tmp_path / "image", fields={25 * 512: struct.pack("<II", 1, 0)}))


@pytest.mark.parametrize(
    "text",
    [
        b"version=1\n",
        b"version=3\r\n",
        b"# Disk DescriptorFile\n",
        b"\n# DISK DESCRIPTORFILE",
        b"#comment\r\n   \r\nVersion = 2\n",
        b'encoding="x"\ncreateType="custom"\nNOACCESS 9 ZERO\n',
    ],
)
def test_a_descriptor_in_plain_text_is_recognised(text: bytes) -> None:
    assert vmdk.is_descriptor(text)
    assert vmdk.is_descriptor(text + b"\0\xff" * 500)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0version=1\n",
        b"#!/bin/sh\necho\n",
        b"versions=1\n",
        b"the version=1\n",
        b"# version=1\nhello\n",
        b'createType="monolithicFlat" is a thing that people write about\n',
        b"rw 1 flat\n",
        b"\x7fELF",
        b"KDMV",
    ],
)
def test_other_text_is_no_descriptor(text: bytes) -> None:
    assert not vmdk.is_descriptor(text)
