"""Which volumes an instance is to have, and on which devices, decided from what the service says. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, DriverDisk, Instance
from underlay.compute.blockdevices import block_device_info_get_mapping, block_device_info_get_root_device
from underlay.compute.errors import InvalidInput
from underlay.compute.libvirt import devicenames
from underlay.compute.libvirt.volume import Volume, volume_of
from underlay.compute.metadata import field_of

_KINDS = frozenset({"disk", "cdrom", "lun"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVolume:
    """A volume as a device of a guest.

    Attributes:
        device, bus: in the guest. kind: ``disk``, ``cdrom`` or ``lun``. boot_order: from 1 on; None: nothing boots from it.
        tag: what its owner calls it.
    """

    volume: Volume
    device: str
    bus: str
    kind: str
    boot_order: int | None
    tag: str | None = None


def root_volume(instance: Instance, info: BlockDeviceInfo | None) -> DriverDisk | None:
    """The volume that the guest has in place of a root disk, if it has one: the first to be booted, or the root device."""
    volumes = block_device_info_get_mapping(info)
    name = _bare(block_device_info_get_root_device(info) or field_of(instance, "root_device_name"))
    first = (volume for volume in volumes if volume.get("boot_index") == 0)
    named = (volume for volume in volumes if name and _bare(volume.get("mount_device")) == name)
    return next(first, None) or next(named, None)


def names_asked_for(instance: Instance, info: BlockDeviceInfo | None, *, bus: str) -> set[str]:
    """The devices that volumes are to be, as far as somebody has said so.

    Args:
        bus: of disks that have none of their own.

    Raises:
        InvalidInput: a bus or a device's name.
    """
    return {name for told in block_device_info_get_mapping(info) if (name := _asked_for(instance, info, told, bus))}


def volumes_of(
    instance: Instance,
    info: BlockDeviceInfo | None,
    *,
    bus: str,
    taken: Collection[str],
    prefix: str = "",
    own: Mapping[str, Any] | None = None,
) -> tuple[PlannedVolume, ...]:
    """The volumes, in the service's order.

    Args:
        bus: of disks that have none of their own. taken: devices that the local disks are. own: as `volume_of` has it.

    Raises:
        VolumeDriverNotFound, NotSupported, TooManyDiskDevices. InvalidInput: also two disks of one name.
    """
    root, planned = root_volume(instance, info), list[PlannedVolume]()
    reserved = {*taken, *names_asked_for(instance, info, bus=bus)}
    for told in block_device_info_get_mapping(info):
        sits_on = _bus(told, bus)
        used = {*taken, *(one.device for one in planned)}
        device = _asked_for(instance, info, told, bus)
        if device in used:
            raise InvalidInput(reason=f"two disks are to be {device}")
        planned.append(
            PlannedVolume(
                volume=volume_of(told["connection_info"], own=own),
                device=device or devicenames.next_name(sits_on, reserved | used, prefix=prefix),
                bus=sits_on,
                kind=kind_of(told.get("device_type")),
                boot_order=_boot_order(told, is_root=told is root),
                tag=told.get("tag"),
            )
        )
    return tuple(planned)


def kind_of(device_type: str | None) -> str:
    """What a volume is to the guest.

    Raises:
        InvalidInput
    """
    kind = device_type or "disk"
    if kind not in _KINDS:
        raise InvalidInput(reason=f"a volume is no {kind!r}: it is one of {', '.join(sorted(_KINDS))}")
    return kind


def _asked_for(instance: Instance, info: BlockDeviceInfo | None, told: DriverDisk, bus: str) -> str:
    wish = told.get("mount_device")
    if not wish and told is root_volume(instance, info):
        wish = block_device_info_get_root_device(info)
    return devicenames.fitting(wish, _bus(told, bus))


def _boot_order(told: DriverDisk, *, is_root: bool) -> int | None:
    index = told.get("boot_index")
    if index is None or index < 0:
        return 1 if is_root else None
    return int(index) + 1


def _bus(told: DriverDisk, bus: str) -> str:
    return devicenames.check_bus(told.get("disk_bus") or bus, what="disk_bus")


def _bare(name: str | None) -> str:
    return (name or "").removeprefix("/dev/")
