"""How a guest is rescued: started from another image, with its own disks behind, and put back to what it was.

The domain as it was is kept in a file from before anything changes until it is back, so that whoever is killed in between can
be followed by an unrescue.
"""

from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance, NetworkInfo
from underlay.compute.errors import InstanceNotRescuable
from underlay.compute.libvirt import domain as domains, guestxml, localdisks
from underlay.compute.libvirt.assembling import assembled_of, deliver_kernel, write_config_drive
from underlay.compute.libvirt.directory import RESCUE, RESCUED
from underlay.compute.libvirt.diskplan import LocalDisk, disks_of, rescue_disks
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import start
from underlay.files import translated, write_durably

_MODE = 0o600


def rescue(
    site: Site,
    instance: Instance,
    network_info: NetworkInfo | None,
    image: ImageMeta,
    info: BlockDeviceInfo | None,
    *,
    password: str | None,
) -> None:
    """Start a guest from another image. Until that image's disk is made the guest runs on; after a failure it is as it was.

    Raises:
        InstanceNotRescuable: it is being rescued already. InstanceNotFound; as `underlay.compute.libvirt.making.spawn`
    """
    domain, directory = site.domain(instance), site.directory(instance)
    before = domain.xml(inactive=True)
    if directory.unrescue.exists():
        raise InstanceNotRescuable(instance_id=instance.uuid, reason="it is being rescued already")
    prefix = site.options.disk_prefix
    own = disks_of(instance, instance.image_meta, info, machine=site.options.machine_type, prefix=prefix)
    disk, behind = rescue_disks(image, own, prefix=prefix)
    with localdisks.translated(), translated(directory.unrescue):
        write_durably(directory.unrescue, before.encode(), mode=_MODE)
    try:
        _make(site, instance, network_info, image, disk, password=password)
        guest = assembled_of(site, instance, image, network_info, (disk, *behind), suffix=RESCUED)
    except BaseException:
        _remove_files(site, instance)
        raise
    try:
        domain.cut()
        domain.forget_memory()
        domains.define(site.connection, guestxml.to_xml(guest))
        start(site, domain)
    except BaseException:
        _put_back(site, instance)
        raise


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


def unrescue(site: Site, instance: Instance) -> None:
    """Put a guest back to what it was before a rescue, and start it. One that is not being rescued is started as it is.

    Raises:
        InstanceNotFound, OperationFailed
    """
    domain = site.domain(instance)
    domain.cut()
    _put_back(site, instance)
    start(site, domain)


def _put_back(site: Site, instance: Instance) -> None:
    domain, directory = site.domain(instance), site.directory(instance)
    if directory.unrescue.exists():
        domain.cut()
        domains.define(site.connection, directory.unrescue.read_text(encoding="utf-8"))
        _remove_files(site, instance)


def _remove_files(site: Site, instance: Instance) -> None:
    directory = site.directory(instance)
    localdisks.remove(site.host, instance.uuid, RESCUE)
    with localdisks.translated(), translated(directory.path):
        for left in (directory.kernel(RESCUED), directory.ramdisk(RESCUED), directory.config_drive(RESCUED)):
            left.unlink(missing_ok=True)
        directory.unrescue.unlink()  # last: what is left of a rescue is found by it
