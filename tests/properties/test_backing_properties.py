"""References of any bytes and targets of any name: an answer, quickly, and never less than a careful reader finds."""

import contextlib
import json
import os
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

import corpus
import strategies
from corpus import KIB, MIB
from underlay.errors import UnsafeImage
from underlay.formats import qcow2
from underlay.formats.backing import NOTHING, References, read_references, targets

LONG = 20.0  # seconds; what is bounded takes milliseconds
HERE = "/var/instances/1"
NAMES = st.binary(min_size=1, max_size=1023).filter(lambda name: 0 not in name)
SEEDS = [
    corpus.vmdk_sparse(corpus.vmdk_descriptor(more=['parentFileNameHint="base.vmdk"'], parent_cid="12345678")),
    corpus.vmdk_descriptor(create_type="monolithicFlat", extents=['RW 2048 FLAT "content" 0'] * 40),
    corpus.bare_vhdx(flags=2, items=[corpus.VHDX_PARENT_LOCATOR])[: MIB + 80 * KIB],
    corpus.vhd_footer(size=MIB, disk_type=corpus.VHD_DIFFERENCING)[:16]
    + corpus.u64(512)
    + corpus.vhd_footer(size=MIB, disk_type=corpus.VHD_DIFFERENCING)[24:]
    + b"cxsparse".ljust(64, b"\0")
    + "parent.vhd".encode("utf-16-be").ljust(512, b"\0")
    + (struct.pack(">4sIIIQ", b"W2ku", 512, 20, 0, 512) * 8).ljust(448, b"\0"),
    struct.pack("<4sIIIQ32xII", b"QED\0", 4096, 4, 1, 1, 64, 9) + b"base.qed!" + bytes(4096),
    struct.pack("<4sIIIIIII", b"COWD", 1, 3, 2048, 1, 4, 1, 5) + b"base.vmdk".ljust(2000, b"\0"),
    struct.pack(">4sIQI", b"QFI\xfb", 1, 48, 9) + bytes(28) + b"base.qcow",
    bytes(64) + b"\x7f\x10\xda\xbe" + bytes(500),
    struct.pack(">4sIQIIQ", qcow2.MAGIC, 3, 200, 11, 16, MIB).ljust(72, b"\0")
    + struct.pack(">QQQIIQ", qcow2.INCOMPATIBLE_DATA_FILE, 0, 0, 4, 112, 0)
    + (struct.pack(">II", 0x44415441, 12) + b"content.raw!").ljust(88, b"\0")
    + b"base.qcow2!" * 2,
]


def of_bytes(content: bytes) -> References:
    fd = os.memfd_create("disk")
    try:
        os.write(fd, content)
        return read_references(fd)
    finally:
        os.close(fd)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A header of some format with bytes changed, cut short perhaps."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    interesting = [*range(min(len(content), 128)), *range(192 * KIB, 192 * KIB + 64), *range(MIB, MIB + 160)]
    places = st.sampled_from([place for place in interesting if place < len(content)]) | st.integers(0, len(content) - 1)
    for place in draw(st.lists(places, max_size=8)):
        piece = draw(
            st.sampled_from([b"\0", b"\xff", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 8]) | st.binary(min_size=1, max_size=8)
        )
        content[place : place + len(piece)] = piece
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


@given(st.one_of(spoiled(), strategies.images(), st.binary(max_size=300)))
def test_any_bytes_are_answered_soon(content: bytes) -> None:
    started = time.monotonic()

    found = of_bytes(content)

    assert time.monotonic() - started < LONG
    assert all(found.names)
    assert len(set(found.names)) == len(found.names)
    assert sum(map(len, found.names)) <= 2 * len(content)
    if found.format is None:
        assert found is NOTHING


@given(st.one_of(spoiled(), strategies.images()))
def test_what_bytes_name_can_be_looked_up(content: bytes) -> None:
    for name in of_bytes(content).names:
        check_targets(name)


def check_targets(name: str) -> None:
    started = time.monotonic()
    found = targets(name, directory=HERE)
    assert time.monotonic() - started < LONG
    for target in found:
        assert target.path.startswith("/")
        with contextlib.suppress(OSError):
            os.lstat(target.path)
    assert len({target.path for target in found}) == len(found)


WORDS = st.sampled_from(
    [
        "json:",
        "file:",
        "nbd:",
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        ":",
        ",",
        "\\",
        "/",
        "filename",
        "driver",
        ".",
        "..",
        "%41",
        "\0",
        "\ud800",
        "\\u0000",
    ]
)


@given(st.lists(WORDS | st.text(max_size=5), max_size=60).map("".join) | st.text(max_size=300))
@example("json:" + "[" * 4000)
@example("json:" + '{"a":' * 1000)
@example('json:{"' + "a." * 1000 + '":["/x"' + ',"/x"' * 500 + "]}")
@example('json:{"driver":"nbd"' + ',"a":{"driver":"nbd","filename":"/x"}' * 90 + "}")
@example("json:" + '"' * 4000)
@example("json:" + "'\"" * 2000)
@example("json:" + "1" * 4000)
@example(":" * 4000)
@example("a:" * 2000)
@example("file:" + "/" * 4000)
@example("\\" * 4000)
def test_any_name_is_answered_soon_with_paths_that_the_system_takes(name: str) -> None:
    check_targets(name)


@given(
    st.lists(
        st.sampled_from('\n\t\r "=aRW1#/') | st.sampled_from(["parentFileNameHint", "parentCID", 'RW 1 FLAT "']),
        min_size=1,
        max_size=6,
    )
)
def test_a_long_descriptor_of_repeated_text_is_answered_soon(words: list[str]) -> None:
    piece = "".join(words).encode()
    started = time.monotonic()

    assert "vmdk" == of_bytes(b"# Disk DescriptorFile\n" + piece * (70_000 // len(piece))).format
    assert time.monotonic() - started < LONG


@given(
    name=NAMES,
    version=st.sampled_from([2, 3]),
    bits=st.integers(9, 21),
    offset=st.integers(104, 2 * MIB),
)
def test_a_qcow2s_backing_file_is_read_wherever_it_may_stand(name: bytes, version: int, bits: int, offset: int) -> None:
    offset = min(offset, (1 << bits) - len(name))
    if offset < 104:
        return
    head = struct.pack(">4sIQIIQ", qcow2.MAGIC, version, offset, len(name), bits, MIB).ljust(96, b"\0") + struct.pack(
        ">II", 4, 104
    )

    assert References("qcow2", (os.fsdecode(name),)) == of_bytes(head.ljust(offset, b"\0") + name)


@given(st.one_of(strategies.qcow2_headers(), spoiled()))
def test_a_qcow2_names_what_the_careful_reader_finds(content: bytes) -> None:
    try:
        header = qcow2.parse_header(content)
        name = qcow2.backing_name(content, header)
    except UnsafeImage:
        return

    found = of_bytes(content)

    if name is not None:
        assert name == found.names[-1]
    elif not header.incompatible & qcow2.INCOMPATIBLE_DATA_FILE:
        assert () == found.names


@pytest.mark.component("qemu-img")
@settings(max_examples=60)
@given(
    st.text(st.sampled_from("ab./:\\%\"'{}, é\n"), min_size=1, max_size=12).filter(lambda name: not name.startswith("json:"))
)
@example("file:/a")
@example("/a:b")
@example("./a:b")
@example("a/b:c")
@example("..")
@example("//a")
def test_what_qemu_makes_of_a_name_is_among_its_targets(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        overlay = Path(directory) / "disk"
        encoded = os.fsencode(name)
        corpus.create(overlay, "qcow2", MIB)
        corpus.patched(overlay, (corpus.QCOW2_BACKING_OFFSET, corpus.u64(1024) + corpus.u32(len(encoded))), (1024, encoded))
        argv = ["qemu-img", "info", "--output", "json", "-f", "qcow2", os.fspath(overlay)]
        told = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)

        resolved = told.get("full-backing-filename", told["backing-filename"])

        assert (name,) == references_of(overlay).names
        found = {target.path for target in targets(name, directory=directory)}
        if resolved.startswith("/"):
            assert resolved in found
        else:
            assert f"{directory}/{name}" in found or resolved.startswith("file:")


def references_of(path: Path) -> References:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_references(fd)
    finally:
        os.close(fd)


@given(st.data())
def test_every_local_file_of_a_description_is_found_and_no_remote_one(data: st.DataObject) -> None:
    local: list[str] = []
    tree = data.draw(nodes(local))
    text = json.dumps(tree, ensure_ascii=data.draw(st.booleans()))

    found = {target.path: target.sure for target in targets(f"json:{text}", directory=HERE)}

    assert dict.fromkeys(local, True) == {path: sure for path, sure in found.items() if sure}
    assert not [path for path in found if "remote" in path]


@st.composite
def nodes(draw: st.DrawFn, local: list[str], depth: int = 3) -> dict[str, object]:
    """A tree of block devices; the local files in it are put on a list."""
    kind = draw(st.sampled_from(["file", "remote", "nested", "nested"] if depth else ["file", "remote"]))
    if kind == "remote":
        return {"driver": draw(st.sampled_from(["nbd", "https", "rbd"])), "path": "/remote", "filename": "/remote"}
    if kind == "file":
        local.append(path := f"/base/{len(local)} é")
        return {"driver": "file", "filename": path}
    tree: dict[str, object] = {"driver": "qcow2"}
    for key in draw(st.sets(st.sampled_from(["file", "backing", "data-file"]), min_size=1)):
        child = draw(nodes(local, depth - 1))
        if draw(st.booleans()):
            tree |= {f"{key}.{inner}": value for inner, value in child.items()}
        else:
            tree[key] = child
    return tree
