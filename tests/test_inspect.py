"""Inspection: what each kind of image is taken for, what is refused and by which rule, and when that is known."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import corpus
from corpus import GIB, KIB, MIB, TIB, u32, u64
from underlay.errors import FormatMismatch, UnsafeImage, VirtualSizeRefused
from underlay.formats.inspect import BEGINNING_BYTES, Inspector, check_virtual_size
from underlay.model import DEFAULT_VIRTUAL_SIZE_LIMIT, ImageFacts

WHAT = "https://images.example/disk"

needs_qemu_img = pytest.mark.component("qemu-img")
needs_qemu_io = pytest.mark.component("qemu-img", "qemu-io")


def inspect(
    content: bytes, *, label: str | None = None, limit: int = DEFAULT_VIRTUAL_SIZE_LIMIT, piece: int = MIB
) -> ImageFacts:
    inspector = Inspector(what=WHAT, label=label, virtual_size_limit=limit)
    for start in range(0, len(content), piece):
        inspector.feed(memoryview(content)[start : start + piece])
    return inspector.finish()


def rule_against(content: bytes, *, label: str | None = None) -> str:
    """The rule that refuses these bytes; the message is one line and names rule and image."""
    with pytest.raises(UnsafeImage) as refusal:
        inspect(content, label=label)
    assert refusal.value.message.startswith(f"{WHAT} is refused by rule {refusal.value.rule}: ")
    assert "\n" not in str(refusal.value)
    return refusal.value.rule


# ------------------------------------------------------------------------------------------------------------- what is accepted


@needs_qemu_img
@pytest.mark.parametrize(
    ("format", "options", "label"),
    [
        ("qcow2", "compat=0.10", "qcow2"),
        ("qcow2", "compat=1.1", "qcow2"),
        ("qcow2", "compression_type=zstd", "qcow2"),
        ("qcow2", "extended_l2=on", "qcow2"),
        ("qcow2", "extended_l2=on,cluster_size=16k", "qcow2"),
        ("qcow2", "lazy_refcounts=on", "qcow2"),
        ("qcow2", "cluster_size=512", "qcow2"),
        ("qcow2", "cluster_size=2M", "qcow2"),
        ("vmdk", "subformat=monolithicSparse", "vmdk"),
        ("vmdk", "subformat=streamOptimized", "vmdk"),
        ("vdi", "", "vdi"),
        ("vdi", "static=on", "vdi"),
        ("vhdx", "", "vhdx"),
        ("vhdx", "subformat=fixed", "vhdx"),
        ("vpc", "subformat=dynamic,force_size=on", "vhd"),
        ("vpc", "subformat=fixed,force_size=on", "vhd"),
    ],
)
def test_an_image_of_each_format_is_accepted_by_its_label(format: str, options: str, label: str, tmp_path: Path) -> None:  # noqa: A002
    image = corpus.small(tmp_path / "image", format, options=options)

    facts = inspect(image.read_bytes(), label=label)

    assert (format, label) == (facts.format, facts.label)
    assert facts.virtual_size in (3 * MIB, None)
    assert (facts.virtual_size is None) == (format == "vpc")
    assert 3 * MIB == corpus.to_raw(image, tmp_path / "raw", facts.format).stat().st_size


@needs_qemu_img
@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_an_image_without_a_label_is_what_its_content_says(format: str, tmp_path: Path) -> None:  # noqa: A002
    assert format == inspect(corpus.small(tmp_path / "image", format).read_bytes()).format


@needs_qemu_io
def test_a_qcow2_with_internal_snapshots_is_accepted(tmp_path: Path) -> None:
    assert "qcow2" == inspect(corpus.with_snapshot(tmp_path / "image").read_bytes(), label="qcow2").format


@needs_qemu_img
def test_a_dirty_qcow2_is_accepted_because_its_refcounts_can_be_rebuilt(tmp_path: Path) -> None:
    image = corpus.small(tmp_path / "image", "qcow2", options="lazy_refcounts=on")

    corpus.patched(image, (corpus.QCOW2_INCOMPATIBLE, u64(1)))

    assert "qcow2" == inspect(image.read_bytes()).format


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (corpus.mbr_disk(), "gpt"),
        (corpus.gpt_disk(), "gpt"),
        (corpus.gpt_disk(hybrid=True), "gpt"),
        (corpus.bare_signature(), "gpt"),
        (corpus.fat_disk(), "raw"),
        (bytes(4 * MIB), "raw"),
        (corpus.noise(MIB), "raw"),
        (b"x", "raw"),
        (b"x" * 511, "raw"),
        (b"\0" * 512, "raw"),
        (b"just some notes\nversion 1 of them\n", "raw"),
        (b"#!/bin/sh\n# a script\nversion() { echo 1; }\n", "raw"),
        (corpus.prose(3 * MIB), "raw"),
    ],
    ids=["mbr", "gpt", "hybrid", "signature", "fat", "zeros", "noise", "1", "511", "512", "text", "script", "long-text"],
)
@pytest.mark.parametrize("labelled", ["raw", None])
def test_what_is_a_disk_to_a_guest_is_raw(content: bytes, label: str, labelled: str | None) -> None:
    assert ImageFacts(format="raw", label=label, virtual_size=len(content)) == inspect(content, label=labelled)


def test_a_disk_with_a_partition_table_may_be_labelled_gpt() -> None:
    assert "raw" == inspect(corpus.gpt_disk(), label="gpt").format


@pytest.mark.parametrize("label", ["iso", None])
def test_an_iso_is_an_iso(label: str | None) -> None:
    content = corpus.iso_disk()

    assert ImageFacts(format="raw", label="iso", virtual_size=len(content)) == inspect(content, label=label)


def test_an_iso_with_a_partition_table_is_an_iso() -> None:
    content = corpus.iso_disk(beginning=corpus.gpt_disk()[: 2 * KIB])

    assert "iso" == inspect(content, label="iso").label


def test_a_fixed_vhd_is_told_by_its_label_and_its_footer() -> None:
    disk = corpus.mbr_disk()
    content = disk + corpus.vhd_footer(size=len(disk))

    assert ("vpc", "vhd") == (inspect(content, label="vhd").format, inspect(content, label="vhd").label)
    assert "raw" == inspect(content).format
    assert "raw" == inspect(content, label="raw").format


@needs_qemu_img
def test_a_vmdk_whose_header_stands_at_its_end_is_accepted(tmp_path: Path) -> None:
    image = corpus.small(tmp_path / "image", "vmdk", options="subformat=streamOptimized")
    image.write_bytes(corpus.with_vmdk_footer(image.read_bytes()))

    facts = inspect(image.read_bytes(), label="vmdk")

    assert ImageFacts(format="vmdk", label="vmdk", virtual_size=3 * MIB) == facts
    assert 3 * MIB == corpus.to_raw(image, tmp_path / "raw", "vmdk").stat().st_size


def test_the_virtual_size_of_such_a_vmdk_is_its_footers() -> None:
    content = corpus.with_vmdk_footer(corpus.vmdk_sparse(corpus.vmdk_descriptor(), capacity=4096), capacity=8192)

    assert 4 * MIB == inspect(content).virtual_size


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_descriptor_that_names_its_own_file_is_accepted_whatever_its_line_ends(ending: str) -> None:
    descriptor = corpus.vmdk_descriptor(extents=['RDONLY 4096 SPARSE "generated-stream.vmdk"'], create_type="streamOptimized")

    assert "vmdk" == inspect(corpus.vmdk_sparse(descriptor.replace(b"\n", ending.encode()))).format


# -------------------------------------------------------------------------------------------------------------- qcow2: refusals


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    return corpus.small(tmp_path / "image.qcow2", "qcow2")


@needs_qemu_img
@pytest.mark.parametrize("label", ["qcow2", None])
def test_a_qcow2_with_a_backing_file_is_refused(label: str | None, tmp_path: Path) -> None:
    base = corpus.raw(tmp_path / "base", MIB)
    image = corpus.create(tmp_path / "image", "qcow2", MIB, backing=base)

    assert "backing-file" == rule_against(image.read_bytes(), label=label)


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "data_file_raw=on,"])
def test_a_qcow2_with_a_data_file_is_refused(options: str, tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB, options=f"{options}data_file={tmp_path / 'data'}")

    assert "data-file" == rule_against(image.read_bytes())


@needs_qemu_img
def test_a_qcow2_that_names_a_data_file_without_its_feature_bit_is_refused(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB, options=f"data_file={tmp_path / 'data'}")

    corpus.patched(image, (corpus.QCOW2_INCOMPATIBLE, u64(0)))

    assert "data-file" == rule_against(image.read_bytes())


@needs_qemu_img
@pytest.mark.parametrize(
    ("patch", "rule"),
    [
        ((corpus.QCOW2_INCOMPATIBLE, u64(1 << 5)), "unknown-feature"),
        ((corpus.QCOW2_INCOMPATIBLE, u64(1 << 63)), "unknown-feature"),
        ((corpus.QCOW2_INCOMPATIBLE, u64(1 << 1)), "corrupt"),
        ((corpus.QCOW2_INCOMPATIBLE, u64(1 << 2)), "data-file"),
        ((corpus.QCOW2_CRYPT, u32(1)), "encrypted"),
        ((corpus.QCOW2_CRYPT, u32(2)), "encrypted"),
        ((corpus.QCOW2_CRYPT, u32(77)), "encrypted"),
        ((corpus.QCOW2_VERSION, u32(1)), "qcow2-version"),
        ((corpus.QCOW2_VERSION, u32(4)), "qcow2-version"),
        ((corpus.QCOW2_L1_ENTRIES, u32(2**32 - 1)), "absurd-size"),
        ((corpus.QCOW2_L1_ENTRIES, u32(0)), "absurd-size"),
        ((corpus.QCOW2_REFCOUNT_CLUSTERS, u32(0)), "absurd-size"),
        ((corpus.QCOW2_REFCOUNT_CLUSTERS, u32(129)), "absurd-size"),
        ((corpus.QCOW2_SNAPSHOTS, u32(65537)), "absurd-size"),
        ((corpus.QCOW2_SIZE, u64(TIB)), "absurd-size"),
        ((corpus.QCOW2_SIZE, u64(2**64 - 1)), "absurd-size"),
        ((corpus.QCOW2_SIZE, u64(0)), "empty"),
        ((corpus.QCOW2_SIZE, u64(511)), "empty"),
        ((corpus.QCOW2_CLUSTER_BITS, u32(8)), "qcow2-header"),
        ((corpus.QCOW2_CLUSTER_BITS, u32(22)), "qcow2-header"),
        ((corpus.QCOW2_CLUSTER_BITS, u32(2**32 - 1)), "qcow2-header"),
        ((corpus.QCOW2_REFCOUNT_ORDER, u32(7)), "qcow2-header"),
        ((corpus.QCOW2_HEADER_LENGTH, u32(72)), "qcow2-header"),
        ((corpus.QCOW2_HEADER_LENGTH, u32(2**32 - 1)), "qcow2-header"),
        ((corpus.QCOW2_COMPRESSION, b"\1"), "qcow2-header"),
        ((corpus.QCOW2_COMPRESSION, b"\2"), "unknown-feature"),
        ((corpus.QCOW2_INCOMPATIBLE, u64(1 << 3)), "qcow2-header"),
        ((corpus.QCOW2_BACKING_OFFSET, u64(2**63)), "backing-file"),
        ((corpus.QCOW2_BACKING_OFFSET + 8, u32(7)), "backing-file"),
        ((corpus.QCOW2_HEADER_LENGTH + 12, u32(0x0537BE77) + u32(16)), "encrypted"),
        ((corpus.QCOW2_HEADER_LENGTH + 12, u32(0x12345678) + u32(2**32 - 1)), "qcow2-header"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}={value[1].hex()}",
)
def test_a_qcow2_header_that_breaks_a_rule_is_refused(patch: tuple[int, bytes], rule: str, qcow2: Path) -> None:
    corpus.patched(qcow2, patch)

    assert rule == rule_against(qcow2.read_bytes(), label="qcow2")


@needs_qemu_img
def test_a_qcow2_header_may_go_to_the_edge(tmp_path: Path) -> None:
    """The shortest header of version 3, the widest refcounts, and an extension that fills the first cluster."""
    short, wide = (
        corpus.small(tmp_path / "short", "qcow2"),
        corpus.small(tmp_path / "wide", "qcow2", options="refcount_bits=64"),
    )
    filled = corpus.small(tmp_path / "filled", "qcow2", options="cluster_size=512")
    corpus.patched(short, (corpus.QCOW2_HEADER_LENGTH, u32(104)))
    corpus.patched(filled, (112, u32(0x12345678) + u32(512 - 112 - 8)))

    assert ["qcow2"] * 3 == [inspect(image.read_bytes()).format for image in (short, wide, filled)]
    assert "qcow2-header" == rule_against(corpus.patched(filled, (116, u32(512 - 112 - 7))).read_bytes())


@needs_qemu_img
def test_extended_l2_entries_need_clusters_that_have_subclusters(tmp_path: Path) -> None:
    image = corpus.small(tmp_path / "image", "qcow2", options="cluster_size=4k")

    corpus.patched(image, (corpus.QCOW2_INCOMPATIBLE, u64(1 << 4)))

    assert "qcow2-header" == rule_against(image.read_bytes())


@needs_qemu_img
@pytest.mark.parametrize(
    ("patch", "most"),
    [
        (corpus.QCOW2_L1_ENTRIES, (32 << 20) // 8),  # QCOW_MAX_L1_SIZE
        (corpus.QCOW2_REFCOUNT_CLUSTERS, (8 << 20) // (64 * KIB)),  # QCOW_MAX_REFTABLE_SIZE
        (corpus.QCOW2_SNAPSHOTS, 65536),  # QCOW_MAX_SNAPSHOTS
    ],
)
def test_a_qcow2_may_ask_for_as_much_as_qemu_allows(patch: int, most: int, qcow2: Path) -> None:
    assert "qcow2" == inspect(corpus.patched(qcow2, (patch, u32(most))).read_bytes()).format
    assert "absurd-size" == rule_against(corpus.patched(qcow2, (patch, u32(most + 1))).read_bytes())


@needs_qemu_img
def test_an_encrypted_qcow2_is_refused(tmp_path: Path) -> None:
    assert "encrypted" == rule_against(corpus.encrypted_qcow2(tmp_path / "image").read_bytes())


@needs_qemu_img
@pytest.mark.parametrize("label", ["qcow2", None])
def test_a_qcow_of_version_1_is_refused(label: str | None, tmp_path: Path) -> None:
    assert "qcow2-version" == rule_against(corpus.create(tmp_path / "image", "qcow", MIB).read_bytes(), label=label)


@needs_qemu_img
@pytest.mark.parametrize("size", [4, 71, 103])
def test_a_qcow2_cut_short_in_its_header_is_not_taken_for_raw(size: int, qcow2: Path) -> None:
    assert "cut-short" == rule_against(corpus.cut(qcow2, size).read_bytes())


# --------------------------------------------------------------------------------------------------------------- VMDK: refusals


@needs_qemu_img
@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"])
@pytest.mark.parametrize("label", ["vmdk", "raw", None])
def test_a_vmdk_descriptor_of_qemus_own_is_refused(subformat: str, label: str | None, tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image.vmdk", "vmdk", MIB, options=f"subformat={subformat}")

    assert "vmdk-descriptor" == rule_against(image.read_bytes(), label=label)


@needs_qemu_img
def test_a_part_of_a_split_vmdk_is_refused(tmp_path: Path) -> None:
    corpus.create(tmp_path / "image.vmdk", "vmdk", MIB, options="subformat=twoGbMaxExtentSparse")

    assert "vmdk-descriptor" == rule_against((tmp_path / "image-s001.vmdk").read_bytes())


PASSWD = ('RW 1 FLAT "/etc/passwd" 0',)


@pytest.mark.parametrize(
    "descriptor",
    [
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD),
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD).upper(),
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD).lower(),
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD).replace(b"\n", b"\r\n"),
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD).replace(b"\n", b"\r"),
        b"\n  \n\r\n" + corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD),
        b"# notes\n#\n" * 50 + b"version=1\n" + b'createType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n',
        b"# notes\n" * 5000 + b"version=1\n" + b'createType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n',
        b" \n version = 3\n" + b'createType="vmfs"\nRW 1 VMFS "/etc/passwd" 0\n',
        b'createType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n',
        b'CID=1\nRW 1 FLAT "/etc/passwd" 0\n  CreateType = "vmfs"\nversion=1\n',
        b"#disk DescriptorFile\n",
        b"version=1\n",
        corpus.vmdk_descriptor(create_type="monolithicSparse"),
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD).ljust(MIB, b"\0"),
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD).ljust(MIB, b"\n"),
        corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD).ljust(510, b"\n") + b"\x55\xaa",
    ],
    ids=range(17),
)
@pytest.mark.parametrize("label", ["vmdk", "raw", "vhd", None])
def test_a_vmdk_descriptor_in_plain_text_is_refused_however_it_is_written(descriptor: bytes, label: str | None) -> None:
    assert "vmdk-descriptor" == rule_against(descriptor, label=label)


@pytest.mark.parametrize("label", ["iso", None])
def test_a_vmdk_descriptor_in_front_of_an_iso_is_refused(label: str | None) -> None:
    descriptor = corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD)

    assert "vmdk-descriptor" == rule_against(corpus.iso_disk(beginning=descriptor), label=label)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        # QEMU reads the descriptor of a header without a capacity as it reads a text file: it opens what the text names.
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(), capacity=0), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(create_type="monolithicFlat", extents=PASSWD)), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=PASSWD)), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=['RW 1 SPARSE "/etc/passwd"'])), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=['RW 1 SPARSE "..\\passwd"'])), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=['RW 1 SPARSE "nbd:localhost"'])), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=['RW 1 FLAT "other" 0'])), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=['RW 1 SPARSE "a"', 'RW 1 SPARSE "b"'])), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=[])), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(create_type="vmfs")), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(more=['createType="monolithicFlat"'])), "vmdk-descriptor"),
        # QEMU takes the first createType and skips two characters behind it, in a comment too.
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(more=['# createType=xmonolithicFlat"'])), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(more=['parentFileNameHint="/etc/passwd"'])), "backing-file"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(more=['# parentFileNameHint="nbd:localhost:10809"'])), "backing-file"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(), descriptor_at=2), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(), descriptor_at=0), "vmdk-descriptor"),
        (corpus.vmdk_sparse(b""), "vmdk-descriptor"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor(), version=4), "vmdk-header"),
        (b"KDMV", "cut-short"),
        (corpus.vmdk_sparse(corpus.vmdk_descriptor())[:511], "cut-short"),
        (corpus.with_vmdk_footer(corpus.vmdk_sparse(corpus.vmdk_descriptor()))[:-512], "cut-short"),
        (corpus.with_vmdk_footer(corpus.vmdk_sparse(corpus.vmdk_descriptor()))[:1000], "cut-short"),
        (corpus.with_vmdk_footer(corpus.vmdk_sparse(corpus.vmdk_descriptor()), capacity=0), "vmdk-descriptor"),
    ],
    ids=range(23),
)
@pytest.mark.parametrize("label", ["vmdk", None])
def test_a_vmdk_that_is_not_one_whole_file_of_its_own_is_refused(content: bytes, rule: str, label: str | None) -> None:
    assert rule == rule_against(content, label=label)


@pytest.mark.parametrize("place", [-1536 + 8, -1536 + 12, -512, -512 + 8, -512 + 12])
def test_a_vmdk_whose_footer_is_not_framed_by_its_markers_is_cut_short(place: int) -> None:
    content = bytearray(corpus.with_vmdk_footer(corpus.vmdk_sparse(corpus.vmdk_descriptor())))
    content[place] ^= 0xFF

    assert "cut-short" == rule_against(bytes(content))


def test_a_vmdk_whose_footer_describes_itself_otherwise_than_its_header_is_refused() -> None:
    content = bytearray(corpus.with_vmdk_footer(corpus.vmdk_sparse(corpus.vmdk_descriptor())))
    content[-1024 + 28 : -1024 + 36] = (99).to_bytes(8, "little")  # where the footer says that the descriptor is

    assert "vmdk-header" == rule_against(bytes(content))


def test_a_parent_that_is_named_beyond_the_promised_end_of_the_descriptor_is_seen() -> None:
    descriptor = corpus.vmdk_descriptor().ljust(600, b"#") + b'\nparentFileNameHint="/etc/passwd"\n'
    content = bytearray(corpus.vmdk_sparse(descriptor))
    content[36:44] = (1).to_bytes(8, "little")  # the header says one sector; QEMU reads twenty

    assert "backing-file" == rule_against(bytes(content))


# --------------------------------------------------------------------------------------------------------------- other refusals


@pytest.mark.parametrize("label", [None, "raw", "qcow2", "vhd"])
def test_an_image_without_bytes_is_refused(label: str | None) -> None:
    assert "empty" == rule_against(b"", label=label)


@needs_qemu_img
@pytest.mark.parametrize("label", ["raw", "qed", None])
def test_qed_is_refused(label: str | None, tmp_path: Path) -> None:
    assert "qed" == rule_against(corpus.create(tmp_path / "qed", "qed", MIB).read_bytes(), label=label)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("label", ["raw", "luks", None])
def test_luks_is_refused(version: int, label: str | None) -> None:
    assert "encrypted" == rule_against(corpus.luks(version=version), label=label)


@needs_qemu_img
@pytest.mark.parametrize("label", ["iso", "qcow2", "raw", None])
def test_an_iso_that_is_a_qcow2_as_well_is_refused(label: str | None, qcow2: Path) -> None:
    polyglot = corpus.iso_disk(beginning=qcow2.read_bytes()[: 32 * KIB])

    assert "ambiguous" == rule_against(polyglot, label=label)


def test_a_vdi_that_is_a_qcow2_as_well_is_refused() -> None:
    content = bytearray(bytes(MIB))
    content[:8] = b"QFI\xfb" + u32(3)
    content[0x40:0x44] = b"\x7f\x10\xda\xbe"

    assert "ambiguous" == rule_against(bytes(content))


@needs_qemu_img
def test_differencing_disks_are_refused(tmp_path: Path) -> None:
    vhd = corpus.patched(corpus.small(tmp_path / "vhd", "vpc"), (corpus.VHD_DISK_TYPE, u32(corpus.VHD_DIFFERENCING)))
    vhdx = corpus.small(tmp_path / "vhdx", "vhdx")
    parameters = corpus.vhdx_item(vhdx.read_bytes(), corpus.VHDX_FILE_PARAMETERS)
    corpus.patched(vhdx, (parameters + 4, b"\2"))
    vdi, linked = (corpus.small(tmp_path / name, "vdi") for name in ("vdi", "linked"))
    corpus.patched(vdi, (0x4C, b"\4"))
    corpus.patched(linked, (0x1B8, b"\1"))

    assert ["backing-file"] * 4 == [rule_against(image.read_bytes()) for image in (vhd, vhdx, vdi, linked)]


def test_a_vhdx_with_a_parent_locator_is_refused() -> None:
    assert MIB == inspect(corpus.bare_vhdx()).virtual_size
    assert "backing-file" == rule_against(corpus.bare_vhdx(items=[corpus.VHDX_PARENT_LOCATOR]))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"QED\0", "qed"),
        (b"LUKS\xba\xbe", "encrypted"),
        (b"vhdxfile", "cut-short"),
        (corpus.bare_vhdx()[: 100 * KIB], "cut-short"),
        (corpus.bare_vhdx()[: MIB + 100], "cut-short"),
        (corpus.bare_vhdx()[: MIB + 64 * KIB + 15], "cut-short"),
        (b"vhdxfile".ljust(MIB, b"\0"), "vhdx-header"),
        (corpus.bare_vhdx(metadata_at=64 * KIB), "vhdx-header"),
        (corpus.bare_vhdx(item_at=8), "vhdx-header"),
        (corpus.bare_vhdx(metadata_at=2 * MIB)[:MIB] + bytes(2 * MIB), "vhdx-header"),
        (b"conectix" + bytes(100), "cut-short"),
        (b"conectix" + bytes(MIB), "vhd-header"),
        (bytes(64) + b"\x7f\x10\xda\xbe" + bytes(100), "cut-short"),
        (bytes(64) + b"\x7f\x10\xda\xbe" + bytes(1000), "vdi-header"),
    ],
    ids=range(14),
)
def test_a_container_that_is_broken_is_not_taken_for_raw(content: bytes, rule: str) -> None:
    assert rule == rule_against(content)


@pytest.mark.parametrize(
    ("place", "patch", "why"),
    [
        (192 * KIB, b"x", "its region table is not one"),
        (192 * KIB + 8, (2048).to_bytes(4, "little"), "its region table is not one"),
        (192 * KIB + 8, b"\0", "it has no metadata region"),
        (192 * KIB + 16, b"x", "it has no metadata region"),
        (MIB, b"x", "its metadata table is not one"),
        (MIB + 10, (2048).to_bytes(2, "little"), "its metadata table is not one"),
        (MIB + 10, b"\1", "its metadata lacks a required item"),
        (MIB + 32, b"x", "its metadata lacks a required item"),
    ],
)
def test_a_vhdx_whose_tables_do_not_hold_together_is_refused(place: int, patch: bytes, why: str) -> None:
    content = bytearray(corpus.bare_vhdx())
    content[place : place + len(patch)] = patch

    with pytest.raises(UnsafeImage, match=f"rule vhdx-header: {why}$"):
        inspect(bytes(content))


def test_a_vhdx_may_have_as_many_metadata_items_as_its_table_holds() -> None:
    content = bytearray(corpus.bare_vhdx())
    content[MIB + 10 : MIB + 12] = (2047).to_bytes(2, "little")

    assert MIB == inspect(bytes(content)).virtual_size


@needs_qemu_img
@pytest.mark.parametrize("missing", [1, 700_000])
def test_a_vdi_cut_short_is_refused_though_qemu_img_would_read_zeros(missing: int, tmp_path: Path) -> None:
    image = corpus.small(tmp_path / "image", "vdi")

    assert "cut-short" == rule_against(corpus.cut(image, image.stat().st_size - missing).read_bytes())


@needs_qemu_img
@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("raw", "qcow2"),
        ("vmdk", "qcow2"),
        ("iso", "qcow2"),
        ("vhd", "qcow2"),
        ("gpt", "vdi"),
        ("qcow2", "vdi"),
        ("vhd", "vhdx"),
    ],
)
def test_a_label_that_the_content_contradicts_is_refused(label: str, found: str, tmp_path: Path) -> None:
    image = corpus.small(tmp_path / "image", found)

    with pytest.raises(FormatMismatch, match=f"^{WHAT} is expected to be {label}, but its content is {found}$"):
        inspect(image.read_bytes(), label=label)


@pytest.mark.parametrize("label", ["qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso", "ploop", "luks"])
def test_a_raw_disk_by_another_label_is_refused(label: str) -> None:
    with pytest.raises(FormatMismatch):
        inspect(bytes(MIB), label=label)
    with pytest.raises(FormatMismatch):
        inspect(corpus.gpt_disk(), label=label)


def test_an_iso_labelled_raw_is_refused() -> None:
    with pytest.raises(FormatMismatch):
        inspect(corpus.iso_disk(), label="raw")


def test_a_footer_of_another_kind_makes_no_fixed_vhd() -> None:
    with pytest.raises(FormatMismatch):
        inspect(bytes(MIB) + corpus.vhd_footer(size=MIB, disk_type=3), label="vhd")
    with pytest.raises(FormatMismatch):
        inspect(bytes(MIB) + corpus.vhd_footer(size=MIB) + b"\0", label="vhd")


# ------------------------------------------------------------------------------------------------------------------------ sizes


@needs_qemu_img
@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_a_virtual_size_over_the_limit_is_refused_in_every_format(format: str, tmp_path: Path) -> None:  # noqa: A002
    content = corpus.create(tmp_path / "image", format, 64 * MIB).read_bytes()

    assert format == inspect(content, limit=65 * MIB).format
    with pytest.raises(VirtualSizeRefused, match=f"^{WHAT} has a virtual size of .* over the limit of {64 * MIB - 1} bytes$"):
        inspect(content, limit=64 * MIB - 1)


@needs_qemu_img
def test_ten_tebibytes_are_the_limit_unless_it_is_configured(tmp_path: Path) -> None:
    most = corpus.create(tmp_path / "most", "qcow2", 10 * TIB, options="cluster_size=2M").read_bytes()
    more = corpus.create(tmp_path / "more", "qcow2", 10 * TIB + 512, options="cluster_size=2M").read_bytes()

    assert 10 * TIB == Inspector(what=WHAT).virtual_size_limit == inspect(most).virtual_size
    with pytest.raises(VirtualSizeRefused):
        inspect(more)


def test_a_raw_image_over_the_limit_is_refused_as_soon_as_it_is_over() -> None:
    inspector = Inspector(what=WHAT, virtual_size_limit=3 * MIB)
    for _ in range(3):
        inspector.feed(memoryview(bytes(MIB)))

    with pytest.raises(VirtualSizeRefused):
        inspector.feed(memoryview(b"\0"))


def test_a_small_raw_image_over_the_limit_is_refused() -> None:
    with pytest.raises(VirtualSizeRefused):
        inspect(bytes(1000), limit=999)


def test_the_limit_itself_is_allowed() -> None:
    check_virtual_size(WHAT, GIB, limit=GIB)

    with pytest.raises(VirtualSizeRefused):
        check_virtual_size(WHAT, GIB + 1, limit=GIB)


# ------------------------------------------------------------------------------------------------------------- when it is known


def pieces_until_early(content: bytes, *, label: str | None = None, piece: int = 4 * KIB) -> int | None:
    """Bytes that had to be fed until the verdict stood."""
    inspector = Inspector(what=WHAT, label=label)
    for start in range(0, len(content), piece):
        inspector.feed(memoryview(content)[start : start + piece])
        if inspector.early is not None:
            return start + piece
    return None


@needs_qemu_img
@pytest.mark.parametrize(
    ("format", "options", "known_after"),
    [
        ("qcow2", "", BEGINNING_BYTES),
        ("vdi", "", BEGINNING_BYTES),
        ("vmdk", "", BEGINNING_BYTES),
        ("vmdk", "subformat=streamOptimized", BEGINNING_BYTES),
        ("vpc", "", BEGINNING_BYTES),
        ("vhdx", "", 4 * MIB),
    ],
)
def test_the_verdict_on_a_large_image_stands_early(format: str, options: str, known_after: int, tmp_path: Path) -> None:  # noqa: A002
    content = corpus.small(tmp_path / "image", format, options=options).read_bytes()

    found = pieces_until_early(content.ljust(16 * MIB, b"\0"))

    assert found is not None
    assert found <= known_after


def test_the_verdict_on_a_raw_image_stands_early_without_its_size() -> None:
    inspector = Inspector(what=WHAT)

    inspector.feed(memoryview(bytes(BEGINNING_BYTES)))

    assert ImageFacts(format="raw", label="raw", virtual_size=None) == inspector.early


def test_the_verdict_on_a_vhdx_waits_for_its_metadata() -> None:
    content = corpus.bare_vhdx()
    metadata_end = MIB + 64 * KIB + 16
    inspector = Inspector(what=WHAT)

    inspector.feed(memoryview(content)[: metadata_end - 1])
    assert inspector.early is None
    inspector.feed(memoryview(content)[metadata_end - 1 : metadata_end])
    assert ImageFacts(format="vhdx", label="vhdx", virtual_size=MIB) == inspector.early


def test_there_is_no_early_verdict_before_the_beginning_is_there() -> None:
    inspector = Inspector(what=WHAT)

    inspector.feed(memoryview(bytes(BEGINNING_BYTES - 1)))

    assert inspector.early is None


def test_what_is_labelled_vhd_is_judged_at_its_end() -> None:
    assert pieces_until_early(bytes(MIB), label="vhd") is None


@needs_qemu_img
@pytest.mark.parametrize("label", ["qcow2", "raw", "vhd"])
def test_a_refusal_comes_after_64_kib_of_a_large_image(label: str, tmp_path: Path) -> None:
    base = corpus.raw(tmp_path / "base", MIB)
    content = corpus.create(tmp_path / "image", "qcow2", GIB, backing=base).read_bytes()
    inspector = Inspector(what=WHAT, label=label)

    inspector.feed(memoryview(content)[: BEGINNING_BYTES - 1])
    with pytest.raises((UnsafeImage, FormatMismatch)):
        inspector.feed(memoryview(content)[BEGINNING_BYTES - 1 : BEGINNING_BYTES])


# --------------------------------------------------------------------------------------------------------- pieces, and the rest


def _vmdk_with_footer(path: Path) -> bytes:
    return corpus.with_vmdk_footer(corpus.small(path, "vmdk", options="subformat=streamOptimized").read_bytes())


MAKERS: dict[str, Callable[[Path], bytes]] = {
    "qcow2": lambda path: corpus.small(path, "qcow2").read_bytes(),
    "vmdk": lambda path: corpus.small(path, "vmdk").read_bytes(),
    "vmdk-footer": _vmdk_with_footer,
    "vdi": lambda path: corpus.small(path, "vdi").read_bytes(),
    "vhd": lambda path: corpus.small(path, "vpc").read_bytes(),
    "vhdx": lambda path: corpus.small(path, "vhdx").read_bytes(),
    "iso": lambda path: corpus.iso_disk(beginning=corpus.gpt_disk()[:512]),
    "text": lambda path: corpus.prose(100_000),
}


@needs_qemu_img
@pytest.mark.parametrize("name", MAKERS)
def test_the_verdict_does_not_hang_on_the_pieces(name: str, tmp_path: Path) -> None:
    content = MAKERS[name](tmp_path / "image")
    whole = inspect(content, piece=len(content))

    assert [whole] * 4 == [inspect(content, piece=piece) for piece in (997, 4096, 64 * KIB, 100_000)]


def test_the_memory_of_a_piece_may_be_reused() -> None:
    content, buffer = corpus.gpt_disk(), bytearray(1000)
    inspector = Inspector(what=WHAT)
    for start in range(0, len(content), len(buffer)):
        piece = content[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        inspector.feed(memoryview(buffer)[: len(piece)])
        buffer[:] = b"\xff" * len(buffer)

    assert ImageFacts(format="raw", label="gpt", virtual_size=2 * MIB) == inspector.finish()


def test_the_library_is_imported_only_when_there_is_something_to_recognise() -> None:
    program = (
        "import sys\n"
        "from underlay.formats.inspect import Inspector\n"
        "inspector = Inspector(what='x')\n"
        "print('oslo_utils' in sys.modules)\n"
        "inspector.feed(memoryview(b'x'))\n"
        "inspector.finish()\n"
        "print('oslo_utils' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert ["False", "True"] == done.stdout.split()


def test_inspection_says_nothing_on_standard_error() -> None:
    program = (
        "from underlay.errors import UnderlayError\n"
        "from underlay.formats.inspect import Inspector\n"
        "for content in (b'version=1\\xff', b'KDMV' + bytes(600), b'vhdxfile' + bytes(300_000), b'caf\\xe9', bytes(600)):\n"
        "    try:\n"
        "        inspector = Inspector(what='x')\n"
        "        inspector.feed(memoryview(content))\n"
        "        inspector.finish()\n"
        "    except UnderlayError:\n"
        "        pass\n"
    )

    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert "" == done.stdout + done.stderr
