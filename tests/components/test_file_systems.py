"""The main job on every file system that a host may have, and with the cache and the disks on two of them."""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from storing import MIB
from underlay.config import parse_config
from underlay.errors import DiskExists, DiskInUse, InsufficientSpace
from underlay.files import allocated_bytes
from underlay.filesystems import free_bytes
from underlay.host import Host
from underlay.store import images

Mounted = Callable[..., Path]
KINDS = ("ext4", "xfs", "btrfs", "tmpfs", "ramfs", "fuse2fs")
DATA = random.Random("underlay").randbytes(MIB)
HOLE = bytes(6 * MIB)
CONTENT = DATA + HOLE + DATA
pytestmark = [pytest.mark.component("root"), pytest.mark.component("qemu-img")]


def _kinds(*kinds: str) -> list[object]:
    return [pytest.param(kind, marks=pytest.mark.component(kind)) for kind in kinds]


def _host(tmp_path: Path, cache: Path, instances: Path, *, force_raw: bool = True) -> Host:
    """A host whose images are served from a directory of their own."""
    for directory in (cache, instances, tmp_path / "served"):
        directory.mkdir(exist_ok=True)
    text = f"""
        [instances]
        path = "{instances}"
        [caches.base]
        kind = "base"
        path = "{cache}"
        force_raw_images = {str(force_raw).lower()}
        [sources.file]
        allowed_paths = ["{tmp_path}/served"]
    """
    return Host.open(parse_config(text, origin=tmp_path / "underlay.toml"))


def _serve(tmp_path: Path, form: str) -> str:
    raw, path = tmp_path / "served/raw", tmp_path / "served" / form
    with raw.open("wb") as file:
        file.write(DATA)
        file.seek(len(HOLE), os.SEEK_CUR)
        file.write(DATA)
    if form != "raw":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, raw, path], check=True)
    return f"file://{path}"


def _guest_bytes(tmp_path: Path, disk: Path, disk_format: str) -> bytes:
    raw = tmp_path / "guest"
    subprocess.run(["qemu-img", "convert", "-f", disk_format, "-O", "raw", disk, raw], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("kind", _kinds(*KINDS))
def test_images_and_disks_are_made_on_it(tmp_path: Path, mounted: Mounted, kind: str, form: str) -> None:
    root = mounted(kind)
    host = _host(tmp_path, root / "cache", root / "instances")
    ref = _serve(tmp_path, form)
    image = host.ensure(ref)
    assert CONTENT == image.path.read_bytes()
    assert allocated_bytes(image.path.stat()) < 3 * MIB or kind == "ramfs"
    assert (kind == "ramfs") == (image.record is None)
    assert "revalidated" == host.fetch(ref).reason.code
    for backend, disk_format in (("flat", "raw"), ("qcow2", "qcow2")):
        disk = host.create_disk(f"with-{backend}", image, backend=backend, size=10 * MIB)
        if (kind, backend) == ("ramfs", "flat"):  # nothing says what a flat disk without attributes was made from
            with pytest.raises(DiskExists):
                host.create_disk(f"with-{backend}", image, backend=backend, size=10 * MIB)
        else:
            assert disk == host.create_disk(f"with-{backend}", image, backend=backend, size=10 * MIB)
        assert CONTENT + bytes(2 * MIB) == _guest_bytes(tmp_path, disk.path, disk_format)
        assert disk.allocated < 3 * MIB or kind == "ramfs"
        is_fuse = kind == "fuse2fs"  # which does not tell who has a file open
        if is_fuse:
            with pytest.raises(DiskInUse):
                host.remove_disk(f"with-{backend}")
        host.resize_disk(f"with-{backend}", 12 * MIB, assume_closed=is_fuse)
        host.remove_disk(f"with-{backend}", assume_closed=is_fuse)
    assert [] == host.disks()
    assert [image.name] == [found.name for found in host.images()[0]]


@pytest.mark.parametrize(
    ("cache", "instances"),
    [
        pytest.param(cache, instances, marks=[pytest.mark.component(cache), pytest.mark.component(instances)])
        for cache, instances in (("xfs", "ext4"), ("btrfs", "xfs"), ("tmpfs", "btrfs"), ("ext4", "tmpfs"), ("ramfs", "ext4"))
    ],
)
def test_a_disk_lies_on_another_file_system_than_its_image(
    tmp_path: Path, mounted: Mounted, cache: str, instances: str
) -> None:
    host = _host(tmp_path, mounted(cache) / "cache", mounted(instances) / "instances")
    image = host.ensure(_serve(tmp_path, "raw"))
    for backend, disk_format in (("flat", "raw"), ("qcow2", "qcow2")):
        disk = host.create_disk(f"with-{backend}", image, backend=backend)
        assert CONTENT == _guest_bytes(tmp_path, disk.path, disk_format)
        assert disk.allocated < 3 * MIB


@pytest.mark.parametrize("kind", _kinds("ext4", "xfs", "btrfs", "tmpfs"))
def test_an_image_for_which_there_is_no_room_leaves_nothing(tmp_path: Path, mounted: Mounted, kind: str) -> None:
    root = mounted(kind, 16 * MIB if kind == "tmpfs" else 320 * MIB)
    host = _host(tmp_path, root / "cache", root / "instances")
    ref = _serve(tmp_path, "raw")
    free = free_bytes(root)
    (tmp_path / "served/large").write_bytes(os.urandom(MIB))
    os.truncate(tmp_path / "served/large", free + 8 * MIB)
    with pytest.raises(InsufficientSpace) as caught:
        host.ensure(f"file://{tmp_path}/served/large")
    assert caught.value.needed is not None
    assert caught.value.needed > caught.value.free > 0
    assert [] == os.listdir(root / "cache/.underlay/tmp")
    assert CONTENT == host.ensure(ref).path.read_bytes()


@pytest.mark.parametrize("kind", _kinds("ramfs", "fuse2fs"))
def test_an_image_is_kept_as_served_where_it_is_not_forced_raw(tmp_path: Path, mounted: Mounted, kind: str) -> None:
    root = mounted(kind)
    host = _host(tmp_path, root / "cache", root / "instances", force_raw=False)
    ref = _serve(tmp_path, "qcow2")
    image = host.ensure(ref)
    assert ("qcow2", len(CONTENT)) == (image.format, image.virtual_size)
    assert image.path == host.ensure(ref).path
    disk = host.create_disk("instance", image)
    assert CONTENT == _guest_bytes(tmp_path, disk.path, "qcow2")
    assert image.name == images.images(host.parts.store_of(image))[0][0].name
