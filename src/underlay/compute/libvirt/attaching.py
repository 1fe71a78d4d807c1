"""How a volume is attached to an instance that is there, and how a guest is told that one has grown."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from underlay.compute.arguments import ConnectionInfo, Instance
from underlay.compute.errors import (
    DiskNotFound,
    ExtendVolumeNotSupported,
    InvalidInput,
    NotSupported,
    OperationFailed,
    VolumeAttachFailed,
    VolumeDriverNotFound,
)
from underlay.compute.libvirt import attacheddisks, devicenames, diskplan, guestxml, tagging, volumedisks, volumeplaces
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.guest import GuestDisk
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.volume import Volume
from underlay.compute.libvirt.volumeplan import kind_of

_NO_SLOT = "No more available PCI slots"


def attach(
    site: Site,
    instance: Instance,
    connection: ConnectionInfo,
    name: str,
    *,
    bus: str | None,
    device_type: str | None,
    encryption: Mapping[str, Any] | None,
) -> None:
    """Attach a volume: to what the guest starts with, and at once to one that runs.

    Args:
        name: the device that it is to be; one that does not fit its bus is a wish. encryption: has to be None, or empty.

    Raises:
        VolumeDriverNotFound, TooManyDiskDevices, NotSupported, InvalidInput, InstanceNotFound
        VolumeAttachFailed: it is attached, its device is taken, nothing is at its place, or libvirt refuses it.
    """
    if encryption:
        raise NotSupported("encrypted volumes are not attached here: nothing decrypts them")
    volume = volumedisks.read(site, connection)
    disks = DomainDisks(site.domain(instance))
    lasting, is_active = disks.lasting(), disks.domain.is_active()
    if (why := kept_by(site, instance, disks)) is not None:
        raise VolumeAttachFailed(volume_id=volume.name, reason=why)
    attachment = volumedisks.opened(site, volume)
    found = attacheddisks.of_volume(volume, lasting) or attacheddisks.reading(volume, disks.live())
    if found is not None:
        raise VolumeAttachFailed(volume_id=volume.name, reason=f"it is attached already, as {found.device}")
    volumeplaces.refuse_others(site, instance, volume)
    disk = GuestDisk(
        attachment=attachment,
        device="",
        bus=_bus(instance, name, bus),
        kind=kind_of(device_type),
        serial=volume.id,
        read_only=volume.read_only,
        shared=volume.shared,
    )
    taken = {one.device for one in (*lasting, *disks.live())}
    tags = tagging.known(instance)
    _add(disks, disk, device=_device(site, volume, name, disk.bus, taken), volume=volume, is_active=is_active)
    tagging.write_down_change(site, instance, tags)


def extend(site: Site, instance: Instance, connection: ConnectionInfo, size: int) -> None:
    """Tell a guest that runs how large an attached volume is now. One that is off finds out when it starts.

    A file becomes as large; a device, or an image in Ceph, has to be already. Nothing is ever made smaller.

    Raises:
        ExtendVolumeNotSupported: of this kind of volume. DiskNotFound: it is not attached. InvalidInput: it is larger already.
        OperationFailed, InstanceNotFound
    """
    try:
        volume = volumedisks.read(site, connection)
    except VolumeDriverNotFound as error:
        raise ExtendVolumeNotSupported(f"{error.message}, and none of them can grow") from error
    disks = DomainDisks(site.domain(instance))
    found = attacheddisks.of_volume(volume, disks.lasting())
    if found is None:
        raise DiskNotFound(location=volume.name)
    if disks.domain.is_active():
        grow(disks, found.device, size)


def grow(disks: DomainDisks, device: str, size: int) -> None:
    """Tell a guest that runs how large a disk is now.

    Raises:
        InvalidInput: it is larger already. OperationFailed, InstanceNotFound
    """
    now = disks.capacity(device)
    if size < now:
        raise InvalidInput(reason=f"{device} has {now} bytes already, and {size} are fewer")
    disks.resize(device, size)


def kept_by(site: Site, instance: Instance, disks: DomainDisks) -> str | None:
    """What keeps the disks of an instance as they are, because it comes back with them later."""
    if site.directory(instance).unrescue.exists():
        return "the instance is being rescued, and comes back with what it had"
    if disks.domain.is_saved():
        return "the instance is suspended, and goes on with what it had"
    return None


def _bus(instance: Instance, name: str, bus: str | None) -> str:
    """As asked for, else as the device's name has it, else as the image."""
    if bus is not None:
        return devicenames.check_bus(bus, what="disk_bus")
    return devicenames.bus_of(name) or diskplan.bus_of(instance.image_meta)


def _device(site: Site, volume: Volume, name: str, bus: str, taken: Collection[str]) -> str:
    further = devicenames.next_name(bus, taken, prefix=site.options.disk_prefix)  # also says that there are too many
    device = devicenames.fitting(name, bus)
    if device in taken:
        raise VolumeAttachFailed(volume_id=volume.name, reason=f"{device} is taken")
    return device or further


def _add(disks: DomainDisks, disk: GuestDisk, *, device: str, volume: Volume, is_active: bool) -> None:
    xml = guestxml.disk_xml(replace(disk, device=device))
    try:
        if disk.bus == "scsi" and not attacheddisks.has_scsi_controller(disks.domain.xml(inactive=True)):
            disks.add(guestxml.scsi_controller_xml(), live=is_active)
        disks.add(xml, live=is_active)
    except OperationFailed as error:
        hint = "give guests more of them: num_pcie_ports in [libvirt]" if _NO_SLOT in error.message else error.hint
        what = f"volume {volume.name} could not be attached: {error.message}"
        raise VolumeAttachFailed(what, hint=hint) from error
