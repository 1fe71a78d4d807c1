"""How an instance is made, whole or not at all, and made again from another image.

While it is made a file in its directory says so, which its maker has locked, and in which the maker's host stands once it is
sure that nobody else has the instance. Who was killed leaves the file and no lock, and whoever finds it on that host takes away
what was made: the next driver that starts, or the next attempt to make the instance.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from underlay import locks
from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance, NetworkInfo
from underlay.compute.errors import ComputeError, FlavorDiskSmallerThanImage, HypervisorUnavailable, InstanceExists
from underlay.compute.libvirt import domain as domains, guestxml, localdisks, networks
from underlay.compute.libvirt.assembling import assembled, deliver_kernel, prepare, write_config_drive
from underlay.compute.libvirt.directory import InstanceDirectory, interrupted, remove_doomed
from underlay.compute.libvirt.diskplan import disks_of, root_size
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.guestplan import check
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import start
from underlay.files import sync_directory, translated
from underlay.refs import parse_ref

_LOG = logging.getLogger(__name__)


def spawn(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    *,
    password: str | None,
    power_on: bool,
) -> None:
    """Make an instance with its disks and start it, unless it is not to be powered on.

    What is asked for is looked at before anything is made.

    Raises:
        InstanceExists: its UUID or its name is taken. As `disks_of`, `networks.plug`, `localdisks.make` and `start`.
    """
    disks = disks_of(instance, image, info, machine=site.options.machine_type, prefix=site.options.disk_prefix)
    check(image, network_info)
    networks.plug(network_info)
    directory = site.directory(instance)
    if directory.making.exists():
        undo_interrupted(site, directory)
    with _claimed(site, instance, directory) as tried:
        localdisks.make(site, instance, disks, image_id=image.id)
        deliver_kernel(site, instance, kernel_id=instance.kernel_id, ramdisk_id=instance.ramdisk_id)
        write_config_drive(site, instance, image, network_info, password=password)
        guest = assembled(site, instance, image, network_info, info)
        tried.defined = True
        domains.define(site.connection, guestxml.to_xml(guest))
        if power_on:
            tried.started = True
            start(site, site.domain(instance))


def rebuild(
    site: Site,
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    *,
    password: str | None,
) -> None:
    """Make an instance's disks anew from another image, and start it. The old ones stay until all for that is here.

    Raises:
        InstanceNotFound; as `spawn`
    """
    domain, directory = site.domain(instance), site.directory(instance)
    disks = disks_of(instance, image, info, machine=site.options.machine_type, prefix=site.options.disk_prefix)
    check(image, network_info)
    networks.plug(network_info)
    domain.state()
    _bring(site, instance, image)
    prepare(site, instance, image, network_info, password=password)
    domain.cut()
    domain.forget_memory()
    localdisks.remove_all(site.host, instance.uuid)
    directory.remove_extras()
    localdisks.make(site, instance, disks, image_id=image.id)
    deliver_kernel(site, instance, kernel_id=instance.kernel_id, ramdisk_id=instance.ramdisk_id)
    write_config_drive(site, instance, image, network_info, password=password)
    domains.define(site.connection, guestxml.to_xml(assembled(site, instance, image, network_info, info)))
    start(site, domain)


def undo_all_interrupted(site: Site) -> None:
    """Take away what is left of instances that were being made, or removed, when who did it was killed.

    What cannot be taken away now is logged, and stays for the next time.
    """
    remove_doomed(site.host.config.instances)
    for directory in interrupted(site.host.config.instances):
        try:
            undo_interrupted(site, directory)
        except ComputeError as error:
            _LOG.warning("what is left of the instance %s cannot be removed yet: %s", directory.uuid, error)


def undo_interrupted(site: Site, directory: InstanceDirectory) -> None:
    """Take away what is left of one instance that was being made. One that is being made now is left alone.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    with localdisks.translated(), translated(directory.making), suppress(FileNotFoundError):
        with locks.try_exclusive(directory.making) as lock:
            if lock is not None:
                _undo_left(site, directory)


def _undo_left(site: Site, directory: InstanceDirectory) -> None:
    maker = directory.making.read_bytes()
    if not maker:
        _unclaim(directory)
    elif maker == site.name.encode():  # where hosts share the directory, another one's libvirt may have the instance
        _LOG.info("removing what is left of the instance %s, whose making was interrupted", directory.uuid)
        _undo(site, directory, _Tried(defined=True, started=True))


# ------------------------------------------------------------------------------------------------------------------ the steps


@dataclass(slots=True)
class _Tried:
    """What has been tried with libvirt so far."""

    defined: bool = False
    started: bool = False


@contextmanager
def _claimed(site: Site, instance: Instance, directory: InstanceDirectory) -> Iterator[_Tried]:
    """The instance is ours to make: nobody else has it, and when the block fails nothing of it is left."""
    _refuse_taken(site, instance)
    with ExitStack() as holding:
        with localdisks.translated(), translated(directory.making):
            _refuse_files(directory)
            lock = holding.enter_context(locks.try_exclusive(directory.making))
        if lock is None:
            raise InstanceExists(name=instance.name)
        try:
            _refuse_taken(site, instance)
            _refuse_disks(site, instance)
            _be_sure(site, directory)
        except BaseException:
            _unclaim(directory)
            raise
        tried = _Tried()
        try:
            yield tried
            _finish(directory)
        except BaseException:
            _undo_quietly(site, directory, tried)
            raise


def _refuse_files(directory: InstanceDirectory) -> None:
    """Make the directory. Raises InstanceExists when something is in it."""
    if not directory.make() and os.listdir(directory.path):
        raise InstanceExists(
            f"files of an instance {directory.uuid} are there: {directory.path}", hint="delete_instance_files removes them"
        )


def _refuse_disks(site: Site, instance: Instance) -> None:
    """Raises InstanceExists when the instance has a disk already: what undoes a failure would remove it."""
    if left := localdisks.names_of(site.host, instance.uuid):
        what = f"disks of an instance {instance.uuid} are there: {', '.join(left)}"
        raise InstanceExists(what, hint="delete_instance_files removes them")


def _refuse_taken(site: Site, instance: Instance) -> None:
    """Raises InstanceExists when libvirt has an instance of this UUID or this name."""
    if site.domain(instance).exists() or domains.has_name(site.connection, instance.name):
        raise InstanceExists(name=instance.name)


def _be_sure(site: Site, directory: InstanceDirectory) -> None:
    with localdisks.translated(), translated(directory.making):
        with directory.making.open("r+b") as file:
            file.write(site.name.encode())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(directory.path)


def _finish(directory: InstanceDirectory) -> None:
    with localdisks.translated(), translated(directory.making):
        directory.making.unlink()
        sync_directory(directory.path)  # crash before: the instance is taken for half made, as its caller does not know better


def _unclaim(directory: InstanceDirectory) -> None:
    """Nothing was made: the claim goes, and the directory if nothing is in it."""
    with suppress(OSError):
        directory.making.unlink()
        directory.path.rmdir()


def _undo_quietly(site: Site, directory: InstanceDirectory, tried: _Tried) -> None:
    """After a failure, whose error goes on; what cannot be undone now is when somebody comes upon the claim."""
    try:
        _undo(site, directory, tried)
    except ComputeError as error:
        _LOG.warning("what was made of the instance %s cannot be removed yet: %s", directory.uuid, error)


def _undo(site: Site, directory: InstanceDirectory, tried: _Tried) -> None:
    """Remove the domain, then the disks, then the files; a crash between leaves the claim, which is among the files."""
    if tried.defined:
        try:
            Domain(site.connection, directory.uuid).remove()
        except HypervisorUnavailable:
            if not tried.started:  # then no QEMU has the disks, and only a definition may be left
                localdisks.remove_all(site.host, directory.uuid)
            raise
    localdisks.remove_all(site.host, directory.uuid)
    directory.remove()


def _bring(site: Site, instance: Instance, image: ImageMeta) -> None:
    """Have an image here before anything is given up for it, unless its backend may clone it.

    Raises:
        FlavorDiskSmallerThanImage; as `localdisks.translated`
    """
    with localdisks.translated():
        traits = site.host.parts.backend(site.options.images_type).traits
        if traits.clones:
            return
        base = site.host.fetch(parse_ref(image.id), cache=site.options.cache, traits=traits).image
    size = root_size(instance, image)
    smallest = max(base.virtual_size, base.record.min_disk if base.record else 0)
    if size is not None and size < smallest:
        raise FlavorDiskSmallerThanImage(flavor_size=size, image_size=smallest)
