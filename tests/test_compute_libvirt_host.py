"""What the libvirt driver tells of a host and of devices, without any libvirt: capabilities, traits, times, tags, MTUs."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from underlay.compute.errors import InvalidInput, OperationFailed
from underlay.compute.libvirt.guestplan import device_of, interfaces_of
from underlay.compute.libvirt.guestxml import interface_of, interface_xml
from underlay.compute.libvirt.hostactivity import spoken, uptime
from underlay.compute.libvirt.hostcapabilities import cpu_info, domain_capabilities, host_capabilities
from underlay.compute.libvirt.hosttraits import named
from underlay.compute.libvirt.instancedata import files_of
from underlay.config.libvirt import LibvirtTable, libvirt_of
from underlay.config.values import WrongValue
from underlay.testing.fakedriver import FakeInstance, fake_vif

CAPABILITIES = """<capabilities>
  <host>
    <cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor>
      <topology sockets='2' dies='1' cores='8' threads='2'/>
      <feature name='sse4.1'/><feature name='aes'/><feature name='avx512-vpopcntdq'/></cpu>
    <topology><cells num='2'><cell id='0'/><cell id='1'/></cells></topology>
  </host>
  <guest><os_type>hvm</os_type>
    <arch name='i686'><domain type='qemu'/></arch><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest>
</capabilities>"""
DOMAIN = """<domainCapabilities><devices>
  <disk><enum name='diskDevice'><value>lun</value></enum><enum name='bus'><value>virtio</value><value>fdc</value></enum></disk>
  <video><enum name='modelType'><value>vga</value><value>ramfb</value></enum></video>
</devices></domainCapabilities>"""


def test_a_host_is_what_libvirt_says_of_it() -> None:
    found = host_capabilities(CAPABILITIES)
    told = json.loads(json.dumps(cpu_info(found)))
    assert {"cells": 2, "sockets": 2, "cores": 8, "threads": 2} == told["topology"]
    assert ("x86_64", "EPYC", "AMD") == (told["arch"], told["model"], told["vendor"])
    assert ["aes", "avx512-vpopcntdq", "sse4.1"] == told["features"]
    assert (("i686", "qemu", "hvm"), ("x86_64", "qemu", "hvm"), ("x86_64", "kvm", "hvm")) == found.guests


def test_what_libvirt_does_not_say_of_a_host_is_empty_or_one() -> None:
    found = host_capabilities("<capabilities><host><cpu><arch>aarch64</arch></cpu></host></capabilities>")
    assert ("aarch64", "", "", 1, 1, ()) == (
        found.architecture,
        found.model,
        found.vendor,
        found.cells,
        found.threads,
        found.guests,
    )
    with pytest.raises(OperationFailed, match="document type"):
        host_capabilities("<!DOCTYPE x><capabilities/>")


def test_what_guests_can_be_given_is_read_by_kind() -> None:
    found = domain_capabilities(DOMAIN)
    assert (frozenset({"virtio", "fdc"}), frozenset({"vga", "ramfb"})) == (found.buses, found.screens)
    assert (frozenset(), frozenset()) == (
        domain_capabilities("<domainCapabilities/>").buses,
        domain_capabilities("<x/>").screens,
    )


def test_features_have_the_traits_that_mean_them() -> None:
    names = ["sse4.1", "aes", "avx512-vpopcntdq", "pclmuldq", "sha-ni", "fma", "no-such-feature"]
    told = named("HW_CPU_X86_", names)
    wanted = {"SSE41", "AESNI", "AVX512VPOPCNTDQ", "CLMUL", "SHA", "FMA3"}
    assert {f"HW_CPU_X86_{one}" for one in wanted} == {trait for trait, has in told.items() if has}
    assert told.keys() > {"HW_CPU_X86_AVX2", "HW_CPU_X86_VMX"}  # which are said not to be there
    assert ["HW_ARCH_X86_64"] == [trait for trait, has in named("HW_ARCH_", ["x86_64"]).items() if has]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0:00"), (59.9, "0:00"), (3600 * 23 + 60 * 7, "23:07"), (86400, "1 day, 0:00"), (86400 * 12 + 60, "12 days, 0:01")],
)
def test_a_time_is_said_as_people_do(seconds: float, said: str) -> None:
    assert said == spoken(seconds)


def test_the_uptime_has_the_load_as_well() -> None:
    before, _, load = uptime().partition(", load average: ")
    assert " up " in before
    assert 3 == len([float(one) for one in load.split(", ")])


# ---------------------------------------------------------------------------------------------------------------- interfaces


@pytest.mark.parametrize("mtu", [67, 65536, -1, "many", 1.5, True, []])
def test_an_mtu_that_can_be_none_is_refused(mtu: object) -> None:
    vif = fake_vif() | {"network": {"bridge": "br0", "meta": {"mtu": mtu}}}
    with pytest.raises(InvalidInput, match="MTU"):
        interfaces_of([vif], {})


def test_an_mtu_is_a_number_of_the_network_or_nothing() -> None:
    with_mtu = fake_vif() | {"network": {"bridge": "br0", "meta": {"mtu": "9000"}}}
    without = [fake_vif(), fake_vif() | {"network": {"bridge": "br0"}}]
    assert [9000, None, None] == [one.mtu for one in interfaces_of([with_mtu, *without], {})]


@pytest.mark.parametrize(
    "device", ["..", "-f", "a b", "a:b", "tap%d", "a/b", "sixteen-letters-", "ä" * 8, "a\0b", "a\x1bb", "\udc80"]
)
def test_a_name_that_no_device_can_have_is_refused(device: str) -> None:
    with pytest.raises(InvalidInput, match="device"):
        device_of(fake_vif() | {"devname": device})
    with pytest.raises(InvalidInput, match="bridge"):
        interfaces_of([fake_vif(bridge=device)], {})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"address": None}, "address"),
        ({"address": 7}, "address"),
        ({"id": None, "devname": None}, "device"),
        ({"network": {"bridge": 7}}, "bridge"),
        ({"network": {}}, "bridge"),
    ],
)
def test_an_interface_without_what_it_needs_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        interfaces_of([fake_vif() | change], {})


def test_an_interface_is_found_by_its_address_however_that_is_written() -> None:
    [interface] = interfaces_of([fake_vif(10)], {"hw_vif_model": "e1000"})
    xml = f"<domain><devices><interface/>{interface_xml(interface)}</devices></domain>"
    found = interface_of(xml, interface.address.upper())
    assert found is not None
    assert "e1000" in found
    assert interface_of(xml, "52:54:00:00:00:99") is None


def test_how_often_a_guest_is_asked_for_a_device_is_configured() -> None:
    assert (8, 20.0) == (libvirt_of(LibvirtTable()).device_detach_attempts, libvirt_of(LibvirtTable()).device_detach_timeout)
    with pytest.raises(WrongValue, match="device_detach_timeout"):
        libvirt_of(LibvirtTable(device_detach_timeout="soon"))
    with pytest.raises(WrongValue, match="my_ip"):
        libvirt_of(LibvirtTable(my_ip="somewhere"))


# ------------------------------------------------------------------------------------------------------------------------ tags


def record(name: str, **fields: Any) -> Any:
    """A record of a class that is called so, as a service has it."""
    return type(name, (SimpleNamespace,), {})(**fields)


def devices(instance: FakeInstance) -> Any:
    files = files_of(instance, None, password=None, devices=instance.device_metadata)
    return json.loads(files["openstack/latest/meta_data.json"]).get("devices")


def test_tagged_devices_are_told_to_the_guest() -> None:
    instance = FakeInstance()
    assert devices(instance) is None
    slot = record("PCIDeviceBus", address="0000:00:02.0")
    instance.device_metadata = record(
        "InstanceDeviceMetadata",
        devices=[
            record("NetworkInterfaceMetadata", mac="52:54:00:00:00:01", bus=slot, tags=["front"], vlan=7, vf_trusted=True),
            record("NetworkInterfaceMetadata", mac="52:54:00:00:00:02"),
            record("DiskMetadata", serial="s1", path=None, bus=record("SCSIDeviceBus", address="1:0:2:0"), tags=["data"]),
            record("DiskMetadata", bus=record("BusOfTomorrow", address="x")),
            record("DeviceOfTomorrow", bus=slot),
        ],
    )
    assert [
        {
            "type": "nic",
            "mac": "52:54:00:00:00:01",
            "bus": "pci",
            "address": "0000:00:02.0",
            "tags": ["front"],
            "vlan": 7,
            "vf_trusted": True,
        },
        {"type": "nic", "mac": "52:54:00:00:00:02", "bus": "none", "address": "none", "vf_trusted": False},
        {"type": "disk", "serial": "s1", "bus": "scsi", "address": "1:0:2:0", "tags": ["data"]},
    ] == devices(instance)
