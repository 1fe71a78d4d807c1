"""What a driver is told of all block devices of an instance, and how it reads that.

Whoever reads may be told nothing (None), and a key may be absent.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from underlay.compute.arguments import BlockDeviceInfo, BlockDeviceMapping, DriverDisk, Instance
from underlay.compute.devices import convert_all_volumes, convert_ephemerals, convert_local_images, convert_swap, get_swap

_T = TypeVar("_T")


def get_block_device_info(instance: Instance, block_device_mapping: Iterable[BlockDeviceMapping]) -> dict[str, Any]:
    """The rows of an instance as its driver gets them.

    Returns:
        ``root_device_name``; ``swap``, one mapping or None; ``ephemerals``, ``block_device_mapping`` (the volumes) and
        ``image``, lists of such. `underlay.compute.devices` says what is in them.
    """
    rows = list(block_device_mapping)
    return {
        "root_device_name": instance.root_device_name,
        "swap": get_swap(convert_swap(rows)),
        "ephemerals": convert_ephemerals(rows),
        "block_device_mapping": convert_all_volumes(*rows),
        "image": convert_local_images(rows),
    }


def block_device_info_get_root_device(block_device_info: BlockDeviceInfo | None) -> str | None:
    """The name of the root device, with ``/dev/``, if it is known."""
    name: str | None = (block_device_info or {}).get("root_device_name")
    return name


def block_device_info_get_swap(block_device_info: BlockDeviceInfo | None) -> DriverDisk:
    """The swap disk; without one, a mapping of no device and the size 0."""
    return _get(block_device_info, "swap", {"device_name": None, "swap_size": 0})


def swap_is_usable(swap: DriverDisk | None) -> bool:
    """Whether this is a swap disk: it has a device name and more than no size."""
    return bool(swap and swap["device_name"] and swap["swap_size"] > 0)


def block_device_info_get_ephemerals(block_device_info: BlockDeviceInfo | None) -> list[DriverDisk]:
    """The ephemeral disks, perhaps none."""
    return _get(block_device_info, "ephemerals", [])


def block_device_info_get_mapping(block_device_info: BlockDeviceInfo | None) -> list[DriverDisk]:
    """The volumes, perhaps none."""
    return _get(block_device_info, "block_device_mapping", [])


def block_device_info_get_image(block_device_info: BlockDeviceInfo | None) -> list[DriverDisk]:
    """The disks that are made from an image on this host, perhaps none."""
    return _get(block_device_info, "image", [])


def block_device_info_get_encrypted_disks(block_device_info: BlockDeviceInfo | None) -> list[DriverDisk]:
    """Of the local disks those that are to be encrypted: from images first, then ephemerals, then swap."""
    swap: list[DriverDisk] = [block_device_info_get_swap(block_device_info)]
    images, ephemerals = block_device_info_get_image(block_device_info), block_device_info_get_ephemerals(block_device_info)
    return [disk for disk in (*images, *ephemerals, *swap) if disk.get("encrypted")]


def _get(info: BlockDeviceInfo | None, key: str, default: _T) -> _T:
    found: _T | None = (info or {}).get(key)
    return found or default
