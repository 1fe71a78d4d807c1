"""The compute driver in memory: what the conformance suite does not ask of every driver."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from underlay.compute import load_compute_driver, states
from underlay.compute.errors import (
    ComputeError,
    DiskNotFound,
    FlavorDiskSmallerThanImage,
    InstanceExists,
    InstanceFaultRollback,
    InstanceNotFound,
    InstanceNotRescuable,
    InstanceNotRunning,
    InstanceRebootFailure,
    InterfaceAttachFailed,
    InternalError,
    PreserveEphemeralNotSupported,
    QemuGuestAgentNotEnabled,
    TooManyDiskDevices,
    VolumeAttachFailed,
)
from underlay.testing import FakeDriver
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, FakeSite, fake_vif

IMAGE = FakeImage()


@pytest.fixture
def driver() -> FakeDriver:
    """One on a host of its own."""
    driver = FakeDriver(None)
    driver.init_host("node1")
    return driver


@pytest.fixture
def instance(driver: FakeDriver) -> FakeInstance:
    """One that runs."""
    instance = FakeInstance(image_ref=IMAGE.id)
    driver.spawn(None, instance, IMAGE, [], "secret", {}, [fake_vif()])
    return instance


def volume(serial: str = "v1") -> dict[str, Any]:
    return {"driver_volume_type": "local", "data": {}, "serial": serial}


def test_the_fake_is_a_driver_of_that_name() -> None:
    assert isinstance(load_compute_driver(None, "fake"), FakeDriver)


def test_nothing_of_a_driver_is_shared_with_another() -> None:
    one, other = FakeDriver(None), FakeDriver(None)
    for driver in (one, other):
        driver.init_host("node1")
    one.spawn(None, FakeInstance(), IMAGE, [], None, {})
    assert (1, 0) == (one.get_num_instances(), other.get_num_instances())


def test_a_running_guest_is_not_made_twice_by_two_at_once(driver: FakeDriver) -> None:
    instance, ended = FakeInstance(), list[str]()

    def spawn() -> None:
        try:
            driver.spawn(None, instance, IMAGE, [], None, {})
            ended.append("made")
        except InstanceExists:
            ended.append("there")

    threads = [threading.Thread(target=spawn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["made", *["there"] * 7] == sorted(ended)
    assert states.RUNNING == driver.get_info(instance).state


def test_disks_are_those_of_the_block_devices(driver: FakeDriver) -> None:
    instance = FakeInstance()
    info = {
        "swap": {"device_name": "/dev/vdc", "swap_size": 512},
        "ephemerals": [{"device_name": "/dev/vdb", "size": 2}],
        "block_device_mapping": [{"mount_device": "/dev/vdd", "connection_info": volume(), "boot_index": None}],
    }
    driver.spawn(None, instance, IMAGE, [], None, {}, block_device_info=info)
    disks = json.loads(driver.get_instance_disk_info(instance))
    assert ["disk", "disk.eph0", "disk.swap"] == [disk["path"].rpartition("/")[2] for disk in disks]
    assert [1 << 30, 2 << 30, 512 << 20] == [int(disk["virt_disk_size"]) for disk in disks]
    driver.detach_volume(None, volume(), instance, "/dev/vdd")


def test_an_instance_that_boots_from_a_volume_has_no_root_disk(driver: FakeDriver) -> None:
    instance = FakeInstance()
    info = {"block_device_mapping": [{"mount_device": "/dev/vda", "connection_info": volume(), "boot_index": 0}]}
    driver.spawn(None, instance, IMAGE, [], None, {}, block_device_info=info)
    assert "[]" == driver.get_instance_disk_info(instance)


def test_an_image_larger_than_the_disk_says_both_sizes(driver: FakeDriver) -> None:
    with pytest.raises(FlavorDiskSmallerThanImage, match="1073741824 bytes is smaller than the image of 3221225472"):
        driver.spawn(None, FakeInstance(), FakeImage(virtual_size=3 << 30), [], None, {})
    driver.spawn(None, FakeInstance(flavor=FakeFlavor(root_gb=0)), FakeImage(virtual_size=3 << 30), [], None, {})


def test_a_volume_is_attached_once(driver: FakeDriver, instance: FakeInstance) -> None:
    other = FakeInstance()
    driver.spawn(None, other, IMAGE, [], None, {})
    driver.attach_volume(None, volume(), instance, "/dev/vdb")
    for to, where in ((other, "/dev/vdb"), (instance, "/dev/vdc")):
        with pytest.raises(VolumeAttachFailed, match="attached already"):
            driver.attach_volume(None, volume(), to, where)
    with pytest.raises(VolumeAttachFailed, match="/dev/vdb is taken"):
        driver.attach_volume(None, volume("v2"), instance, "/dev/vdb")
    with pytest.raises(DiskNotFound):
        driver.detach_volume(None, volume("v2"), instance, "/dev/vdb")
    with pytest.raises(DiskNotFound):
        driver.extend_volume(None, volume("v2"), instance, 1 << 30)


def test_there_are_as_many_disks_as_letters(driver: FakeDriver, instance: FakeInstance) -> None:
    names = [f"/dev/vd{letter}" for letter in "bcdefghijklmnopqrstuvwxyz"]
    for name in names:
        driver.attach_volume(None, volume(name), instance, name)
    with pytest.raises(TooManyDiskDevices, match="26"):
        driver.attach_volume(None, volume("more"), instance, "/dev/vdzz")
    rows = [{"device_name": name} for name in names]
    with pytest.raises(TooManyDiskDevices):
        driver.get_device_name_for_instance(instance, rows, {})


@pytest.mark.parametrize("info", [{}, {"type": "raw", "snapshot_id": "s"}, {"type": "qcow2"}])
def test_a_volume_snapshot_has_a_type_and_an_id(driver: FakeDriver, instance: FakeInstance, info: dict[str, str]) -> None:
    with pytest.raises(InternalError):
        driver.volume_snapshot_create(None, instance, "v1", info)
    driver.volume_snapshot_create(None, instance, "v1", {"type": "qcow2", "snapshot_id": "s"})
    driver.volume_snapshot_delete(None, instance, "v1", "s", {"type": "qcow2"})


def test_an_interface_is_attached_once_and_is_of_a_known_type(driver: FakeDriver, instance: FakeInstance) -> None:
    vif = fake_vif(7)
    driver.attach_interface(None, instance, IMAGE, vif)
    assert "52:54:00:00:00:07" in [one["mac_address"] for one in driver.get_all_bw_counters([instance])]
    with pytest.raises(InterfaceAttachFailed):
        driver.attach_interface(None, instance, IMAGE, vif)
    with pytest.raises(InternalError, match="no-such-type"):
        driver.plug_vifs(instance, [fake_vif(kind="no-such-type")])


CALLS: list[Callable[[FakeDriver, FakeInstance], Any]] = [
    lambda driver, one: driver.get_info(one),
    lambda driver, one: driver.power_off(one),
    lambda driver, one: driver.power_on(None, one, []),
    lambda driver, one: driver.reboot(None, one, [], "HARD"),
    lambda driver, one: driver.suspend(None, one),
    lambda driver, one: driver.rescue(None, one, [], IMAGE, None, None),
    lambda driver, one: driver.attach_volume(None, volume(), one, "/dev/vdb"),
    lambda driver, one: driver.attach_interface(None, one, IMAGE, fake_vif()),
    lambda driver, one: driver.get_console_output(None, one),
    lambda driver, one: driver.get_diagnostics(one),
    lambda driver, one: driver.snapshot(None, one, "i", print),
    lambda driver, one: driver.migrate_disk_and_power_off(None, one, "192.0.2.1", FakeFlavor(), []),
    lambda driver, one: driver.finish_revert_migration(None, one, [], None),
    lambda driver, one: driver.live_migration(None, one, "node2", print, print),
    lambda driver, one: driver.set_admin_password(one, "secret"),
]


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_done_to_what_is_not_there(driver: FakeDriver, call: Callable[[FakeDriver, FakeInstance], Any]) -> None:
    with pytest.raises(InstanceNotFound):
        call(driver, FakeInstance())


def test_a_guest_that_is_off_cannot_be_paused_or_suspended(driver: FakeDriver, instance: FakeInstance) -> None:
    driver.power_off(instance)
    with pytest.raises(InstanceNotRunning):
        driver.pause(instance)
    with pytest.raises(InstanceNotRunning):
        driver.suspend(None, instance)


def test_a_reboot_of_another_kind_is_refused(driver: FakeDriver, instance: FakeInstance) -> None:
    with pytest.raises(InstanceRebootFailure, match="neither SOFT nor HARD"):
        driver.reboot(None, instance, [], "MEDIUM")
    driver.hypervisor.broken = "start"
    with pytest.raises(InstanceRebootFailure, match="its start is broken"):
        driver.reboot(None, instance, [], "SOFT")


def test_a_guest_is_rescued_once(driver: FakeDriver, instance: FakeInstance) -> None:
    driver.rescue(None, instance, [], IMAGE, "secret", None)
    with pytest.raises(InstanceNotRescuable, match="already"):
        driver.rescue(None, instance, [], IMAGE, "secret", None)


def test_a_rebuild_keeps_what_it_can_and_refuses_the_rest(driver: FakeDriver, instance: FakeInstance) -> None:
    def rebuild(**more: Any) -> None:
        driver.rebuild(None, instance, IMAGE, [], None, {}, [], print, print, **more)

    with pytest.raises(PreserveEphemeralNotSupported):
        rebuild(preserve_ephemeral=True)
    with pytest.raises(NotImplementedError):
        rebuild(evacuate=True)
    rebuild()
    assert states.RUNNING == driver.get_info(instance).state


def test_power_follows_what_happens_outside(driver: FakeDriver, instance: FakeInstance) -> None:
    instance.task_state = "powering-off"
    driver.power_update_event(instance, "POWER_OFF")
    assert (states.SHUTDOWN, None) == (driver.get_info(instance).state, instance.get("task_state"))


def test_guests_without_an_agent_are_not_asked(driver: FakeDriver, instance: FakeInstance) -> None:
    driver.hypervisor.guests_answer = False
    with pytest.raises(QemuGuestAgentNotEnabled):
        driver.set_admin_password(instance, "x")
    with pytest.raises(QemuGuestAgentNotEnabled):
        driver.quiesce(None, instance, IMAGE)


def test_a_disk_never_becomes_smaller(driver: FakeDriver, instance: FakeInstance) -> None:
    small = FakeFlavor(root_gb=0)
    with pytest.raises(InstanceFaultRollback) as caught:
        driver.migrate_disk_and_power_off(None, instance, driver.get_host_ip_addr(), small, [])
    assert isinstance(caught.value.inner_exception, ComputeError)
    assert states.RUNNING == driver.get_info(instance).state


def test_a_cold_migration_goes_to_another_host_and_back() -> None:
    site = FakeSite()
    here, there = FakeDriver(None, site=site), FakeDriver(None, site=site)
    here.init_host("node1")
    there.init_host("node2")
    instance = FakeInstance()
    here.spawn(None, instance, IMAGE, [], None, {})
    info = here.migrate_disk_and_power_off(None, instance, there.get_host_ip_addr(), instance.flavor, [])
    there.finish_migration(None, None, instance, info, [], IMAGE, resize_instance=False, power_on=False)
    assert (False, True) == (here.instance_exists(instance), there.instance_exists(instance))
    assert states.SHUTDOWN == there.get_info(instance).state
    there.destroy(None, instance, [])
    here.finish_revert_migration(None, instance, [], None)
    assert states.RUNNING == here.get_info(instance).state


def test_memory_is_counted_while_it_is_used(driver: FakeDriver, instance: FakeInstance) -> None:
    assert {instance.uuid: {"uuid": instance.uuid, "memory_mb": 64}} == driver.get_per_instance_usage()
    driver.power_off(instance)
    assert {} == driver.get_per_instance_usage()


def test_images_that_nobody_needs_leave_the_cache(driver: FakeDriver, instance: FakeInstance) -> None:
    assert driver.cache_image(None, "another")
    driver.manage_image_cache(None, [instance])
    assert {IMAGE.id} == driver.hypervisor.cached


def test_the_records_have_what_a_driver_reads() -> None:
    instance = FakeInstance(uuid="6ddd9f0a-f4b3-4b33-a9d9-1cbd84dc1b14")
    assert ("instance-6ddd9f0a", None) == (instance.name, instance.get("nothing"))
    assert "node1" == instance.get("host")
    instance.save(expected_task_state=[None])
    metadata = FakeDriver.get_instance_driver_metadata(instance, instance.get_network_info())
    assert "small" == metadata.flavor.name
