"""What a driver writes down of an instance's tagged devices: which is which, and where its guest finds it.

The classes and their fields are called as Nova's (`nova.objects.virt_device_metadata`), so that whoever reads those by their
attributes reads these. What is not known, or does not apply, is None.
"""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class PCIDeviceBus:
    """``address``: domain:bus:slot.function in hexadecimal digits, as ``0000:00:02.0``."""

    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class USBDeviceBus:
    """``address``: bus:port, as ``0:1``; a hub's ports follow behind dots and have no address here."""

    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SCSIDeviceBus:
    """``address``: controller:bus:target:unit, as ``0:0:0:1``."""

    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IDEDeviceBus:
    """``address``: bus:unit, each 0 or 1."""

    address: str


DeviceBus: TypeAlias = PCIDeviceBus | USBDeviceBus | SCSIDeviceBus | IDEDeviceBus


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInterfaceMetadata:
    """An interface.

    Attributes:
        mac: of the guest's side. bus: None: nobody knows. vlan: the number of its network. vf_trusted: it may change its MAC.
    """

    mac: str
    tags: tuple[str, ...] | None = None
    bus: DeviceBus | None = None
    vlan: int | None = None
    vf_trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskMetadata:
    """A disk.

    Attributes:
        serial: a volume's id. path: of a disk without one, the device as which it is known, such as ``/dev/vdb``.
        bus: None: it has none that Nova's records know, as SATA.
    """

    tags: tuple[str, ...]
    serial: str | None = None
    path: str | None = None
    bus: DeviceBus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceDeviceMetadata:
    """All of an instance's, in the domain's order."""

    devices: tuple[NetworkInterfaceMetadata | DiskMetadata, ...]
