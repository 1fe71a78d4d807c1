"""Which files a disk names: each format as qemu-img makes it or as its description draws it, and what QEMU opens by a name."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import corpus
from corpus import KIB, MIB, SECTOR
from underlay.formats import backing
from underlay.formats.backing import NOTHING, References, Target, read_references, targets

needs_qemu_img = pytest.mark.component("qemu-img")
needs_qemu_io = pytest.mark.component("qemu-img", "qemu-io")

NAME = "../_base/0123456789abcdef"
LONG_NAME = "/" + "/".join(["n" * 145] * 7)


def references(path: Path | str | bytes) -> References:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_references(fd)
    finally:
        os.close(fd)


def of_bytes(content: bytes) -> References:
    fd = os.memfd_create("disk")
    try:
        os.write(fd, content)
        return read_references(fd)
    finally:
        os.close(fd)


def make(path: Path, kind: str, name: str | None = None, *, options: str = "", backing_format: str = "raw") -> Path:
    """An image that names a backing file, there or not."""
    backed = ["-u", "-b", name, "-F", backing_format] if name is not None else []
    corpus.qemu_img("create", "-q", "-f", kind, *(["-o", options] if options else []), *backed, path, "1M")
    return path


def told(path: Path, kind: str, *arguments: str, cwd: Path | None = None) -> list[dict[str, object]]:
    """What qemu-img tells of an image and all that is below it."""
    argv = ["qemu-img", "info", "--output", "json", "-f", kind, *arguments, os.fspath(path)]
    answer = json.loads(subprocess.run(argv, check=True, capture_output=True, cwd=cwd).stdout)
    return answer if isinstance(answer, list) else [answer]


def is_refused_by_qemu(path: Path, kind: str) -> bool:
    return subprocess.run(["qemu-img", "info", "-f", kind, path], capture_output=True, check=False).returncode != 0


# --------------------------------------------------------------------------------------------------------------- qcow and qcow2


@needs_qemu_img
@pytest.mark.parametrize(
    "options",
    [
        "compat=0.10",
        "compat=1.1",
        "extended_l2=on",
        "cluster_size=512",
        "cluster_size=2M",
        "compression_type=zstd",
        "lazy_refcounts=on",
    ],
)
@pytest.mark.parametrize(
    "name", [NAME, LONG_NAME[:300], "/disk with a space", "nbd://host/export", 'json:{"driver":"null-co"}']
)
def test_the_backing_file_of_a_qcow2_is_what_qemu_reads(options: str, name: str, tmp_path: Path) -> None:
    overlay = make(tmp_path / "disk", "qcow2", name, options=options)

    assert References("qcow2", (name,)) == references(overlay)
    assert name == told(overlay, "qcow2")[0]["backing-filename"]


@needs_qemu_img
def test_the_first_version_of_qcow_is_read(tmp_path: Path) -> None:
    overlay = make(tmp_path / "disk", "qcow", NAME)

    assert References("qcow", (NAME,)) == references(overlay)
    assert References("qcow") == references(make(tmp_path / "alone", "qcow"))
    assert NAME == told(overlay, "qcow")[0]["backing-filename"]


@needs_qemu_img
@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "extended_l2=on"])
def test_a_qcow2_that_stands_alone_names_nothing(options: str, tmp_path: Path) -> None:
    assert References("qcow2") == references(make(tmp_path / "disk", "qcow2", options=options))


@needs_qemu_img
@pytest.mark.parametrize("length", [1, 1022, 1023])
def test_a_name_of_any_length_that_qemu_reads_is_read(length: int, tmp_path: Path) -> None:
    name = LONG_NAME[:length].replace("/", "n")

    assert References("qcow2", (name,)) == references(make(tmp_path / "disk", "qcow2", name))


@needs_qemu_img
def test_a_name_of_bytes_that_are_no_text_is_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9-\xff.raw")

    assert (name,) == references(make(tmp_path / "disk", "qcow2", name)).names
    assert [Target(f"/there/{name}", sure=True)] == targets(name, directory="/there")


def moved_name(path: Path, name: bytes, *, offset: int, options: str = "cluster_size=2M") -> Path:
    """A qcow2 whose backing file's name is where no tool puts it, in its first cluster all the same."""
    make(path, "qcow2", "short", options=options)
    header = corpus.u64(offset) + corpus.u32(len(name))
    return corpus.patched(path, (corpus.QCOW2_BACKING_OFFSET, header), (offset, name))


@needs_qemu_img
@pytest.mark.parametrize("offset", [4000, 4095, 4096, 5000, 64 * KIB, 2 * MIB - 1023])
def test_a_name_that_the_first_read_does_not_hold_is_read(offset: int, tmp_path: Path) -> None:
    name = LONG_NAME[:1023].ljust(1023, "x")
    overlay = moved_name(tmp_path / "disk", name.encode(), offset=offset)

    assert References("qcow2", (name,)) == references(overlay)
    assert name == told(overlay, "qcow2")[0]["backing-filename"]


@pytest.mark.component("qemu-img", "strace")
def test_one_read_suffices_and_a_second_is_made_only_for_a_name_that_lies_beyond(tmp_path: Path) -> None:
    usual = make(tmp_path / "usual", "qcow2", NAME)
    beyond = moved_name(tmp_path / "beyond", NAME.encode(), offset=5000)
    raw = corpus.raw(tmp_path / "raw", MIB)

    assert [1, 2, 1] == [reads(disk, tmp_path / "trace") for disk in (usual, beyond, raw)]


def reads(disk: Path, trace: Path) -> int:
    """System calls that reading its references makes on a disk."""
    code = "import os, sys; from underlay.formats import backing; backing.read_references(os.open(sys.argv[1], os.O_RDONLY))"
    argv: list[str | Path] = [
        "strace",
        "-y",
        "-o",
        trace,
        "-e",
        "trace=read,pread64,readv,preadv,mmap,fstat,lseek",
        sys.executable,
        "-c",
        code,
        disk,
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return sum(f"<{disk}>" in line for line in trace.read_text().splitlines())


@needs_qemu_img
def test_a_name_ends_at_its_first_nul_as_for_qemu(tmp_path: Path) -> None:
    overlay = moved_name(tmp_path / "disk", b"base.raw\0\0junk", offset=4090)

    assert References("qcow2", ("base.raw",)) == references(overlay)
    assert "base.raw" == told(overlay, "qcow2")[0]["backing-filename"]


@needs_qemu_img
@pytest.mark.parametrize("name", [b"", b"\0\0\0"])
def test_an_empty_name_is_no_backing_file(name: bytes, tmp_path: Path) -> None:
    overlay = moved_name(tmp_path / "disk", name, offset=4090)

    assert References("qcow2") == references(overlay)
    assert "backing-filename" not in told(overlay, "qcow2")[0]


@needs_qemu_img
@pytest.mark.parametrize("options", ["", ",data_file_raw=on", ",extended_l2=on", ",cluster_size=2M"])
def test_an_external_data_file_is_named(options: str, tmp_path: Path) -> None:
    content = tmp_path / "content.raw"
    disk = make(tmp_path / "disk", "qcow2", options=f"data_file={content}{options}")

    assert References("qcow2", (str(content),)) == references(disk)
    [one] = told(disk, "qcow2")
    assert str(content) in json.dumps(one["format-specific"])


@needs_qemu_img
def test_a_data_file_and_a_backing_file_are_both_named(tmp_path: Path) -> None:
    content = tmp_path / "content.raw"
    disk = make(tmp_path / "disk", "qcow2", NAME, options=f"data_file={content}")

    assert References("qcow2", (str(content), NAME)) == references(disk)


@needs_qemu_img
def test_a_data_file_whose_name_the_first_read_does_not_hold_is_named(tmp_path: Path) -> None:
    name, padding = b"/far/content.raw", 5000
    disk = make(tmp_path / "disk", "qcow2", options=f"data_file={tmp_path / 'content.raw'}")
    extensions = struct.pack(">II", 0x12345678, padding) + bytes(padding) + struct.pack(">II", 0x44415441, len(name)) + name
    corpus.patched(disk, (112, extensions + bytes(16)))

    assert References("qcow2", ("/far/content.raw",)) == references(disk)
    assert "/far/content.raw" in json.dumps(told(disk, "qcow2")[0]["format-specific"])


@needs_qemu_img
def test_a_data_file_that_is_needed_and_not_named_is_reported(tmp_path: Path) -> None:
    disk = corpus.patched(make(tmp_path / "disk", "qcow2", NAME), (corpus.QCOW2_INCOMPATIBLE, corpus.u64(1 << 2)))

    assert References("qcow2", (NAME,), "it needs an external data file and does not name it") == references(disk)


@needs_qemu_io
def test_a_data_file_named_by_a_disk_that_needs_none_is_left_out_as_by_qemu(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk", "qcow2", options=f"data_file={tmp_path / 'content.raw'}")
    corpus.patched(disk, (corpus.QCOW2_INCOMPATIBLE, corpus.u64(0)))
    (tmp_path / "content.raw").unlink()

    assert References("qcow2") == references(disk)
    corpus.qemu_io(disk, "read 0 512")


def wrong_version(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_VERSION, corpus.u32(4)))


def clusters_too_small(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_CLUSTER_BITS, corpus.u32(8)))


def clusters_too_large(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_CLUSTER_BITS, corpus.u32(22)))


def name_too_long(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_BACKING_OFFSET + 8, corpus.u32(1024)))


def name_absurdly_long(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_BACKING_OFFSET + 8, corpus.u32(2**32 - 1)))


def name_outside_the_first_cluster(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_BACKING_OFFSET, corpus.u64(64 * KIB - 1)))


def name_one_byte_too_far(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_BACKING_OFFSET, corpus.u64(64 * KIB - len(NAME) + 1)))


def name_beyond_the_end(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_BACKING_OFFSET, corpus.u64(2**40)))


def name_where_no_file_reaches(disk: Path) -> Path:
    return corpus.patched(disk, (corpus.QCOW2_BACKING_OFFSET, corpus.u64(2**64 - 1)))


@needs_qemu_img
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (wrong_version, "qcow version 4 is not known"),
        (clusters_too_small, "its clusters of 2^8 bytes cannot be"),
        (clusters_too_large, "its clusters of 2^22 bytes cannot be"),
        (name_too_long, "its backing file's name of 1024 bytes is too long"),
        (name_absurdly_long, "its backing file's name of 4294967295 bytes is too long"),
        (name_outside_the_first_cluster, "its backing file's name lies outside the first cluster"),
        (name_one_byte_too_far, "its backing file's name lies outside the first cluster"),
        (name_beyond_the_end, "its backing file's name lies outside the first cluster"),
        (name_where_no_file_reaches, "its backing file's name lies outside the first cluster"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_qcow2_header_that_cannot_be_is_reported_and_qemu_refuses_it(
    spoil: Callable[[Path], Path], why: str, tmp_path: Path
) -> None:
    disk = spoil(make(tmp_path / "disk", "qcow2", NAME))

    assert why == references(disk).malformed
    assert is_refused_by_qemu(disk, "qcow2")


@needs_qemu_img
@pytest.mark.parametrize("spoil", [wrong_version, clusters_too_small, clusters_too_large])
def test_a_name_that_can_still_be_read_is_given_with_the_complaint(spoil: Callable[[Path], Path], tmp_path: Path) -> None:
    assert (NAME,) == references(spoil(make(tmp_path / "disk", "qcow2", NAME))).names


@needs_qemu_img
@pytest.mark.parametrize(("kind", "least"), [("qcow2", 112), ("qcow", 48), ("qed", 64)])
def test_a_header_cut_short_anywhere_is_reported(kind: str, least: int, tmp_path: Path) -> None:
    content = make(tmp_path / "disk", kind, NAME).read_bytes()

    assert {"it is cut short"} == {of_bytes(content[:size]).malformed for size in range(4, min(least, 104))}
    assert all(of_bytes(content[:size]).malformed for size in range(4, content.index(NAME.encode()) + len(NAME)))
    assert {NOTHING} == {of_bytes(content[:size]) for size in range(4)}


# -------------------------------------------------------------------------------------------------------------------------- QED


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "cluster_size=4k", "cluster_size=1M", "table_size=2"])
def test_the_backing_file_of_a_qed_is_what_qemu_reads(options: str, tmp_path: Path) -> None:
    overlay = make(tmp_path / "disk", "qed", NAME, options=options)

    assert References("qed", (NAME,)) == references(overlay)
    assert NAME == told(overlay, "qed")[0]["backing-filename"]
    assert References("qed") == references(make(tmp_path / "alone", "qed", options=options))


@needs_qemu_img
@pytest.mark.parametrize("length", [1024, 3000, 4095])
def test_a_qed_names_a_longer_path_than_a_qcow2_may(length: int, tmp_path: Path) -> None:
    name = ("/" + "n" * 99) * 41
    overlay = make(tmp_path / "disk", "qed", name[:length])

    assert References("qed", (name[:length],)) == references(overlay)
    assert name[:length] == told(overlay, "qed")[0]["backing-filename"]


QED_HEADER_SIZE, QED_FEATURES, QED_OFFSET, QED_LENGTH = 12, 16, 56, 60


@needs_qemu_img
@pytest.mark.parametrize("features", [0, 1 << 2])
def test_a_qed_whose_feature_bit_is_off_has_no_backing_file(features: int, tmp_path: Path) -> None:
    overlay = corpus.patched(make(tmp_path / "disk", "qed", NAME), (QED_FEATURES, struct.pack("<Q", features)))

    assert References("qed") == references(overlay)
    assert "backing-filename" not in told(overlay, "qed")[0]


@needs_qemu_img
@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (QED_LENGTH, 4097, "its backing file's name of 4097 bytes is too long"),
        (QED_OFFSET, 64 * KIB - 3, "its backing file's name lies outside its header"),
        (QED_OFFSET, 2**32 - 1, "its backing file's name lies outside its header"),
        (4, 4097, "its clusters of 4097 bytes cannot be"),
        (4, 0, "its clusters of 0 bytes cannot be"),
    ],
)
def test_a_qed_header_that_cannot_be_is_reported_and_qemu_refuses_it(at: int, value: int, why: str, tmp_path: Path) -> None:
    overlay = corpus.patched(make(tmp_path / "disk", "qed", NAME), (at, struct.pack("<I", value)))

    assert why == references(overlay).malformed
    assert is_refused_by_qemu(overlay, "qed")


# ------------------------------------------------------------------------------------------------------------------------- VMDK


@needs_qemu_img
@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_the_parent_of_a_vmdk_is_what_qemu_reads(subformat: str, tmp_path: Path) -> None:
    base = make(tmp_path / "base.vmdk", "vmdk")
    overlay = tmp_path / "disk.vmdk"
    arguments = ["-o", f"subformat={subformat}", "-b", "base.vmdk", "-F", "vmdk"]
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", *arguments, overlay], check=True, cwd=tmp_path, capture_output=True
    )

    assert References("vmdk", ("base.vmdk",)) == references(overlay)
    assert References("vmdk") == references(base)
    assert "base.vmdk" == told(overlay, "vmdk")[0]["backing-filename"]


@needs_qemu_img
@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_the_extents_of_a_vmdk_are_named(subformat: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.vmdk"
    corpus.qemu_img("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", disk, "5G")
    extents = sorted(path.name for path in tmp_path.iterdir() if path != disk)

    assert References("vmdk", tuple(extents)) == references(disk)
    assert all(references(tmp_path / extent).names == () for extent in extents)


@needs_qemu_img
def test_a_split_vmdk_names_its_parent_and_its_extents(tmp_path: Path) -> None:
    make(tmp_path / "base.vmdk", "vmdk")
    arguments = ["-o", "subformat=twoGbMaxExtentSparse", "-b", "base.vmdk", "-F", "vmdk", "disk.vmdk"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", *arguments], check=True, cwd=tmp_path, capture_output=True)

    assert References("vmdk", ("base.vmdk", "disk-s001.vmdk")) == references(tmp_path / "disk.vmdk")


def flat_descriptor(directory: Path, *, extents: Sequence[str], more: Sequence[str] = ()) -> Path:
    """A descriptor in a file of its own."""
    path = directory / "disk.vmdk"
    path.write_bytes(corpus.vmdk_descriptor(create_type="monolithicFlat", extents=extents, more=more))
    return path


@needs_qemu_img
@pytest.mark.parametrize(
    ("line", "recorded", "file"),
    [
        ('RW 2048 FLAT "content" 0', "content", "content"),
        ('  RW\t2048  FLAT  "content" 0', "content", "content"),
        ('RW 2048 FLAT "nbd:content" 0', "./nbd:content", "nbd:content"),
        ('RW 2048 FLAT "json:{}" 0', "./json:{}", "json:{}"),
        ('RW 2048 FLAT "two words" 0', "two words", "two words"),
        ('RW 2048 FLAT "content" 0\r', "content", "content"),
        ('RW 2048 VMFS "content', "content", "content"),
    ],
)
def test_an_extent_is_the_file_that_qemu_opens(line: str, recorded: str, file: str, tmp_path: Path) -> None:
    disk = flat_descriptor(tmp_path, extents=[line])
    extent = corpus.raw(tmp_path / file, MIB)

    assert References("vmdk", (recorded,)) == references(disk)
    assert [f"{tmp_path}/{file}"] == [os.path.normpath(target.path) for target in targets(recorded, directory=str(tmp_path))]
    assert not is_refused_by_qemu(disk, "vmdk")
    extent.unlink()
    assert is_refused_by_qemu(disk, "vmdk")


@needs_qemu_img
@pytest.mark.parametrize(
    "line",
    [
        'parentFileNameHint="base.vmdk"',
        '# parentFileNameHint="base.vmdk"',
        'xparentFileNameHint=(base.vmdk"',
    ],
)
def test_a_parent_is_found_wherever_qemu_finds_it(line: str, tmp_path: Path) -> None:
    corpus.raw(tmp_path / "content", MIB)
    disk = flat_descriptor(tmp_path, extents=['RW 2048 FLAT "content" 0'], more=[line])

    assert References("vmdk", ("base.vmdk", "content")) == references(disk)
    assert "base.vmdk" == told(disk, "vmdk")[0]["backing-filename"]


@pytest.mark.parametrize(
    "line", ['parentFileNameHint = "base.vmdk"', 'PARENTFILENAMEHINT="base.vmdk"', 'parentFileNameHint= "base.vmdk"']
)
def test_a_parent_written_as_other_readers_allow_is_found(line: str) -> None:
    assert "base.vmdk" in of_bytes(corpus.vmdk_descriptor(more=[line], extents=[])).names


@needs_qemu_img
@pytest.mark.parametrize("at", [1, 21, 200])
def test_a_header_without_capacity_leads_to_its_descriptor(at: int, tmp_path: Path) -> None:
    corpus.raw(tmp_path / "content", MIB)
    text = corpus.vmdk_descriptor(create_type="monolithicFlat", extents=['RW 2048 FLAT "content" 0'])
    disk = tmp_path / "disk.vmdk"
    identity = corpus.vmdk_descriptor(create_type="monolithicFlat", extents=[])
    content = bytearray(corpus.vmdk_sparse(identity, capacity=0, descriptor_at=at).ljust(300 * SECTOR, b"\0"))
    content[at * SECTOR : at * SECTOR + len(text)] = text
    disk.write_bytes(content)

    assert References("vmdk", ("content",)) == references(disk)
    assert not is_refused_by_qemu(disk, "vmdk")


def test_a_sparse_extent_does_not_name_itself_and_does_name_more() -> None:
    one, two = 'RW 2048 SPARSE "disk.vmdk"', 'RW 2048 SPARSE "other.vmdk"'

    assert References("vmdk") == of_bytes(corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=[one])))
    both = corpus.vmdk_sparse(corpus.vmdk_descriptor(extents=[one, two]))
    assert References("vmdk", ("disk.vmdk", "other.vmdk")) == of_bytes(both)


@pytest.mark.parametrize("access", ["RW", "RDONLY", "NOACCESS", "rw"])
def test_an_extent_of_any_access_is_named(access: str) -> None:
    content = corpus.vmdk_descriptor(extents=[f'{access} 2048 FLAT "content" 0'])

    assert References("vmdk", ("content",)) == of_bytes(content)


def test_lines_may_end_as_on_any_system() -> None:
    text = corpus.vmdk_descriptor(extents=['RW 2048 FLAT "one" 0', 'RW 2048 FLAT "two" 0'])

    for end in (b"\n", b"\r\n", b"\r"):
        assert References("vmdk", ("one", "two")) == of_bytes(text.replace(b"\n", end))


def test_a_vmdk_with_a_parent_that_it_does_not_name_is_reported() -> None:
    text = corpus.vmdk_descriptor(parent_cid="12345678", extents=['RW 2048 FLAT "content" 0'])

    assert References("vmdk", ("content",), "it has a parent and does not name it") == of_bytes(text)


def test_of_a_descriptor_without_end_the_beginning_is_read_and_it_is_reported() -> None:
    text = corpus.vmdk_descriptor(extents=[f'RW 2048 FLAT "content-{index:05}" 0' for index in range(5000)])

    found = of_bytes(text)

    assert "its descriptor is over 65536 bytes long" == found.malformed
    assert "content-00000" == found.names[0]
    assert 1000 < len(found.names) < 5000


def test_a_descriptor_that_the_first_read_does_not_hold_is_read_whole() -> None:
    names = tuple(f"content-{index:05}" for index in range(1000))

    assert References("vmdk", names) == of_bytes(corpus.vmdk_descriptor(extents=[f'RW 2048 FLAT "{name}" 0' for name in names]))


@pytest.mark.parametrize("size", [4, 11, 43])
def test_a_vmdk_header_cut_short_is_reported(size: int) -> None:
    assert References("vmdk", malformed="it is cut short") == of_bytes(corpus.vmdk_sparse(b"")[:size])


def test_a_vmdk_whose_descriptor_lies_beyond_its_end_is_reported() -> None:
    assert "it is cut short" == of_bytes(corpus.vmdk_sparse(b"", descriptor_at=2**40)).malformed
    assert "it is cut short" == of_bytes(corpus.vmdk_sparse(b"", descriptor_at=2**63)).malformed
    assert "it is cut short" == of_bytes(corpus.vmdk_sparse(b"")[:SECTOR]).malformed


def cowd(*, union: bytes = struct.pack("<III", 1024, 16, 63), descriptor: bytes = b"") -> bytes:
    """An ESX server's sparse extent, its header only."""
    header = struct.pack("<4sIIIIIII", b"COWD", 1, 3, 2048, 1, 4, 1, 5) + union
    return header.ljust(SECTOR, b"\0")[: SECTOR if descriptor else None] + descriptor.ljust(4 * SECTOR, b"\0")


def test_a_child_of_an_esx_server_names_its_parent() -> None:
    assert References("vmdk", ("/vmfs/volumes/one/base.vmdk",)) == of_bytes(cowd(union=b"/vmfs/volumes/one/base.vmdk\0"))
    assert References("vmdk") == of_bytes(cowd())
    assert References("vmdk") == of_bytes(cowd(union=struct.pack("<III", 0x4141, 0x41, 63)))


def test_an_extent_of_an_esx_server_with_a_descriptor_names_the_parent_that_qemu_finds() -> None:
    text = corpus.vmdk_descriptor(more=['parentFileNameHint="base.vmdk"'])

    assert References("vmdk", ("base.vmdk",)) == of_bytes(cowd(descriptor=text))


# ----------------------------------------------------------------------------------------------------------------- VHD and VHDX


def vhd_header(*, name: str = "", locators: Sequence[tuple[bytes, int, int]] = ()) -> bytes:
    """A VHD's dynamic header; a locator: platform, offset and length of its text."""
    fields = struct.pack(">8sQQIIII16sII", b"cxsparse", 2**64 - 1, 1536, 0x10000, 1, 2 * MIB, 0, bytes(16), 0, 0)
    entries = b"".join(struct.pack(">4sIIIQ", platform, 512, length, 0, offset) for platform, offset, length in locators)
    return (fields + name.encode("utf-16-be").ljust(512, b"\0") + entries).ljust(1024, b"\0")


def vhd_child(header: bytes, *, tail: bytes = b"", offset: int = SECTOR) -> bytes:
    """A differencing VHD."""
    footer = bytearray(corpus.vhd_footer(size=MIB, disk_type=corpus.VHD_DIFFERENCING))
    footer[16:24] = corpus.u64(offset)
    return bytes(footer) + header + tail


def test_a_differencing_vhd_names_its_parent_by_its_name_and_by_its_locators() -> None:
    relative, absolute, url = (
        ".\\bäse.vhd".encode("utf-16-le"),
        "C:\\images\\base.vhd".encode("utf-16-le"),
        b"file:///srv/base.vhd",
    )
    start = SECTOR + 1024
    locators = [
        (b"W2ru", start, len(relative)),
        (b"W2ku", start + 100, len(absolute)),
        (b"MacX", start + 5000, len(url)),
        (b"Mac ", start, 10),
    ]
    tail = relative.ljust(100, b"\0") + absolute.ljust(4900, b"\0") + url

    found = of_bytes(vhd_child(vhd_header(name="parent.vhd", locators=locators), tail=tail))

    assert References("vpc", ("parent.vhd", ".\\bäse.vhd", "C:\\images\\base.vhd", "file:///srv/base.vhd")) == found


def test_a_differencing_vhd_that_cannot_be_believed_is_reported() -> None:
    nameless = of_bytes(vhd_child(vhd_header()))
    assert References("vpc", malformed="it has a parent and does not name it") == nameless
    beyond = of_bytes(vhd_child(vhd_header(name="parent.vhd", locators=[(b"W2ru", 2**60, 40)])))
    assert References("vpc", ("parent.vhd",), "it is cut short") == beyond
    too_long = of_bytes(vhd_child(vhd_header(name="parent.vhd", locators=[(b"W2ku", 0, 2**31)])))
    assert References("vpc", ("parent.vhd",), "it is cut short") == too_long
    for offset in (2**40, 2**64 - 1, 0):
        assert (
            "it has a parent, and its dynamic header is not where it should be"
            == of_bytes(vhd_child(vhd_header(name="parent.vhd"), offset=offset)).malformed
        )
    assert References("vpc", malformed="it is cut short") == of_bytes(vhd_child(b"")[:511])


def vhdx_child(entries: Sequence[tuple[str, str]], *, count: int | None = None) -> bytearray:
    """A differencing VHDX's metadata, with a parent locator."""
    item_at, metadata_at = 64 * KIB, MIB
    keys = b"".join(key.encode("utf-16-le") for key, _ in entries)
    values = b"".join(value.encode("utf-16-le") for _, value in entries)
    start = 20 + 12 * len(entries)
    table, key_at, value_at = b"", start, start + len(keys)
    for key, value in entries:
        table += struct.pack("<IIHH", key_at, value_at, 2 * len(key), 2 * len(value))
        key_at, value_at = key_at + 2 * len(key), value_at + 2 * len(value)
    locator = bytes(16) + struct.pack("<HH", 0, len(entries) if count is None else count) + table + keys + values
    content = bytearray(corpus.bare_vhdx(flags=2, items=[corpus.VHDX_PARENT_LOCATOR]))
    length_at = metadata_at + 32 + 2 * 32 + 20
    content[length_at : length_at + 4] = struct.pack("<I", len(locator))
    locator_at = metadata_at + item_at + 16
    content[locator_at : locator_at + len(locator)] = locator
    return content


PARENTS = [
    ("parent_linkage", "{83ed0ec5-24c8-49a6-a959-5e4bd1288791}"),
    ("relative_path", "..\\base\\bäse.vhdx"),
    ("volume_path", "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\base\\bäse.vhdx"),
    ("absolute_win32_path", "C:\\base\\bäse.vhdx"),
]


def test_a_differencing_vhdx_names_each_path_of_its_parent() -> None:
    names = tuple(value for key, value in PARENTS if key != "parent_linkage")

    assert References("vhdx", names) == of_bytes(bytes(vhdx_child(PARENTS)))


def test_the_second_region_table_of_a_vhdx_counts_when_the_first_is_broken() -> None:
    content = vhdx_child(PARENTS)
    content[256 * KIB : 320 * KIB] = content[192 * KIB : 256 * KIB]
    content[192 * KIB : 192 * KIB + 4] = b"oops"

    assert 3 == len(of_bytes(bytes(content)).names)


def test_a_differencing_vhdx_that_cannot_be_believed_is_reported() -> None:
    nameless = "it has a parent and does not name it"

    assert nameless == of_bytes(bytes(vhdx_child(PARENTS[:1]))).malformed
    assert nameless == of_bytes(bytes(vhdx_child(PARENTS, count=0))).malformed
    assert nameless == of_bytes(corpus.bare_vhdx(flags=2)).malformed
    assert 3 == len(of_bytes(bytes(vhdx_child(PARENTS, count=65535))).names)
    assert "its metadata table is not one" == of_bytes(corpus.bare_vhdx(metadata_at=MIB)[:MIB]).malformed
    assert "its region table is not one, or names no metadata" == of_bytes(corpus.bare_vhdx()[: 192 * KIB]).malformed


@needs_qemu_img
@pytest.mark.parametrize(
    ("kind", "format"), [("vpc", "vpc"), ("vhdx", "vhdx"), ("vdi", "vdi"), ("raw", None), ("parallels", None)]
)
def test_an_image_of_a_format_without_a_backing_file_names_nothing(kind: str, format: str | None, tmp_path: Path) -> None:  # noqa: A002
    assert References(format) == references(make(tmp_path / "disk", kind))


@needs_qemu_img
@pytest.mark.parametrize(("at", "value"), [(76, struct.pack("<I", 4)), (76, struct.pack("<I", 3)), (0x1B8, b"parent")])
def test_a_differencing_vdi_is_reported(at: int, value: bytes, tmp_path: Path) -> None:
    disk = corpus.patched(make(tmp_path / "disk", "vdi"), (at, value))

    assert References("vdi", malformed="differencing") == references(disk)
    assert References("vdi", malformed="it is cut short") == of_bytes(disk.read_bytes()[:300])


# -------------------------------------------------------------------------------------------------------------------------- raw


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Q",
        b"QFI",
        bytes(MIB),
        corpus.mbr_disk(),
        corpus.gpt_disk(hybrid=True),
        corpus.fat_disk(),
        corpus.iso_disk(),
        corpus.luks(),
        corpus.noise(8192),
        corpus.prose(8192),
        b"conected to nothing",
        b"vhdxpert",
        b"#!/bin/sh\necho version=1\n",
    ],
)
def test_what_has_no_header_that_we_know_is_raw(content: bytes) -> None:
    assert NOTHING is of_bytes(content)


def test_what_cannot_be_read_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        references(tmp_path)
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with pytest.raises(OSError, match="Illegal seek"):
            read_references(reading)
    finally:
        os.close(reading)


# --------------------------------------------------------------------------------------------------------- what a name may mean

HERE = "/var/instances/1"


def sure(name: str) -> set[str]:
    return {target.path for target in targets(name, directory=HERE) if target.sure}


def unsure(name: str) -> set[str]:
    return {target.path for target in targets(name, directory=HERE) if not target.sure}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/base/0123", "/base/0123"),
        ("base", f"{HERE}/base"),
        ("../_base/0123", f"{HERE}/../_base/0123"),
        ("./a//b/../c", f"{HERE}/./a//b/../c"),
        ("//base//0123", "//base//0123"),
        ("/a/../b", "/a/../b"),
        ("./nbd:base", f"{HERE}/./nbd:base"),
        ("sub/a:b", f"{HERE}/sub/a:b"),
        ("/a\\b", "/a\\b"),
        (" base ", f"{HERE}/ base "),
        ("base\n", f"{HERE}/base\n"),
        ("base\0\0junk", f"{HERE}/base"),
        ("file:/base/0123", "/base/0123"),
        ("file:///base/0123", "///base/0123"),
        ("host_device:/dev/vg/base", "/dev/vg/base"),
    ],
)
def test_a_plain_name_means_one_file_for_sure(name: str, path: str) -> None:
    assert {path} == sure(name)


@pytest.mark.parametrize("name", ["", "\0", "\0base"])
def test_an_empty_name_means_nothing(name: str) -> None:
    assert [] == targets(name, directory=HERE)


@pytest.mark.parametrize(
    "name",
    [
        "nbd:localhost:10809:exportname=/base/0123",
        "nbd:unix:/run/nbd.sock",
        "nbd://host/base",
        "nbd+tcp://host/base",
        "nbd+unix:///base?socket=/run/nbd.sock",
        "rbd:pool/image:conf=/etc/ceph/ceph.conf",
        "http://host/base",
        "https://host/base",
        "ftp://host/base",
        "ftps://host/base",
        "ssh://host/base",
        "iscsi://host/iqn/1",
        "iser://host/iqn/1",
        "nfs://host/base",
        "gluster://host/volume/base",
        "gluster+tcp://host/volume/base",
        "gluster+unix:///volume/base?socket=/run/gluster.sock",
        "sheepdog:base",
        "sheepdog+unix:///base?socket=/run/sheep",
        "vxhs://host/base",
        "nvme://0000:01:00.0/1",
        "null-co://",
        'json:{"driver":"nbd","server":{"type":"unix","path":"/run/nbd.sock"}}',
        'json:{"driver":"raw","file":{"driver":"nbd","path":"/run/nbd.sock","filename":"/base"}}',
        'json:{"driver":"raw","file.driver":"nbd","file.server.path":"/run/nbd.sock"}',
        'json:{"driver":"qcow2","file":{"driver":"rbd","pool":"p","image":"i","conf":"/etc/ceph/ceph.conf"}}',
        'json:{"file.driver":"https","file.url":"https://host/base","file.filename":"https://host/base"}',
        'json:{"driver":"gluster","volume":"v","path":"/base","server":[{"type":"tcp","host":"h"}]}',
    ],
)
def test_a_remote_name_means_no_local_file(name: str) -> None:
    assert [] == targets(name, directory=HERE)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("blkdebug::/base/0123", {"/base/0123"}),
        ("blkdebug:/etc/rules:/base/0123", {"/base/0123", "/etc/rules"}),
        ("blkdebug::base", {f"{HERE}/base"}),
        ("blkdebug::/base/with:colon", {"/base/with:colon"}),
        ("blkverify:/base/raw:/base/test", {"/base/raw", "/base/test"}),
        ("fat:rw:/base", {"/base"}),
        ("10:30 disk", {f"{HERE}/10:30 disk"}),
        ("HTTP:base", {f"{HERE}/HTTP:base", f"{HERE}/base"}),
        ("quorum:/base", {"/base", f"{HERE}/quorum:/base"}),
        (":/base", {"/base"}),
        ("a:" * 1000 + "/base", {"/base"}),
        ("file:base", {f"{HERE}/base"}),
        ("file://./base", {f"{HERE}/base"}),
        ("file://localhost/srv/a%20b", {"/srv/a b", "/srv/a%20b"}),
        ("file://localhost/srv/caf%E9", {os.fsdecode(b"/srv/caf\xe9")}),
        ("base\\0123", {f"{HERE}/base\\0123", f"{HERE}/0123", f"{HERE}/base/0123"}),
        (".\\base.vhdx", {f"{HERE}/base.vhdx"}),
        ("..\\base\\base.vhdx", {f"{HERE}/../base/base.vhdx", f"{HERE}/base.vhdx"}),
        ("C:\\images\\base.vhdx", {f"{HERE}/base.vhdx"}),
        ("\\\\?\\Volume{26a21bda}\\images\\base.vhdx", {f"{HERE}/base.vhdx"}),
        ("\\\\server\\share\\base.vmdk", {f"{HERE}/base.vmdk"}),
    ],
)
def test_a_name_of_unknown_meaning_may_mean_each_of_several_files_and_none_for_sure(name: str, paths: set[str]) -> None:
    assert paths <= unsure(name)
    assert set() == sure(name)


@pytest.mark.parametrize(
    "text",
    [
        '{"driver":"qcow2","file":{"driver":"file","filename":"/base/0123"}}',
        '{"file.filename":"/base/0123"}',
        '{"driver":"raw","file.driver":"file","file.filename":"/base/0123"}',
        "{'driver':'raw','file':{'driver':'file','filename':'/base/0123'}}",
        '{"driver":"file","filename":"/base/0123"}',
        '{"driver":"qcow2","file":{"driver":"nbd","host":"h"},"backing":{"driver":"raw","file":{"driver":"file","filename":"/base/0123"}}}',
        '{"driver":"qcow2","file":{"driver":"nbd"},"data-file":{"driver":"file","filename":"/base/0123"}}',
        '{"backing.backing.file.filename":"/base/0123"}',
        '{"driver":"quorum","children":[{"driver":"nbd"},{"driver":"raw","file":{"filename":"/base/0123"}}]}',
        '{"driver":"quorum","children.0.driver":"nbd","children.1.file.filename":"/base/0123"}',
        '{"driver":"blkverify","raw":{"driver":"nbd"},"test":{"driver":"file","filename":"/base/0123"}}',
        '{"driver":"raw","offset":512,"size":null,"file":{"driver":"host_device","filename":"/base/0123"}}',
        '{"driver":"file","driver":"nbd","filename":"/base/0123"}',
        '{"filename":"\\/base\\/0123"}',
        ' {"filename" : "\\u002fbase/0123"} ',
    ],
)
def test_each_local_file_in_json_is_meant_for_sure(text: str) -> None:
    assert {"/base/0123"} == sure(f"json:{text}")


def test_all_local_files_in_json_are_found() -> None:
    nodes = [{"driver": "file", "filename": f"/base/{index}"} for index in range(3)]
    tree = {"driver": "qcow2", "file": nodes[0], "backing": {"driver": "qcow2", "file": nodes[1], "data-file": nodes[2]}}

    assert {"/base/0", "/base/1", "/base/2"} == sure(f"json:{json.dumps(tree)}")


def test_a_relative_file_in_json_is_relative_to_nobody_knows_what() -> None:
    assert [Target(f"{HERE}/base", sure=False)] == targets('json:{"file.filename":"base"}', directory=HERE)


@pytest.mark.parametrize(
    "text",
    [
        '{"file":{"filename":"/base/0123"}',
        '{"filename":"/base/0123',
        "{filename:/base/0123}",
        "/base/0123",
        '"]}{"/base/0123"',
        '{"a":' * 200 + '"/base/0123"' + "}" * 200,
        '{"a.' + "a." * 200 + 'filename":"/base/0123"}',
    ],
)
def test_of_json_that_cannot_be_read_the_file_name_is_kept(text: str) -> None:
    found = targets(f"json:{text}", directory=HERE)

    assert {"0123"} <= {os.path.basename(target.path) for target in found}
    assert not any(target.sure for target in found)


@pytest.mark.parametrize(
    "name", ['json:{"filename":"/base\\u0000/x"}', 'json:{"filename":"/\\ud800"}', "json:", "json:[]", "json:7"]
)
def test_a_path_that_no_file_can_have_is_left_out(name: str) -> None:
    assert [] == targets(name, directory=HERE)


# -------------------------------------------------------------------------------------------------------------- what QEMU opens


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A cache, an instance, a symlink to a directory elsewhere, and a directory to run tools in."""
    for directory in ("_base", "instance", "elsewhere", "far/away"):
        (tmp_path / directory).mkdir(parents=True)
    corpus.raw(tmp_path / "_base/image", MIB)
    corpus.raw(tmp_path / "instance/image", MIB)
    corpus.raw(tmp_path / "far/image", MIB)
    corpus.raw(tmp_path / "instance/odd\\name:1", MIB)
    (tmp_path / "instance/link").symlink_to(tmp_path / "far/away")
    return tmp_path


@needs_qemu_img
@pytest.mark.parametrize(
    "name",
    [
        "image",
        "./image",
        "../_base/image",
        "..//_base/./image",
        "link/../image",
        "{scene}/_base/image",
        "/{scene}/instance/../_base/image",
        "{scene}/instance/link/../image",
        "./odd\\name:1",
        "file:{scene}/_base/image",
        "file:///{scene}/_base/image",
        'json:{{"driver":"raw","file":{{"driver":"file","filename":"{scene}/_base/image"}}}}',
        'json:{{"driver":"raw","file.driver":"file","file.filename":"{scene}/instance/link/../image"}}',
        "json:{{'driver':'raw','file.filename':'{scene}/_base/image'}}",
        'json:{{"driver":"raw","file":{{"driver":"raw","file":{{"driver":"file","filename":"{scene}/_base/image"}}}}}}',
    ],
)
@pytest.mark.parametrize("kind", ["qcow2", "qed"])
def test_a_name_means_the_file_that_qemu_opens(name: str, kind: str, scene: Path) -> None:
    overlay = make(scene / "instance/disk", kind, name.format(scene=scene))
    (recorded,) = references(overlay).names

    opened = opened_by_qemu(overlay, kind, cwd=scene / "elsewhere")

    meant = targets(recorded, directory=str(overlay.parent))
    assert any(os.path.samefile(opened, target.path) for target in meant)
    assert "\\" in name or all(os.path.samefile(opened, target.path) for target in meant if target.sure)


def opened_by_qemu(overlay: Path, kind: str, *, cwd: Path) -> str:
    """The file at the end of a chain, absolute."""
    filename = told(overlay, kind, "--backing-chain", cwd=cwd)[-1]["filename"]
    assert isinstance(filename, str)
    if filename.startswith("json:"):
        filename = filename.rpartition('"filename": "')[2].partition('"')[0]
    return os.path.join(cwd, filename)


@needs_qemu_img
def test_json_in_single_quotes_is_read_as_qemu_reads_it(scene: Path) -> None:
    base = corpus.raw(scene / 'it\'s "one" caf\u00e9', MIB)
    quoted = str(base).replace("'", "\\'").replace("\u00e9", "\\u00e9")
    name = f"json:{{'driver':'raw','file':{{'driver':'file','filename':'{quoted}'}}}}"
    overlay = make(scene / "instance/disk", "qcow2", name)

    assert [Target(str(base), sure=True)] == targets(name, directory=str(overlay.parent))
    assert 2 == len(told(overlay, "qcow2", "--backing-chain"))
    base.unlink()
    with pytest.raises(subprocess.CalledProcessError):
        told(overlay, "qcow2", "--backing-chain")


@needs_qemu_img
@pytest.mark.parametrize("name", ["file:image", 'json:{"driver":"raw","file.driver":"file","file.filename":"image"}'])
def test_a_name_that_qemu_looks_for_where_it_runs_is_not_sure(name: str, scene: Path) -> None:
    overlay = make(scene / "instance/disk", "qcow2", name)

    assert [Target(f"{scene}/instance/image", sure=False)] == targets(name, directory=str(overlay.parent))
    assert os.path.samefile(scene / "instance/image", opened_by_qemu(overlay, "qcow2", cwd=scene / "instance"))
    assert os.path.samefile(scene / "_base/image", opened_by_qemu(overlay, "qcow2", cwd=scene / "_base"))


@needs_qemu_img
def test_a_chain_through_every_format_is_the_chain_that_qemu_walks(scene: Path) -> None:
    lowest = scene / "_base/image"
    make(scene / "_base/one", "qcow", "image")
    make(scene / "far/two", "qed", "../_base/one", backing_format="qcow")
    make(scene / "far/away/three", "qcow2", f"{scene}/far/two", backing_format="qed", options="compat=0.10")
    top = make(scene / "instance/disk", "qcow2", "link/three", backing_format="qcow2")

    walked = [str(top)]
    while names := references(walked[-1]).names:
        (target,) = targets(names[0], directory=os.path.dirname(walked[-1]))
        assert target.sure
        walked.append(target.path)

    told_by_qemu = [str(image["filename"]) for image in told(top, "qcow2", "--backing-chain", cwd=scene / "elsewhere")]
    assert told_by_qemu == walked
    assert os.path.samefile(lowest, walked[-1])


@needs_qemu_io
def test_a_data_file_is_the_file_that_qemu_opens(scene: Path) -> None:
    content = scene / "far/content.raw"
    disk = make(scene / "instance/disk", "qcow2", options=f"data_file={content}")
    argv = ["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", os.fspath(disk)]

    [target] = targets(references(disk).names[0], directory=str(disk.parent))
    assert Target(str(content), sure=True) == target
    subprocess.run(argv, check=True, capture_output=True)
    os.unlink(target.path)
    assert 0 != subprocess.run(argv, check=False, capture_output=True).returncode


def test_the_first_read_is_one_page() -> None:
    assert 4096 == backing.BEGINNING
