"""The volumes of an instance as disks of its guest: whether they are there, and how the guest opens them.

A path comes from outside, so it is looked at before anybody opens it: it has to be a file or a device, and nothing of
Underlay's own.
"""

import logging
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, DriverDisk, ImageMeta, Instance
from underlay.compute.blockdevices import block_device_info_get_mapping
from underlay.compute.errors import ComputeError, InvalidInput, MigrationPreCheckError
from underlay.compute.libvirt import attacheddisks, devicenames, diskplan, swapped, volumeplaces
from underlay.compute.libvirt.attacheddisks import AttachedDisk
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.guest import GuestDisk
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.swapped import Swapped
from underlay.compute.libvirt.volume import RBD, Volume, volume_of
from underlay.compute.libvirt.volumeplaces import failed
from underlay.compute.libvirt.volumeplan import PlannedVolume, root_volume, volumes_of
from underlay.model import Attachment
from underlay.values import replace

_LOG = logging.getLogger(__name__)


def read(site: Site, connection: Mapping[str, Any]) -> Volume:
    """The volume that a connection leads to, with this host's own Ceph where it is meant.

    Raises:
        as `volume_of`
    """
    return volume_of(connection, own=site.host.config.disks.get("rbd"))


def check(
    site: Site, instance: Instance, image: ImageMeta, info: BlockDeviceInfo | None, own: Iterable[diskplan.LocalDisk]
) -> None:
    """Refuse volumes that cannot be attached, before anything is made or given up for them.

    Raises:
        as `disks_of`
    """
    disks_of(site, instance, image, info, taken=[disk.device for disk in own])
    for told in block_device_info_get_mapping(info):
        volumeplaces.refuse_others(site, instance, read(site, told["connection_info"]))


def without_bad(site: Site, instance: Instance, info: BlockDeviceInfo | None) -> tuple[BlockDeviceInfo | None, list[str]]:
    """The same block devices without volumes that cannot be attached, and the names of those.

    Raises:
        as `read` and `opened`, when the guest would have nothing to boot from, or nobody would know any more to which file
            the volume is written
    """
    bad: list[DriverDisk] = []
    swaps = unknown_swaps(site, instance, info)
    for told in block_device_info_get_mapping(info):
        try:
            opened(site, swapped.meant(read(site, told["connection_info"]), swaps))
        except ComputeError as error:
            if told is root_volume(instance, info) or _has_snapshots(site, instance, told):
                raise
            _LOG.warning("the instance %s is to start without a volume: %s", instance.uuid, error)
            bad.append(told)
    if info is None or not bad:
        return info, []
    good = [told for told in block_device_info_get_mapping(info) if told not in bad]
    return {**info, "block_device_mapping": good}, [str(told.get("mount_device")) for told in bad]


def unknown_swaps(site: Site, instance: Instance, info: BlockDeviceInfo | None) -> list[Swapped]:
    """Swaps of volumes of which only this host knows; what its service cannot say is none of its volumes.

    Raises:
        OperationFailed
    """
    return _unknown_swaps(site, instance, _named(site, info))


def forget_known_swaps(site: Site, instance: Instance, info: BlockDeviceInfo | None) -> None:
    """Forget the swaps of volumes of which the service of an instance knows, as it says.

    Raises:
        OperationFailed
    """
    swapped.forget_known(site.directory(instance), _named(site, info))


def _named(site: Site, info: BlockDeviceInfo | None) -> list[Volume]:
    named = list[Volume]()
    for told in block_device_info_get_mapping(info):
        with suppress(ComputeError):
            named.append(read(site, told["connection_info"]))
    return named


def refuse_unknown_swaps(site: Site, instance: Instance, info: BlockDeviceInfo | None) -> None:
    """Refuse that an instance leaves while only this host's definition says which volume is in the place of another one.

    Raises:
        MigrationPreCheckError; OperationFailed
    """
    if swaps := unknown_swaps(site, instance, info):
        what = f"its service does not know yet that {swaps[0].new.name} is in the place of its volume {swaps[0].old.name}"
        raise MigrationPreCheckError(what, hint="have it swap the volumes again, which finds that done")


def _unknown_swaps(site: Site, instance: Instance, named: Sequence[Volume]) -> list[Swapped]:
    return swapped.unknown(site.directory(instance), named, _now(site, instance)) if named else []


def with_snapshots(site: Site, instance: Instance, info: BlockDeviceInfo | None) -> list[str]:
    """The devices of volumes of which only the domain here knows to which file they are written."""
    told = (one for one in block_device_info_get_mapping(info) if _has_snapshots(site, instance, one))
    return [str(one.get("mount_device")) for one in told]


def _has_snapshots(site: Site, instance: Instance, told: DriverDisk) -> bool:
    """Whether only the domain knows to which file a volume is written; a domain without it would open the one below later."""
    try:
        volume = read(site, told["connection_info"])
    except ComputeError:
        return False
    found = attacheddisks.of_volume(volume, _now(site, instance))
    return found is not None and attacheddisks.is_written_above(volume, found)


def may_differ(site: Site, instance: Instance, info: BlockDeviceInfo | None) -> bool:
    """Whether the domain of an instance may have other volumes than its service says, which has to say so for that."""
    if info is None or "block_device_mapping" not in info:
        return False
    return has_some(site, instance) or bool(block_device_info_get_mapping(info))


def has_some(site: Site, instance: Instance) -> bool:
    """Whether the domain of an instance has volumes, by their ids: local disks have none."""
    return any(disk.serial is not None for disk in _now(site, instance))


def disks_of(
    site: Site, instance: Instance, image: ImageMeta, info: BlockDeviceInfo | None, *, taken: Iterable[str]
) -> tuple[GuestDisk, ...]:
    """The volumes as disks of the guest.

    Args:
        taken: devices that the local disks are.

    Raises:
        as `volumes_of` and `opened`
    """
    planned = volumes_of(
        instance,
        info,
        bus=diskplan.bus_of(image),
        taken=frozenset(taken),
        prefix=site.options.disk_prefix,
        own=site.host.config.disks.get("rbd"),
    )
    planned = _as_swapped(site, instance, planned)
    _refuse_twice([one.volume for one in planned])
    now = _now(site, instance) if planned else ()
    return tuple(_as_it_is(one.volume, _disk(one, opened(site, one.volume)), now) for one in planned)


def _as_swapped(site: Site, instance: Instance, planned: tuple[PlannedVolume, ...]) -> tuple[PlannedVolume, ...]:
    """With the volume that the guest has in the place of each that its service still names."""
    swaps = _unknown_swaps(site, instance, [one.volume for one in planned])
    for one in swaps:
        what = "the instance %s has the volume %s in the place of %s since a swap of which its service does not know"
        _LOG.warning(what, instance.uuid, one.new.name, one.old.name)
    return tuple(replace(one, volume=swapped.meant(one.volume, swaps)) for one in planned)


def behind(site: Site, instance: Instance, info: BlockDeviceInfo | None, *, taken: Collection[str]) -> tuple[GuestDisk, ...]:
    """The volumes behind other disks, on the next devices that are free: the guest boots from none of them.

    Raises:
        as `disks_of`
    """
    moved, used = list[GuestDisk](), set(taken)
    for disk in disks_of(site, instance, instance.image_meta, info, taken=()):
        device = devicenames.next_name(disk.bus, used, prefix=site.options.disk_prefix)
        used.add(device)
        moved.append(replace(disk, device=device, boot_order=None))
    return tuple(moved)


def opened(site: Site, volume: Volume) -> Attachment:
    """How a volume is opened.

    Raises:
        VolumeAttachFailed: nothing is there, or something that is no volume.
    """
    discard = "unmap" if volume.discard else None
    if volume.kind == RBD:
        volumeplaces.check_image(site, volume)
        return Attachment(
            type="network",
            source=volume.source,
            format=volume.format,
            cache="none",
            discard=discard,
            protocol=RBD,
            servers=volume.servers,
            user=volume.user,
            secret=volume.secret,
        )
    is_device = _is_device(site, volume)
    # Around the host's cache, as with any storage that another host may have next; a file's file system may know no such way,
    # and then it cannot be shared: who has the volume on another host would not see what is only in this one's memory.
    return Attachment(
        type="block" if is_device else "file",
        source=volume.source,
        format=volume.format,
        cache="none" if is_device or volume.shared else None,
        discard=discard,
    )


def size_of(volume: Volume) -> int | None:
    """Bytes of a local volume; None of one that is not reached from here.

    Raises:
        VolumeAttachFailed
    """
    if volume.kind == RBD:
        return None
    try:
        fd = os.open(volume.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    except OSError as error:
        raise failed(volume, f"{volume.source} cannot be opened: {error.strerror}") from error


def _is_device(site: Site, volume: Volume) -> bool:
    volumeplaces.check_place(site, volume.source, volume)
    try:
        mode = os.stat(volume.source).st_mode
    except OSError as error:
        raise failed(volume, f"{volume.source} cannot be reached: {error.strerror}") from error
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise failed(volume, f"{volume.source} is neither a block device nor a file")
    if stat.S_ISBLK(mode):
        volumeplaces.check_device(site, volume)
    return stat.S_ISBLK(mode)


def _refuse_twice(volumes: Iterable[Volume]) -> None:
    places = set[tuple[str, str]]()
    for volume in volumes:
        place = (volume.kind, volume.source if volume.kind == RBD else os.path.realpath(volume.source))
        if place in places:
            raise InvalidInput(reason=f"the volume {volume.name} is to be two disks")
        places.add(place)


def _now(site: Site, instance: Instance) -> tuple[AttachedDisk, ...]:
    """What libvirt knows of the instance's disks; nothing before it is made."""
    domain = site.domain(instance)
    return DomainDisks(domain).lasting() if domain.exists() else ()


def _as_it_is(volume: Volume, told: GuestDisk, now: tuple[AttachedDisk, ...]) -> GuestDisk:
    """Since a snapshot a volume is written to another file, of which its caller may not know: to open the one below for writing
    would spoil both. What the file stands on is told with it, or the next definition would no more say whose file it is."""
    found = attacheddisks.reading(volume, now)
    if found is None or not attacheddisks.is_written_above(volume, found):
        return told
    written = replace(told.attachment, type=found.type, source=found.source, format=found.format)
    return replace(told, attachment=written, backing=attacheddisks.backing_of(found))


def _disk(planned: PlannedVolume, attachment: Attachment) -> GuestDisk:
    return GuestDisk(
        attachment=attachment,
        device=planned.device,
        bus=planned.bus,
        kind=planned.kind,
        boot_order=planned.boot_order,
        serial=planned.volume.id,
        read_only=planned.volume.read_only,
        shared=planned.volume.shared,
        tag=planned.tag,
    )
