"""An instance's files beside its disks, and the guest that all of them make."""

from contextlib import ExitStack
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance, NetworkInfo
from underlay.compute.libvirt import configdrive, instancedata, localdisks, volumedisks
from underlay.compute.libvirt.diskplan import LocalDisk, disks_of, properties_of
from underlay.compute.libvirt.guest import DirectBoot, Guest, GuestDisk
from underlay.compute.libvirt.guestplan import command_line, guest_of
from underlay.compute.libvirt.site import Site
from underlay.host import bring
from underlay.model import Attachment
from underlay.policy.form import Want
from underlay.refs import parse_ref


def deliver_kernel(site: Site, instance: Instance, *, kernel_id: str | None, ramdisk_id: str | None, suffix: str = "") -> None:
    """Put the kernel and the ramdisk, if there are such, into the instance's directory.

    Raises:
        as `underlay.compute.libvirt.localdisks.translated`
    """
    directory = site.directory(instance)
    wanted = ((kernel_id, directory.kernel(suffix), "aki"), (ramdisk_id, directory.ramdisk(suffix), "ari"))
    with localdisks.translated():
        for image_id, path, disk_format in wanted:
            if image_id:
                site.host.deliver(parse_ref(image_id), path, disk_format=disk_format, cache=site.options.cache)


def prepare(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    *,
    password: str | None,
    holding: ExitStack,
) -> None:
    """Have at hand what `deliver_kernel` and `write_config_drive` will need, before anything is given up for it.

    Args:
        holding: until it is closed no prune removes what was fetched.

    Raises:
        as they
    """
    parts = site.host.parts
    with localdisks.translated():
        for image_id, disk_format in ((instance.kernel_id, "aki"), (instance.ramdisk_id, "ari")):
            if image_id:
                want, cache = Want(disk_format=disk_format), parts.cache(site.options.cache)
                bring.verified(parts, parse_ref(image_id), cache, want, None, holding)
    _config_files(site, instance, image, network_info, password=password)


def _config_files(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    *,
    password: str | None,
    devices: Any = None,
) -> dict[str, bytes] | None:
    """The files of a config drive; None when the instance is to have none."""
    is_mandatory = properties_of(image).get("img_config_drive") == "mandatory"
    if not (instance.config_drive or is_mandatory or site.options.force_config_drive):
        return None
    return instancedata.files_of(instance, network_info, password=password, devices=devices)


def write_config_drive(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    *,
    password: str | None,
    devices: Any = None,
    suffix: str = "",
) -> None:
    """Write a config drive if the instance is to have one.

    It has to be there before its guest is defined, and only then it is known where devices are: with those it is written again.

    Args:
        devices: what is written down of them, as `instancedata.files_of` has it.

    Raises:
        InvalidInput: the user data. As `underlay.compute.libvirt.localdisks.translated`
    """
    files = _config_files(site, instance, image, network_info, password=password, devices=devices)
    if files is None:
        return
    with localdisks.translated():
        configdrive.write(site.directory(instance).config_drive(suffix), files)


def assembled(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
) -> Guest:
    """The guest of the disks and files that are there.

    Raises:
        as `disks_of`, `volumedisks.disks_of` and `guest_of`; DiskNotFound: one of them is not there.
    """
    own = disks_of(instance, image, info, machine=site.options.machine_type, prefix=site.options.disk_prefix)
    volumes = volumedisks.disks_of(site, instance, image, info, taken=[disk.device for disk in own])
    return assembled_of(site, instance, image, network_info, own, volumes=volumes)


def assembled_of(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    disks: tuple[LocalDisk, ...],
    *,
    volumes: tuple[GuestDisk, ...] = (),
    suffix: str = "",
) -> Guest:
    """As `assembled`, of these disks and volumes, with the kernel and the config drive of this suffix."""
    directory = site.directory(instance)
    drive = directory.config_drive(suffix)
    return guest_of(
        instance,
        image,
        network_info,
        options=site.options,
        virt_type=site.virt_type,
        directory=directory,
        disks=[(disk, localdisks.attachment(site, instance, disk.name)) for disk in disks],
        config_drive=Attachment(type="file", source=str(drive), format="raw") if drive.exists() else None,
        boot=_boot(site, instance, image, _root(disks, volumes), suffix),
        volumes=volumes,
    )


def _root(disks: tuple[LocalDisk, ...], volumes: tuple[GuestDisk, ...]) -> str:
    """The device that the guest boots from."""
    local = (disk.device for disk in disks if disk.boots)
    return next(local, None) or min(volumes, key=lambda disk: disk.boot_order or len(volumes) + 1).device


def _boot(site: Site, instance: Instance, image: ImageMeta, root: str, suffix: str) -> DirectBoot | None:
    directory = site.directory(instance)
    kernel, ramdisk = directory.kernel(suffix), directory.ramdisk(suffix)
    if not kernel.exists():
        return None
    return DirectBoot(kernel=kernel, ramdisk=ramdisk if ramdisk.exists() else None, command_line=command_line(image, root))
