"""What devices are called in a guest: the letters of each bus, in order, one name for one device."""

from collections.abc import Collection
from itertools import islice, product
from string import ascii_lowercase
from types import MappingProxyType

from underlay.compute.errors import InvalidInput, TooManyDiskDevices

# How each bus names its disks (libvirt's formatdomain, "target"), and how many it takes here.
_PREFIXES = MappingProxyType({"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"})
_LIMITS = MappingProxyType({"virtio": 26, "scsi": 256, "sata": 6, "usb": 26, "ide": 4})


BUSES = frozenset(_PREFIXES)
"""Of disks."""


def check_bus(bus: str, *, what: str) -> str:
    """A bus that disks can sit on.

    Raises:
        InvalidInput
    """
    if bus not in _PREFIXES:
        raise InvalidInput(reason=f"{what} is {bus!r}, which is no bus of disks: known are {', '.join(_PREFIXES)}")
    return bus


def bus_of(name: str) -> str | None:
    """The bus on which a device of this name usually is; None: of one that begins otherwise."""
    buses = {"vd": "virtio", "sd": "scsi", "hd": "ide"}
    return buses.get(name.removeprefix("/dev/")[:2])


def cdrom_bus(machine: str, wanted: str | None) -> str:
    """The bus of CD-ROMs: what is wanted, else what the machine has.

    Raises:
        InvalidInput
    """
    if wanted:
        return check_bus(wanted, what="hw_cdrom_bus")
    if machine.startswith("virt"):  # of other architectures than x86
        return "scsi"
    return "sata" if "q35" in machine else "ide"  # a q35 has no IDE, and the others no SATA


def next_name(bus: str, taken: Collection[str], *, prefix: str = "") -> str:
    """The first name of a bus that is not taken, such as ``vdb``.

    Args:
        prefix: of the configuration, in place of the bus's own.

    Raises:
        TooManyDiskDevices
    """
    start, limit = prefix or _PREFIXES[bus], _LIMITS[bus]
    letters = ("".join(parts) for length in (1, 2) for parts in product(ascii_lowercase, repeat=length))
    for name in (f"{start}{letter}" for letter in islice(letters, limit)):
        if name not in taken:
            return name
    raise TooManyDiskDevices(maximum=limit)


def fitting(name: str | None, bus: str) -> str:
    """A device's name without ``/dev/``; empty when it has none, or one of another bus: a name is a wish.

    Raises:
        InvalidInput: it is no name of a device.
    """
    bare = (name or "").removeprefix("/dev/")
    if bare and not (bare.isascii() and bare.isalnum()):
        raise InvalidInput(reason=f"{name!r} is no name of a device")
    return bare if bare.startswith(_PREFIXES[bus]) else ""
