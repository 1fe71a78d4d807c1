"""What root fetched is another user's to use: a member of the directory's group makes disks from it, anybody boots them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from storing import MIB
from underlay.config import Config, parse_config
from underlay.errors import CacheNotWritable, UnderlayError
from underlay.host import Host
from underlay.model import BaseImage
from underlay.naming import CacheKind
from underlay.store import roots
from underlay.testing import bootimage

GROUP = 4321  # of the directory; NOBODY's own is another
MESSAGE = "for another user"
pytestmark = pytest.mark.component("root", "qemu-img")


def _config(root: Path) -> Config:
    text = f"""
        [instances]
        path = "{root}/instances"
        [caches.base]
        kind = "base"
        path = "{root}/instances/_base"
        [sources.file]
        allowed_paths = ["{root}"]
    """
    return parse_config(text, origin=root / "underlay.toml")


@pytest.fixture
def root(open_directory: Path) -> Path:
    """Directories as an operator sets them up for a group: group-writable, their group kept."""
    for name in ("instances", "instances/_base", "elsewhere"):
        path = open_directory / name
        path.mkdir()
        os.chown(path, 0, GROUP)
        path.chmod(0o2775)
    bootimage.write_raw(open_directory / "image", size=MIB, message=MESSAGE)
    return open_directory


@pytest.fixture
def image(root: Path) -> BaseImage:
    before = os.umask(0o077)
    try:
        return Host.open(_config(root)).ensure(f"file://{root}/image")
    finally:
        os.umask(before)


def make_disks(root: str, image: str, backend: str) -> None:
    host = Host.open(_config(Path(root)))
    try:
        wanted = image if ":" in image else host.find(image)[0]
        inside = host.create_disk("inside", wanted, size=2 * MIB, backend=backend)
        outside = host.create_disk("outside", wanted, size=2 * MIB, backend=backend, path=Path(root) / "elsewhere/disk.img")
    except UnderlayError as error:
        tell(f"{type(error).__name__}: {error}")
    else:
        tell(f"{inside.path} {outside.path}")


@pytest.mark.parametrize("backend", ["qcow2", "flat"])
@pytest.mark.parametrize("by_ref", [False, True])
def test_a_member_of_the_group_makes_disks_from_what_root_fetched(
    root: Path,
    image: BaseImage,
    backend: str,
    by_ref: bool,  # noqa: FBT001
) -> None:
    wanted = f"file://{root}/image" if by_ref else image.name
    with start(make_disks, root, wanted, backend, user=NOBODY, groups=[GROUP], umask=0o077) as member:
        paths = [Path(path) for path in member.hear().split()]
    assert [root / "instances/inside/disk", root / "elsewhere/disk.img"] == paths
    for path in paths:
        assert (NOBODY, GROUP) == (path.stat().st_uid, path.stat().st_gid)
        info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", path]))
        assert 2 * MIB == info["virtual-size"]
    store = _config(root).caches["base"]
    assert [(image.name, root / "elsewhere/disk.img")] == roots.disks(store)
    assert {str(paths[0]): "raw" if backend == "flat" else "qcow2"} == json.loads((paths[0].parent / "disk.info").read_bytes())


@pytest.mark.component("leases")
def test_a_member_of_the_group_removes_its_disks(root: Path, image: BaseImage) -> None:
    with start(make_disks, root, image.name, "qcow2", user=NOBODY, groups=[GROUP], umask=0o077) as member:
        assert "elsewhere" in member.hear()
    with start(remove_disks, root, user=NOBODY, groups=[GROUP], umask=0o077) as member:
        assert "removed" == member.hear()
    assert [] == roots.disks(_config(root).caches["base"])
    assert {"_base", "locks"} == set(os.listdir(root / "instances"))
    assert [] == os.listdir(root / "elsewhere")


def remove_disks(root: str) -> None:
    host = Host.open(_config(Path(root)))
    host.remove_disk("inside")
    host.remove_disk("outside", path=Path(root) / "elsewhere/disk.img")
    tell("removed")


def test_who_is_no_member_reads_the_image_and_is_told_why_he_makes_no_disk(root: Path, image: BaseImage) -> None:
    with start(read_and_make_disk, root, image.path, user=NOBODY) as stranger:
        assert str(MIB) == stranger.hear()
        assert stranger.hear().startswith(f"{CacheNotWritable.__name__}: {root}")
    assert {"_base", "locks"} >= set(os.listdir(root / "instances"))


def read_and_make_disk(root: str, path: str) -> None:
    tell(str(len(Path(path).read_bytes())))
    make_disks(root, Path(path).name, "qcow2")


@pytest.mark.component("qemu-system-x86_64")
@pytest.mark.parametrize("member", [True, False])
def test_anybody_boots_from_a_disk_that_is_his(root: Path, image: BaseImage, member: bool) -> None:  # noqa: FBT001
    path = root / "elsewhere/disk.img"
    if member:
        with start(make_disks, root, image.name, "qcow2", user=NOBODY, groups=[GROUP], umask=0o077) as child:
            assert str(path) in child.hear()
    else:
        Host.open(_config(root)).create_disk("outside", image, size=2 * MIB, path=path)
        os.chown(path, NOBODY, NOBODY)
    assert bootimage.boot_line(MESSAGE) in bootimage.boot(path, format="qcow2", user=NOBODY)


@pytest.mark.parametrize("kind", CacheKind)
def test_the_masters_of_a_group_are_laid_out_for_it_too(open_directory: Path, kind: CacheKind) -> None:
    os.chown(open_directory, 0, GROUP)
    (open_directory / "image").write_bytes(bytes(MIB))
    (open_directory / "cache").mkdir()
    text = f'[caches.one]\nkind = "{kind}"\npath = "{open_directory}/cache"\n[sources.file]\nallowed_paths = ["/"]\n'
    os.chown(open_directory / "cache", 0, GROUP)
    config = parse_config(text, origin=open_directory / "underlay.toml")
    image = Host.open(config).ensure(f"file://{open_directory}/image")
    marker = config.caches["one"].paths.used_marker(image.name)
    os.utime(marker, (0, 0))
    with start(use_an_image, open_directory, kind, user=NOBODY, groups=[GROUP], umask=0o077) as member:
        assert str(image.path) == member.hear()
    assert marker.stat().st_mtime > 0


def use_an_image(root: str, kind: str) -> None:
    text = f'[caches.one]\nkind = "{kind}"\npath = "{root}/cache"\n[sources.file]\nallowed_paths = ["/"]\n'
    host = Host.open(parse_config(text, origin=Path(root) / "underlay.toml"))
    tell(str(host.ensure(f"file://{root}/image").path))
