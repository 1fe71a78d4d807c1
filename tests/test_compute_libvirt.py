"""What the libvirt driver decides and writes, without any libvirt: disks, devices, XML, metadata, options."""

import os
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from children import NOBODY, start, tell
from underlay.compute.errors import (
    FlavorDiskSmallerThanImage,
    InstanceExists,
    InternalError,
    InvalidInput,
    NotSupported,
    OperationFailed,
    TooManyDiskDevices,
)
from underlay.compute.libvirt import LibvirtDriver, claiming, configdrive, devicenames, guestxml
from underlay.compute.libvirt.counters import counters_of
from underlay.compute.libvirt.directory import InstanceDirectory, directory_of, interrupted, remove_doomed
from underlay.compute.libvirt.diskplan import LocalDisk, disks_of, rescue_disks
from underlay.compute.libvirt.guest import DirectBoot, Guest, GuestDisk, GuestInterface, Screen, SerialLine
from underlay.compute.libvirt.guestplan import guest_of, interfaces_of
from underlay.compute.libvirt.hostaddress import own_address
from underlay.compute.libvirt.instancedata import files_of, network_data
from underlay.compute.metadata import field_of
from underlay.config import parse_config
from underlay.config.libvirt import LibvirtTable, libvirt_of
from underlay.errors import CacheNotWritable, ConfigError
from underlay.model import Attachment
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, fake_vif

HOSTILE = "a<b>&\"c'"
UUID = "6ddd9f0a-f4b3-4b33-a9d9-1cbd84dc1b14"
OTHER = "7ddd9f0a-f4b3-4b33-a9d9-1cbd84dc1b14"
FILE = Attachment(type="file", source=f"/i/{HOSTILE}", format="qcow2", cache="none", discard="unmap")
CEPH = Attachment(
    type="network",
    source="vms/disk",
    format="raw",
    protocol="rbd",
    servers=(("ceph1", 6789), ("ceph2", 3300)),
    user="underlay",
    secret="457eb676-33da-42ec-9a8c-9293d545c337",
)
GUEST = Guest(
    uuid=UUID,
    name=HOSTILE,
    memory=64 << 20,
    vcpus=2,
    virt_type="kvm",
    architecture="x86_64",
    machine="q35",
    cpu_mode="custom",
    cpu_model="Nehalem",
    boot=DirectBoot(kernel=Path("/k"), ramdisk=Path("/r"), command_line=HOSTILE),
    disks=(GuestDisk(attachment=FILE, device="vda", bus="virtio", boot_order=1, serial=HOSTILE),),
    interfaces=(),
    serial=SerialLine(log=Path(f"/i/{HOSTILE}/console.log"), listen="127.0.0.1"),
    screen=Screen(listen="127.0.0.1", model="vga"),
    local_time=True,
    agent=True,
    metadata=None,
)
SWAP = {"device_name": "/dev/vdc", "swap_size": 512, "disk_bus": None}


def ephemeral(**more: Any) -> dict[str, Any]:
    return {"device_name": None, "size": 1, "disk_bus": None, "guest_format": None, **more}


def named(disks: tuple[LocalDisk, ...]) -> list[tuple[str, str, str]]:
    return [(disk.name, disk.device, disk.bus) for disk in disks]


# ------------------------------------------------------------------------------------------------------------------- disks


def test_disks_are_named_by_who_asks_and_else_by_their_bus() -> None:
    info = {"root_device_name": "/dev/vda", "ephemerals": [ephemeral(), ephemeral(disk_bus="scsi")], "swap": SWAP}
    found = disks_of(FakeInstance(), FakeImage(), info)
    assert [
        ("disk", "vda", "virtio"),
        ("disk.eph0", "vdb", "virtio"),
        ("disk.eph1", "sda", "scsi"),
        ("disk.swap", "vdc", "virtio"),
    ] == named(found)
    assert [1 << 30, 1 << 30, 1 << 30, 512 << 20] == [disk.size for disk in found]
    assert [True, False, False, False] == [disk.boots for disk in found]


def test_the_image_and_the_configuration_say_what_nobody_has_named() -> None:
    instance, image = FakeInstance(root_device_name=None), FakeImage(properties={"hw_disk_bus": "sata"})
    assert [("disk", "sda", "sata")] == named(disks_of(instance, image, None))
    assert [("disk", "hda", "sata")] == named(disks_of(instance, image, None, prefix="hd"))


class Versioned:
    """As a versioned object of Nova: whoever asks for a field that is not set is told that it cannot be loaded, and whoever
    asks whether one is set that it does not have, that there is none."""

    fields = ("id", "disk_format", "properties", "min_disk")

    def __init__(self, **values: Any) -> None:
        self.values = values

    def obj_attr_is_set(self, name: str) -> bool:
        if name not in self.fields:
            raise AttributeError(name)
        return name in self.values

    def __getattr__(self, name: str) -> Any:
        if name not in self.fields:
            raise AttributeError(name)
        if name not in self.values:
            raise NotImplementedError(f"Cannot load '{name}' in the base class")
        return self.values[name]


def test_a_field_that_is_not_set_is_not_asked_for() -> None:
    image: Any = Versioned(id="5f1e", disk_format="qcow2", properties={})
    assert [("disk", "vda", "virtio")] == named(disks_of(FakeInstance(), image, None))
    assert [None, None, "5f1e"] == [field_of(image, name) for name in ("min_disk", "virtual_size", "id")]


def test_a_name_of_another_bus_is_a_wish_that_is_not_granted() -> None:
    info = {"root_device_name": "/dev/sda", "ephemerals": [ephemeral(device_name="/dev/vdb", disk_bus="scsi")]}
    assert ["vda", "sda"] == [disk.device for disk in disks_of(FakeInstance(), FakeImage(), info)]


def test_an_image_of_a_cd_is_one_to_the_guest() -> None:
    [disk] = disks_of(FakeInstance(), FakeImage(disk_format="iso"), None, machine="q35", prefix="vd")
    assert ("sda", "sata", "cdrom", True) == (disk.device, disk.bus, disk.kind, disk.boots)


def test_a_root_disk_is_as_large_as_its_flavor_and_its_image_allow() -> None:
    none = FakeInstance(flavor=FakeFlavor(root_gb=0))
    assert [None] == [disk.size for disk in disks_of(none, FakeImage(min_disk=7), None)]
    for image in (FakeImage(min_disk=2), FakeImage(virtual_size=(1 << 30) + 1)):
        with pytest.raises(FlavorDiskSmallerThanImage):
            disks_of(FakeInstance(), image, None)


@pytest.mark.parametrize(
    ("info", "error"),
    [
        ({"ephemerals": [ephemeral(disk_bus="floppy")]}, InvalidInput),
        ({"ephemerals": [ephemeral(device_name="/dev/vda")]}, InvalidInput),
        ({"ephemerals": [ephemeral(size=0)]}, InvalidInput),
        ({"root_device_name": "/dev/vda<"}, InvalidInput),
        ({"ephemerals": [ephemeral(encrypted=True)]}, NotSupported),
        ({"ephemerals": [ephemeral(disk_bus="ide")] * 5}, TooManyDiskDevices),
    ],
)
def test_disks_that_cannot_be_are_refused(info: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        disks_of(FakeInstance(), FakeImage(), info)


def test_a_rescue_s_disk_comes_first_and_the_instance_s_own_behind_it() -> None:
    own = disks_of(FakeInstance(), FakeImage(), {"root_device_name": "/dev/vda", "swap": SWAP})
    disk, behind = rescue_disks(FakeImage(properties={"hw_rescue_bus": "scsi"}), own)
    assert [("disk.rescue", "sda", "scsi"), ("disk", "vda", "virtio"), ("disk.swap", "vdb", "virtio")] == named((disk, *behind))
    disk, behind = rescue_disks(FakeImage(), own)
    assert ["vda", "vdb", "vdc"] == [one.device for one in (disk, *behind)]
    assert [True, False, False] == [one.boots for one in (disk, *behind)]


def test_a_rescue_s_disk_that_is_a_cd_is_one_to_the_guest_on_the_instance_s_machine() -> None:
    own = disks_of(FakeInstance(), FakeImage(), None)
    iso = FakeImage(disk_format="iso", properties={"hw_machine_type": "q35"})
    for machine, bus, device in (("q35", "sata", "sda"), ("pc", "ide", "hda")):
        disk, behind = rescue_disks(iso, own, machine=machine, prefix="vd")
        assert ("cdrom", bus, device, True) == (disk.kind, disk.bus, disk.device, disk.boots)
        assert [("disk", "vda", "virtio")] == named(behind)


def test_a_bus_has_so_many_names_and_no_more() -> None:
    taken = [f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert "vdz" == devicenames.next_name("virtio", taken[:-1])
    with pytest.raises(TooManyDiskDevices, match="26"):
        devicenames.next_name("virtio", taken)
    scsi = [f"sd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert "sdaa" == devicenames.next_name("scsi", scsi)


# --------------------------------------------------------------------------------------------------------------------- XML


def test_no_value_becomes_markup() -> None:
    domain = guestxml.parsed(guestxml.to_xml(GUEST))
    source, target = domain.find("devices/disk/source"), domain.find("devices/disk/target")
    assert source is not None
    assert target is not None
    assert (HOSTILE, HOSTILE, f"/i/{HOSTILE}") == (domain.findtext("name"), domain.findtext("os/cmdline"), source.get("file"))
    assert ({"dev": "vda", "bus": "virtio"}, HOSTILE) == (target.attrib, domain.findtext("devices/disk/serial"))
    assert str(64 << 10) == domain.findtext("memory")
    assert "Nehalem" == domain.findtext("cpu/model")


def test_a_disk_in_a_ceph_names_its_servers_and_its_user() -> None:
    disk = GuestDisk(attachment=CEPH, device="sda", bus="scsi")
    domain = guestxml.parsed(guestxml.to_xml(replace(GUEST, disks=(disk,))))
    source = domain.find("devices/disk[@type='network']/source")
    assert source is not None
    assert ("rbd", "vms/disk") == (source.get("protocol"), source.get("name"))
    assert [{"name": "ceph1", "port": "6789"}, {"name": "ceph2", "port": "3300"}] == [one.attrib for one in source.iter("host")]
    assert [CEPH.secret] == [one.get("uuid") for one in source.iterfind("auth/secret")]
    assert ["virtio-scsi"] == [one.get("model") for one in domain.iterfind("devices/controller")]


def test_interfaces_are_of_two_kinds() -> None:
    bridge = GuestInterface(kind="bridge", address="52:54:00:00:00:01", device="tap1", bridge="br0", model="virtio", mtu=1400)
    tap = GuestInterface(kind="tap", address="52:54:00:00:00:02", device="tap2", bridge=None, model="e1000")
    found = list(guestxml.parsed(guestxml.to_xml(replace(GUEST, interfaces=(bridge, tap)))).iterfind("devices/interface"))
    assert ["bridge", "ethernet"] == [one.get("type") for one in found]
    assert [["br0"], []] == [[source.get("bridge") for source in one.iter("source")] for one in found]
    assert [{"dev": "tap1"}, {"dev": "tap2", "managed": "no"}] == [
        target.attrib for one in found for target in one.iter("target")
    ]
    assert ["1400"] == [mtu.get("size") for one in found for mtu in one.iter("mtu")]


def test_what_is_written_is_read_back() -> None:
    xml = guestxml.to_xml(GUEST)
    assert ("127.0.0.1", 0) == guestxml.serial_listens_at(xml)
    assert ("127.0.0.1", 12345) == guestxml.serial_listens_at(guestxml.with_serial_port(xml, 12345))
    assert GUEST.serial.log == guestxml.console_log(xml)
    assert {FILE.source: "vda"} == guestxml.devices_by_path(xml)
    assert guestxml.screen_port(xml) is None  # it has none before it runs
    mute = guestxml.to_xml(replace(GUEST, serial=SerialLine(log=Path("/log")), screen=None))
    assert (None, None) == (guestxml.serial_listens_at(mute), guestxml.screen_port(mute))
    with pytest.raises(OperationFailed):
        guestxml.parsed("<!DOCTYPE domain []><domain/>")


def test_a_backup_is_of_one_disk_only() -> None:
    disks = (*GUEST.disks, GuestDisk(attachment=CEPH, device="vdb", bus="virtio"))
    xml = guestxml.to_xml(replace(GUEST, disks=disks))
    backup = guestxml.parsed(guestxml.backup_xml(xml, device="vda", target=Path("/t"), disk_format="qcow2"))
    assert {"vda": "yes", "vdb": "no"} == {one.get("name"): one.get("backup") for one in backup.iter("disk")}
    assert "push" == backup.get("mode")


# ------------------------------------------------------------------------------------------------------------- whole guests


def planned(**more: Any) -> Guest:
    instance = FakeInstance(uuid=UUID, os_type=more.pop("os_type", "linux"))
    arguments: dict[str, Any] = {
        "options": libvirt_of(LibvirtTable()),
        "virt_type": "qemu",
        "directory": InstanceDirectory(Path("/i"), UUID),
        "disks": [(disk, FILE) for disk in disks_of(instance, FakeImage(), None)],
        "config_drive": None,
        "boot": None,
    }
    image = FakeImage(properties=more.pop("properties", {}))
    return guest_of(instance, image, more.pop("network_info", None), **{**arguments, **more})


def test_a_guest_is_what_its_flavor_its_image_and_the_options_say() -> None:
    guest = planned()
    assert (64 << 20, 1, "q35", "", Path(f"/i/{UUID}/console.log")) == (
        guest.memory,
        guest.vcpus,
        guest.machine,
        guest.cpu_mode,
        guest.serial.log,
    )
    assert (None, "vga") == (guest.serial.listen, guest.screen and guest.screen.model)
    assert "host-model" == planned(virt_type="kvm").cpu_mode
    other = planned(
        properties={"hw_machine_type": "pc", "hw_qemu_guest_agent": "yes", "hw_video_model": "none"}, os_type="windows"
    )
    assert ("pc", True, None, True) == (other.machine, other.agent, other.screen, other.local_time)


def test_a_config_drive_is_where_the_machine_takes_one() -> None:
    for machine, bus in (("q35", "sata"), ("pc", "ide"), ("pc-q35-7.2", "sata"), ("pc-i440fx-7.2", "ide"), ("virt", "scsi")):
        drive = planned(properties={"hw_machine_type": machine}, config_drive=FILE).disks[-1]
        assert (bus, "cdrom", None) == (drive.bus, drive.kind, drive.boot_order)
    with pytest.raises(InvalidInput, match="hw_cdrom_bus"):
        planned(properties={"hw_cdrom_bus": "tape"})


@pytest.mark.parametrize(
    ("vif", "error"),
    [
        (fake_vif(kind="ovs"), InternalError),
        ({**fake_vif(), "network": {}}, InvalidInput),
        (fake_vif(bridge="../../etc"), InvalidInput),
        ({**fake_vif(), "devname": "x" * 16}, InvalidInput),
    ],
)
def test_interfaces_that_cannot_be_are_refused(vif: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        interfaces_of([vif], {})


# ---------------------------------------------------------------------------------------------------- what guests are told

SUBNETS = [
    {
        "cidr": "192.0.2.0/24",
        "version": 4,
        "gateway": {"address": "192.0.2.1"},
        "dns": [{"address": "192.0.2.53"}],
        "ips": [{"address": "192.0.2.9"}],
        "routes": [{"cidr": "198.51.100.0/24", "gateway": {"address": "192.0.2.2"}}],
    },
    {"cidr": "2001:db8::/64", "version": 6, "gateway": "2001:db8::1", "ips": [{"address": "2001:db8::9"}], "dns": []},
    {"cidr": "203.0.113.0/24", "version": 4, "meta": {"dhcp_server": "203.0.113.1"}, "ips": [{"address": "203.0.113.9"}]},
]


def test_a_guest_is_told_its_links_networks_and_name_servers() -> None:
    vif = fake_vif(1)
    vif["network"] |= {"subnets": SUBNETS, "meta": {"mtu": 1400}}
    told = network_data([vif])
    assert [("interface0", "bridge", 1400, vif["address"])] == [
        (one["id"], one["type"], one["mtu"], one["ethernet_mac_address"]) for one in told["links"]
    ]
    assert [
        ("ipv4", "192.0.2.9", "255.255.255.0"),
        ("ipv6", "2001:db8::9", "ffff:ffff:ffff:ffff::"),
        ("ipv4_dhcp", None, None),
    ] == [(one["type"], one.get("ip_address"), one.get("netmask")) for one in told["networks"]]
    assert [("0.0.0.0", "192.0.2.1"), ("198.51.100.0", "192.0.2.2")] == [
        (route["network"], route["gateway"]) for route in told["networks"][0]["routes"]
    ]
    assert [{"type": "dns", "address": "192.0.2.53"}] == told["services"]
    assert {"links": [], "networks": [], "services": []} == network_data([])


def test_user_data_has_to_be_base64() -> None:
    class Wrong(FakeInstance):
        user_data = "%"

    with pytest.raises(InvalidInput, match="base64"):
        files_of(Wrong(), None, password=None)
    assert b"admin_pass" not in files_of(FakeInstance(), None, password=None)["openstack/latest/meta_data.json"]


def test_a_config_drive_has_its_label_and_each_file_in_its_place_in_whatever_order_they_come() -> None:
    files = {"a/b/c.json": b"the first", "a/b/d": b"", "e": b"the second"}
    image, again = configdrive.image(files), configdrive.image(dict(reversed(files.items())))
    places = [[one.index(files[name]) for name in ("a/b/c.json", "e")] for one in (image, again)]
    assert (places[0], len(image)) == (places[1], len(again))  # all but the times in it
    assert (b"CD001", b"config-2") == (image[32769:32774], image[32808:32840].rstrip())
    assert 0 == len(image) % 2048


def test_an_instance_that_trusts_certificates_of_its_own_is_refused() -> None:
    driver, instance = LibvirtDriver(None), FakeInstance(trusted_certs=["one"])
    with pytest.raises(NotSupported, match="trusts certificates of its own"):
        driver.spawn(None, instance, FakeImage(), [], None, {})
    with pytest.raises(NotSupported, match="trusts certificates of its own"):
        driver.rebuild(None, instance, FakeImage(), [], None, {}, [], print, print)


def test_file_systems_are_those_of_nova_that_this_host_can_make() -> None:
    made = [
        kind for kind in ("ext2", "ext3", "ext4", "xfs", "vfat", "ntfs") if LibvirtDriver(None).is_supported_fs_format(kind)
    ]
    has = [kind for kind in ("ext2", "ext3", "ext4", "xfs") if list(Path("/").glob(f"*sbin/mkfs.{kind}"))]
    assert has == made
    assert not LibvirtDriver(None).is_supported_fs_format("../ext4")


# ---------------------------------------------------------------------------------------------------------------- counters


def test_counters_are_what_libvirt_tells_and_nothing_of_what_it_does_not() -> None:
    told = {
        "vcpu.maximum": 2,
        "vcpu.1.time": 7,
        "balloon.maximum": 65536,
        "block.count": 1,
        "block.0.name": "vda",
        "block.0.rd.bytes": 512,
        "net.count": 1,
        "net.0.name": "tap0",
        "net.0.tx.pkts": 3,
    }
    found = counters_of(told)
    assert ((7,), None, 65536) == (found.cpu_times, found.memory, found.memory_maximum)
    assert [("vda", 512, None)] == [(disk.device, disk.read_bytes, disk.write_bytes) for disk in found.disks]
    assert [("tap0", 3, None)] == [(one.device, one.tx_packets, one.rx_bytes) for one in found.traffic]
    nothing = counters_of({"state.state": 5})
    assert ((), (), ()) == (nothing.cpu_times, nothing.disks, nothing.traffic)


# ------------------------------------------------------------------------------------------------- directories and options


def test_an_instance_s_directory_has_its_uuid_and_nothing_else(tmp_path: Path) -> None:
    assert tmp_path / UUID == directory_of(tmp_path, UUID).path
    for wrong in ("", "..", "../x", UUID.upper(), UUID.replace("-", ""), None):
        with pytest.raises(InvalidInput):
            directory_of(tmp_path, wrong)  # type: ignore[arg-type]


def test_a_directory_goes_whole_and_what_is_left_of_one_is_found(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, UUID)
    assert [] == interrupted(tmp_path / "nowhere")
    assert (True, False) == (directory.make(), directory.make())
    (directory.path / "deep").mkdir()
    directory.making.touch()
    (tmp_path / "_base").mkdir()
    (tmp_path / "_base/making").touch()
    assert [directory] == interrupted(tmp_path)
    doomed = tmp_path / f"{UUID}_del"
    doomed.mkdir()
    (doomed / "left").touch()
    assert (True, True) == (directory.remove(), directory.remove())
    assert ["_base"] == [path.name for path in tmp_path.iterdir()]
    doomed.mkdir()
    (tmp_path / "other_del").mkdir()
    remove_doomed(tmp_path)
    assert ["_base", "other_del"] == sorted(path.name for path in tmp_path.iterdir())


def test_an_instance_that_is_made_whole_between_a_look_and_a_claim_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, refuse = directory_of(tmp_path, UUID), claiming._refuse_files

    def look(directory: InstanceDirectory, **more: Any) -> None:
        refuse(directory, **more)
        (directory.path / "disk.config").touch()

    monkeypatch.setattr(claiming, "_refuse_files", look)
    with pytest.raises(InstanceExists, match="files of an instance"), claiming.claimed(directory, name="one"):
        raise AssertionError
    assert ["disk.config"] == os.listdir(directory.path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('virt_type = "xen"', "virt_type"),
        ('cpu_mode = "custom"', "libvirt.cpu_model"),
        ('cpu_model = "Nehalem"', "libvirt.cpu_model"),
        ("timeout = 5", "libvirt.timeout"),
        ('my_ip = "node1"', "libvirt.my_ip"),
        ('timeout = "0s"', "libvirt.timeout"),
        ('serial_console_port_range = "20000:10000"', "serial_console_port_range"),
        ('serial_console_port_range = "1:65536"', "serial_console_port_range"),
        ('snapshots_directory = "snapshots"', "libvirt.snapshots_directory"),
        ("unknown = 1", "unknown"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, options: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(f'[caches.base]\nkind = "base"\npath = "{tmp_path}"\n[libvirt]\n{options}\n', origin=tmp_path / "file")


def test_options_are_what_they_are_without_a_table() -> None:
    options = libvirt_of(LibvirtTable())
    assert ("qemu:///system", 60.0, (10000, 20000)) == (
        options.connection_uri,
        options.timeout,
        options.serial_console_port_range,
    )
    assert "::1" == libvirt_of(LibvirtTable(vnc_listen="::1")).vnc_address
    assert "192.0.2.7" == own_address(libvirt_of(LibvirtTable(my_ip="192.0.2.7")))
    assert own_address(options) == str(ip_address(own_address(options)))
    assert "console.example" == libvirt_of(LibvirtTable(serial_console_address="console.example")).serial_console_address


def look_for_claims(instances: str) -> None:
    tell(str([directory.uuid for directory in interrupted(Path(instances))]))
    try:
        interrupted(Path(instances).parent / "locked")
    except CacheNotWritable as error:
        tell(error.message)


@pytest.mark.component("root")
def test_a_directory_that_cannot_be_looked_at_hides_no_other(open_directory: Path) -> None:
    instances, locked = open_directory / "instances", open_directory / "locked"
    for path in (instances / UUID, instances / OTHER, locked):
        path.mkdir(parents=True)
    for path in (instances / UUID, locked):
        path.chmod(0o700)
    for uuid in (UUID, OTHER):
        (instances / uuid / "making").touch()
    with start(look_for_claims, instances, user=NOBODY) as child:
        assert str([OTHER]) == child.hear()
        assert "locked" in child.hear()
