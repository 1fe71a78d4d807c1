"""Writing qcow2: what we write is what ``qemu-img create`` writes, to every reader that there is."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import corpus
from corpus import GIB, KIB, MIB, TIB
from machine import qemu_img_json
from underlay.errors import BackingPathTooLong, InvalidSize
from underlay.files import allocated_bytes
from underlay.formats import qcow2
from underlay.formats.qcow2.write import plan_overlay

PIB = 1 << 50
CLUSTERS = [512, 4 * KIB, 64 * KIB, 2 * MIB]
pytestmark = pytest.mark.component("qemu-img")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return corpus.raw(tmp_path / "base", 4 * MIB, [(0, b"a bootloader"), (2 * MIB, b"a file")])


def peer(path: Path, *, backing: Path, backing_format: str, size: int, cluster_bytes: int) -> Path:
    """The same by qemu-img."""
    options = f"cluster_size={cluster_bytes}"
    corpus.qemu_img("create", "-f", "qcow2", "-o", options, "-b", backing, "-F", backing_format, path, str(size))
    return path


def seen(path: Path) -> dict[str, Any]:
    """All that qemu-img says of an image but how much room it takes."""
    info, check = qemu_img_json("info", "-f", "qcow2", path), qemu_img_json("check", "-f", "qcow2", path)
    found = {"info": info, "check": check, "map": qemu_img_json("map", "-f", "qcow2", path)}
    for part in (info, check):
        part.pop("filename")
    info.pop("actual-size")
    info.pop("children", None)  # QEMU 8.1 and later
    return found


@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
@pytest.mark.parametrize("cluster_bytes", CLUSTERS)
@pytest.mark.parametrize("size", [4 * MIB, 4 * MIB + 1, 20 * GIB])
def test_an_overlay_is_to_qemu_img_what_its_own_is(tmp_path: Path, size: int, cluster_bytes: int, backing_format: str) -> None:
    base = corpus.small(tmp_path / "base", backing_format)
    what = {"backing": base, "backing_format": backing_format, "size": size, "cluster_bytes": cluster_bytes}

    ours, theirs = corpus.overlay(tmp_path / "ours", **what), peer(tmp_path / "theirs", **what)  # type: ignore[arg-type]

    found, expected = seen(ours), seen(theirs)
    if plan_overlay(size, cluster_bytes=cluster_bytes).block_clusters > 1:  # qemu-img moved tables that became too small
        assert found["check"].pop("image-end-offset") <= expected["check"].pop("image-end-offset")
    assert expected == found


@pytest.mark.parametrize("size", [0, 512, 20 * GIB, 64 * TIB, 2 * PIB])
def test_the_header_is_qemu_imgs_but_for_the_names_of_features(tmp_path: Path, base: Path, size: int) -> None:
    what = {"backing": base, "backing_format": "raw", "size": size}
    ours, theirs = corpus.overlay(tmp_path / "ours", **what), tmp_path / "theirs"  # type: ignore[arg-type]
    corpus.qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", theirs, str(size))

    found, expected = ours.read_bytes()[: 64 * KIB], theirs.read_bytes()[: 64 * KIB]

    names = expected.index(b"\x68\x03\xf8\x57")  # the optional feature name table, which only moves the backing file's name
    length = 8 + int.from_bytes(expected[names + 4 : names + 8], "big")
    without = expected[:names] + expected[names + length :]
    moved = (int.from_bytes(expected[8:16], "big") - length).to_bytes(8, "big")
    assert (without[:8] + moved + without[16:]).rstrip(b"\0") == found.rstrip(b"\0")


def test_our_own_reader_finds_what_was_written(tmp_path: Path, base: Path) -> None:
    overlay = corpus.overlay(tmp_path / "disk", backing=base, backing_format="raw", size=20 * GIB, cluster_bytes=4 * KIB)

    beginning = overlay.read_bytes()[: qcow2.HEADER_BYTES]
    header = qcow2.parse_header(beginning)

    assert (3, 20 * GIB, 4 * KIB) == (header.version, header.size, header.cluster_bytes)
    assert os.fspath(base) == qcow2.backing_name(beginning, header)
    assert ((0xE2792ACA, 3),) == header.extensions
    with overlay.open("rb") as file:
        assert 0 == qcow2.mapped_bytes(file.fileno(), header)


def test_an_overlay_is_whole_clusters_and_takes_three_blocks(tmp_path: Path, base: Path) -> None:
    overlay = corpus.overlay(tmp_path / "disk", backing=base, backing_format="raw", size=64 * TIB)

    status = overlay.stat()
    assert 0 == status.st_size % (64 * KIB)
    assert allocated_bytes(status) <= 3 * 4 * KIB


@pytest.mark.component("qemu-io")
@pytest.mark.parametrize("cluster_bytes", CLUSTERS)
@pytest.mark.parametrize("size", [8 * MIB, 100 * GIB])
def test_a_guest_reads_the_base_and_writes_to_the_overlay(tmp_path: Path, base: Path, size: int, cluster_bytes: int) -> None:
    content = base.read_bytes()
    what = {"backing": base, "backing_format": "raw", "size": size, "cluster_bytes": cluster_bytes}
    overlay = corpus.overlay(tmp_path / "disk", **what)  # type: ignore[arg-type]
    last = size - 64 * KIB

    corpus.qemu_io(
        overlay, "write -P 0xab 1M 3M", f"write -P 0xcd {last} 64k", "read -P 0xab 1M 3M",
        f"read -P 0xcd {last} 64k", "read -P 0 4M 1M",
    )  # fmt: skip

    assert 0 == qemu_img_json("check", "-f", "qcow2", overlay)["check-errors"]
    with overlay.open("rb") as file:
        mapped = qcow2.mapped_bytes(file.fileno(), qcow2.parse_header(file.read(qcow2.HEADER_BYTES)))
    assert 3 * MIB + 64 * KIB <= mapped <= 3 * MIB + 64 * KIB + 2 * cluster_bytes
    assert "a.bootloader" in corpus.qemu_io(overlay, "read -v 0 512")
    assert content == base.read_bytes()


def test_a_disk_of_ours_is_grown_and_committed_to_by_qemu_img(tmp_path: Path, base: Path) -> None:
    overlay = corpus.overlay(tmp_path / "disk", backing=base, backing_format="raw", size=8 * MIB)
    above = corpus.overlay(tmp_path / "above", backing=overlay, backing_format="qcow2", size=8 * MIB)
    corpus.qemu_io(above, "write -P 0xab 1M 64k")

    corpus.qemu_img("commit", "-q", "-f", "qcow2", "-d", above)
    corpus.qemu_img("resize", "-q", "-f", "qcow2", overlay, str(TIB))

    corpus.qemu_io(overlay, "read -P 0xab 1M 64k")
    assert TIB == qemu_img_json("info", "-f", "qcow2", overlay)["virtual-size"]
    assert 0 == qemu_img_json("check", "-f", "qcow2", overlay)["check-errors"]


@pytest.mark.parametrize(("cluster_bytes", "largest"), [(512, 128 * GIB), (4 * KIB, 8 * TIB), (64 * KIB, 2 * PIB)])
def test_the_largest_disk_is_qemu_imgs_and_a_larger_one_is_refused(
    tmp_path: Path, base: Path, cluster_bytes: int, largest: int
) -> None:
    what = {"backing": base, "backing_format": "raw", "cluster_bytes": cluster_bytes}

    overlay = corpus.overlay(tmp_path / "largest", size=largest, **what)  # type: ignore[arg-type]

    assert largest == qemu_img_json("info", "-f", "qcow2", overlay)["virtual-size"]
    assert 0 == qemu_img_json("check", "-f", "qcow2", overlay)["check-errors"]
    with pytest.raises(InvalidSize, match=f"{cluster_bytes} bytes cannot have {largest + 512} bytes") as refused:
        corpus.overlay(tmp_path / "larger", size=largest + 1, **what)  # type: ignore[arg-type]
    assert str(largest) in str(refused.value.hint)
    with pytest.raises(subprocess.CalledProcessError):
        peer(tmp_path / "theirs", size=largest + 1, **what)  # type: ignore[arg-type]


@pytest.mark.parametrize("cluster_bytes", [0, 256, 3000, 4 * MIB])
def test_clusters_that_qcow2_has_not_are_refused(tmp_path: Path, base: Path, cluster_bytes: int) -> None:
    with pytest.raises(InvalidSize, match=f"no clusters of {cluster_bytes} bytes"):
        corpus.overlay(tmp_path / "disk", backing=base, backing_format="raw", size=GIB, cluster_bytes=cluster_bytes)

    assert b"" == (tmp_path / "disk").read_bytes()


@pytest.mark.parametrize(("cluster_bytes", "longest"), [(512, 512 - 112 - 16 - 8), (64 * KIB, 1023)])
def test_the_longest_name_of_a_backing_file_fits_the_first_cluster(tmp_path: Path, cluster_bytes: int, longest: int) -> None:
    what = {"backing_format": "raw", "size": MIB, "cluster_bytes": cluster_bytes}
    name = Path("/" + (longest - 1) * "n")

    overlay = corpus.overlay(tmp_path / "disk", backing=name, **what)  # type: ignore[arg-type]

    assert os.fspath(name) == qemu_img_json("info", "-f", "qcow2", overlay)["backing-filename"]
    with pytest.raises(BackingPathTooLong, match=f"{longest + 1} bytes, a qcow2 header takes {longest}"):
        corpus.overlay(tmp_path / "longer", backing=Path(f"{name}n"), **what)  # type: ignore[arg-type]


def test_a_name_that_is_no_text_is_kept_byte_for_byte(tmp_path: Path) -> None:
    base = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xc3\xa9: b,=%d"))
    base.write_bytes(bytes(MIB))

    overlay = corpus.overlay(tmp_path / "disk", backing=base, backing_format="raw", size=MIB)

    beginning = overlay.read_bytes()
    assert os.fspath(base) == qcow2.backing_name(beginning, qcow2.parse_header(beginning))
    corpus.qemu_img("compare", "-f", "qcow2", "-F", "raw", overlay, base)
