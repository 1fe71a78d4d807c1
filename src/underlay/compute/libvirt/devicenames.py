"""What devices are called in a guest: the letters of each bus, in order, one name for one device."""

from collections.abc import Collection
from itertools import islice, product
from string import ascii_lowercase
from types import MappingProxyType

from underlay.compute.errors import InvalidInput, TooManyDiskDevices

# How each bus names its disks (libvirt's formatdomain, "target"), and how many it takes here.
_PREFIXES = MappingProxyType({"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"})
_LIMITS = MappingProxyType({"virtio": 26, "scsi": 256, "sata": 6, "usb": 26, "ide": 4})


def check_bus(bus: str, *, what: str) -> str:
    """A bus that disks can sit on.

    Raises:
        InvalidInput
    """
    if bus not in _PREFIXES:
        raise InvalidInput(reason=f"{what} is {bus!r}, which is no bus of disks: known are {', '.join(_PREFIXES)}")
    return bus


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


def plain(name: str | None) -> str:
    """A device's name without ``/dev/``; empty when it has none.

    Raises:
        InvalidInput: it is no name of a device.
    """
    bare = (name or "").removeprefix("/dev/")
    if bare and not (bare.isascii() and bare.isalnum()):
        raise InvalidInput(reason=f"{name!r} is no name of a device")
    return bare
