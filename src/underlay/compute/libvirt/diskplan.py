"""Which local disks an instance is to have, decided from what the service says before anything is made. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance
from underlay.compute.blockdevices import (
    block_device_info_get_encrypted_disks,
    block_device_info_get_ephemerals,
    block_device_info_get_image,
    block_device_info_get_root_device,
    block_device_info_get_swap,
    swap_is_usable,
)
from underlay.compute.errors import FlavorDiskSmallerThanImage, InvalidInput, NotSupported
from underlay.compute.libvirt import devicenames
from underlay.compute.libvirt.directory import RESCUE, ROOT, SWAP
from underlay.compute.libvirt.volumeplan import names_asked_for, root_volume
from underlay.compute.metadata import field_of

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDisk:
    """A disk to be made on this host.

    Attributes:
        name: its file's, such as ``disk.eph0``. role: ``image``, ``ephemeral`` or ``swap``: what it is made from.
        size: bytes; None: the image's. device, bus: in the guest. boots: the guest boots from it. kind: ``disk`` or ``cdrom``.
        file_system: of an ephemeral; None: the configuration's. tag: what its owner calls it.
    """

    name: str
    role: str
    size: int | None
    device: str
    bus: str
    boots: bool = False
    kind: str = "disk"
    file_system: str | None = None
    tag: str | None = None


def properties_of(image: ImageMeta) -> Mapping[str, Any]:
    """The image's properties, of which only ``get`` is used."""
    found: Mapping[str, Any] | None = field_of(image, "properties")
    return {} if found is None else found


def disks_of(
    instance: Instance, image: ImageMeta, info: BlockDeviceInfo | None, *, machine: str = "", prefix: str = ""
) -> tuple[LocalDisk, ...]:
    """The root disk, the ephemeral ones and swap, in this order; no root disk where that is a volume.

    Args:
        machine, prefix: of the configuration: the machine of guests whose image asks for none, and how devices begin.

    Raises:
        FlavorDiskSmallerThanImage: by what the image's record says. NotSupported: a disk is to be encrypted.
        InvalidInput: a bus or a device's name; two devices of one name.
        TooManyDiskDevices
    """
    _refuse_encrypted(info)
    bus = bus_of(image)
    volumes, disks = names_asked_for(instance, info, bus=bus), list[LocalDisk]()
    if root_volume(instance, info) is None:
        disks.append(_root(instance, image, info, bus, machine=machine, prefix=prefix))
    for number, ephemeral in enumerate(block_device_info_get_ephemerals(info)):
        disks.append(_ephemeral(ephemeral, number, _taken(disks, volumes), bus, prefix))
    swap = block_device_info_get_swap(info)
    if swap_is_usable(swap):
        device, sits_on = _place(swap, _taken(disks, volumes), bus, prefix)
        size, tag = swap["swap_size"] * MIB, swap.get("tag")
        disks.append(LocalDisk(name=SWAP, role="swap", size=size, device=device, bus=sits_on, tag=tag))
    return tuple(disks)


def bus_of(image: ImageMeta) -> str:
    """The bus of disks that have none of their own.

    Raises:
        InvalidInput
    """
    return devicenames.check_bus(properties_of(image).get("hw_disk_bus") or "virtio", what="hw_disk_bus")


def _taken(disks: Iterable[LocalDisk], volumes: set[str]) -> set[str]:
    return volumes | {disk.device for disk in disks}


def _root(
    instance: Instance, image: ImageMeta, info: BlockDeviceInfo | None, bus: str, *, machine: str, prefix: str
) -> LocalDisk:
    """An image of a CD is one to the guest as well."""
    bus, kind = _sits_on(image, bus, machine=machine_of(image, machine))
    asked = block_device_info_get_root_device(info) or field_of(instance, "root_device_name")
    device = devicenames.fitting(asked, bus) or devicenames.next_name(bus, (), prefix=prefix if kind == "disk" else "")
    tag = next((told.get("tag") for told in block_device_info_get_image(info)), None)
    size = root_size(instance, image)
    return LocalDisk(name=ROOT, role="image", size=size, device=device, bus=bus, boots=True, kind=kind, tag=tag)


def _sits_on(image: ImageMeta, bus: str, *, machine: str) -> tuple[str, str]:
    """The bus and the kind of an image's disk: one of a CD is one to the guest as well."""
    if field_of(image, "disk_format") != "iso":
        return bus, "disk"
    return devicenames.cdrom_bus(machine, properties_of(image).get("hw_cdrom_bus")), "cdrom"


def machine_of(image: ImageMeta, otherwise: str) -> str:
    """The machine that an image's guests get; the configuration's when it asks for none."""
    return properties_of(image).get("hw_machine_type") or otherwise


def rescue_disks(
    image: ImageMeta, own: tuple[LocalDisk, ...], *, machine: str = "", prefix: str = ""
) -> tuple[LocalDisk, tuple[LocalDisk, ...]]:
    """The disk of a rescue, from which the guest boots, and the instance's own behind it.

    Args:
        machine: the instance's.

    Raises:
        InvalidInput, TooManyDiskDevices
    """
    bus = devicenames.check_bus(
        properties_of(image).get("hw_rescue_bus") or properties_of(image).get("hw_disk_bus") or "virtio", what="hw_rescue_bus"
    )
    bus, kind = _sits_on(image, bus, machine=machine)
    first = devicenames.next_name(bus, (), prefix=prefix if kind == "disk" else "")
    rescue = LocalDisk(name=RESCUE, role="image", size=None, device=first, bus=bus, boots=True, kind=kind)
    behind: list[LocalDisk] = []
    for disk in own:
        taken = {rescue.device, *(one.device for one in behind)}
        device = devicenames.next_name(disk.bus, taken, prefix=prefix if disk.kind == "disk" else "")
        behind.append(replace(disk, device=device, boots=False))
    return rescue, tuple(behind)


def root_size(instance: Instance, image: ImageMeta) -> int | None:
    """Bytes of the root disk; None when the flavor leaves it to the image.

    Raises:
        FlavorDiskSmallerThanImage
    """
    size = instance.flavor.root_gb * GIB
    smallest = max((field_of(image, "min_disk") or 0) * GIB, field_of(image, "virtual_size") or 0)
    if size and size < smallest:
        raise FlavorDiskSmallerThanImage(flavor_size=size, image_size=smallest)
    return size or None


def _refuse_encrypted(info: BlockDeviceInfo | None) -> None:
    if block_device_info_get_encrypted_disks(info):
        raise NotSupported("local disks are not encrypted here")


def _ephemeral(ephemeral: Mapping[str, Any], number: int, taken: set[str], bus: str, prefix: str) -> LocalDisk:
    device, sits_on = _place(ephemeral, taken, bus, prefix)
    if not ephemeral["size"]:
        raise InvalidInput(reason=f"the ephemeral disk {number} has no size")
    return LocalDisk(
        name=f"disk.eph{number}",
        role="ephemeral",
        size=ephemeral["size"] * GIB,
        device=device,
        bus=sits_on,
        file_system=ephemeral.get("guest_format"),
        tag=ephemeral.get("tag"),
    )


def _place(asked: Mapping[str, Any], taken: set[str], bus: str, prefix: str) -> tuple[str, str]:
    """The device and the bus of one more disk."""
    sits_on = devicenames.check_bus(asked.get("disk_bus") or bus, what="disk_bus")
    device = devicenames.fitting(asked.get("device_name"), sits_on) or devicenames.next_name(sits_on, taken, prefix=prefix)
    if device in taken:
        raise InvalidInput(reason=f"two disks are to be {device}")
    return device, sits_on
