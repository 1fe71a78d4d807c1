"""Tagged devices of real guests: what is written down of them is where libvirt has put them, and where Linux finds them."""

import json
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import linux_guest
import pytest
from libvirt_daemon import Daemon
from libvirt_stage import Place, wait_until
from linux_guest import PLACES
from linux_stage import LinuxPlace

from underlay.compute import get_block_device_info
from underlay.compute.devicemetadata import DiskMetadata, InstanceDeviceMetadata, NetworkInterfaceMetadata
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.guestxml import parsed
from underlay.testing.fakedriver import FakeImage, FakeInstance, fake_vif

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip")

MANDATORY = {"img_config_drive": "mandatory"}
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")


def root_row(tag: str = "root") -> dict[str, Any]:
    return {"source_type": "image", "destination_type": "local", "boot_index": 0, "tag": tag}


def volume_row(volume: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"source_type": "volume", "destination_type": "volume", "connection_info": volume, **more}


def told(place: Place, instance: FakeInstance, name: str = "disk.config") -> dict[str, Any]:
    """The meta_data.json of a config drive."""
    iso = import_module("pycdlib").PyCdlib()
    iso.open(str(place.instances / instance.uuid / name))
    try:
        written = BytesIO()
        iso.get_file_from_iso_fp(written, joliet_path="/openstack/latest/meta_data.json")
    finally:
        iso.close()
    found: dict[str, Any] = json.loads(written.getvalue())
    return found


def addresses(driver: LibvirtDriver, instance: FakeInstance, *, inactive: bool = False) -> dict[str, str]:
    """Where libvirt has put each disk and each interface on PCI, by its device or its MAC."""
    found = {}
    for one in parsed(driver.site.domain(instance).xml(inactive=inactive)).iterfind("devices/*"):
        address, named = one.find("address[@type='pci']"), one.find("mac") if one.tag == "interface" else one.find("target")
        if one.tag in ("disk", "interface") and address is not None and named is not None:
            number = {key: int(address.get(key, ""), 16) for key in ("domain", "bus", "slot", "function")}
            name = named.get("address") or named.get("dev") or ""
            found[name] = "{domain:04x}:{bus:02x}:{slot:02x}.{function:x}".format(**number)
    return found


def written(instance: FakeInstance) -> dict[str, str | None]:
    """Where each tagged device is by its record."""
    metadata = instance.device_metadata
    if metadata is None:
        return {}
    assert isinstance(metadata, InstanceDeviceMetadata)
    found: dict[str, str | None] = {}
    for one in metadata.devices:
        assert isinstance(one, NetworkInterfaceMetadata | DiskMetadata)
        found[(one.tags or ("",))[0]] = None if one.bus is None else one.bus.address
    return found


@pytest.fixture
def tagged(place: Place, driver: LibvirtDriver, bridge: str) -> Iterator[tuple[FakeInstance, FakeImage, Any, Any]]:
    """One with a tagged root disk, a tagged volume, a tagged interface and one that is not, which does not run."""
    image = place.image(properties=dict(MANDATORY))
    instance, volume = place.instance(image), place.volume()
    vifs = [fake_vif(1, bridge=bridge) | {"tag": "front"}, fake_vif(2, bridge=bridge)]
    info = get_block_device_info(instance, [root_row(), volume_row(volume, tag="data"), volume_row(place.volume())])
    driver.spawn(None, instance, image, [], "s3cret", {}, network_info=vifs, block_device_info=info, power_on=False)
    yield instance, image, vifs, info
    driver.destroy(None, instance, vifs, info)
    assert [] == place.traces(instance)


def test_a_guest_is_told_at_its_first_start_where_its_tagged_devices_are(
    place: Place, driver: LibvirtDriver, tagged: tuple[FakeInstance, FakeImage, Any, Any]
) -> None:
    instance, _, _, info = tagged
    where = addresses(driver, instance)
    assert {"root": where["vda"], "data": where["vdb"], "front": where[MACS[0]]} == written(instance)
    assert 3 == len(set(written(instance).values()))
    serial = info["block_device_mapping"][0]["connection_info"]["serial"]
    metadata = told(place, instance)
    assert [
        {"type": "disk", "path": "/dev/vda", "bus": "pci", "address": where["vda"], "tags": ["root"]},
        {"type": "disk", "serial": serial, "bus": "pci", "address": where["vdb"], "tags": ["data"]},
        {"type": "nic", "mac": MACS[0], "bus": "pci", "address": where[MACS[0]], "tags": ["front"], "vf_trusted": False},
    ] == metadata["devices"]
    assert "s3cret" == metadata["admin_pass"]  # what is written again has lost nothing
    driver.power_on(None, instance, [])
    assert where == addresses(driver, instance)  # as they were defined


def test_what_is_tagged_is_written_down_again_by_a_rebuild_and_a_hard_reboot(
    place: Place, driver: LibvirtDriver, tagged: tuple[FakeInstance, FakeImage, Any, Any]
) -> None:
    instance, image, vifs, info = tagged
    instance.device_metadata = None
    driver.rebuild(None, instance, image, [], "n3w", {}, [], print, print, network_info=vifs, block_device_info=info)
    where = addresses(driver, instance)
    expected = {"root": where["vda"], "data": where["vdb"], "front": where[MACS[0]]}
    assert expected == written(instance)
    metadata = told(place, instance)
    assert ("n3w", ["root", "data", "front"]) == (metadata["admin_pass"], [one["tags"][0] for one in metadata["devices"]])

    # Without its disks' rows and with fewer interfaces it is another machine, and what is gone is no more written down.
    later = get_block_device_info(instance, [])
    driver.reboot(None, instance, vifs[:1], "HARD", later)
    where = addresses(driver, instance)
    assert {"root": where["vda"], "front": where[MACS[0]]} == written(instance)


def test_a_rescue_s_drive_tells_where_devices_are_during_it_and_the_records_stay(
    place: Place, driver: LibvirtDriver, tagged: tuple[FakeInstance, FakeImage, Any, Any]
) -> None:
    instance, image, vifs, info = tagged
    before = instance.device_metadata
    driver.rescue(None, instance, vifs, image, "password", info)
    where = addresses(driver, instance)
    devices = {one["tags"][0]: one["address"] for one in told(place, instance, "disk.config.rescue")["devices"]}
    assert {"root": where["vdb"], "data": where["vdc"], "front": where[MACS[0]]} == devices
    assert before is instance.device_metadata
    driver.unrescue(instance, vifs)
    where = addresses(driver, instance)
    assert {"root": where["vda"], "data": where["vdb"], "front": where[MACS[0]]} == written(instance)


@pytest.mark.parametrize("runs", [False, True], ids=["off", "on"])
def test_tagged_devices_are_written_down_when_they_come_and_no_more_when_they_go(
    place: Place, driver: LibvirtDriver, bridge: str, *, runs: bool
) -> None:
    image = place.image()
    instance, volume, plain = place.instance(image), place.volume(), place.volume()
    driver.spawn(None, instance, image, [], None, {}, power_on=runs)
    if runs:
        place.await_boot(instance)
    assert {} == written(instance)

    instance.bdms = [{"tag": "data", "volume_id": volume["serial"], "device_name": "/dev/vdb"}]
    driver.attach_volume(None, volume, instance, "/dev/vdb", disk_bus="virtio")
    assert {"data": addresses(driver, instance)["vdb"]} == written(instance)
    instance.bdms = ()  # what is written down is enough from now on
    vif = fake_vif(1, bridge=bridge) | {"tag": "late"}
    driver.attach_interface(None, instance, image, vif)
    driver.attach_volume(None, plain, instance, "/dev/sda", disk_bus="usb")
    where = addresses(driver, instance)
    assert {"data": where["vdb"], "late": where[MACS[0]]} == written(instance)

    driver.detach_volume(None, volume, instance, "/dev/vdb")
    assert {"late": where[MACS[0]]} == written(instance)
    driver.detach_interface(None, instance, vif)
    assert instance.device_metadata is None
    driver.destroy(None, instance, [])


def test_a_tagged_disk_is_found_on_its_bus(place: Place, driver: LibvirtDriver) -> None:
    image = place.image(properties={"hw_machine_type": "pc"})
    instance = place.instance(image)
    volumes = {bus: place.volume() for bus in ("scsi", "ide", "usb", "sata")}
    rows = [volume_row(one, disk_bus=bus, tag=bus) for bus, one in volumes.items()]
    info = get_block_device_info(instance, rows)
    driver.spawn(None, instance, image, [], None, {}, block_device_info=info, power_on=False)
    found = {one.tags[0]: one.bus and (type(one.bus).__name__, one.bus.address) for one in instance.device_metadata.devices}
    assert {
        "scsi": ("SCSIDeviceBus", "0:0:0:0"),
        "ide": ("IDEDeviceBus", "0:0"),
        "usb": ("USBDeviceBus", "0:1"),
        "sata": None,
    } == found
    driver.destroy(None, instance, [])


def test_a_linux_finds_its_devices_where_its_config_drive_says(
    daemon: Daemon, bridge: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guest = linux_guest.make(tmp_path_factory.mktemp("linux"))
    place = Place(tmp_path, daemon)
    linux = LinuxPlace(place, linux_guest.linked(guest, tmp_path))
    driver = place.driver()
    image = linux.image(agent=False, **MANDATORY)
    instance, volume, later = linux.instance(image), place.volume(), place.volume()
    vifs = [fake_vif(1, bridge=bridge), fake_vif(2, bridge=bridge) | {"tag": "back"}]
    info = get_block_device_info(instance, [root_row(), volume_row(volume, tag="data")])
    driver.spawn(None, instance, image, [], None, {}, network_info=vifs, block_device_info=info)
    linux.await_up(instance)

    def places() -> dict[str, str]:
        """Where the guest has found what: by MACs, and by the ids of volumes as far as a disk on virtio has them."""
        line = (linux.lines(instance, PLACES) or [""])[-1]
        return dict(word.split("=") for word in line.split())

    devices = {one["tags"][0]: one for one in told(place, instance)["devices"]}
    wait_until(lambda: {"vda", volume["serial"][:20], MACS[1]} <= places().keys(), "the guest finds its devices")
    found = places()
    assert (devices["data"]["address"], devices["back"]["address"], devices["root"]["address"]) == (
        found[volume["serial"][:20]],
        found[MACS[1]],
        found["vda"],
    )
    instance.bdms = [{"tag": "late", "volume_id": later["serial"], "device_name": "/dev/vdc"}]
    driver.attach_volume(None, later, instance, "/dev/vdc", disk_bus="virtio")
    wait_until(lambda: later["serial"][:20] in places(), "the guest finds the further volume")
    assert places()[later["serial"][:20]] == written(instance)["late"]
    driver.destroy(None, instance, vifs, info)
    driver.cleanup_host("node1")
