"""How a resize or a cold migration ends: finished, confirmed or reverted. What is kept of the old instance, `kept` has."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from underlay import errors
from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance, Migration, NetworkInfo
from underlay.compute.errors import DiskNotFound, InstanceNotFound, InvalidDiskInfo, InvalidInput, OperationFailed
from underlay.compute.libvirt import domain as domains, guestxml, kept, keptdisks, localdisks, networks, resizeplan, tagging
from underlay.compute.libvirt.assembling import assembled, deliver_kernel, write_config_drive
from underlay.compute.libvirt.directory import SWAP
from underlay.compute.libvirt.diskplan import LocalDisk, disks_of
from underlay.compute.libvirt.guestplan import check
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import start
from underlay.compute.metadata import field_of


def finish(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    disk_info: str | None,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    *,
    migration: Migration,
    grows: bool,
    power_on: bool,
) -> None:
    """Make the guest from the disks that `underlay.compute.libvirt.migrating.begin` has copied. Can be repeated.

    After a failure what was kept is as it was, so that the instance can be reverted.

    Args:
        disk_info: what `begin` returned. grows: disks take the sizes of the new flavor.

    Raises:
        InvalidDiskInfo; DiskNotFound: a disk has not come. InvalidInput: it goes to another host.
        OperationFailed: nothing was begun; its base image is not here, among others.
        As `underlay.compute.libvirt.making.spawn`
    """
    disks = disks_of(instance, image, info, machine=site.options.machine_type, prefix=site.options.disk_prefix)
    check(image, network_info)
    _refuse_other_host(site, instance, goes_to=field_of(migration, "dest_compute"))
    kept.refuse_changing(site.directory(instance))
    kept.refuse_unfilled(site.directory(instance))
    _refuse_missing(site.directory(instance).path, disk_info)
    keptdisks.refuse_missing(site, site.directory(instance))
    _refuse_baseless(site, instance)
    networks.plug(instance, network_info)
    _end(site, instance)
    if grows:
        sizes = localdisks.sizes(site.host, instance.uuid)
        disks = resizeplan.resized(disks, field_of(instance, "old_flavor"), instance.flavor, sizes=sizes)
    if not any(disk.role == "swap" for disk in disks):
        localdisks.remove(site.host, instance.uuid, SWAP)
    for disk in disks:
        _fit(site, instance, disk, image_id=image.id, grows=grows)
    _write_missing(site, instance, image, network_info)
    _define(site, instance, image, network_info, info, power_on=power_on)


def confirm(site: Site, instance: Instance, migration: Migration) -> None:
    """Remove what was kept, and forget a guest that has moved to another host. Can be repeated.

    Raises:
        OperationFailed: the instance is nowhere but in what was kept; or it runs here, and should not.
        InvalidInput: it came from another host, whose libvirt would go on knowing it.
    """
    directory, domain = site.directory(instance), site.domain(instance)
    _refuse_other_host(site, instance, comes_from=field_of(migration, "source_compute"))
    kept.refuse_changing(directory)
    has_moved = field_of(migration, "dest_compute") not in (None, site.name) and domain.exists()
    if has_moved and domain.is_active():
        raise OperationFailed(f"the instance {instance.uuid} was moved away, and runs here", hint="revert its migration")
    with kept.dropped(directory) as is_kept:
        if is_kept:
            keptdisks.refuse_missing(site, directory)
            keptdisks.let_go(site, directory)
    if has_moved:
        domain.remove()


def revert(
    site: Site,
    instance: Instance,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    *,
    migration: Migration,
    power_on: bool,
) -> None:
    """Put back what was kept in place of what was made of it, and start the guest. Can be repeated.

    Also ends a resize that was interrupted at any point; what was not begun is only started again.

    Raises:
        InstanceNotFound: nothing of it is here. InvalidInput: it came from another host.
        OperationFailed: a new disk is open: the guest runs on the other host. As `underlay.compute.libvirt.making.spawn`
    """
    directory, domain = site.directory(instance), site.domain(instance)
    _refuse_other_host(site, instance, comes_from=field_of(migration, "source_compute"))
    kept.refuse_changing(directory)
    with kept.held(directory) as is_kept:
        if is_kept:
            _end(site, instance)
            localdisks.refuse_open(site.host, instance.uuid)
            keptdisks.put_back(site, directory)
            keptdisks.remove_others(site, directory)
            kept.put_back(directory)
    if not directory.path.is_dir():
        raise InstanceNotFound(instance_id=instance.uuid)
    keptdisks.clear(site, directory)
    if not is_kept and domain.exists() and domain.is_active():
        return
    networks.plug(instance, network_info)
    _make_swap(site, instance, info)
    _define(site, instance, instance.image_meta, network_info, info, power_on=power_on)


# ------------------------------------------------------------------------------------------------------------------ the steps


def _refuse_other_host(site: Site, instance: Instance, *, comes_from: str | None = None, goes_to: str | None = None) -> None:
    """Each end of a move is one host's: on the other one, two hosts would have the instance, or one that should not."""
    for host, does in ((comes_from, "comes from"), (goes_to, "goes to")):
        if host not in (None, site.name):
            raise InvalidInput(reason=f"the instance {instance.uuid} {does} {host}, and this is {site.name}")


def _end(site: Site, instance: Instance) -> None:
    """End a guest of an earlier attempt, or of before: it may have the disks open."""
    domain = site.domain(instance)
    if domain.exists():
        domain.cut()
        domain.forget_memory()


def _define(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    *,
    power_on: bool,
) -> None:
    guest = assembled(site, instance, image, network_info, info)
    domains.define(site.connection, guestxml.to_xml(guest))
    tagging.write_down(site, instance, guest, network_info)
    if power_on:
        start(site, site.domain(instance))


def _make_swap(site: Site, instance: Instance, info: BlockDeviceInfo | None) -> None:
    """What is kept of an instance may have no swap: in a storage of its own it was made anew, in another size."""
    disks = disks_of(instance, instance.image_meta, info, machine=site.options.machine_type, prefix=site.options.disk_prefix)
    there = localdisks.names_of(site.host, instance.uuid)
    missing = [disk for disk in disks if disk.role == "swap" and disk.name not in there]
    localdisks.make(site, instance, missing, image_id="")


def _write_missing(site: Site, instance: Instance, image: ImageMeta, network_info: NetworkInfo | None) -> None:
    """Whatever the guest is to have and has not from before. A config drive from before has the password that it was given."""
    directory = site.directory(instance)
    kernel_id = None if directory.kernel().exists() else instance.kernel_id
    ramdisk_id = None if directory.ramdisk().exists() else instance.ramdisk_id
    deliver_kernel(site, instance, kernel_id=kernel_id, ramdisk_id=ramdisk_id)
    if not directory.config_drive().exists():
        devices = field_of(instance, "device_metadata")  # as where it comes from: the guest is much the same
        write_config_drive(site, instance, image, network_info, password=None, devices=devices)


def _refuse_missing(directory: Path, disk_info: str | None) -> None:
    for name in _names(disk_info):
        if name != SWAP and not (directory / name).exists():
            raise DiskNotFound(location=directory / name)


def _refuse_baseless(site: Site, instance: Instance) -> None:
    """A host may have the instance's directory and not the cache that its disks stand on."""
    with localdisks.translated():
        for name in localdisks.names_of(site.host, instance.uuid):
            disk = site.host.disk(instance.uuid, name=name)
            if disk.format == "qcow2" and disk.base_path is not None and not disk.base_path.exists():
                what = f"the disk {disk.path} stands on {disk.base_path}, which this host has not"
                raise OperationFailed(what, hint="share the cache as well as the directory of instances")


def _names(disk_info: str | None) -> Iterator[str]:
    """The names of the files that were disks where the instance came from."""
    try:
        for disk in json.loads(disk_info or "[]"):
            yield Path(disk["path"]).name
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidDiskInfo(reason=f"it is no list of disks with their paths: {error!r}") from error


def _fit(site: Site, instance: Instance, disk: LocalDisk, *, image_id: str, grows: bool) -> None:
    """Have a disk be what it is to be; one that is there keeps what is in it, but for swap."""
    if disk.role == "swap":
        localdisks.remove(site.host, instance.uuid, disk.name)
    elif disk.role == "image" or disk.name in localdisks.names_of(site.host, instance.uuid):
        if grows and disk.size is not None:
            _grow(site, instance, disk.name, disk.size)
        return
    localdisks.make(site, instance, [disk], image_id=image_id)


def _grow(site: Site, instance: Instance, name: str, size: int) -> None:
    """Grow a disk that is smaller; with the file system in it, where that fills a raw disk and can be grown safely."""
    host, uuid = site.host, instance.uuid
    with localdisks.translated():
        disk = host.disk(uuid, name=name)
        if disk.size is None or disk.size >= size:
            return
        if disk.format == "raw":
            with suppress(errors.Unsupported, errors.ToolMissing):  # then the guest does it, or has no need to
                host.resize_disk(uuid, size, name=name, assume_closed=True, grow_filesystem=True)
        host.resize_disk(uuid, size, name=name, assume_closed=True)
