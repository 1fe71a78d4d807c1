"""The records of an instance's tagged devices, made from its domain's XML and from what is known of its tags. Pure.

Who asks for a device tells its tag, which libvirt has no place for, and libvirt tells its address. Interfaces with a VLAN are
recorded as well, tagged or not, as with Nova.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from xml.etree.ElementTree import Element

from underlay.compute.arguments import BlockDeviceMapping, Vif
from underlay.compute.devicemetadata import (
    DeviceBus,
    DiskMetadata,
    IDEDeviceBus,
    InstanceDeviceMetadata,
    NetworkInterfaceMetadata,
    PCIDeviceBus,
    SCSIDeviceBus,
    USBDeviceBus,
)
from underlay.compute.libvirt.guest import GuestDisk
from underlay.compute.libvirt.guestplan import is_true
from underlay.compute.libvirt.guestxml import parsed
from underlay.compute.metadata import field_of

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedInterface:
    """What is known of an interface beside what libvirt has of it."""

    tag: str | None = None
    vlan: int | None = None
    trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What is known of tags.

    Attributes:
        interfaces: by MACs in small letters. volumes: by the ids of volumes. disks: by devices, such as ``vdb``, of disks that
            have no id.
    """

    interfaces: Mapping[str, NamedInterface] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    disks: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, further: "Tags") -> "Tags":
        """With further ones, which count where both know something."""
        return Tags(
            interfaces=_joined(self.interfaces, further.interfaces),
            volumes={**self.volumes, **further.volumes},
            disks={**self.disks, **further.disks},
        )

    def __bool__(self) -> bool:
        return bool(self.interfaces or self.volumes or self.disks)


def tags_of_vifs(vifs: Iterable[Vif]) -> Tags:
    """What a service's interfaces say: ``tag``, ``vlan`` of ``details`` and ``trusted`` of ``profile``; each may be missing."""
    found = {str(vif.get("address")).lower(): _named(vif) for vif in vifs}
    return Tags(interfaces={address: one for address, one in found.items() if one.tag or one.vlan})


def tags_of_rows(rows: Iterable[BlockDeviceMapping]) -> Tags:
    """What a service's own rows of block devices say: ``tag``, with ``volume_id`` or ``device_name``."""
    tagged = [row for row in rows if _of(row, "tag")]
    return Tags(
        volumes={str(_of(row, "volume_id")): _of(row, "tag") for row in tagged if _of(row, "volume_id")},
        disks={_bare(_of(row, "device_name")): _of(row, "tag") for row in tagged if not _of(row, "volume_id")},
    )


def tags_of_disks(disks: Iterable[GuestDisk]) -> Tags:
    """What is known of the disks that a guest is to have."""
    tagged = [(disk, disk.tag) for disk in disks if disk.tag]
    return Tags(
        volumes={disk.serial: tag for disk, tag in tagged if disk.serial is not None},
        disks={disk.device: tag for disk, tag in tagged if disk.serial is None},
    )


def tags_of_records(metadata: Any) -> Tags:
    """What earlier records say, which may be Nova's own."""
    interfaces, volumes, disks = dict[str, NamedInterface](), dict[str, str](), dict[str, str]()
    for device in field_of(metadata, "devices") or ():
        tag = next(iter(field_of(device, "tags") or ()), None)
        if (mac := field_of(device, "mac")) is not None:
            trusted = bool(field_of(device, "vf_trusted"))
            interfaces[mac.lower()] = NamedInterface(tag=tag, vlan=field_of(device, "vlan"), trusted=trusted)
        elif tag and (serial := field_of(device, "serial")):
            volumes[serial] = tag
        elif tag and (path := field_of(device, "path")):
            disks[_bare(path)] = tag
    return Tags(interfaces=interfaces, volumes=volumes, disks=disks)


def records_of(xml: str, tags: Tags) -> InstanceDeviceMetadata | None:
    """The records of those devices of a domain of which there is something to say; None: of none.

    Raises:
        OperationFailed: the XML has a document type.
    """
    devices = parsed(xml).find("devices")
    found = () if devices is None else tuple(record for one in devices if (record := _record(one, tags)) is not None)
    return InstanceDeviceMetadata(devices=found) if found else None


def _record(device: Element, tags: Tags) -> NetworkInterfaceMetadata | DiskMetadata | None:
    if device.tag == "interface":
        return _interface(device, tags)
    return _disk(device, tags) if device.tag == "disk" else None


def _interface(device: Element, tags: Tags) -> NetworkInterfaceMetadata | None:
    mac = _words(device, "mac").get("address", "")
    named = tags.interfaces.get(mac.lower())
    if named is None:
        return None
    tagged = (named.tag,) if named.tag else None
    return NetworkInterfaceMetadata(mac=mac, tags=tagged, bus=_bus(device), vlan=named.vlan, vf_trusted=named.trusted)


def _disk(device: Element, tags: Tags) -> DiskMetadata | None:
    serial, name = device.findtext("serial"), _words(device, "target").get("dev", "")
    tag = tags.disks.get(name) if serial is None else tags.volumes.get(serial)
    if tag is None:
        return None
    return DiskMetadata(tags=(tag,), serial=serial, path=None if serial else f"/dev/{name}", bus=_bus(device))


def _bus(device: Element) -> DeviceBus | None:
    """Where a device is, as libvirt has assigned it (https://libvirt.org/formatdomain.html#device-addresses)."""
    told, bus = _words(device, "address"), _words(device, "target").get("bus")
    if told.get("type") == "pci":
        domain, number, slot, function = (int(told.get(key, "0"), 16) for key in ("domain", "bus", "slot", "function"))
        return PCIDeviceBus(address=f"{domain:04x}:{number:02x}:{slot:02x}.{function:x}")
    if told.get("type") == "usb":
        address = f"{told.get('bus')}:{told.get('port')}"
        return USBDeviceBus(address=None if "." in address else address)
    if told.get("type") == "drive" and bus == "scsi":
        numbers = (int(told.get(key, "0")) for key in ("controller", "bus", "target", "unit"))
        return SCSIDeviceBus(address=":".join(f"{number:x}" for number in numbers))
    if told.get("type") == "drive" and bus == "ide":
        return IDEDeviceBus(address=f"{told.get('bus')}:{told.get('unit')}")
    return None


def _named(vif: Vif) -> NamedInterface:
    vlan = (vif.get("details") or _NOTHING).get("vlan")
    trusted = (vif.get("profile") or _NOTHING).get("trusted", False)
    return NamedInterface(tag=vif.get("tag") or None, vlan=int(vlan) if vlan else None, trusted=is_true(trusted))


def _joined(before: Mapping[str, NamedInterface], now: Mapping[str, NamedInterface]) -> dict[str, NamedInterface]:
    """Each with all that is known of it: who says a VLAN may say nothing of a tag."""
    return {**before, **{mac: _with(before.get(mac, NamedInterface()), one) for mac, one in now.items()}}


def _with(before: NamedInterface, now: NamedInterface) -> NamedInterface:
    trusted = now.trusted or before.trusted
    return NamedInterface(tag=now.tag or before.tag, vlan=now.vlan or before.vlan, trusted=trusted)


def _words(element: Element, tag: str) -> Mapping[str, str]:
    found = element.find(tag)
    return _NOTHING if found is None else found.attrib


def _bare(name: str | None) -> str:
    return (name or "").removeprefix("/dev/")


def _of(row: BlockDeviceMapping, name: str) -> Any:
    return row.get(name) if isinstance(row, Mapping) else field_of(row, name)
