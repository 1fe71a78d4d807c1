"""How an instance is made, whole or not at all, and made again from another image.

While it is made its maker has a claim on it (see `claiming`). Who was killed leaves the claim and no lock, and whoever finds
that on the maker's host takes away what this maker has made: the next driver that starts, or the next attempt to make the
instance.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from underlay import locks
from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance, NetworkInfo
from underlay.compute.errors import (
    ComputeError,
    FlavorDiskSmallerThanImage,
    HypervisorUnavailable,
    InstanceExists,
    OperationFailed,
)
from underlay.compute.libvirt import (
    claiming,
    domain as domains,
    guestxml,
    keptdisks,
    localdisks,
    networks,
    tagging,
    volumedisks,
)
from underlay.compute.libvirt.assembling import assembled, deliver_kernel, prepare, write_config_drive
from underlay.compute.libvirt.claiming import Maker
from underlay.compute.libvirt.directory import InstanceDirectory, interrupted, remove_doomed
from underlay.compute.libvirt.diskplan import disks_of, root_size
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.guest import Guest
from underlay.compute.libvirt.guestplan import check
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import refuse_leaving, start
from underlay.compute.metadata import field_of
from underlay.contracts import BackendTraits
from underlay.errors import LockLost, SourceUnavailable
from underlay.files import translated
from underlay.host import bring
from underlay.host.parts import Parts
from underlay.locks import Lock
from underlay.model import ImageRef, ImageVersion
from underlay.policy.form import Want
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
        InstanceExists: its UUID or its name is taken. As `disks_of`, `volumedisks.check`, `networks.plug`, `localdisks.make`
            and `start`.
    """
    disks = disks_of(instance, image, info, machine=site.options.machine_type, prefix=site.options.disk_prefix)
    check(image, network_info)
    volumedisks.check(site, instance, image, info, disks)
    networks.check(network_info)
    directory = site.directory(instance)
    undo_interrupted(site, directory)
    with _claimed(site, instance, directory) as attempt:
        networks.plug(instance, network_info)
        localdisks.make(site, instance, disks, image_id=image.id, maker=attempt.maker.id)
        deliver_kernel(site, instance, kernel_id=instance.kernel_id, ramdisk_id=instance.ramdisk_id)
        write_config_drive(site, instance, image, network_info, password=password)
        guest = assembled(site, instance, image, network_info, info)
        attempt.begin_defining()
        domains.define(site.connection, guestxml.to_xml(guest))
        _tell_devices(site, instance, image, network_info, guest, password=password)
        if power_on:
            attempt.started = True
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

    Volumes stay as they are, a root volume too.

    Raises:
        InstanceNotFound; as `spawn`
    """
    disks = disks_of(instance, image, info, machine=site.options.machine_type, prefix=site.options.disk_prefix)
    check(image, network_info)
    volumedisks.check(site, instance, image, info, disks)
    networks.plug(instance, network_info)
    site.domain(instance).state()
    refuse_leaving(site, instance.uuid)
    keptdisks.refuse_kept(site.directory(instance))
    with claiming.alone(site.directory(instance)), ExitStack() as holding:
        if any(disk.role == "image" for disk in disks):
            _bring(site, instance, image, holding)
        prepare(site, instance, image, network_info, password=password, holding=holding)
        _give_up(site, instance)
        # crash from here on: an instance that is off and lacks disks, which another rebuild makes whole
        localdisks.make(site, instance, disks, image_id=image.id, maker=claiming.new_maker(site.name).id)
        deliver_kernel(site, instance, kernel_id=instance.kernel_id, ramdisk_id=instance.ramdisk_id)
        write_config_drive(site, instance, image, network_info, password=password)
        guest = assembled(site, instance, image, network_info, info)
        domains.define(site.connection, guestxml.to_xml(guest))
        _tell_devices(site, instance, image, network_info, guest, password=password)
        start(site, site.domain(instance))


def _tell_devices(
    site: Site, instance: Instance, image: ImageMeta, network_info: NetworkInfo | None, guest: Guest, *, password: str | None
) -> None:
    """Write down the tagged devices of a guest that is defined and not started, also on its config drive."""
    tagging.write_down(site, instance, guest, network_info)
    if (devices := field_of(instance, "device_metadata")) is not None:
        write_config_drive(site, instance, image, network_info, password=password, devices=devices)


def _give_up(site: Site, instance: Instance) -> None:
    """End a guest, and remove what a rebuild makes anew."""
    domain = site.domain(instance)
    domain.cut()
    domain.forget_memory()
    keptdisks.clear(site, site.directory(instance))
    localdisks.remove_all(site.host, instance.uuid)
    with localdisks.translated():
        site.directory(instance).remove_extras()


def undo_all_interrupted(site: Site) -> None:
    """Take away what is left of instances that were being made, or removed, when who did it was killed.

    What cannot be taken away now is logged, and stays for the next time.

    Raises:
        OperationFailed: the directory of all instances cannot be read.
    """
    remove_doomed(site.host.config.instances)
    with localdisks.translated():
        found = interrupted(site.host.config.instances)
    for directory in found:
        try:
            undo_interrupted(site, directory)
        except ComputeError as error:
            _LOG.warning("what is left of the instance %s cannot be removed yet: %s", directory.uuid, error)


def undo_interrupted(site: Site, directory: InstanceDirectory) -> None:
    """Take away what is left of one instance that was being made. One that is being made now is left alone.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    with localdisks.translated(), translated(directory.making):
        if not directory.is_claimed():
            return
        with claiming.ours(directory) as is_ours, suppress(FileNotFoundError), locks.try_exclusive(directory.making) as lock:
            if is_ours and lock is not None:
                _undo_left(site, directory, lock)


def _undo_left(site: Site, directory: InstanceDirectory, lock: Lock) -> None:
    maker = claiming.signed_by(directory)
    if maker is None:
        claiming.give_up(directory)
    elif maker.host == site.name:  # where hosts share the directory, another one's libvirt may have the instance
        _LOG.info("removing what is left of the instance %s, whose making was interrupted", directory.uuid)
        _undo(site, directory, _Attempt(maker=maker, lock=lock, defined=True, started=True))


# ------------------------------------------------------------------------------------------------------------------ the steps


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """Who makes an instance, under which claim, and what has been tried with libvirt so far."""

    maker: Maker
    lock: Lock
    defined: bool = False
    started: bool = False

    def begin_defining(self) -> None:
        """From here on libvirt may have the instance.

        Raises:
            OperationFailed: the claim is no more ours.
        """
        with localdisks.translated():
            self.lock.confirm()
        self.defined = True

    def has_claim(self) -> bool:
        """Whether nobody has taken the claim away, and the directory with it.

        Raises:
            OperationFailed: it cannot be told.
        """
        with localdisks.translated(), translated(self.lock.path):
            try:
                self.lock.confirm()
            except LockLost:
                return False
        return True


@contextmanager
def _claimed(site: Site, instance: Instance, directory: InstanceDirectory) -> Iterator[_Attempt]:
    """The instance is ours to make: nobody else has it, and when the block fails nothing of it is left."""
    _refuse_taken(site, instance)
    with claiming.claimed(directory, name=instance.name) as lock:
        attempt = _Attempt(maker=claiming.new_maker(site.name), lock=lock)
        try:
            _refuse_taken(site, instance)
            _refuse_disks(site, instance)
            claiming.sign(directory, attempt.maker)
        except BaseException:
            claiming.give_up(directory)
            raise
        try:
            yield attempt
            claiming.finish(directory, lock)
        except BaseException:
            _undo_quietly(site, directory, attempt)
            raise


def _refuse_disks(site: Site, instance: Instance) -> None:
    """Raises InstanceExists when the instance has a disk already: what undoes a failure would remove it."""
    if left := localdisks.names_of(site.host, instance.uuid):
        what = f"disks of an instance {instance.uuid} are there: {', '.join(left)}"
        raise InstanceExists(what, hint="delete_instance_files removes them")


def _refuse_taken(site: Site, instance: Instance) -> None:
    """Raises InstanceExists when libvirt has an instance of this UUID or this name."""
    if site.domain(instance).exists() or domains.has_name(site.connection, instance.name):
        raise InstanceExists(name=instance.name)


def _undo_quietly(site: Site, directory: InstanceDirectory, attempt: _Attempt) -> None:
    """After a failure, whose error goes on; what cannot be undone now is when somebody comes upon the claim."""
    try:
        _undo(site, directory, attempt)
    except ComputeError as error:
        _LOG.warning("what was made of the instance %s cannot be removed yet: %s", directory.uuid, error)


def _undo(site: Site, directory: InstanceDirectory, attempt: _Attempt) -> None:
    """Remove the domain, the disks, the taps, then the files; a crash between leaves the claim, which is among the files.

    Raises:
        HypervisorUnavailable, OperationFailed: something is left.
    """
    if attempt.defined:
        try:
            Domain(site.connection, directory.uuid).remove()
        except HypervisorUnavailable:
            if not attempt.started:  # then no QEMU has the disks, and only a definition may be left
                localdisks.remove_all(site.host, directory.uuid, maker=attempt.maker.id)
            raise
    localdisks.remove_all(site.host, directory.uuid, maker=attempt.maker.id)
    if not attempt.has_claim():
        return
    networks.unplug_all(directory.uuid)
    if not directory.remove():
        raise OperationFailed(f"{directory.path} cannot be removed whole")


def _bring(site: Site, instance: Instance, image: ImageMeta, holding: ExitStack) -> None:
    """Have an image here before anything is given up for it, unless its backend can clone it.

    Args:
        holding: until it is closed no prune removes the image.

    Raises:
        FlavorDiskSmallerThanImage; as `localdisks.translated`
    """
    with localdisks.translated():
        parts, ref = site.host.parts, parse_ref(image.id)
        traits = parts.backend(site.options.images_type).traits
        if version := _to_be_cloned(parts, ref, traits):
            smallest = max(version.size or 0, version.min_disk)
        else:
            base = bring.verified(parts, ref, parts.cache(site.options.cache), Want(traits=traits), None, holding).image
            smallest = max(base.virtual_size, base.record.min_disk if base.record else 0)
    size = root_size(instance, image)
    if size is not None and size < smallest:
        raise FlavorDiskSmallerThanImage(flavor_size=size, image_size=smallest)


def _to_be_cloned(parts: Parts, ref: ImageRef, traits: BackendTraits) -> ImageVersion | None:
    """The image as its source has it, if a backend may clone it from the storage behind; None: it has to be fetched.

    Raises:
        ImageNotFound; as `underlay.contracts.ImageSource.describe`, but SourceUnavailable: it may be here.
    """
    if not traits.clones:
        return None
    with suppress(SourceUnavailable):
        version = parts.source(ref.scheme).describe(ref)
        if version.locations and version.signature is None and version.disk_format == traits.disk_format:
            return version
    return None
