"""Two things at once that happen to one instance: each is done, or refused, and none undoes the other's."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from guest_kernel import kernel_image
from libvirt_stage import MESSAGE, Place

from underlay.compute import states
from underlay.compute.errors import InstanceExists, InstanceNotFound, OperationFailed
from underlay.compute.libvirt import LibvirtDriver, claiming
from underlay.testing.bootimage import boot_line, write_qcow2
from underlay.testing.fakedriver import FakeImage, FakeInstance
from underlay.testing.httpserver import Served, Server, serving

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")


def spawn(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage, **more: Any) -> None:
    driver.spawn(None, instance, image, [], None, {}, **more)


def rebuild(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage) -> None:
    driver.rebuild(None, instance, image, [], None, {}, [], print, print, network_info=[])


def nothing(*states: str, **more: str) -> None:
    """A service that hears it."""


@contextmanager
def meanwhile(work: Callable[..., None], *arguments: Any) -> Iterator["Future[None]"]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work, *arguments)


@pytest.fixture
def slow(place: Place) -> Iterator[Server]:
    """An image and a kernel that stop half-way until the server goes on."""
    path, kernel = place.root / "slow.qcow2", place.root / "kernel"
    write_qcow2(path, size=4 << 20, message=MESSAGE, payload=1 << 20, stays=True)
    kernel.write_bytes(kernel_image() + bytes(1 << 20))
    with serving(
        {
            "/slow.qcow2": Served(path, etag='"1"', stall_after=1 << 16),
            "/new.qcow2": Served(place.image_file, etag='"1"'),
            "/kernel": Served(kernel, etag='"1"', stall_after=1 << 16),
        }
    ) as server:
        yield server


@pytest.fixture
def large(place: Place, driver: LibvirtDriver) -> FakeInstance:
    """One whose disk takes a while to be copied."""
    image = place.large_image()
    instance = place.instance(image)
    spawn(driver, instance, image)
    place.await_boot(instance)
    return instance


def test_an_instance_that_is_being_made_is_not_destroyed_until_it_is(place: Place, driver: LibvirtDriver, slow: Server) -> None:
    image = FakeImage(id=slow.url("/slow.qcow2"))
    instance = place.instance(image)
    with meanwhile(lambda: spawn(driver, instance, image, power_on=False)) as spawned:
        slow.wait_until_sent("/slow.qcow2", 1 << 16)
        for refused in (driver.destroy, driver.cleanup):
            with pytest.raises(OperationFailed, match="is being made"):
                refused(None, instance, [])
        assert not driver.delete_instance_files(instance)
        assert [instance.uuid] == place.traces(instance)
        slow.resume()
        spawned.result()
    assert states.SHUTDOWN == driver.get_info(instance).state
    assert ["disk"] == [disk.name for disk in driver.site.host.disks()]
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


def test_an_instance_without_a_directory_is_not_made_while_it_is_removed(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    with claiming.alone(driver.site.directory(instance)) as is_there:
        assert not is_there
        with pytest.raises(InstanceExists):
            spawn(driver, instance, image, power_on=False)
        for refused in (driver.destroy, driver.cleanup):
            with pytest.raises(OperationFailed, match="is being made or removed"):
                refused(None, instance, [])
        assert not driver.delete_instance_files(instance)
    assert [] == place.traces(instance)
    spawn(driver, instance, image, power_on=False)
    driver.destroy(None, instance, [])


def test_an_instance_whose_claim_was_taken_away_is_not_made(place: Place, driver: LibvirtDriver, slow: Server) -> None:
    """By who removes directories without asking; another may have the instance since."""
    image = FakeImage(id=slow.url("/slow.qcow2"))
    instance = place.instance(image)
    claim = place.instances / instance.uuid / "making"
    with meanwhile(lambda: spawn(driver, instance, image, power_on=False)) as spawned:
        slow.wait_until_sent("/slow.qcow2", 1 << 16)
        claim.unlink()
        claim.write_text("somebody else's")
        slow.resume()
        with pytest.raises(OperationFailed, match="was replaced while it was held"):
            spawned.result()
    assert (False, []) == (driver.instance_exists(instance), driver.site.host.disks())
    assert "somebody else's" == claim.read_text()
    driver.delete_instance_files(instance)


def test_the_disks_of_a_guest_that_runs_are_not_removed(place: Place, driver: LibvirtDriver) -> None:
    image = place.image(properties={"img_config_drive": "mandatory"})
    instance = place.instance(image)
    spawn(driver, instance, image)
    place.await_boot(instance)
    before = sorted(path.name for path in (place.instances / instance.uuid).iterdir())

    with pytest.raises(OperationFailed, match="is open"):
        driver.cleanup(None, instance, [])
    assert not driver.delete_instance_files(instance)

    assert before == sorted(path.name for path in (place.instances / instance.uuid).iterdir())
    driver.reboot(None, instance, [], "HARD", {})
    place.await_boot(instance)
    assert boot_line(MESSAGE) in place.console(instance)
    driver.destroy(None, instance, [])


def test_a_prune_while_a_rebuild_waits_for_its_kernel_leaves_the_image(
    place: Place, driver: LibvirtDriver, slow: Server
) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image, power_on=False)
    new = FakeImage(id=slow.url("/new.qcow2"))
    instance.kernel_id = slow.url("/kernel")

    with meanwhile(rebuild, driver, instance, new) as rebuilt:
        slow.wait_until_sent("/kernel", 1 << 16)
        driver.manage_image_cache(None, [])
        slow.resume()
        rebuilt.result()

    assert 1 == slow.bodies("/new.qcow2")
    driver.destroy(None, instance, [])


def test_of_two_live_snapshots_at_once_one_is_refused_and_the_other_whole(
    place: Place, driver: LibvirtDriver, large: FakeInstance
) -> None:
    with meanwhile(driver.snapshot, None, large, "one", nothing) as first:
        with place.copying_slowly(large):
            with pytest.raises(OperationFailed, match="are being copied already"):
                driver.snapshot(None, large, "two", nothing)
            driver.post_interrupted_snapshot_cleanup(None, large)
            assert not first.done()
        first.result()
    assert ["one"] == [path.name for path in (place.instances / "snapshots").iterdir()]
    driver.destroy(None, large, [])


def test_two_snapshots_of_a_guest_that_is_off_are_both_whole(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image, power_on=False)
    both = threading.Barrier(2, timeout=60)

    def wait(state: str, **more: str) -> None:
        both.wait()

    with meanwhile(driver.snapshot, None, instance, "one", wait) as first:
        driver.snapshot(None, instance, "two", wait)
        first.result()
    written = {path.name: path.stat().st_size for path in (place.instances / "snapshots").iterdir()}
    assert ({"one", "two"}, 1) == (set(written), len(set(written.values())))
    driver.destroy(None, instance, [])


@pytest.mark.parametrize("what", ["rebuild", "destroy"])
def test_a_guest_may_go_while_it_is_copied(place: Place, driver: LibvirtDriver, large: FakeInstance, what: str) -> None:
    with meanwhile(driver.snapshot, None, large, "one", nothing) as copied:
        with place.copying_slowly(large):
            if what == "rebuild":
                rebuild(driver, large, place.image())
            else:
                driver.destroy(None, large, [])
        with pytest.raises((OperationFailed, InstanceNotFound)):
            copied.result()
    assert [] == list((place.instances / "snapshots").iterdir())
    if what == "rebuild":
        place.await_boot(large)
        driver.snapshot(None, large, "two", nothing)
        driver.destroy(None, large, [])
    assert [] == place.traces(large)
