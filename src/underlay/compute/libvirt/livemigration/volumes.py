"""The volumes of a guest that moves: what it has on the source, and how the destination opens the same ones.

A volume is reached from both hosts, perhaps under another name, and is never copied. Which one it is on the destination is for
its owner to say, who is believed as little as can be: it has to be there, as large as it was, and a file has to be open, as the
guest on the source has it open.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from underlay.compute.arguments import BlockDeviceInfo, DriverDisk, Instance
from underlay.compute.blockdevices import block_device_info_get_mapping
from underlay.compute.errors import MigrationPreCheckError, OperationFailed
from underlay.compute.libvirt import attacheddisks, localdisks, swapping, volumedisks, volumeplaces
from underlay.compute.libvirt.attacheddisks import AttachedDisk
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.volume import LOCAL, Volume
from underlay.compute.libvirt.volumeplan import kind_of
from underlay.compute.livemigration import LibvirtLiveMigrateBDMInfo, UnderlayLiveMigrateData, VolumeMigrateData
from underlay.model import Attachment
from underlay.usage import openfiles

# ------------------------------------------------------------------------------------------------------------ at the source


def on_source(
    site: Site, instance: Instance, info: BlockDeviceInfo | None, *, own: Collection[str]
) -> tuple[VolumeMigrateData, ...]:
    """The volumes of a guest that runs here. It has no other disks than these and the instance's own.

    Args:
        own: what the hypervisor opens of the instance's own disks.

    Raises:
        MigrationPreCheckError: it has something else open, or not a volume that it is said to have, or one is being copied.
        VolumeDriverNotFound, NotSupported, InvalidInput, VolumeAttachFailed, InstanceNotFound
    """
    if swapping.is_unfinished(site.directory(instance)):
        raise MigrationPreCheckError(reason=f"a volume of {instance.uuid} is being put in another one's place")
    volumedisks.refuse_unknown_swaps(site, instance, info)  # the other host has no definition that could say so
    disks = DomainDisks(site.domain(instance))
    live, lasting = _not_own(disks.live(), own), _not_own(disks.lasting(), own)
    found = tuple(_on_source(site, instance, told, live, lasting) for told in block_device_info_get_mapping(info))
    known = {volume.device for volume in found}
    if unknown := next((disk for disk in (*live, *lasting) if disk.device not in known), None):
        reason = f"the guest of {instance.uuid} has {unknown.source} open, which is no disk of the instance"
        raise MigrationPreCheckError(reason=f"{reason}, and no volume of which its service says")
    return found


def _not_own(disks: Iterable[AttachedDisk], own: Collection[str]) -> tuple[AttachedDisk, ...]:
    return tuple(disk for disk in disks if disk.source and disk.source not in own)


def _on_source(
    site: Site, instance: Instance, told: DriverDisk, live: tuple[AttachedDisk, ...], lasting: tuple[AttachedDisk, ...]
) -> VolumeMigrateData:
    volume = volumedisks.read(site, told["connection_info"])
    kept = attacheddisks.of_volume(volume, lasting)
    disk = attacheddisks.at(kept.device, live) if kept is not None else None
    if disk is None or attacheddisks.reading(volume, [disk]) is None:
        reason = f"the volume {volume.name} is not attached to the instance {instance.uuid} as its service says"
        raise MigrationPreCheckError(reason=reason)
    if disk.copied_to is not None or disk.commits:
        raise MigrationPreCheckError(reason=f"the volume {volume.name} is just being copied or merged")
    return VolumeMigrateData(
        device=disk.device,
        bus=disk.bus,
        id=volume.id,
        kind=volume.kind,
        source=disk.source,
        format=disk.format,
        size=_size(volume),
        is_written_above=attacheddisks.is_written_above(volume, disk),
        shared=disk.shared,
    )


def _size(volume: Volume) -> int | None:
    """Bytes of one that are what its guest sees."""
    return volumedisks.size_of(volume) if volume.format == "raw" else None


def refuse_changed(domain: Domain, data: UnderlayLiveMigrateData, *, own: Collection[str]) -> None:
    """Refuse to send a guest away that has other volumes by now than its destination was told of.

    Raises:
        OperationFailed; InstanceNotFound
    """
    disks = DomainDisks(domain)
    for found in (disks.live(), disks.lasting()):
        now = {(disk.device, disk.source) for disk in _not_own(found, own)}
        if now != {(volume.device, volume.source) for volume in data.volumes}:
            raise OperationFailed(f"the volumes of the instance {domain.uuid} have changed since its move was prepared")


# ------------------------------------------------------------------------------------------------------- on the destination


def on_destination(
    site: Site, instance: Instance, told: UnderlayLiveMigrateData, info: BlockDeviceInfo | None
) -> UnderlayLiveMigrateData:
    """What the source said, with how each volume is opened here.

    Args:
        info: with the connections of this host.

    Raises:
        MigrationPreCheckError: a volume is told of by one of the two alone, or is another here than there.
        VolumeAttachFailed: it cannot be opened here. VolumeDriverNotFound, NotSupported, InvalidInput
    """
    left, volumes, bdms = [*block_device_info_get_mapping(info)], list[VolumeMigrateData](), list[LibvirtLiveMigrateBDMInfo]()
    for there in told.volumes:
        here = _matching(site, there, left)
        if here is None:
            reason = f"host {site.name} is not told how the volume {there.id or there.source} is reached from here"
            raise MigrationPreCheckError(reason=reason)
        left.remove(here)
        volumes.append(replace(there, there=_opened(site, there, here)))
        bdms.extend(_bdm(there, here))
    if left:
        reason = f"the guest of {instance.uuid} has no volume {left[0].get('mount_device')}, of which host {site.name} is told"
        raise MigrationPreCheckError(reason=reason)
    return replace(told, volumes=tuple(volumes), bdms=tuple(bdms))


def told_of(site: Site, info: BlockDeviceInfo | None) -> tuple[Volume, ...]:
    """The volumes with which a guest comes, as this host reaches them.

    Raises:
        VolumeDriverNotFound, NotSupported, InvalidInput
    """
    return tuple(volumedisks.read(site, told["connection_info"]) for told in block_device_info_get_mapping(info))


def _matching(site: Site, there: VolumeMigrateData, left: list[DriverDisk]) -> DriverDisk | None:
    """The same volume as this host is told of it: by its owner's name for it, or by its device when it has none."""
    for here in left:
        name = volumedisks.read(site, here["connection_info"]).id
        device = str(here.get("mount_device") or "").removeprefix("/dev/")
        if name == there.id and (name is not None or device == there.device):
            return here
    return None


def _opened(site: Site, there: VolumeMigrateData, here: DriverDisk) -> Attachment:
    volume = volumedisks.read(site, here["connection_info"])
    opened = volumedisks.opened(site, volume)
    if volume.kind != there.kind:
        raise _another(site, volume, f"of kind {volume.kind}, and of kind {there.kind} on the source")
    if volume.shared != there.shared:  # those that have it there would be told otherwise than the guest's QEMU is
        raise _another(site, volume, f"{_sharing(volume.shared)}, and {_sharing(there.shared)} on the source")
    if there.is_written_above:
        opened = _above(site, volume, there)
    elif opened.format != there.format:
        raise _another(site, volume, f"{opened.format}, and {there.format} on the source")
    if there.size is not None and (size := _size(volume)) != there.size:
        raise _another(site, volume, f"of {size} bytes, and of {there.size} on the source")
    if opened.type == "file" and volume.kind == LOCAL:
        _refuse_closed(site, volume, Path(opened.source))
    return opened


def _above(site: Site, volume: Volume, there: VolumeMigrateData) -> Attachment:
    """The file that the guest writes since a snapshot names what it stands on by its path, so all of it has the same ones."""
    volumeplaces.check_place(site, there.source, volume)
    if not Path(there.source).is_file():
        raise _another(site, volume, f"not here with its snapshot: there is no file {there.source}")
    return Attachment(type="file", source=there.source, format=there.format)


def _refuse_closed(site: Site, volume: Volume, path: Path) -> None:
    """A file of the same name and length may be another one; that of the guest is open, on whichever host it runs."""
    with localdisks.translated():
        if openfiles.is_open(path) is False:
            raise _another(site, volume, f"{path}, which nobody has open, so it is not what the guest has")


def _sharing(shared: bool) -> str:
    return "shared" if shared else "one instance's alone"


def _another(site: Site, volume: Volume, what: str) -> MigrationPreCheckError:
    return MigrationPreCheckError(reason=f"the volume {volume.name} is another on host {site.name}: it is {what}")


def _bdm(there: VolumeMigrateData, here: DriverDisk) -> Iterator[LibvirtLiveMigrateBDMInfo]:
    if there.id is not None:  # by which a service finds it
        yield LibvirtLiveMigrateBDMInfo(
            serial=there.id,
            bus=there.bus,
            dev=there.device,
            type=kind_of(here.get("device_type")),
            boot_index=here.get("boot_index"),
            connection_info=dict(here["connection_info"]),
        )
