"""Guests whose disks are in a Ceph: made, looked at, made anew, rescued, copied, and gone."""

import json
from pathlib import Path
from uuid import uuid4

import pytest
from libvirt_ceph_stage import CLONED, CephPlace
from libvirt_stage import MESSAGE, wait_until
from resized import sector

from underlay.compute import states
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.providers import ProviderTree
from underlay.testing.bootimage import boot, boot_line
from underlay.testing.fakedriver import FakeFlavor, FakeInstance

pytest_plugins = ["ceph_fixtures", "libvirt_fixtures", "libvirt_ceph_fixtures"]
pytestmark = [
    pytest.mark.component("ceph", "rbd-python", "libvirt", "libvirt-python", "virsh", "root"),
    pytest.mark.component("qemu-img", "qemu-system-x86_64", "qemu-rbd"),
]
GIB = 1 << 30
WRITTEN, AT = b"what the guest wrote".ljust(512, b"."), 600 << 20  # beyond all that the image has


def disk_of(instance: FakeInstance) -> str:
    return f"{instance.uuid}_disk"


def test_all_disks_of_an_instance_are_in_the_ceph_and_go_with_it(there: CephPlace, driver_there: LibvirtDriver) -> None:
    driver, image = driver_there, there.place.image(properties={"img_config_drive": "mandatory"})
    instance = there.instance(image, flavor=FakeFlavor(memory_mb=32, root_gb=1, ephemeral_gb=1, swap=32))
    info = {
        "root_device_name": "/dev/vda",
        "ephemerals": [{"device_name": "/dev/vdb", "size": 1, "disk_bus": "virtio", "guest_format": "ext4"}],
        "swap": {"device_name": "/dev/vdc", "swap_size": 32, "disk_bus": "virtio"},
    }
    driver.spawn(None, instance, image, [], "a password", {}, block_device_info=info)
    there.place.await_boot(instance)

    assert boot_line(MESSAGE) in there.place.console(instance)
    names = [f"{instance.uuid}_{name}" for name in ("disk", "disk.eph0", "disk.swap")]
    assert names == there.left(instance)
    assert [GIB, GIB, 32 << 20] == [there.size(name) for name in names]
    assert states.RUNNING == driver.get_info(instance).state
    assert [] == json.loads(driver.get_instance_disk_info(instance))
    assert {"disk.config", "console.log"} == {path.name for path in Path(there.place.instances, instance.uuid).iterdir()}
    assert {"vda_read", "vdb_read", "vdc_read"} < driver.get_diagnostics(instance).keys()
    assert 4 == len(driver.get_instance_diagnostics(instance).disk_details)
    told = driver.block_stats(instance, "vda")
    assert told is not None
    assert told[0] > 0
    driver.power_off(instance)
    assert [0, 0, 0] == [there.watchers(name) for name in names]
    driver.power_on(None, instance, [], info)
    assert 1 == there.watchers(names[0])
    driver.destroy(None, instance, [])
    assert [] == there.traces(instance)
    assert [] == driver.site.host.disks()


def test_what_the_ceph_has_already_is_cloned_and_nothing_is_fetched(
    there: CephPlace, driver_there: LibvirtDriver, cloned: FakeInstance
) -> None:
    assert boot_line(CLONED) in there.place.console(cloned)
    parent = cloned.image_ref.partition(":")[2]
    assert f"rbd:images/{parent}@snap" == driver_there.site.host.disk(cloned.uuid).parent
    assert [0, ["snap"]] == [there.source.read(cloned.image_ref), there.snapshots(parent, "images")]
    assert 1 == there.watchers(disk_of(cloned))


def test_a_prune_keeps_nothing_for_a_guest_in_the_ceph_which_runs_on_and_starts_again(
    there: CephPlace, driver_there: LibvirtDriver
) -> None:
    driver, image = driver_there, there.place.image()
    instance = there.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    there.place.await_boot(instance)
    base = there.place.instances / "_base"
    assert 1 == sum(path.is_file() for path in base.iterdir())
    driver.manage_image_cache(None, [instance])
    assert 1 == sum(path.is_file() for path in base.iterdir()), "its record names the image"
    driver.manage_image_cache(None, [])
    assert 0 == sum(path.is_file() for path in base.iterdir())
    driver.reboot(None, instance, [], "HARD", {})
    there.place.await_boot(instance)
    driver.destroy(None, instance, [])
    assert [] == there.traces(instance)


def test_the_storage_that_placement_is_told_of_is_the_pools(there: CephPlace, driver_there: LibvirtDriver) -> None:
    tree = ProviderTree()
    tree.new_root("node1", str(uuid4()))
    driver_there.update_provider_tree(tree, "node1")
    told = tree.data("node1").inventory["DISK_GB"]
    [pool] = [one for one in there.ceph.ceph("df")["pools"] if one["name"] == "vms"]
    assert (pool["stats"]["stored"] + pool["stats"]["max_avail"]) // GIB == told["total"] > 0
    assert told["total"] == driver_there.get_available_resource("node1")["local_gb"]


def test_a_guest_is_rebooted_suspended_and_comes_back_with_its_disk(
    there: CephPlace, driver_there: LibvirtDriver, cloned: FakeInstance
) -> None:
    driver = driver_there
    driver.reboot(None, cloned, [], "HARD", {})
    there.place.await_boot(cloned)
    driver.reboot(None, cloned, [], "SOFT")
    there.place.await_boot(cloned)
    driver.suspend(None, cloned)
    assert [states.SHUTDOWN, 0] == [driver.get_info(cloned).state, there.watchers(disk_of(cloned))]
    driver.resume(None, cloned, [])
    assert [states.RUNNING, 1] == [driver.get_info(cloned).state, there.watchers(disk_of(cloned))]


def test_a_guest_is_rescued_from_another_image_and_put_back(
    there: CephPlace, driver_there: LibvirtDriver, cloned: FakeInstance
) -> None:
    driver, rescue = driver_there, there.place.image()
    driver.rescue(None, cloned, [], rescue, "a password", None)
    wait_until(lambda: boot_line(MESSAGE) in there.place.console(cloned), "the rescue boots")
    assert [disk_of(cloned), f"{disk_of(cloned)}.rescue"] == there.left(cloned)
    driver.unrescue(cloned, [])
    wait_until(lambda: boot_line(CLONED) in there.place.console(cloned), "the guest boots")
    assert [disk_of(cloned)] == there.left(cloned)


def test_a_guest_is_rebuilt_from_another_image(there: CephPlace, driver_there: LibvirtDriver, cloned: FakeInstance) -> None:
    driver, image = driver_there, there.place.image()
    driver.rebuild(None, cloned, image, [], None, {}, [], print, print, network_info=[])
    wait_until(lambda: boot_line(MESSAGE) in there.place.console(cloned), "the new one boots")
    assert [disk_of(cloned)] == there.left(cloned)
    back = there.in_ceph()
    driver.rebuild(None, cloned, back, [], None, {}, [], print, print, network_info=[])
    wait_until(lambda: boot_line(CLONED) in there.place.console(cloned), "the clone boots")


@pytest.mark.parametrize("runs", [True, False], ids=["live", "off"])
def test_a_snapshot_has_what_the_disk_had_and_boots_without_the_ceph(
    there: CephPlace, driver_there: LibvirtDriver, cloned: FakeInstance, *, runs: bool
) -> None:
    driver = driver_there
    driver.power_off(cloned)
    there.write(disk_of(cloned), WRITTEN, AT)
    if runs:
        driver.power_on(None, cloned, [])
        there.place.await_boot(cloned)
    driver.snapshot(None, cloned, "snapshot", lambda *states, **more: None)
    written = there.place.instances / "snapshots/snapshot"
    assert [] == [name for name in there.snapshots(disk_of(cloned)) if name]
    assert WRITTEN == sector(written, "qcow2", AT)
    assert boot_line(CLONED) in boot(written, format="qcow2", until=boot_line(CLONED), seconds=60)
