"""How a guest is rescued: started from another image, with its own disks behind, and put back to what it was.

The domain as it was is kept in a file from before anything changes until it is back, so that whoever is killed in between can
be followed by an unrescue.
"""

import logging

from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance, NetworkInfo
from underlay.compute.errors import ComputeError, InstanceNotRescuable
from underlay.compute.libvirt import domain as domains, guestxml, localdisks, networks, tagging, volumedisks
from underlay.compute.libvirt.assembling import assembled_of, deliver_kernel, write_config_drive
from underlay.compute.libvirt.directory import RESCUE, RESCUED
from underlay.compute.libvirt.diskplan import LocalDisk, disks_of, machine_of, rescue_disks
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.guestplan import check
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import refuse_leaving, start
from underlay.compute.libvirt.volumeplan import root_volume
from underlay.files import sync_directory, translated, write_durably

_LOG = logging.getLogger(__name__)
_MODE = 0o600  # domains have secrets in them


def rescue(
    site: Site,
    instance: Instance,
    network_info: NetworkInfo | None,
    image: ImageMeta,
    info: BlockDeviceInfo | None,
    *,
    password: str | None,
) -> None:
    """Start a guest from another image, on the machine that it is: that of its own image.

    Until that image's disk is made and libvirt has taken what the guest is to be, it runs on. After a failure it is as it was:
    one that was cut is started again. Only saved memory is lost when it is the start that fails.

    Raises:
        InstanceNotRescuable: it is being rescued already, or boots from a volume. InstanceNotFound; as
            `underlay.compute.libvirt.making.spawn`
    """
    domain, directory = site.domain(instance), site.directory(instance)
    before = domain.xml(inactive=True)
    if directory.unrescue.exists():
        raise InstanceNotRescuable(instance_id=instance.uuid, reason="it is being rescued already")
    if root_volume(instance, info) is not None:
        raise InstanceNotRescuable(instance_id=instance.uuid, reason="it boots from a volume")
    refuse_leaving(site, instance.uuid)
    disks = _disks(site, instance, image, info)
    volumes = volumedisks.behind(site, instance, info, taken=[disk.device for disk in disks])
    check(image, network_info)
    networks.plug(instance, network_info)
    with localdisks.translated(), translated(directory.unrescue):
        write_durably(directory.unrescue, before.encode(), mode=_MODE)
    try:  # crash from here on: unrescue.xml is there, by which `unrescue` puts all of it back
        _make(site, instance, network_info, image, disks[0], password=password)
        guest = assembled_of(site, instance, instance.image_meta, network_info, disks, volumes=volumes, suffix=RESCUED)
        run = domain.state()[1]
    except BaseException:
        _remove_files_quietly(site, instance)
        raise
    try:
        domains.define(site.connection, guestxml.to_xml(guest))  # crash after: it runs as itself, and would start as the rescue
        if devices := tagging.records(site, instance, guest, network_info, is_rescue=True):
            write_config_drive(site, instance, image, network_info, password=password, devices=devices, suffix=RESCUED)
        _become(site, domain)
    except BaseException:
        _undo_quietly(site, instance, run=run)
        raise


def _disks(site: Site, instance: Instance, image: ImageMeta, info: BlockDeviceInfo | None) -> tuple[LocalDisk, ...]:
    """The rescue's first."""
    machine, prefix = site.options.machine_type, site.options.disk_prefix
    own = disks_of(instance, instance.image_meta, info, machine=machine, prefix=prefix)
    disk, behind = rescue_disks(image, own, machine=machine_of(instance.image_meta, machine), prefix=prefix)
    return (disk, *behind)


def _make(
    site: Site,
    instance: Instance,
    network_info: NetworkInfo | None,
    image: ImageMeta,
    disk: LocalDisk,
    *,
    password: str | None,
) -> None:
    localdisks.make(site, instance, [disk], image_id=image.id)
    # The instance's own, as in Nova: an image's properties are its owner's words, and would choose what this host fetches.
    deliver_kernel(site, instance, kernel_id=instance.kernel_id, ramdisk_id=instance.ramdisk_id, suffix=RESCUED)
    write_config_drive(site, instance, image, network_info, password=password, suffix=RESCUED)


def _become(site: Site, domain: Domain) -> None:
    domain.cut()  # crash after: it is off
    domain.forget_memory()
    start(site, domain)


def _undo_quietly(site: Site, instance: Instance, *, run: int | None) -> None:
    """After a failure, whose error goes on; what cannot be undone now is when the instance is unrescued.

    Args:
        run: libvirt's number of the run that there was before; None: the guest was off.
    """
    domain = site.domain(instance)
    try:
        if was_cut := domain.state()[1] != run:
            domain.cut()
        _define_kept(site, instance)
        _remove_files(site, instance)
        if was_cut and run is not None:
            start(site, domain)
    except ComputeError as error:
        _LOG.warning("the instance %s cannot be put back to what it was before its rescue: %s", instance.uuid, error)


def unrescue(site: Site, instance: Instance) -> None:
    """Put a guest back to what it was before a rescue, and start it. What libvirt does not take leaves it as it is.

    One that is not being rescued is started, or goes on: it was unrescued already, or whoever did so was killed at the end.

    Raises:
        InstanceNotFound, OperationFailed
    """
    domain = site.domain(instance)
    if site.directory(instance).unrescue.exists():
        _define_kept(site, instance)  # crash after: it runs as the rescue, and would start as itself
        domain.cut()  # crash after: the guest is off, as itself, and only files are left over
        domain.forget_memory()  # the rescue's, with all that it was
        _remove_files(site, instance)
    start(site, domain)


def _define_kept(site: Site, instance: Instance) -> None:
    """Have a guest be what it was before its rescue when it starts next."""
    kept = site.directory(instance).unrescue
    with localdisks.translated(), translated(kept):
        before = kept.read_bytes()
    domains.define(site.connection, before.decode(errors="replace"))


def _remove_files_quietly(site: Site, instance: Instance) -> None:
    """After a failure, whose error goes on; what cannot be removed now is when the instance is unrescued."""
    try:
        _remove_files(site, instance)
    except ComputeError as error:
        _LOG.warning("what was made for the rescue of the instance %s cannot be removed yet: %s", instance.uuid, error)


def _remove_files(site: Site, instance: Instance) -> None:
    directory = site.directory(instance)
    localdisks.remove(site.host, instance.uuid, RESCUE)
    with localdisks.translated(), translated(directory.path):
        for left in (directory.kernel(RESCUED), directory.ramdisk(RESCUED), directory.config_drive(RESCUED)):
            left.unlink(missing_ok=True)
        directory.unrescue.unlink()  # last: what is left of a rescue is found by it; crash after: the guest is off, as itself
        sync_directory(directory.path)
