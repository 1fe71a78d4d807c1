"""Volumes of real guests: attached, taken away, put in each other's place, grown, snapshot, and booted from."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from libvirt_stage import VOLUME, Place, command, local, wait_until

from underlay.compute import get_block_device_info, states
from underlay.compute.errors import (
    ComputeError,
    DeviceDetachFailed,
    DiskNotFound,
    ExtendVolumeNotSupported,
    InstanceFaultRollback,
    InstanceNotRescuable,
    InstanceNotRunning,
    InstanceRebootFailure,
    InternalError,
    InvalidInput,
    NotSupported,
    OperationFailed,
    QemuGuestAgentNotEnabled,
    TooManyDiskDevices,
    VolumeAttachFailed,
    VolumeDriverNotFound,
)
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.guestxml import parsed
from underlay.locks import opened_elsewhere
from underlay.testing.bootimage import boot_line, write_raw
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, FakeMigration

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

QUICKLY = 'device_detach_attempts = 2\ndevice_detach_timeout = "1s"'
RBD = {
    "driver_volume_type": "rbd",
    "serial": "d7d8a0ec-7e7b-4a37-8c5b-0f3d2b2f7a11",
    "data": {
        "name": "volumes/volume-1",
        "hosts": ["192.0.2.1", "[2001:db8::1]"],
        "ports": ["6789", "3300"],
        "auth_enabled": True,
        "auth_username": "cinder",
        "secret_uuid": "457eb676-33da-42ec-9a8c-9293d545c337",
    },
}


@pytest.fixture
def instance(place: Place, driver: LibvirtDriver) -> Iterator[FakeInstance]:
    """One whose guest is up."""
    instance = spawned(place, driver)
    place.await_boot(instance)
    yield instance
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


@pytest.fixture
def off(place: Place, driver: LibvirtDriver) -> Iterator[FakeInstance]:
    instance = spawned(place, driver, power_on=False)
    yield instance
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


def spawned(place: Place, driver: LibvirtDriver, *volumes: Mapping[str, Any], **more: Any) -> FakeInstance:
    image = place.image(**more.pop("image", {}))
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {}, block_device_info=info_of(instance, *volumes), **more)
    return instance


def info_of(instance: FakeInstance, *volumes: Mapping[str, Any], **row: Any) -> dict[str, Any]:
    """What a service says of an instance with these volumes."""
    wanted = {"source_type": "volume", "destination_type": "volume", **row}
    return get_block_device_info(instance, [{**wanted, "connection_info": dict(volume)} for volume in volumes])


def path_of(volume: Mapping[str, Any]) -> Path:
    return Path(volume["data"]["device_path"])


def disks(driver: LibvirtDriver, instance: FakeInstance, *, inactive: bool = False) -> dict[str, Any]:
    """The disks that libvirt says it has, by device."""
    domain = parsed(driver.site.domain(instance).xml(inactive=inactive))
    found = {}
    for disk in domain.iterfind("devices/disk"):
        source, driver_element, target = disk.find("source"), disk.find("driver"), disk.find("target")
        assert source is not None
        assert driver_element is not None
        assert target is not None
        where = source.get("file") or source.get("dev") or source.get("name")
        found[target.get("dev", "")] = (where, driver_element.get("type"), disk.findtext("serial"))
    return found


def both(driver: LibvirtDriver, instance: FakeInstance) -> tuple[dict[str, Any], dict[str, Any]]:
    return disks(driver, instance), disks(driver, instance, inactive=True)


def attach(
    driver: LibvirtDriver, instance: FakeInstance, volume: Mapping[str, Any], device: str = "/dev/vdb", **more: Any
) -> None:
    driver.attach_volume(None, volume, instance, device, **more)


def capacity(driver: LibvirtDriver, instance: FakeInstance, device: str = "vdb") -> int:
    ask = driver.site.connection.ask
    return int(ask(lambda handle: handle.lookupByUUIDString(instance.uuid).blockInfo(device)[0]))


# --------------------------------------------------------------------------------------------------------- attach and detach


def test_a_volume_stays_attached_over_a_start_and_its_counters_have_its_id(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    volume, read_only = place.volume(), place.volume(access_mode="ro", discard=True)
    attach(driver, instance, volume)
    attach(driver, instance, read_only, "/dev/sda", device_type="disk")
    for found in both(driver, instance):
        assert (str(path_of(volume)), "raw", volume["serial"]) == found["vdb"]
        assert (str(path_of(read_only)), "raw", read_only["serial"]) == found["sda"]
    domain = parsed(driver.site.domain(instance).xml())
    read_only_devices = [
        target.get("dev")
        for disk in domain.iterfind("devices/disk")
        for target in disk.iter("target")
        if disk.find("readonly") is not None
    ]
    assert ["sda"] == read_only_devices
    assert ["virtio-scsi"] == [one.get("model") for one in domain.iterfind("devices/controller[@type='scsi']")]
    assert "unmap" in [one.get("discard") for one in domain.iterfind("devices/disk/driver")]

    rows = [{"volume_id": volume["serial"], "device_name": "/dev/vdx"}, {"volume_id": "another", "device_name": "/dev/vdb"}]
    [used] = driver.get_all_volume_usage(None, [{"instance": instance, "instance_bdms": rows}])
    assert (volume["serial"], instance) == (used["volume"], used["instance"])
    assert ["disk"] == [Path(one["path"]).name for one in json.loads(driver.get_instance_disk_info(instance))]

    driver.power_off(instance)
    driver.power_on(None, instance, [])
    assert {"vda", "vdb", "sda"} == disks(driver, instance).keys()
    place.await_boot(instance)
    driver.detach_volume(None, read_only, instance, "/dev/sda")
    driver.detach_volume(None, volume, instance, "/dev/vdb")
    assert [{"vda"}, {"vda"}] == [set(found) for found in both(driver, instance)]
    assert path_of(volume).stat().st_size == VOLUME


@pytest.mark.long
def test_a_guest_that_does_not_let_go_keeps_its_volume(place: Place) -> None:
    driver = place.driver(more=QUICKLY)
    instance, volume = spawned(place, driver), place.volume()
    place.await_boot(instance)
    attach(driver, instance, volume)
    before = both(driver, instance)
    driver.pause(instance)
    with pytest.raises(
        DeviceDetachFailed, match="vdb could not be detached: the guest has not let go of it, though it was asked 2"
    ):
        driver.detach_volume(None, volume, instance, "/dev/vdb")
    assert before == both(driver, instance)

    driver.unpause(instance)
    wait_until(lambda: "vdb" not in disks(driver, instance), "the guest does what it was asked")
    driver.detach_volume(None, volume, instance, "/dev/vdb")
    assert [{"vda"}, {"vda"}] == [set(found) for found in both(driver, instance)]
    with pytest.raises(DiskNotFound):
        driver.detach_volume(None, volume, instance, "/dev/vdb")
    driver.destroy(None, instance, [])
    with pytest.raises(DiskNotFound):
        driver.detach_volume(None, volume, instance, "/dev/vdb")
    driver.cleanup_host("node1")


def encrypted(place: Place) -> dict[str, Any]:
    return place.volume(encrypted=True)


def shared(place: Place) -> dict[str, Any]:
    return {**place.volume(format="qcow2"), "multiattach": True}


def at(path: str, **data: Any) -> Callable[[Place], dict[str, Any]]:
    return lambda place: local(Path(path.format(root=place.root)), **data)


REFUSED: dict[str, tuple[Callable[[Place], Mapping[str, Any]], type[ComputeError], str]] = {
    "kind": (lambda place: {"driver_volume_type": "iscsi", "data": {}, "serial": "1"}, VolumeDriverNotFound, "iscsi"),
    "encrypted": (encrypted, NotSupported, "encrypted"),
    "shared": (shared, NotSupported, "several instances have is raw"),
    "nothing": (at("{root}/nothing"), VolumeAttachFailed, "nothing cannot be reached: No such file"),
    "directory": (at("{root}"), VolumeAttachFailed, "neither a block device nor a file"),
    "pipe": (at("/dev/null"), VolumeAttachFailed, "neither a block device nor a file"),
    "instances": (at("{root}/instances/x/disk"), VolumeAttachFailed, "lies below .*/instances"),
    "link": (at("{root}/link"), VolumeAttachFailed, "lies below .*/instances"),
    "cache": (at("{root}/instances/_base/0"), VolumeAttachFailed, "lies below"),
    "climbing": (at("{root}/volumes/../x"), InvalidInput, "plain absolute path"),
    "relative": (at("volume"), InvalidInput, "plain absolute path"),
    "mode": (at("{root}/x", access_mode="wo"), InvalidInput, "access_mode is 'wo'"),
    "format": (at("{root}/x", format="vmdk"), InvalidInput, "format is 'vmdk'"),
}


def test_what_is_no_volume_is_refused_and_changes_nothing(place: Place, driver: LibvirtDriver, off: FakeInstance) -> None:
    (place.root / "link").symlink_to(place.instances / off.uuid / "disk")
    before, image = disks(driver, off), place.image()
    for make, error, said in REFUSED.values():
        volume, wanted = make(place), place.instance(image)
        with pytest.raises(error, match=said) as caught:
            attach(driver, off, volume)
        assert "\n" not in str(caught.value)
        assert before == disks(driver, off)
        with pytest.raises(error, match=said):
            driver.spawn(None, wanted, image, [], None, {}, block_device_info=info_of(wanted, volume))
        assert [] == place.traces(wanted)


def test_a_device_a_volume_and_a_bus_are_taken_only_once(place: Place, driver: LibvirtDriver, off: FakeInstance) -> None:
    volume = place.volume()
    attach(driver, off, volume)
    with pytest.raises(VolumeAttachFailed, match="attached already, as vdb"):
        attach(driver, off, volume, "/dev/vdc")
    with pytest.raises(VolumeAttachFailed, match="vdb is taken"):
        attach(driver, off, place.volume())
    with pytest.raises(InvalidInput, match="floppy"):
        attach(driver, off, place.volume(), "/dev/vdc", disk_bus="floppy")
    with pytest.raises(InvalidInput, match="tape"):
        attach(driver, off, place.volume(), "/dev/vdc", device_type="tape")
    with pytest.raises(NotSupported, match="decrypts"):
        attach(driver, off, place.volume(), "/dev/vdc", encryption={"provider": "luks"})
    for _ in range(4):
        attach(driver, off, place.volume(), "/dev/vdc", disk_bus="ide", encryption={})  # a wish that does not fit its bus
    assert {"vda", "vdb", "hda", "hdb", "hdc", "hdd"} == disks(driver, off).keys()
    with pytest.raises(TooManyDiskDevices, match="4"):
        attach(driver, off, place.volume(), disk_bus="ide")


def test_what_another_instance_or_the_host_has_is_no_volume(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, device: tuple[Path, Path]
) -> None:
    other, volume, own = spawned(place, driver, power_on=False), place.volume(), place.volume()
    attach(driver, other, volume)
    with pytest.raises(VolumeAttachFailed, match=f"{other.uuid} has it, as vdb"):
        attach(driver, instance, volume)
    third, image = place.instance(place.image()), place.image()
    with pytest.raises(VolumeAttachFailed, match="has it"):
        driver.spawn(None, third, image, [], None, {}, block_device_info=info_of(third, volume))
    with pytest.raises(InvalidInput, match="to be two disks"):
        driver.spawn(None, third, image, [], None, {}, block_device_info=two_of(third, own))
    assert [] == place.traces(third)

    root = local(place.instances / instance.uuid / "disk")
    attach(driver, instance, own)
    with pytest.raises(DiskNotFound):
        driver.detach_volume(None, root, instance, "/dev/vda")
    with pytest.raises(DiskNotFound):
        driver.swap_volume(None, root, place.volume(size=1 << 30), instance, "/dev/vda", 0)
    disk = {"driver_volume_type": "rbd", "serial": "x", "data": {"name": f"rbd/{other.uuid}_disk"}}
    with pytest.raises(VolumeAttachFailed, match="a disk of an instance"):
        attach(driver, instance, disk, "/dev/vdc")

    path, mounted = device[0], place.root / "mounted"
    mounted.mkdir()
    command("mkfs.ext2", "-q", str(path))
    command("mount", str(path), str(mounted))
    try:
        with pytest.raises(VolumeAttachFailed, match="in use by the host"):
            attach(driver, instance, local(path), "/dev/vdc")
    finally:
        command("umount", str(mounted))
    attach(driver, instance, local(path), "/dev/vdc")
    driver.reboot(None, instance, [], "HARD")  # what QEMU has is not the host's
    assert {"vda", "vdb", "vdc"} == disks(driver, instance).keys()
    driver.destroy(None, other, [])


def two_of(instance: FakeInstance, volume: Mapping[str, Any]) -> dict[str, Any]:
    """One volume as two disks."""
    info = info_of(instance, volume, device_name="/dev/vdb")
    info["block_device_mapping"] += info_of(instance, volume, device_name="/dev/vdc")["block_device_mapping"]
    return info


def test_a_guest_starts_without_a_volume_that_its_service_has_taken_away(
    place: Place, driver: LibvirtDriver, off: FakeInstance
) -> None:
    """Who detached it was killed when the guest had let go of it, and before the domain was told."""
    attach(driver, off, place.volume())
    driver.power_on(None, off, [], info_of(off))
    assert [{"vda"}, {"vda"}] == [set(found) for found in both(driver, off)]


def hint_of(driver: LibvirtDriver, instance: FakeInstance, volume: Mapping[str, Any], device: str) -> str | None:
    """What to do about a volume that cannot be attached; None of one that can."""
    try:
        attach(driver, instance, volume, device)
    except VolumeAttachFailed as error:
        return error.hint if "No more available PCI slots" in error.message else None
    return None


def test_a_guest_without_a_free_socket_says_where_to_get_more(place: Place) -> None:
    driver = place.driver(more="num_pcie_ports = 5")
    instance = spawned(place, driver)
    hints = [hint for device in "bcdefg" if (hint := hint_of(driver, instance, place.volume(), f"/dev/vd{device}"))]
    assert hints
    assert all("num_pcie_ports" in hint for hint in hints)
    assert disks(driver, instance) == disks(driver, instance, inactive=True)
    driver.destroy(None, instance, [])
    driver.cleanup_host("node1")


@pytest.mark.long
def test_an_instance_that_is_suspended_or_being_rescued_keeps_the_volumes_that_it_has(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    volume, further = place.volume(), place.volume()
    attach(driver, instance, volume)
    driver.suspend(None, instance)
    with pytest.raises(VolumeAttachFailed, match="suspended"):
        attach(driver, instance, further, "/dev/vdc")
    with pytest.raises(DeviceDetachFailed, match="suspended"):
        driver.detach_volume(None, volume, instance, "/dev/vdb")
    driver.resume(None, instance, [])
    info = info_of(instance, volume, device_name="/dev/vdb")
    driver.rescue(None, instance, [], place.image(), None, info)
    with pytest.raises(VolumeAttachFailed, match="rescued"):
        attach(driver, instance, further, "/dev/vdd")
    with pytest.raises(DeviceDetachFailed, match="rescued"):
        driver.detach_volume(None, volume, instance, "/dev/vdb")
    with pytest.raises(OperationFailed, match="rescued"):
        driver.swap_volume(None, volume, further, instance, "/dev/vdb", 0)
    assert [str(path_of(volume))] == [
        where for where, _, serial in disks(driver, instance).values() if serial == volume["serial"]
    ]
    assert ["vda", "vdb", "vdc"] == sorted(disks(driver, instance))
    driver.unrescue(instance, [])
    assert str(path_of(volume)) == disks(driver, instance)["vdb"][0]


def test_a_volume_in_a_ceph_is_told_with_its_monitors_and_the_secret_of_its_user(
    place: Place, driver: LibvirtDriver, off: FakeInstance
) -> None:
    attach(driver, off, RBD)
    disk = parsed(driver.site.domain(off).xml()).find("devices/disk[@type='network']")
    assert disk is not None
    source, auth = disk.find("source"), disk.find("auth") or disk.find("source/auth")
    assert source is not None
    assert auth is not None
    assert ("rbd", "volumes/volume-1") == (source.get("protocol"), source.get("name"))
    assert [("192.0.2.1", "6789"), ("2001:db8::1", "3300")] == [
        (one.get("name"), one.get("port")) for one in source.iter("host")
    ]
    assert "cinder" == auth.get("username")
    assert [("ceph", RBD["data"]["secret_uuid"])] == [(one.get("type"), one.get("uuid")) for one in auth.iter("secret")]  # type: ignore[index]
    assert ["raw"] == [one.get("type") for one in disk.iter("driver")]
    driver.extend_volume(None, RBD, off, 1 << 40)
    driver.detach_volume(None, RBD, off, "/dev/vdb")
    assert {"vda"} == disks(driver, off).keys()


# ------------------------------------------------------------------------------------------------- from the first to the last


def test_an_instance_boots_from_a_volume_and_has_no_disk_of_an_image(place: Place, driver: LibvirtDriver) -> None:
    write_raw(place.root / "root.raw", size=VOLUME, message="from a volume", stays=True)
    root, further = local(place.root / "root.raw"), place.volume()
    image = FakeImage(id="")
    instance = place.instance(image)
    info = info_of(instance, further)
    info["block_device_mapping"] += info_of(instance, root, boot_index=0)["block_device_mapping"]
    driver.spawn(None, instance, image, [], None, {}, block_device_info=info)
    wait_until(lambda: boot_line("from a volume") in place.console(instance), "the volume boots")

    assert ([], []) == (driver.site.host.images()[0], json.loads(driver.get_instance_disk_info(instance, info)))
    assert {"vda", "vdb"} == disks(driver, instance).keys()
    with pytest.raises(InstanceNotRescuable, match="boots from a volume"):
        driver.rescue(None, instance, [], place.image(), None, info)
    with pytest.raises(ComputeError):
        driver.snapshot(None, instance, "a", print)
    driver.reboot(None, instance, [], "HARD", info)
    wait_until(lambda: boot_line("from a volume") in place.console(instance), "it boots again")
    driver.rebuild(None, instance, image, [], None, {}, [], print, print, network_info=[], block_device_info=info)
    wait_until(lambda: boot_line("from a volume") in place.console(instance), "it boots when it is rebuilt")
    driver.manage_image_cache(None, [instance])
    driver.destroy(None, instance, [], info)
    assert [] == place.traces(instance)
    assert [VOLUME, VOLUME] == [path_of(one).stat().st_size for one in (root, further)]


def test_a_snapshot_of_an_instance_is_of_its_local_disk_only(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    attach(driver, instance, place.volume(content=b"v" * 4096))
    driver.snapshot(None, instance, "whole", lambda *state, **more: None)
    told = subprocess.run(
        ["qemu-img", "info", "--output=json", place.instances / "snapshots/whole"], check=True, capture_output=True
    )
    assert 1 << 30 == json.loads(told.stdout)["virtual-size"]


def test_a_reboot_leaves_out_the_volumes_that_are_gone_and_says_which(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    good, bad = place.volume(), place.volume()
    info = info_of(instance, good, device_name="/dev/vdb")
    info["block_device_mapping"] += info_of(instance, bad, device_name="/dev/vdc")["block_device_mapping"]
    driver.reboot(None, instance, [], "HARD", info)
    assert [{"vda", "vdb", "vdc"}] * 2 == [set(found) for found in both(driver, instance)]
    run, told = driver.get_info(instance).internal_id, list[list[str]]()
    path_of(bad).unlink()
    with pytest.raises(InstanceRebootFailure, match="cannot be reached"):
        driver.reboot(None, instance, [], "HARD", info)
    assert run == driver.get_info(instance).internal_id

    driver.reboot(None, instance, [], "HARD", info, told.append)
    assert [["/dev/vdc"]] == told
    assert [{"vda", "vdb"}] * 2 == [set(found) for found in both(driver, instance)]
    driver.reboot(None, instance, [], "HARD", info_of(instance, good, device_name="/dev/vdb"), told.append)
    assert [["/dev/vdc"]] == told

    root = info_of(instance, bad, boot_index=0)
    with pytest.raises(InstanceRebootFailure):
        driver.reboot(None, instance, [], "HARD", root, told.append)
    assert states.RUNNING == driver.get_info(instance).state


def test_a_volume_comes_along_when_its_instance_is_resized(place: Place, driver: LibvirtDriver, off: FakeInstance) -> None:
    volume = place.volume()
    attach(driver, off, volume)
    info, larger = info_of(off, volume, device_name="/dev/vdb"), FakeFlavor(memory_mb=64, root_gb=2)
    told = driver.migrate_disk_and_power_off(None, off, driver.get_host_ip_addr(), larger, [], info)
    assert ["disk"] == [Path(one["path"]).name for one in json.loads(told)]
    off.old_flavor, off.flavor = off.flavor, larger
    driver.finish_migration(
        None, FakeMigration(), off, told, [], off.image_meta, resize_instance=True, block_device_info=info, power_on=False
    )
    assert (str(path_of(volume)), "raw", volume["serial"]) == disks(driver, off)["vdb"]
    driver.confirm_migration(None, FakeMigration(), off, [])
    assert VOLUME == path_of(volume).stat().st_size


# ---------------------------------------------------------------------------------------------------------------------- extend


def test_a_guest_sees_that_a_volume_has_grown(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    volume = place.volume()
    with pytest.raises(DiskNotFound):
        driver.extend_volume(None, volume, instance, 2 * VOLUME)
    attach(driver, instance, volume)
    driver.extend_volume(None, volume, instance, 2 * VOLUME)
    assert 2 * VOLUME == capacity(driver, instance) == path_of(volume).stat().st_size
    with pytest.raises(InvalidInput, match="already"):
        driver.extend_volume(None, volume, instance, VOLUME)
    assert 2 * VOLUME == path_of(volume).stat().st_size
    with pytest.raises(ExtendVolumeNotSupported):
        driver.extend_volume(None, {**volume, "driver_volume_type": "iscsi"}, instance, 4 * VOLUME)
    driver.power_off(instance)
    driver.extend_volume(None, volume, instance, 3 * VOLUME)  # its owner has made it grow, and it is seen at the start
    assert 2 * VOLUME == path_of(volume).stat().st_size


@pytest.fixture
def device(place: Place) -> Iterator[tuple[Path, Path]]:
    """A block device and the file that it is."""
    file = place.root / "device.raw"
    file.write_bytes(bytes(VOLUME))
    made = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
    yield Path(made.stdout.strip()), file
    command("losetup", "--detach", made.stdout.strip())


def test_a_block_device_is_opened_around_the_host_s_cache_and_grows_with_its_device(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, device: tuple[Path, Path]
) -> None:
    path, file = device
    volume = local(path)
    attach(driver, instance, volume)
    disk = parsed(driver.site.domain(instance).xml()).find("devices/disk[@type='block']")
    assert disk is not None
    assert [("raw", "none")] == [(one.get("type"), one.get("cache")) for one in disk.iterfind("driver")]
    with pytest.raises(OperationFailed):
        driver.extend_volume(None, volume, instance, 2 * VOLUME)
    os.truncate(file, 2 * VOLUME)
    command("losetup", "--set-capacity", str(path))
    driver.extend_volume(None, volume, instance, 2 * VOLUME)
    assert 2 * VOLUME == capacity(driver, instance)
    with pytest.raises(InternalError, match="is no file"):
        driver.volume_snapshot_create(None, instance, volume["serial"], snapshot_of("s1"))

    smaller, larger = place.volume(content=b"n" * 512), place.volume(size=3 * VOLUME, content=b"l" * 512)
    with pytest.raises(OperationFailed, match=f"has {VOLUME} bytes"):
        driver.swap_volume(None, volume, smaller, instance, "/dev/vdb", 0)
    driver.swap_volume(None, volume, larger, instance, "/dev/vdb", 0)
    assert 2 * VOLUME == capacity(driver, instance)
    driver.swap_volume(None, larger, place.volume(size=2 * VOLUME), instance, "/dev/vdb", 0)
    driver.detach_volume(None, local(Path(disks(driver, instance)["vdb"][0])), instance, "/dev/vdb")


# ------------------------------------------------------------------------------------------------------------------------ swap


def test_a_volume_takes_another_one_s_place_with_what_is_on_it(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    old, new = place.volume(content=b"old" * 100_000), place.volume(content=b"new" * 100_000)
    attach(driver, instance, old)
    gone = {"device": "vdb", "source": str(place.root / "gone"), "id": None, "copied": VOLUME, "file_size": 2 * VOLUME}
    for left in ('{"device": "v', json.dumps(gone)):  # of who was killed before it began, and of a volume that is no more
        (place.instances / instance.uuid / "swapping").write_text(left)
        with pytest.raises(DiskNotFound):
            driver.swap_volume(None, new, place.volume(), instance, "/dev/vdb", 0)
        assert not (place.instances / instance.uuid / "swapping").exists()
    driver.swap_volume(None, old, new, instance, "/dev/vdb", 0)
    assert path_of(old).read_bytes() == path_of(new).read_bytes()
    assert [str(path_of(new))] * 2 == [found["vdb"][0] for found in both(driver, instance)]
    assert new["serial"] == disks(driver, instance, inactive=True)["vdb"][2]
    driver.swap_volume(None, old, new, instance, "/dev/vdb", 0)  # a service that was not told that it is done
    with pytest.raises(DiskNotFound):
        driver.swap_volume(None, old, place.volume(), instance, "/dev/vdb", 0)

    larger = place.volume(size=1 << 30)
    driver.swap_volume(None, new, larger, instance, "/dev/vdb", 1)
    assert 1 << 30 == capacity(driver, instance) == path_of(larger).stat().st_size
    assert path_of(old).read_bytes() == path_of(larger).read_bytes()[:VOLUME]
    with pytest.raises(InvalidInput, match="resize_to"):
        driver.swap_volume(None, larger, place.volume(size=3 << 30), instance, "/dev/vdb", -1)
    driver.power_off(instance)
    with pytest.raises(InstanceNotRunning):
        driver.swap_volume(None, larger, old, instance, "/dev/vdb", 0)
    driver.power_on(None, instance, [], info_of(instance, larger, device_name="/dev/vdb"))
    assert larger["serial"] == disks(driver, instance)["vdb"][2]


@pytest.mark.component("tmpfs")
def test_a_swap_that_fails_keeps_the_old_volume(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, tmp_path: Path
) -> None:
    old, further = place.volume(content=os.urandom(VOLUME)), place.volume()
    attach(driver, instance, old)
    attach(driver, instance, further, "/dev/vdc")
    full = tmp_path / "full"
    full.mkdir()
    command("mount", "-t", "tmpfs", "-o", f"size={VOLUME // 4}", "none", str(full))
    try:
        (full / "new").touch()
        os.truncate(full / "new", VOLUME)
        (full / "larger").touch()
        os.truncate(full / "larger", 1 << 30)
        before = both(driver, instance)
        for path, resize_to in ((full / "new", 0), (full / "larger", 1)):
            size = path.stat().st_size
            with pytest.raises(OperationFailed, match="could not be put in the place of vdb"):
                driver.swap_volume(None, old, local(path), instance, "/dev/vdb", resize_to)
            assert (before, size) == (both(driver, instance), path.stat().st_size)
    finally:
        command("umount", str(full))
    for wrong, error in (
        (further, OperationFailed),
        (place.volume(size=512), OperationFailed),
        (place.volume(access_mode="ro"), NotSupported),
        (local(place.root / "nothing"), VolumeAttachFailed),
        ({**further, "driver_volume_type": "nfs"}, VolumeDriverNotFound),
    ):
        with pytest.raises(error):
            driver.swap_volume(None, old, wrong, instance, "/dev/vdb", 0)
    assert before == both(driver, instance)
    assert not (place.instances / instance.uuid / "swapping").exists()
    driver.detach_volume(None, old, instance, "/dev/vdb")


def test_a_swap_leaves_alone_what_others_have(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    old, other = place.volume(), spawned(place, driver, power_on=False)
    theirs = place.volume(size=1 << 30)
    with path_of(theirs).open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"kept")
    attach(driver, other, theirs)
    attach(driver, instance, old)
    with pytest.raises(VolumeAttachFailed, match="has it, as vdb"):
        driver.swap_volume(None, old, theirs, instance, "/dev/vdb", 1)
    driver.destroy(None, other, [])
    argv = ["qemu-io", "-f", "raw", "-c", "sleep 60000", os.fspath(path_of(theirs))]
    with subprocess.Popen(argv) as elsewhere:  # as of another host
        wait_until(lambda: opened_elsewhere(path_of(theirs)), "it is open")
        with pytest.raises(OperationFailed, match="is open"):
            driver.swap_volume(None, old, theirs, instance, "/dev/vdb", 1)
        elsewhere.kill()
    assert b"kept" == path_of(theirs).read_bytes()[-4:]
    assert str(path_of(old)) == disks(driver, instance)["vdb"][0]


def test_a_swap_is_done_if_the_guest_has_the_new_volume_whatever_libvirt_said(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    """Here somebody else pivots; as with an answer that was lost, the old volume is the guest's no more."""
    old, new = place.volume(size=4 * VOLUME, content=os.urandom(4 * VOLUME)), place.volume(size=4 * VOLUME)
    attach(driver, instance, old)
    with ThreadPoolExecutor() as threads:
        swapped = threads.submit(driver.swap_volume, None, old, new, instance, "/dev/vdb", 0)
        known = DomainDisks(driver.site.domain(instance))
        while not swapped.done():
            if any(disk.may_pivot for disk in known.live()):
                with suppress(OperationFailed):  # it was first
                    known.pivot("vdb")
    assert swapped.exception() is None
    assert [str(path_of(new))] * 2 == [found["vdb"][0] for found in both(driver, instance)]
    assert new["serial"] == disks(driver, instance, inactive=True)["vdb"][2]
    assert path_of(old).read_bytes() == path_of(new).read_bytes()


def called(place: Place, instance: FakeInstance, method: str, *arguments: Any) -> subprocess.Popen[bytes]:
    script = Path(__file__).parent / "libvirt_caller.py"
    argv = [
        sys.executable,
        os.fspath(script),
        os.fspath(place.root),
        place.daemon.uri,
        method,
        instance.uuid,
        json.dumps(arguments),
    ]
    return subprocess.Popen(argv, cwd=script.parent)


@pytest.mark.parametrize("finds", ["the next driver", "the next swap"])
def test_a_swap_whose_maker_is_killed_is_undone_by_who_finds_it(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, finds: str
) -> None:
    old, new = place.volume(size=8 * VOLUME, content=os.urandom(8 * VOLUME)), place.volume(size=1 << 30)
    attach(driver, instance, old)
    before = both(driver, instance)
    with called(place, instance, "swap_volume", old, new, "INSTANCE", "/dev/vdb", 1) as swapper, place.copying_slowly(instance):
        with pytest.raises(OperationFailed, match="is being swapped"):
            driver.swap_volume(None, old, place.volume(size=8 * VOLUME), instance, "/dev/vdb", 0)
        swapper.kill()
    assert str(path_of(old)) == disks(driver, instance)["vdb"][0]
    assert 8 * VOLUME == path_of(new).stat().st_size

    if finds == "the next driver":
        place.driver().cleanup_host("node1")
        assert "<mirror" not in driver.site.domain(instance).xml()
        assert (before, 1 << 30) == (both(driver, instance), path_of(new).stat().st_size)
    else:
        driver.swap_volume(None, old, new, instance, "/dev/vdb", 1)
        assert [str(path_of(new))] * 2 == [found["vdb"][0] for found in both(driver, instance)]
        assert path_of(old).read_bytes() == path_of(new).read_bytes()[: 8 * VOLUME]
    assert not (place.instances / instance.uuid / "swapping").exists()


def test_a_guest_that_ends_during_a_swap_has_the_old_volume_when_it_starts(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    old, new = place.volume(size=8 * VOLUME, content=os.urandom(8 * VOLUME)), place.volume(size=1 << 30)
    attach(driver, instance, old)
    with called(place, instance, "swap_volume", old, new, "INSTANCE", "/dev/vdb", 1) as swapper, place.copying_slowly(instance):
        driver.power_off(instance)
        assert swapper.wait(60) not in (0, None)
    assert str(path_of(old)) == disks(driver, instance, inactive=True)["vdb"][0]
    assert 1 << 30 == path_of(new).stat().st_size
    assert not (place.instances / instance.uuid / "swapping").exists()
    driver.power_on(None, instance, [])
    assert str(path_of(old)) == disks(driver, instance)["vdb"][0]


def test_an_interrupted_swap_keeps_an_instance_where_it_is_and_ends_with_it(place: Place, driver: LibvirtDriver) -> None:
    instance, new = spawned(place, driver, power_on=False), place.volume()
    record = {"device": "vdb", "source": str(path_of(new)), "id": None, "copied": VOLUME, "file_size": 2 * VOLUME}
    (place.instances / instance.uuid / "swapping").write_text(json.dumps(record))
    with pytest.raises(InstanceFaultRollback, match="swap was interrupted"):
        driver.migrate_disk_and_power_off(None, instance, driver.get_host_ip_addr(), FakeFlavor(memory_mb=64), [], None)
    driver.destroy(None, instance, [])
    assert ([], 2 * VOLUME) == (place.traces(instance), path_of(new).stat().st_size)


def test_a_swap_whose_maker_is_killed_behind_the_pivot_is_done_to_its_end(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    """The moment is too short to be met, so the pivot is made here, with what its maker has written down before."""
    old, new = place.volume(content=b"old"), place.volume()
    attach(driver, instance, old)
    target = f"<disk type='file'><driver name='qemu' type='raw'/><source file='{path_of(new)}'/></disk>"
    known = DomainDisks(driver.site.domain(instance))
    known.begin_copy("vdb", target)
    wait_until(lambda: "ready='yes'" in driver.site.domain(instance).xml(), "it is copied")
    known.pivot("vdb")
    record = {"device": "vdb", "source": str(path_of(new)), "id": new["serial"], "copied": VOLUME, "file_size": 2 * VOLUME}
    (place.instances / instance.uuid / "swapping").write_text(json.dumps(record))
    assert old["serial"] == disks(driver, instance, inactive=True)["vdb"][2]

    place.driver().cleanup_host("node1")
    assert (str(path_of(new)), "raw", new["serial"]) == disks(driver, instance, inactive=True)["vdb"]
    assert 2 * VOLUME == path_of(new).stat().st_size
    assert not (place.instances / instance.uuid / "swapping").exists()
    with pytest.raises(DiskNotFound):
        driver.detach_volume(None, old, instance, "/dev/vdb")
    driver.detach_volume(None, new, instance, "/dev/vdb")


def test_a_guest_starts_on_the_volume_that_its_service_does_not_know_of_yet(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, caplog: pytest.LogCaptureFixture
) -> None:
    """The service is killed behind the swap and before it stores the new connection."""
    old, new = place.volume(content=b"old"), place.volume()
    attach(driver, instance, old)
    with called(place, instance, "swap_volume", old, new, "INSTANCE", "/dev/vdb", 0) as swapper:
        assert 0 == swapper.wait(60)
    stale = info_of(instance, old, device_name="/dev/vdb")
    bad = list[str]()

    later = place.driver()
    later.reboot(None, instance, [], "HARD", stale, bad_volumes_callback=bad.extend)
    assert [(str(path_of(new)), "raw", new["serial"])] * 2 == [found["vdb"] for found in both(driver, instance)]
    assert "of which its service does not know" in caplog.text
    path_of(old).unlink()
    later.reboot(None, instance, [], "HARD", stale, bad_volumes_callback=bad.extend)
    later.power_off(instance)
    later.power_on(None, instance, [], stale)
    assert (str(path_of(new)), []) == (disks(driver, instance)["vdb"][0], bad)
    with pytest.raises(InstanceFaultRollback, match="does not know yet"):
        later.migrate_disk_and_power_off(None, instance, later.get_host_ip_addr(), instance.flavor, [], stale)
    later.cleanup_host("node1")


def test_a_guest_starts_on_the_new_volume_as_soon_as_libvirt_has_it_whatever_is_left_of_the_swap(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    """Who swaps is killed before anybody could note that it is done, and nobody has made whole what he left."""
    old, new = place.volume(size=8 * VOLUME, content=os.urandom(8 * VOLUME)), place.volume(size=8 * VOLUME)
    attach(driver, instance, old)
    with called(place, instance, "swap_volume", old, new, "INSTANCE", "/dev/vdb", 0) as swapper, place.copying_slowly(instance):
        swapper.kill()
    known = DomainDisks(driver.site.domain(instance))
    wait_until(lambda: any(disk.may_pivot for disk in known.live()), "it is copied")
    known.pivot("vdb")
    driver.reboot(None, instance, [], "HARD", info_of(instance, old, device_name="/dev/vdb"))
    assert [str(path_of(new))] * 2 == [found["vdb"][0] for found in both(driver, instance)]


def test_a_guest_starts_on_the_old_volume_when_a_swap_came_to_nothing(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    old, new = place.volume(size=8 * VOLUME, content=os.urandom(8 * VOLUME)), place.volume(size=8 * VOLUME)
    attach(driver, instance, old)
    with called(place, instance, "swap_volume", old, new, "INSTANCE", "/dev/vdb", 0) as swapper, place.copying_slowly(instance):
        swapper.kill()
        driver.reboot(None, instance, [], "HARD", info_of(instance, old, device_name="/dev/vdb"))
    assert [str(path_of(old))] * 2 == [found["vdb"][0] for found in both(driver, instance)]


def test_a_service_that_knows_of_a_swap_has_its_word(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    old, new = place.volume(content=b"old"), place.volume()
    attach(driver, instance, old)
    driver.swap_volume(None, old, new, instance, "/dev/vdb", 0)
    driver.reboot(None, instance, [], "HARD", info_of(instance, new, device_name="/dev/vdb"))
    assert str(path_of(new)) == disks(driver, instance)["vdb"][0]

    driver.swap_volume(None, new, old, instance, "/dev/vdb", 0)
    driver.reboot(None, instance, [], "HARD", info_of(instance, old, device_name="/dev/vdb"))
    assert str(path_of(old)) == disks(driver, instance)["vdb"][0]

    driver.swap_volume(None, old, new, instance, "/dev/vdb", 0)
    driver.power_off(instance)
    driver.detach_volume(None, new, instance, "/dev/vdb")
    attach(driver, instance, old)
    driver.reboot(None, instance, [], "HARD", info_of(instance, old, device_name="/dev/vdb"))
    assert str(path_of(old)) == disks(driver, instance)["vdb"][0]


def test_an_instance_of_which_nobody_knows_what_was_swapped_is_not_defined_anew(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    volume = place.volume()
    attach(driver, instance, volume)
    (place.instances / instance.uuid / "swapped").write_text("[{}]")
    with pytest.raises(InstanceRebootFailure, match="were swapped"):
        driver.reboot(None, instance, [], "HARD", info_of(instance, volume, device_name="/dev/vdb"))
    assert str(path_of(volume)) == disks(driver, instance)["vdb"][0]


# ------------------------------------------------------------------------------------------------------- snapshots of volumes


def snapshot_of(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "qcow2", "snapshot_id": f"id of {name}", "new_file": name, **more}


def merge(top: str | None, target: str | None = None) -> dict[str, Any]:
    return {"type": "qcow2", "file_to_merge": top, "merge_target_file": target}


def chain(driver: LibvirtDriver, instance: FakeInstance, *, inactive: bool = False) -> list[str]:
    """The names of the files that vdb is made of, the one that is written first."""
    domain = parsed(driver.site.domain(instance).xml(inactive=inactive))
    [disk] = [one for one in domain.iterfind("devices/disk") if one.find("target[@dev='vdb']") is not None]
    return [Path(source.get("file", "")).name for source in disk.iter("source")]


def test_what_is_written_to_a_volume_goes_to_another_file_from_a_snapshot_on(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    volume = place.volume(content=b"v" * 4096)
    attach(driver, instance, volume)
    name, volume_id = path_of(volume).name, volume["serial"]
    made = path_of(volume).with_name("s2")
    for one in ("s1", "s2", "s3"):
        if one == "s2":  # as a storage may have made it
            command("qemu-img", "create", "-q", "-f", "qcow2", "-b", "s1", "-F", "qcow2", str(made))
        driver.volume_snapshot_create(None, instance, volume_id, snapshot_of(one))
        driver.volume_snapshot_create(None, instance, volume_id, snapshot_of(one))  # a service that was not told
    assert [["s3", "s2", "s1", name]] * 2 == [chain(driver, instance, inactive=one) for one in (False, True)]
    assert 1 == len(chain_of_root(driver, instance))

    info = info_of(instance, volume, device_name="/dev/vdb")
    driver.reboot(None, instance, [], "HARD", info)  # of what the service knows only the volume
    assert ["s3", "s2", "s1", name] == chain(driver, instance)
    assert ("qcow2", volume_id) == disks(driver, instance)["vdb"][1:]

    driver.volume_snapshot_delete(None, instance, volume_id, "id", merge("s2", "s1"))
    assert ["s3", "s1", name] == chain(driver, instance)
    driver.volume_snapshot_delete(None, instance, volume_id, "id", merge("s2", "s1"))
    driver.volume_snapshot_delete(None, instance, volume_id, "id", merge(name))
    assert ["s3", name] == chain(driver, instance)
    driver.volume_snapshot_delete(None, instance, volume_id, "id", merge("s3", name))
    assert [[name]] * 2 == [chain(driver, instance, inactive=one) for one in (False, True)]
    driver.volume_snapshot_create(None, instance, volume_id, snapshot_of("s4"))
    driver.volume_snapshot_delete(None, instance, volume_id, "id", merge(None))
    assert [["s4"]] * 2 == [chain(driver, instance, inactive=one) for one in (False, True)]
    driver.volume_snapshot_create(None, instance, volume_id, snapshot_of("s5"))
    DomainDisks(driver.site.domain(instance)).begin_commit("vdb", top=None, base=str(path_of(volume).with_name("s4")))
    driver.volume_snapshot_delete(None, instance, volume_id, "id", merge("s5", "s4"))  # begun by who was killed
    assert [["s4"]] * 2 == [chain(driver, instance, inactive=one) for one in (False, True)]
    place.await_boot(instance)
    driver.detach_volume(None, volume, instance, "/dev/vdb")
    assert {"vda"} == disks(driver, instance).keys()
    assert {name, "s1", "s2", "s3", "s4", "s5"} == set(os.listdir(path_of(volume).parent))


def test_a_volume_is_written_to_the_same_file_after_any_number_of_starts(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    """Of what the service knows only the volume: to open that below its snapshot would spoil both."""
    volume = place.volume()
    attach(driver, instance, volume)
    driver.volume_snapshot_create(None, instance, volume["serial"], snapshot_of("s1"))
    info, told = info_of(instance, volume, device_name="/dev/vdb"), list[list[str]]()
    for _ in range(3):
        driver.reboot(None, instance, [], "HARD", info)
        assert [["s1", path_of(volume).name]] * 2 == [chain(driver, instance, inactive=one) for one in (False, True)]

    with pytest.raises(InstanceFaultRollback, match="since their snapshots"):
        driver.migrate_disk_and_power_off(None, instance, "192.0.2.9", instance.flavor, [], info)

    path_of(volume).rename(place.root / "away")  # for a while, as a storage that does not answer
    with pytest.raises(InstanceRebootFailure, match="cannot be reached"):
        driver.reboot(None, instance, [], "HARD", info, told.append)
    assert [] == told
    (place.root / "away").rename(path_of(volume))
    driver.reboot(None, instance, [], "HARD", info, told.append)
    assert ["s1", path_of(volume).name] == chain(driver, instance)


def test_volumes_are_not_snapshot_during_a_rescue_which_ends_with_the_files_that_there_were(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    volume = place.volume()
    attach(driver, instance, volume)
    driver.volume_snapshot_create(None, instance, volume["serial"], snapshot_of("s1"))
    driver.rescue(None, instance, [], place.image(), None, info_of(instance, volume, device_name="/dev/vdb"))
    with pytest.raises(OperationFailed, match="rescued"):
        driver.volume_snapshot_create(None, instance, volume["serial"], snapshot_of("s2"))
    with pytest.raises(OperationFailed, match="rescued"):
        driver.volume_snapshot_delete(None, instance, volume["serial"], "id", merge("s1", path_of(volume).name))
    driver.unrescue(instance, [])
    assert ["s1", path_of(volume).name] == chain(driver, instance)


def chain_of_root(driver: LibvirtDriver, instance: FakeInstance) -> list[str]:
    """The files of the root disk that lie in the instance's directory."""
    root = next(parsed(driver.site.domain(instance).xml()).iterfind("devices/disk"))
    return [file for one in root.iter("source") if instance.uuid in (file := one.get("file", ""))]


def test_a_snapshot_of_a_volume_that_cannot_be_is_refused(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    volume = place.volume()
    attach(driver, instance, volume)
    volume_id = volume["serial"]
    for wanted in (
        snapshot_of("s1", type="raw"),
        snapshot_of("s1", snapshot_id=None),
        snapshot_of("../s1"),
        snapshot_of(""),
    ):
        with pytest.raises(InternalError):
            driver.volume_snapshot_create(None, instance, volume_id, wanted)
    with pytest.raises(InternalError, match="no volume another"):
        driver.volume_snapshot_create(None, instance, "another", snapshot_of("s1"))
    driver.volume_snapshot_create(None, instance, volume_id, snapshot_of("s1"))
    with pytest.raises(InternalError, match="stands on"):
        driver.volume_snapshot_create(None, instance, volume_id, snapshot_of(path_of(volume).name))
    for given, wanted in (
        ("id", {"type": "raw"}),
        ("", merge("s1")),
        ("id", merge("nothing")),
        ("id", merge("s1")),
        ("id", merge(None, path_of(volume).name)),
        ("id", merge(path_of(volume).name, "s1")),
        ("id", merge("s1", "nothing")),
    ):
        with pytest.raises(InternalError):
            driver.volume_snapshot_delete(None, instance, volume_id, given, wanted)
    assert ["s1", path_of(volume).name] == chain(driver, instance)

    instance.image_meta = FakeImage(id=instance.image_ref, properties={"os_require_quiesce": "yes"})
    with pytest.raises(QemuGuestAgentNotEnabled):
        driver.volume_snapshot_create(None, instance, volume_id, snapshot_of("s2"))
    driver.power_off(instance)
    with pytest.raises(InstanceNotRunning):
        driver.volume_snapshot_create(None, instance, volume_id, snapshot_of("s2"))
    with pytest.raises(InstanceNotRunning):
        driver.volume_snapshot_delete(None, instance, volume_id, "id", merge("s1"))


def test_a_snapshot_of_a_volume_whose_maker_is_killed_is_whole_at_the_next_call(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    volume = place.volume()
    attach(driver, instance, volume)
    new = path_of(volume).with_name("s1")
    with called(place, instance, "volume_snapshot_create", "INSTANCE", volume["serial"], snapshot_of("s1")) as maker:
        wait_until(lambda: new.exists() or maker.poll() is not None, "libvirt begins")
        maker.kill()
    again = place.driver()
    again.volume_snapshot_create(None, instance, volume["serial"], snapshot_of("s1"))
    assert [["s1", path_of(volume).name]] * 2 == [chain(driver, instance, inactive=one) for one in (False, True)]
    again.cleanup_host("node1")


# ----------------------------------------------------------------------------------------------------------------------- prune


def test_a_volume_keeps_an_image_only_if_it_stands_on_it(place: Place) -> None:
    driver = place.driver(instances=f'inventory = "libvirt:{place.daemon.uri}"')
    raw, overlay = place.volume(), place.root / "volumes/overlay"
    write_raw(place.root / "root.raw", size=VOLUME, message="from a volume")
    image = FakeImage(id="")
    instance = place.instance(image)
    info = info_of(instance, local(place.root / "root.raw"), boot_index=0)
    driver.spawn(None, instance, image, [], None, {}, block_device_info=info, power_on=False)
    attach(driver, instance, raw)
    driver.cache_image(None, place.image().id)
    [base] = driver.site.host.images()[0]
    command("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base.path), "-F", "raw", str(overlay))
    attach(driver, instance, local(overlay, format="qcow2"), "/dev/vdc")

    driver.manage_image_cache(None, [instance])
    assert 1 == len(driver.site.host.images()[0])
    driver.detach_volume(None, local(overlay), instance, "/dev/vdc")
    path_of(raw).unlink()  # a raw volume that cannot be reached stands on nothing
    overlay.unlink()
    driver.manage_image_cache(None, [instance])
    assert [] == driver.site.host.images()[0]
    driver.destroy(None, instance, [])
    driver.cleanup_host("node1")
