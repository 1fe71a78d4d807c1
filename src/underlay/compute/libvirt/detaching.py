"""How a volume is taken from an instance. A guest that runs has to let go of it, and may not.

It is asked, and looked at until the device is gone; a guest that was not ready is asked again. What the guest starts with next
is changed only then, so that a guest which refuses has what it had.
"""

import time

from underlay.compute.arguments import ConnectionInfo, Instance
from underlay.compute.errors import DeviceDetachFailed, DiskNotFound, InstanceNotFound, OperationFailed
from underlay.compute.libvirt import attacheddisks, attaching, tagging, volumedisks, volumeplaces
from underlay.compute.libvirt.attacheddisks import AttachedDisk
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.site import Site

_POLL = 0.1  # seconds between two looks
_ASKED_ALREADY = "already in the process of unplug"


def detach(site: Site, instance: Instance, connection: ConnectionInfo, name: str) -> None:
    """Detach a volume: from a guest that runs, and from what it starts with.

    Args:
        name: the device, for messages: the volume says which one it is.

    Raises:
        DiskNotFound: it is not attached, or there is no such instance. DeviceDetachFailed: the guest keeps it, or libvirt does.
        VolumeDriverNotFound, InvalidInput
    """
    volume = volumedisks.read(site, connection)
    if volumeplaces.leads_to_own(site, volume):
        raise DiskNotFound(location=volume.source)
    disks = DomainDisks(site.domain(instance))
    try:
        lasting = attacheddisks.of_volume(volume, disks.lasting())
        running = disks.live()
    except InstanceNotFound as error:
        raise DiskNotFound(f"volume {volume.name} is not attached: {error.message}") from error
    live = attacheddisks.reading(volume, running) if lasting is None else attacheddisks.at(lasting.device, running)
    if (found := lasting or live) is None:
        raise DiskNotFound(location=f"{name} of {instance.name} that is the volume {volume.name}")
    if (why := attaching.kept_by(site, instance, disks)) is not None:
        raise DeviceDetachFailed(device=found.device, reason=why)
    tags = tagging.known(instance)
    if live is not None:
        _take_from_running(site, disks, live)
    if lasting is not None:  # crash before: the volume comes back when the guest starts, unless it is detached again
        _take_from_definition(disks, lasting)
    tagging.write_down_change(site, instance, tags)


def _take_from_running(site: Site, disks: DomainDisks, disk: AttachedDisk) -> None:
    attempts, seconds = site.options.device_detach_attempts, site.options.device_detach_timeout
    for _ in range(attempts):
        try:
            disks.ask_to_let_go(disk.xml)
        except OperationFailed as error:
            if _is_gone(disks, disk.device):
                return
            if _ASKED_ALREADY not in error.message:
                raise DeviceDetachFailed(device=disk.device, reason=error.message) from error
        if _has_gone(disks, disk.device, seconds=seconds):
            return
    raise DeviceDetachFailed(
        device=disk.device, reason=f"the guest has not let go of it, though it was asked {attempts} times in {seconds:g} s each"
    )


def _has_gone(disks: DomainDisks, device: str, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _is_gone(disks, device):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def _is_gone(disks: DomainDisks, device: str) -> bool:
    """Whether the guest has it no more; one that has ended has nothing."""
    return attacheddisks.at(device, disks.live()) is None


def _take_from_definition(disks: DomainDisks, disk: AttachedDisk) -> None:
    try:
        disks.take_from_definition(disk.xml)
    except OperationFailed as error:
        if attacheddisks.at(disk.device, disks.lasting()) is not None:
            raise DeviceDetachFailed(device=disk.device, reason=error.message) from error
