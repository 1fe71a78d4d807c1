"""A Ceph and a libvirtd for the tests here, and a user of the one's whose key the other has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ceph_cluster import Ceph
from libvirt_ceph_stage import POOL, USER, CephPlace, Guests, define_secret
from libvirt_daemon import Daemon
from libvirt_stage import Place

from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.fakedriver import FakeInstance


@pytest.fixture(scope="session")
def guests(ceph: Ceph, daemon: Daemon) -> Guests:
    """A user who may use the pool of disks and that of volumes, and only read that of images."""
    ceph.make_pool(POOL)
    ceph.start_manager()
    capabilities = f"profile rbd pool={POOL}, profile rbd pool=other, profile rbd-read-only pool=images"
    ceph.add_user(USER, mon="profile rbd", osd=capabilities)
    key = ceph.run("ceph", "auth", "get-key", f"client.{USER}").decode()
    return Guests(ceph, daemon, define_secret(daemon, key))


@pytest.fixture
def there(guests: Guests, tmp_path: Path) -> CephPlace:
    return CephPlace(Place(tmp_path, guests.daemon), guests)


@pytest.fixture
def driver_there(there: CephPlace) -> Iterator[LibvirtDriver]:
    driver = there.driver()
    yield driver
    driver.cleanup_host("node1")


@pytest.fixture
def cloned(there: CephPlace, driver_there: LibvirtDriver) -> Iterator[FakeInstance]:
    """One that runs on a clone of what the Ceph has already."""
    image = there.in_ceph()
    instance = there.instance(image)
    driver_there.spawn(None, instance, image, [], None, {})
    there.place.await_boot(instance)
    yield instance
    driver_there.destroy(None, instance, [])
    assert [] == there.traces(instance)
