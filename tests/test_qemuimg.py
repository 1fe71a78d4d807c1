"""qemu-img as we call it: what it says of real images, and that a name is never taken for an option or a protocol."""

import os
import subprocess
from pathlib import Path

import pytest

import corpus
from corpus import GIB, KIB, MIB
from underlay import qemuimg
from underlay.errors import ToolFailed, UnsafeImage

pytestmark = pytest.mark.component("qemu-img")


def test_an_image_is_looked_at(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", 5 * GIB)

    found = qemuimg.info(image, format="qcow2")

    assert qemuimg.ImageInfo(virtual_size=5 * GIB, backing=None, data_file=None, encrypted=False) == found


def test_the_format_is_said_and_never_guessed(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", 5 * GIB)

    assert -(-image.stat().st_size // 512) * 512 == qemuimg.info(image, format="raw").virtual_size
    with pytest.raises(ToolFailed):
        qemuimg.info(image, format="vdi")


def test_the_backing_chain_is_not_opened(tmp_path: Path) -> None:
    base = corpus.raw(tmp_path / "base", MIB)
    image = corpus.create(tmp_path / "image", "qcow2", MIB, backing=base)
    base.unlink()

    assert os.fspath(base) == qemuimg.info(image, format="qcow2").backing


@pytest.mark.component("qemu-io")
def test_an_image_that_qemu_has_open_can_be_looked_at(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB)
    argv = ["stdbuf", "-oL", "qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "sleep 20000", os.fspath(image)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            assert MIB == qemuimg.info(image, format="qcow2").virtual_size
            with pytest.raises(ToolFailed, match="Is another process using the image"):
                qemuimg.resize(image, format="qcow2", size=2 * MIB)
        finally:
            holder.kill()


@pytest.mark.parametrize("format", ["vmdk", "vdi", "vhdx", "qcow2"])
def test_an_image_that_stands_for_itself_passes(format: str, tmp_path: Path) -> None:  # noqa: A002
    image = corpus.small(tmp_path / "image", format)

    assert 3 * MIB == qemuimg.refuse_references(image, format=format).virtual_size


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "qed"])
def test_an_image_that_names_a_backing_file_is_refused(format: str, tmp_path: Path) -> None:  # noqa: A002
    base = corpus.small(tmp_path / "base", "vmdk")
    image = corpus.create(tmp_path / "image", format, 3 * MIB, backing=base)

    with pytest.raises(UnsafeImage, match=r"^https://x is refused by rule backing-file: it names the backing file '/"):
        qemuimg.refuse_references(image, format=format, what="https://x")


def test_an_image_that_names_a_data_file_is_refused(tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image", "qcow2", MIB, options=f"data_file={tmp_path / 'data'}")

    with pytest.raises(UnsafeImage, match=r"^the image is refused by rule data-file: it names the data file '/"):
        qemuimg.refuse_references(image, format="qcow2")


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_a_vmdk_that_names_other_files_is_refused(subformat: str, tmp_path: Path) -> None:
    image = corpus.create(tmp_path / "image.vmdk", "vmdk", MIB, options=f"subformat={subformat}")

    with pytest.raises(UnsafeImage, match=r"refused by rule vmdk-descriptor: it names the extent '"):
        qemuimg.refuse_references(image, format="vmdk")


def test_an_encrypted_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeImage, match="rule encrypted"):
        qemuimg.refuse_references(corpus.encrypted_qcow2(tmp_path / "image"), format="qcow2")


def test_no_image_is_a_failure_of_the_tool_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"^qemu-img failed \(status 1\): qemu-img: Could not open '.*': .*No such file"):
        qemuimg.info(tmp_path / "none", format="raw")


def test_an_image_is_made_raw_and_sparse(tmp_path: Path) -> None:
    disk = corpus.scattered(tmp_path / "disk")
    image = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=True)

    qemuimg.convert_to_raw(image, tmp_path / "raw", format="qcow2")

    assert disk.read_bytes() == (tmp_path / "raw").read_bytes()
    assert (tmp_path / "raw").stat().st_blocks * 512 < 3 * MIB


@pytest.mark.parametrize("name", ["-f", "a:b", "json:{}", "a,b=c", "ein Ärgernis", "nbd:x", "%d"])
def test_a_name_is_a_name(name: str, tmp_path: Path) -> None:
    base = corpus.raw(tmp_path / f"{name}.base", MIB, [(0, b"content")])

    corpus.overlay(tmp_path / name, backing=base, backing_format="raw", size=MIB)
    qemuimg.resize(tmp_path / name, format="qcow2", size=2 * MIB)
    qemuimg.convert_to_raw(tmp_path / name, tmp_path / f"{name}.raw", format="qcow2")

    assert os.fspath(base) == qemuimg.info(tmp_path / name, format="qcow2").backing
    assert b"content" == (tmp_path / f"{name}.raw").read_bytes()[:7]


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_disk_grows(format: str, tmp_path: Path) -> None:  # noqa: A002
    disk = corpus.small(tmp_path / "disk", format)

    qemuimg.resize(disk, format=format, size=10 * MIB)

    assert 10 * MIB == qemuimg.info(disk, format=format).virtual_size


def test_a_disk_never_shrinks(tmp_path: Path) -> None:
    disk = corpus.small(tmp_path / "disk", "raw")

    with pytest.raises(ToolFailed, match="Shrinking"):
        qemuimg.resize(disk, format="raw", size=64 * KIB)
    assert 3 * MIB == disk.stat().st_size
