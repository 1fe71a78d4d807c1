"""Nova's image backends over a real Ceph, where no Nova is: what is imported, cloned, grown, kept and written out."""

import os
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from ceph_cluster import Ceph
from ceph_stage import cloneable, images, pool_of

from underlay.errors import DiskTooSmall, Unsupported
from underlay.openstack.nova import Backend, Image
from underlay.openstack.nova.around import Around
from underlay.testing.fakes import FakeImage, FakeSource

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python"), pytest.mark.component("qemu-img")]

MIB = 1 << 20
NAME = "a" * 40
CONTENT = os.urandom(MIB)


@pytest.fixture
def backend(ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Of a host whose configuration the classes find."""
    for name in ("cache", "instances"):
        (tmp_path / name).mkdir()
    text = f'[instances]\npath = "{tmp_path}/instances"\n[caches.one]\nkind = "base"\npath = "{tmp_path}/cache"\n'
    (tmp_path / "config").write_text(f'{text}[disks.rbd]\nceph_conf = "{ceph.conf}"\n')
    monkeypatch.setenv("UNDERLAY_CONFIG", str(tmp_path / "config"))
    return Backend(use_cow=True)


def disk(backend: Backend, name: str = "disk") -> Image:
    return backend.by_name(SimpleNamespace(uuid=str(uuid4())), name, "rbd")


def read(ceph: Ceph, image: Image) -> bytes:
    with pool_of(ceph, "rbd") as (rbd, pool), rbd.Image(pool, image.path.rpartition("/")[2], read_only=True) as opened:
        content: bytes = opened.read(0, opened.size())
        return content


def fetch(target: str) -> None:
    Path(target).write_bytes(CONTENT)


def test_a_disk_is_imported_grown_and_written_out(backend: Backend, ceph: Ceph, tmp_path: Path) -> None:
    image = disk(backend)
    for size in (2 * MIB, 4 * MIB):
        image.cache(fetch, NAME, size)
    assert (True, 4 * MIB, CONTENT) == (image.exists(), image.get_disk_size("whatever"), read(ceph, image)[:MIB])
    assert {".underlay", NAME} == set(os.listdir(tmp_path / "cache"))
    image.snapshot_extract(str(tmp_path / "snapshot"), "raw")
    assert CONTENT == (tmp_path / "snapshot").read_bytes()[:MIB]


def test_a_callback_clones_what_the_ceph_has_and_the_clone_is_flattened(backend: Backend, ceph: Ceph, tmp_path: Path) -> None:
    locations = cloneable(ceph, "images", CONTENT).locations
    source = FakeSource({"fake:image": FakeImage(CONTENT, id="fixed", disk_format="raw", locations=locations)})
    made = disk(backend)
    image = Image(Around.load(sources={"fake": source}), made._backend, SimpleNamespace(uuid=str(uuid4())), "disk")
    with pytest.raises(DiskTooSmall):
        image.cache(lambda target: image.clone(None, "fake:image"), NAME, MIB // 2)
    assert not image.exists()
    image.cache(lambda target: image.clone(None, "fake:image"), NAME, 2 * MIB)
    assert (2 * MIB, CONTENT) == (image.get_disk_size(""), read(ceph, image)[:MIB])
    assert NAME not in os.listdir(tmp_path / "cache")
    assert image._describe().parent is not None
    image.flatten()
    assert (None, CONTENT) == (image._describe().parent, read(ceph, image)[:MIB])


def test_a_snapshot_is_kept_in_the_ceph_and_discarded_again(backend: Backend, ceph: Ceph) -> None:
    image, kept = disk(backend), f"kept-{uuid4()}"
    image.cache(fetch, NAME)
    location = image.direct_snapshot(None, "snapshot", "raw", kept, "base")
    assert kept in images(ceph, "rbd")
    assert location.startswith("rbd://")
    image.cleanup_direct_snapshot({"url": location}, also_destroy_volume=True)
    assert kept not in images(ceph, "rbd")


def test_a_swap_and_a_config_drive_are_imported_alone(backend: Backend, ceph: Ceph, tmp_path: Path) -> None:
    swap = disk(backend, "disk.swap")
    swap.cache(fetch, "swap_1", MIB)
    assert (CONTENT, [".underlay"]) == (read(ceph, swap), os.listdir(tmp_path / "cache"))
    drive = disk(backend, "disk.config")
    for content in (b"1" * 1024, b"2" * 2048):
        (tmp_path / "config-drive").write_bytes(content)
        drive.import_file(None, str(tmp_path / "config-drive"), "disk.config")
        assert content == read(ceph, drive)


def test_what_only_nova_s_own_client_does_is_refused_outside_of_a_nova(backend: Backend) -> None:
    for name in ("create_snap", "remove_snap", "rollback_to_snap"):
        with pytest.raises(Unsupported):
            getattr(disk(backend), name)("resize")
