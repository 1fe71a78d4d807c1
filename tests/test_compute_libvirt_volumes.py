"""What the libvirt driver makes of volumes, without any libvirt: connections, devices, XML."""

from pathlib import Path
from typing import Any

import pytest

from underlay.compute.errors import InvalidInput, NotSupported, TooManyDiskDevices, VolumeDriverNotFound
from underlay.compute.libvirt import attacheddisks, guestxml, volumeplaces
from underlay.compute.libvirt.diskplan import disks_of
from underlay.compute.libvirt.guest import GuestDisk
from underlay.compute.libvirt.volume import Volume, volume_of
from underlay.compute.libvirt.volumefacts import connector_of
from underlay.compute.libvirt.volumeplan import PlannedVolume, volumes_of
from underlay.config import parse_config
from underlay.errors import ConfigError
from underlay.model import Attachment
from underlay.testing.fakedriver import FakeImage, FakeInstance

SECRET = "457eb676-33da-42ec-9a8c-9293d545c337"


def local(**data: Any) -> dict[str, Any]:
    return {"driver_volume_type": "local", "serial": "one", "data": {"device_path": "/dev/vg/volume", **data}}


def rbd(**data: Any) -> dict[str, Any]:
    return {"driver_volume_type": "rbd", "serial": "two", "data": {"name": "volumes/one", **data}}


def mapped(connection: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"connection_info": connection or local(), "mount_device": None, "boot_index": None, "disk_bus": None, **more}


def planned(*volumes: dict[str, Any], taken: tuple[str, ...] = (), root: str | None = None) -> tuple[PlannedVolume, ...]:
    info = {"root_device_name": root, "block_device_mapping": list(volumes)}
    return volumes_of(FakeInstance(root_device_name=None), info, bus="virtio", taken=taken)


# ----------------------------------------------------------------------------------------------------------------- connections


def test_a_local_volume_is_raw_unless_its_owner_says_otherwise() -> None:
    assert Volume(kind="local", id="one", source="/dev/vg/volume", format="raw") == volume_of(local())
    told = volume_of(local(access_mode="ro", discard=True, format="qcow2"))
    assert (True, True, "qcow2") == (told.read_only, told.discard, told.format)
    assert (False, True) == (told.shared, volume_of({**local(), "multiattach": True}).shared)
    nameless = {"driver_volume_type": "local", "data": {"device_path": "/v", "volume_id": "three"}}
    assert ["three", "/v"] == [volume_of(nameless).name, volume_of({**nameless, "data": {"device_path": "/v"}}).name]


def test_a_volume_in_a_ceph_has_its_monitors_and_who_asks_them() -> None:
    told = volume_of(rbd(hosts=["192.0.2.1", "[2001:db8::1]"], ports=["6789", 3300], auth_enabled=False, auth_username="x"))
    assert ((("192.0.2.1", 6789), ("2001:db8::1", 3300)), None, None) == (told.servers, told.user, told.secret)
    told = volume_of(rbd(auth_enabled=True, auth_username="cinder", secret_uuid=SECRET.upper()))
    assert ("cinder", SECRET, ()) == (told.user, told.secret, told.servers)
    own = {"user": "nova", "secret": SECRET}
    told = volume_of(rbd(auth_enabled=True, auth_username="cinder", secret_uuid=None), own=own)
    assert ("nova", SECRET) == (told.user, told.secret)


@pytest.mark.parametrize(
    ("connection", "error"),
    [
        ({}, VolumeDriverNotFound),
        (None, InvalidInput),
        ({**local(), "data": "/dev/vg/volume"}, InvalidInput),
        ({"driver_volume_type": "iscsi", "data": {}}, VolumeDriverNotFound),
        ({"driver_volume_type": "local"}, InvalidInput),
        (local(device_path=""), InvalidInput),
        (local(device_path=7), InvalidInput),
        (local(device_path="dev/vdb"), InvalidInput),
        (local(device_path="//server/volume"), InvalidInput),
        (local(device_path="/dev/../etc/shadow"), InvalidInput),
        (local(device_path="/dev/a\nb"), InvalidInput),
        (local(access_mode="w"), InvalidInput),
        (local(format="auto"), InvalidInput),
        (local(encrypted=True), NotSupported),
        ({**local(format="qcow2"), "multiattach": True}, NotSupported),
        (rbd(name="volumes"), InvalidInput),
        (rbd(name="volumes/one@snapshot"), InvalidInput),
        (rbd(name="volumes//one"), InvalidInput),
        (rbd(name="a/b/c/d"), InvalidInput),
        (rbd(hosts=["a"], ports=[]), InvalidInput),
        (rbd(hosts=["a/b"], ports=["1"]), InvalidInput),
        (rbd(hosts=["a"], ports=["0"]), InvalidInput),
        (rbd(hosts=["a"], ports=["x"]), InvalidInput),
        (rbd(auth_enabled=True, secret_uuid=SECRET), InvalidInput),
        (rbd(auth_enabled=True, auth_username="cinder"), InvalidInput),
        (rbd(auth_enabled=True, auth_username="cinder", secret_uuid="secret"), InvalidInput),
    ],
)
def test_a_connection_that_leads_nowhere_is_refused(connection: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        volume_of(connection)


def test_disks_of_instances_are_known_by_their_names() -> None:
    names = (f"{SECRET}_disk", f"{SECRET}_disk.eph0", "underlay_base_0123", f"volume-{SECRET}", SECRET)
    assert [True, True, True, False, False] == [volumeplaces.is_own(name) for name in names]


# --------------------------------------------------------------------------------------------------------------------- devices


def test_volumes_are_named_by_who_asks_and_else_by_their_bus() -> None:
    found = planned(
        mapped(), mapped(mount_device="/dev/vdb"), mapped(mount_device="/dev/vdz", disk_bus="scsi"), mapped(), taken=("vda",)
    )
    assert ["vdc", "vdb", "sda", "vdd"] == [one.device for one in found]
    assert [None] * 4 == [one.boot_order for one in found]
    with pytest.raises(InvalidInput, match="two disks are to be vda"):
        planned(mapped(mount_device="/dev/vda"), taken=("vda",))
    with pytest.raises(TooManyDiskDevices, match="26"):
        planned(*[mapped()] * 27)


def test_a_guest_boots_from_the_volume_that_is_first_or_that_is_its_root() -> None:
    data, root = mapped(boot_index=1), mapped(boot_index=0, device_type="cdrom")
    found = planned(data, root, root="/dev/vda")
    assert [("vdb", 2, "disk"), ("vda", 1, "cdrom")] == [(one.device, one.boot_order, one.kind) for one in found]
    assert [1] == [one.boot_order for one in planned(mapped(mount_device="/dev/vda"), root="/dev/vda")]
    assert [None] == [one.boot_order for one in planned(mapped(boot_index=-1))]
    with pytest.raises(InvalidInput, match="floppy"):
        planned(mapped(device_type="floppy"))


def test_local_disks_leave_to_volumes_the_names_that_were_asked_for() -> None:
    ephemerals = [{"device_name": None, "size": 1, "disk_bus": None, "guest_format": None}]
    info = {"root_device_name": "/dev/vda", "ephemerals": ephemerals, "block_device_mapping": [mapped(mount_device="/dev/vdb")]}
    assert ["vda", "vdc"] == [disk.device for disk in disks_of(FakeInstance(), FakeImage(), info)]
    info["block_device_mapping"] = [mapped(boot_index=0)]
    assert [("disk.eph0", "vdb")] == [(disk.name, disk.device) for disk in disks_of(FakeInstance(), FakeImage(), info)]


# ------------------------------------------------------------------------------------------------------------------------- XML

DOMAIN = """
<domain><devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/v/s2' index='3'/>
    <backingStore type='file' index='2'><format type='qcow2'/><source file='/v/s1'/>
      <backingStore type='file' index='1'><format type='raw'/><source file='/v/one'/><backingStore/></backingStore>
    </backingStore>
    <mirror type='file' job='active-commit' ready='yes'><source file='/v/one'/></mirror>
    <target dev='vdb' bus='virtio'/><serial>one</serial></disk>
  <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='volumes/one'/>
    <mirror type='file' job='copy'><source file='/v/two'/></mirror><target dev='vdc' bus='virtio'/></disk>
  <disk type='file' device='cdrom'><driver name='qemu'/><target dev='sda' bus='sata'/></disk>
</devices></domain>
"""


def test_disks_are_read_with_all_that_they_stand_on() -> None:
    chained, ceph, empty = attacheddisks.disks_in(DOMAIN)
    assert ("/v/s2", "qcow2", (("/v/s1", 2), ("/v/one", 1)), True, True, None) == (
        chained.source,
        chained.format,
        chained.behind,
        chained.commits,
        chained.may_pivot,
        chained.copied_to,
    )
    assert ("volumes/one", (), "/v/two", False, False) == (
        ceph.source,
        ceph.behind,
        ceph.copied_to,
        ceph.may_pivot,
        ceph.commits,
    )
    assert ("", "", ()) == (empty.source, empty.format, attacheddisks.sources_of(empty))
    assert not attacheddisks.has_scsi_controller(DOMAIN)


def test_a_volume_is_the_disk_that_reads_from_it_and_else_the_one_with_its_id(tmp_path: Path) -> None:
    disks = attacheddisks.disks_in(DOMAIN)
    assert "vdc" == attacheddisks.of_volume(volume_of(rbd()), disks).device  # type: ignore[union-attr]
    assert "vdb" == attacheddisks.of_volume(volume_of(local(device_path="/v/one")), disks).device  # type: ignore[union-attr]
    assert "vdb" == attacheddisks.of_volume(volume_of(local(device_path="/elsewhere")), disks).device  # type: ignore[union-attr]
    assert attacheddisks.of_volume(volume_of({**local(device_path="/elsewhere"), "serial": None}), disks) is None
    (tmp_path / "link").symlink_to("/v/s1")
    linked = {**local(device_path=str(tmp_path / "link")), "serial": None}
    assert "vdb" == attacheddisks.of_volume(volume_of(linked), disks).device  # type: ignore[union-attr]


def test_a_volume_that_is_not_to_be_written_says_so() -> None:
    opened = Attachment(type="block", source="/dev/v&g", format="raw", cache="none")
    xml = guestxml.disk_xml(GuestDisk(attachment=opened, device="vdb", bus="virtio", serial="<one>", read_only=True))
    disk = guestxml.parsed(xml)
    assert ("block", "<one>", True) == (disk.get("type"), disk.findtext("serial"), disk.find("readonly") is not None)
    assert [("/dev/v&g", "raw")] == [
        (source.get("dev"), driver.get("type")) for source in disk.iter("source") for driver in disk.iter("driver")
    ]


# ------------------------------------------------------------------------------------------------------------- host and options


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("## made by open-iscsi\nInitiatorName=iqn.1993-08.org.debian:01:ab\n", "iqn.1993-08.org.debian:01:ab"),
        ("#InitiatorName=iqn.no\n", None),
        ("InitiatorName=\n", None),
        (None, None),
    ],
)
def test_a_host_says_who_it_is_to_a_storage(tmp_path: Path, content: str | None, expected: str | None) -> None:
    file = tmp_path / "initiatorname.iscsi"
    if content is not None:
        file.write_text(content)
    told = connector_of("node1", address="192.0.2.7", initiator_file=file)
    assert ("192.0.2.7", "node1", expected) == (told["ip"], told["host"], told["initiator"])


@pytest.mark.parametrize(
    "line", ["num_pcie_ports = 29", "num_pcie_ports = -1", "device_detach_attempts = 0", 'device_detach_timeout = "0s"']
)
def test_an_option_of_devices_that_cannot_be_meant_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(f"[libvirt]\n{line}\n", origin=tmp_path / "underlay.toml")
