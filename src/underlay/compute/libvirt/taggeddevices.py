"""What a guest is told of its devices, once that is written down: which is which, by the tags that its owner gave.

The shape is that of ``devices`` in Nova's meta_data.json. What nothing is known of is left out.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from underlay.compute.metadata import field_of

# The classes of Nova's records, by their names.
_BUSES = MappingProxyType(
    {"PCIDeviceBus": "pci", "USBDeviceBus": "usb", "SCSIDeviceBus": "scsi", "IDEDeviceBus": "ide", "XenDeviceBus": "xen"}
)
_NIC, _DISK = "NetworkInterfaceMetadata", "DiskMetadata"


def devices_of(metadata: Any) -> list[dict[str, Any]]:
    """The devices that are written down.

    Args:
        metadata: a service's, or `underlay.compute.devicemetadata.InstanceDeviceMetadata`; None: nothing is written down.
    """
    devices = () if metadata is None else field_of(metadata, "devices") or ()
    return [{**kind, **_place(device)} for device in devices if (kind := _kind(device)) and _place(device)]


def _kind(device: Any) -> Mapping[str, Any]:
    """What it is; nothing when that is not known."""
    name = type(device).__name__
    if name == _NIC:
        vlan = field_of(device, "vlan")
        trusted = bool(field_of(device, "vf_trusted"))
        return {"type": "nic", "mac": device.mac, "vf_trusted": trusted, **({} if vlan is None else {"vlan": vlan})}
    if name == _DISK:
        return {"type": "disk", **_set(device, "serial", "path")}
    return {}


def _place(device: Any) -> dict[str, Any]:
    """Where it is, and what it is called; nothing when its bus is not known."""
    bus = field_of(device, "bus")
    name = "none" if bus is None else _BUSES.get(type(bus).__name__)
    if name is None:
        return {}
    address = None if bus is None else field_of(bus, "address")
    tags = field_of(device, "tags")
    told = {} if tags is None else {"tags": list(tags)}
    return {"bus": name, "address": "none" if address is None else address, **told}


def _set(device: Any, *names: str) -> dict[str, Any]:
    found = {name: field_of(device, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
