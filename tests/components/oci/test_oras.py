"""Beside the real ORAS client: what it pushes is fetched, and what the other tests push is what it understands."""

from pathlib import Path

import pytest
from oras_environment import oras
from pushing import Pusher
from reading import fetch, ref_to

from corpus import noise
from underlay.errors import SourceRefused
from underlay.refs import parse_ref
from underlay.sources.oci.source import OciSource

pytest_plugins = ["registry_fixtures"]
pytestmark = pytest.mark.component("docker-registry", "oras")

DISK_BYTES = noise(200_000)


def target(pusher: Pusher) -> str:
    return ref_to(pusher).removeprefix("oci://")


@pytest.mark.parametrize("media_type", ["", ":application/x-qemu-disk"])
def test_what_oras_pushes_is_fetched(pusher: Pusher, source: OciSource, tmp_path: Path, media_type: str) -> None:
    (tmp_path / "disk.qcow2").write_bytes(DISK_BYTES)

    [digest] = oras("push", target(pusher), tmp_path, [f"disk.qcow2{media_type}"])

    assert ref_to(pusher, f"@{digest}") == source.describe(parse_ref(ref_to(pusher))).id
    assert DISK_BYTES == fetch(source, ref_to(pusher))


def test_of_several_files_that_oras_pushes_the_disk_is_fetched_and_each_has_its_title(
    pusher: Pusher, source: OciSource, tmp_path: Path
) -> None:
    (tmp_path / "disk.qcow2").write_bytes(DISK_BYTES)
    (tmp_path / "SHA256SUMS").write_bytes(b"some sums\n")

    oras("push", target(pusher), tmp_path, ["SHA256SUMS", "disk.qcow2"])

    assert DISK_BYTES == fetch(source, ref_to(pusher))
    assert b"some sums\n" == fetch(source, ref_to(pusher, ":1#SHA256SUMS"))


def test_a_directory_that_oras_pushes_is_refused(pusher: Pusher, source: OciSource, tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks" / "disk.qcow2").write_bytes(DISK_BYTES)

    oras("push", target(pusher), tmp_path, ["disks"])

    with pytest.raises(SourceRefused, match="its layer is a packed directory"):
        fetch(source, ref_to(pusher))


def test_oras_pulls_what_these_tests_push(pusher: Pusher, tmp_path: Path) -> None:
    pusher.artifact("1", DISK_BYTES, title="disk.qcow2")

    [path] = oras("pull", target(pusher), tmp_path)

    assert (tmp_path / "disk.qcow2", DISK_BYTES) == (tmp_path / Path(path).name, Path(tmp_path / path).read_bytes())
