"""Which devices of a guest are written down, with which tags and addresses."""

from types import SimpleNamespace
from typing import Any

import pytest

from underlay.compute import get_block_device_info
from underlay.compute.devicemetadata import (
    DiskMetadata,
    IDEDeviceBus,
    InstanceDeviceMetadata,
    NetworkInterfaceMetadata,
    PCIDeviceBus,
    SCSIDeviceBus,
    USBDeviceBus,
)
from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt.devicerecords import (
    NamedInterface,
    Tags,
    records_of,
    tags_of_records,
    tags_of_rows,
    tags_of_vifs,
)
from underlay.compute.libvirt.diskplan import disks_of
from underlay.compute.libvirt.taggeddevices import devices_of
from underlay.compute.libvirt.tagging import known
from underlay.compute.libvirt.volumeplan import volumes_of
from underlay.testing.fakedriver import FakeImage, FakeInstance

PCI = "<address type='pci' domain='0x0000' bus='0x0a' slot='0x1f' function='0x7'/>"
DRIVE = "<address type='drive' controller='1' bus='0' target='2' unit='10'/>"
MAC = "52:54:00:00:00:01"


def disk(device: str, address: str, *, bus: str = "virtio", serial: str | None = None) -> str:
    told = "" if serial is None else f"<serial>{serial}</serial>"
    return f"<disk type='file' device='disk'><target dev='{device}' bus='{bus}'/>{told}{address}</disk>"


def interface(mac: str, address: str = PCI) -> str:
    return f"<interface type='bridge'><mac address='{mac}'/><target dev='tap1'/>{address}</interface>"


def domain(*devices: str) -> str:
    return f"<domain><devices><controller type='pci'>{PCI}</controller>{''.join(devices)}</devices></domain>"


def only(xml: str, tags: Tags) -> Any:
    found = records_of(xml, tags)
    assert found is not None
    [record] = found.devices
    return record


@pytest.mark.parametrize(
    ("bus", "address", "expected"),
    [
        ("virtio", PCI, PCIDeviceBus(address="0000:0a:1f.7")),
        ("scsi", DRIVE, SCSIDeviceBus(address="1:0:2:a")),
        ("ide", "<address type='drive' controller='0' bus='1' target='0' unit='1'/>", IDEDeviceBus(address="1:1")),
        ("usb", "<address type='usb' bus='0' port='3'/>", USBDeviceBus(address="0:3")),
        ("usb", "<address type='usb' bus='0' port='3.1'/>", USBDeviceBus()),
        ("sata", DRIVE, None),
        ("virtio", "<address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0000'/>", None),
        ("virtio", "", None),
    ],
)
def test_a_device_is_where_libvirt_has_put_it(bus: str, address: str, expected: object) -> None:
    record = only(domain(disk("vdb", address, bus=bus)), Tags(disks={"vdb": "data"}))
    assert DiskMetadata(tags=("data",), path="/dev/vdb", bus=expected) == record  # type: ignore[arg-type]


def test_only_what_is_tagged_or_has_a_vlan_is_written_down() -> None:
    xml = domain(
        disk("vda", PCI), disk("vdb", PCI, serial="v1"), interface(MAC), interface("52:54:00:00:00:AB"), interface("x")
    )
    assert records_of(xml, Tags()) is None
    assert records_of(xml, Tags(disks={"vdb": "a volume has its id"}, volumes={"v2": "another"})) is None
    vifs: list[dict[str, Any]] = [
        {"address": MAC, "tag": "front"},
        {"address": "52:54:00:00:00:ab", "details": {"vlan": "7"}},
        {"address": "x"},
    ]
    found = records_of(xml, Tags(volumes={"v1": "data"}) | tags_of_vifs(vifs))
    assert found == InstanceDeviceMetadata(
        devices=(
            DiskMetadata(tags=("data",), serial="v1", bus=PCIDeviceBus(address="0000:0a:1f.7")),
            NetworkInterfaceMetadata(mac=MAC, tags=("front",), bus=PCIDeviceBus(address="0000:0a:1f.7")),
            NetworkInterfaceMetadata(mac="52:54:00:00:00:AB", vlan=7, bus=PCIDeviceBus(address="0000:0a:1f.7")),
        )
    )
    where = {"bus": "pci", "address": "0000:0a:1f.7"}
    assert [
        {"type": "disk", "serial": "v1", "tags": ["data"], **where},
        {"type": "nic", "mac": MAC, "tags": ["front"], "vf_trusted": False, **where},
        {"type": "nic", "mac": "52:54:00:00:00:AB", "vlan": 7, "vf_trusted": False, **where},
    ] == devices_of(found)


def test_a_domain_with_a_document_type_is_not_read() -> None:
    with pytest.raises(OperationFailed, match="document type"):
        records_of("<!DOCTYPE domain><domain/>", Tags(disks={"vda": "root"}))


@pytest.mark.parametrize("trusted", [True, "true", "True", "1"])
def test_who_may_change_its_mac_is_written_down(trusted: object) -> None:
    [named] = tags_of_vifs([{"address": MAC, "tag": "t", "profile": {"trusted": trusted}}]).interfaces.values()
    assert NamedInterface(tag="t", trusted=True) == named
    [named] = tags_of_vifs([{"address": MAC, "tag": "t", "profile": {"trusted": "false"}, "details": None}]).interfaces.values()
    assert NamedInterface(tag="t") == named


def test_a_tag_outlives_a_change_of_the_devices_by_what_is_written_down() -> None:
    tags = Tags(
        interfaces={MAC: NamedInterface(tag="front", vlan=7, trusted=True)}, volumes={"v1": "data"}, disks={"vda": "root"}
    )
    written = records_of(domain(interface(MAC), disk("vda", PCI), disk("vdb", PCI, serial="v1")), tags)
    assert tags == tags_of_records(written)
    assert Tags() == tags_of_records(None)
    # Who says a VLAN of it now says nothing of its tag, which it has all the same.
    changed = tags_of_records(written) | tags_of_vifs([{"address": MAC.upper(), "details": {"vlan": 8}}])
    assert {MAC: NamedInterface(tag="front", vlan=8, trusted=True)} == changed.interfaces


def test_tags_are_taken_from_all_that_a_service_says() -> None:
    rows = [
        {"tag": "data", "volume_id": "v1", "device_name": "/dev/vdb"},
        SimpleNamespace(tag="root", volume_id=None, device_name="/dev/vda"),
        SimpleNamespace(tag=None, volume_id="v2", device_name="/dev/vdc"),
    ]
    assert Tags(volumes={"v1": "data"}, disks={"vda": "root"}) == tags_of_rows(rows)
    instance = FakeInstance(bdms=rows, network_info=[{"address": MAC, "tag": "front"}])
    found = known(instance, [{"address": "52:54:00:00:00:02", "tag": "back"}])
    assert ({"v1": "data"}, {"vda": "root"}) == (found.volumes, found.disks)
    assert ["front", "back"] == [one.tag for one in found.interfaces.values()]
    # One that keeps nothing is asked for nothing.
    assert not known(SimpleNamespace(uuid="1"))


def test_the_tags_of_rows_are_those_of_the_disks_that_are_planned() -> None:
    local = {"source_type": "blank", "destination_type": "local", "device_name": "/dev/vdb", "volume_size": 1}
    rows: list[dict[str, Any]] = [
        {"source_type": "image", "destination_type": "local", "boot_index": 0, "tag": "root"},
        {**local, "tag": "scratch"},
        {**local, "guest_format": "swap", "device_name": "/dev/vdc", "tag": "swap"},
        {
            "source_type": "volume",
            "destination_type": "volume",
            "connection_info": {"driver_volume_type": "local", "data": {"device_path": "/v"}, "serial": "v1"},
            "tag": "data",
        },
    ]
    instance = FakeInstance()
    info = get_block_device_info(instance, rows)
    assert {"root": "vda", "scratch": "vdb", "swap": "vdc"} == {
        one.tag: one.device for one in disks_of(instance, FakeImage(), info)
    }
    [volume] = volumes_of(instance, info, bus="virtio", taken=())
    assert ("data", "v1") == (volume.tag, volume.volume.id)
    # Without a tag a mapping has the keys that Nova's have.
    plain = get_block_device_info(instance, [{**row, "tag": None} for row in rows])
    mappings = [*plain["block_device_mapping"], *plain["ephemerals"], *plain["image"], plain["swap"]]
    assert not any("tag" in one for one in mappings)
