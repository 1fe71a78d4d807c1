"""File systems: which one a path lies on, what room it has, and what locks and leases on it are worth."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from underlay import filesystems
from underlay.filesystems import NETWORK_KINDS, FileSystem

Mounted = Callable[..., Path]


@pytest.mark.component("root", "ext4")
def test_what_the_file_system_keeps_back_for_root_is_not_free(mounted: Mounted) -> None:
    directory = mounted("ext4", 64 << 20)
    status = os.statvfs(directory)
    assert status.f_bfree > status.f_bavail
    assert status.f_bavail * status.f_frsize == filesystems.free_bytes(directory)


@pytest.mark.component("root", "ext4", "tmpfs")
def test_different_file_systems_have_different_keys(mounted: Mounted) -> None:
    paths = [mounted("ext4", 16 << 20), mounted("ext4", 16 << 20), mounted("tmpfs"), mounted("tmpfs")]
    found = [filesystems.file_system(path) for path in paths]
    assert 4 == len({system.key for system in found})
    assert ["ext4", "ext4", "tmpfs", "tmpfs"] == [system.kind for system in found]


@pytest.mark.component("root", "ext4")
def test_a_directory_a_file_and_a_descriptor_of_one_file_system_have_one_key(mounted: Mounted) -> None:
    root = mounted("ext4", 16 << 20)
    (root / "directory").mkdir()
    (root / "file").touch()
    with (root / "file").open("rb") as file:
        keys = {filesystems.file_system(target).key for target in (root, root / "directory", root / "file", file.fileno())}
    assert 1 == len(keys)


@pytest.mark.component("root", "ext4")
def test_a_bind_mount_has_the_key_of_what_it_shows(tmp_path: Path, mounted: Mounted) -> None:
    root, elsewhere = mounted("ext4", 16 << 20), tmp_path / "elsewhere"
    (root / "directory").mkdir()
    elsewhere.mkdir()
    with _mount("none", str(root / "directory"), elsewhere, "-o", "bind"):
        assert filesystems.file_system(root) == filesystems.file_system(elsewhere)


@pytest.mark.component("root", "btrfs")
def test_the_subvolumes_of_a_btrfs_have_one_key(tmp_path: Path, mounted: Mounted) -> None:
    root = mounted("btrfs")
    for name in ("one", "two"):
        subprocess.run(["btrfs", "-q", "subvolume", "create", root / name], check=True)
    assert 3 == len({os.stat(path).st_dev for path in (root, root / "one", root / "two")})
    device = filesystems.file_system(root).key.split()[-1]
    alone = tmp_path / "alone"
    alone.mkdir()
    with _mount("btrfs", device, alone, "-o", "subvol=two"):
        found = {filesystems.file_system(path).key for path in (root, root / "one", root / "two", alone)}
    assert 1 == len(found)
    assert "btrfs" == filesystems.file_system(root).kind


@pytest.mark.component("root", "btrfs")
def test_two_btrfs_have_two_keys(mounted: Mounted) -> None:
    assert filesystems.file_system(mounted("btrfs")).key != filesystems.file_system(mounted("btrfs")).key


@pytest.mark.component("root", "ext4")
def test_the_identity_of_a_file_system_is_its_own_as_far_as_the_kernel_tells(mounted: Mounted) -> None:
    first, second = (filesystems.file_system(mounted("ext4", 16 << 20)) for _ in range(2))
    assert first.uuid is None or first.uuid != second.uuid
    assert first.source != second.source
    assert "rw" in first.options


def test_a_mount_point_with_spaces_and_line_breaks_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a place\nwith\\odd \udcff name"
    path.mkdir()
    assert filesystems.file_system(tmp_path) == filesystems.file_system(path)


# ------------------------------------------------------------------------------------------------- shared by several hosts


def of_kind(kind: str, *options: str) -> FileSystem:
    return FileSystem(key="key", kind=kind, options=frozenset(options))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.ext4", "fuseblk"])
def test_a_local_file_system_is_not_shared(kind: str) -> None:
    assert not of_kind(kind).is_shared
    assert not of_kind(kind).locks_reach_other_hosts


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "ceph", "fuse.glusterfs", "gfs2", "ocfs2", "gpfs", "lustre"])
def test_locks_on_a_shared_file_system_reach_other_hosts(kind: str) -> None:
    assert of_kind(kind, "rw", "hard", "vers=4.2", "local_lock=none").is_shared
    assert of_kind(kind, "rw", "hard", "vers=4.2", "local_lock=none").locks_reach_other_hosts


@pytest.mark.parametrize("kind", ["9p", "virtiofs", "beegfs", "fuse.sshfs", "fuse.moosefs", "fuse.of-tomorrow", "vxfs", ""])
def test_locks_on_some_shared_file_systems_never_reach_other_hosts(kind: str) -> None:
    assert of_kind(kind, "rw").is_shared
    assert not of_kind(kind, "rw").locks_reach_other_hosts


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("nfs", "nolock"),
        ("nfs", "local_lock=all"),
        ("nfs4", "local_lock=posix"),
        ("cifs", "nobrl"),
        ("ocfs2", "localflocks"),
        ("lustre", "localflock"),
        ("lustre", "noflock"),
    ],
)
def test_an_option_makes_locks_local(kind: str, option: str) -> None:
    assert of_kind(kind, "rw", option).is_shared
    assert not of_kind(kind, "rw", option).locks_reach_other_hosts


def test_every_kind_that_hosts_share_is_shared() -> None:
    assert all(of_kind(kind).is_shared for kind in NETWORK_KINDS)


# --------------------------------------------------------------------------------------------------------------- for tests


@contextmanager
def _mount(kind: str, source: str, target: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *(() if kind == "none" else ("-t", kind)), *options, source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)
