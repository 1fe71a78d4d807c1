"""A guest that comes to this host: what is made ready for it, what is undone when it stays away, and how it is made to last."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, Instance, MigrateData, NetworkInfo, Vif
from underlay.compute.errors import ComputeError, InstanceExists, InstanceNotFound, MigrationPreCheckError, OperationFailed
from underlay.compute.libvirt import domain as domains, localdisks, networks, volumeplaces
from underlay.compute.libvirt.assembling import deliver_kernel
from underlay.compute.libvirt.diskplan import properties_of
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.guestplan import interfaces_of
from underlay.compute.libvirt.livemigration import checks, disks, marks, returning, sights, volumes
from underlay.compute.libvirt.livemigration.marks import Mark
from underlay.compute.libvirt.livemigration.moves import Moves
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import free_port
from underlay.compute.libvirt.volume import Volume
from underlay.compute.livemigration import InterfaceMigrateData, UnderlayLiveMigrateData, VIFMigrateData
from underlay.files import translated, write_durably

_LOG = logging.getLogger(__name__)
_MODE = 0o600  # a config drive may hold a password


def prepare(
    site: Site,
    moves: Moves,
    instance: Instance,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    data: MigrateData,
) -> UnderlayLiveMigrateData:
    """Make this host ready for a guest: its directory, disks, files, and what it is plugged into. Whole, or nothing is left.

    Args:
        info: with the connections of volumes as they are reached from here.

    It is expected from then on, until it has come, is given up, or this process ends.

    Raises:
        MigrationPreCheckError: the sources did not say enough. InstanceExists: something of it is here already.
        VirtualInterfacePlugException; as `volumes.on_destination` and `localdisks.translated`
    """
    told = checks.ours(data)
    if told.directory is None or told.block_migration is None:
        raise MigrationPreCheckError(reason="the source has not been asked yet whether the instance can leave")
    if told.block_migration and told.is_shared_instance_path:
        raise MigrationPreCheckError(reason="disks that both hosts have are not to be copied, onto themselves")
    told = volumes.on_destination(site, instance, told, info)
    there = _vifs(network_info, told.vifs or ())
    expected = volumes.told_of(site, info)
    with networks.plugged(instance, there), _claimed(site, moves, instance, told, expected):
        for volume in expected:  # once others can see that they are expected
            volumeplaces.refuse_others(site, instance, volume)
        if told.shared_disks:
            disks.check_in_storage(site, instance, told.shared_disks)
        if told.block_migration:
            told = replace(told, local_disks=disks.make(site, instance, told.local_disks))
        if not told.is_shared_instance_path:
            deliver_kernel(site, instance, kernel_id=instance.kernel_id, ramdisk_id=instance.ramdisk_id)
            _write_config_drive(site, instance, told.config_drive)
        return _with_addresses(site, instance, told, there)


def _with_addresses(
    site: Site, instance: Instance, told: UnderlayLiveMigrateData, there: Sequence[Vif]
) -> UnderlayLiveMigrateData:
    options = site.options
    ports: tuple[int, ...] = ()
    if options.serial_console_enabled:
        ports = (free_port(options.serial_console_listen, *options.serial_console_port_range),)
    return replace(
        told,
        directory_there=str(site.directory(instance).path),
        config_drive=None,  # it has been written, and nobody has to know it any more
        interfaces=tuple(
            InterfaceMigrateData(address=one.address, device=one.device, bridge=one.bridge)
            for one in interfaces_of(there, properties_of(instance.image_meta))
        ),
        serial_listen_ports=ports,
        target_connect_addr=options.moves.inbound_addr or None,
        supported_perf_events=(),
        wait_for_vif_plugged=False,
    )


def _vifs(network_info: NetworkInfo | None, others: Sequence[VIFMigrateData]) -> list[Vif]:
    """The interfaces as this host is to have them, where the network service has it otherwise here."""
    by_port = {one.port_id: one for one in others}
    return [_vif(vif, by_port.get(vif["id"])) for vif in network_info or ()]


def _vif(vif: Vif, other: VIFMigrateData | None) -> Vif:
    if other is None:
        return vif
    details = dict(other.vif_details or {})
    changed: dict[str, Any] = {**vif, "details": details, "profile": dict(other.profile or {}), "vnic_type": other.vnic_type}
    if other.vif_type is not None:
        changed["type"] = other.vif_type
    if details.get("bridge_name"):
        changed["network"] = {**(vif.get("network") or {}), "bridge": details["bridge_name"]}
    return changed


@contextmanager
def _claimed(
    site: Site, moves: Moves, instance: Instance, told: UnderlayLiveMigrateData, expected: tuple[Volume, ...]
) -> Iterator[None]:
    """The guest is expected here, with its volumes; when the block fails, nothing is left of what was made for it."""
    directory, shared = site.directory(instance), bool(told.is_shared_instance_path)
    if sights.look(site.connection, instance.uuid) is None:
        moves.settled(instance.uuid)  # whoever expected it from here has been told nothing more since, or its source was killed
    if directory.path.exists():
        returning.settle_departure(site, directory)  # it may have left from here before, and not all of it has gone
    if directory.path.exists():
        returning.settle_arrival(site, directory)  # an earlier attempt may have been interrupted
    if shared and not directory.path.is_dir():
        raise MigrationPreCheckError(reason=f"the directory {directory.path} is said to be shared, and is not here")
    if not shared:
        _make_directory(site, instance, told)
    mark = Mark(host=site.name, other=instance.host, shared=shared, libvirt=told.source_libvirt, volumes=expected)
    with ExitStack() as holding:
        holding.enter_context(marks.made(directory, marks.ARRIVING, mark))
        try:
            yield
        except BaseException:
            _undo_quietly(site, instance, mark)
            raise
        moves.expect(instance.uuid, holding.pop_all())


def _make_directory(site: Site, instance: Instance, told: UnderlayLiveMigrateData) -> None:
    directory = site.directory(instance)
    with localdisks.translated():
        is_new = directory.make()
    others = [name for name in localdisks.names_of(site.host, instance.uuid) if name not in told.shared_disks]
    if not is_new and (os.listdir(directory.path) or others):
        what = f"files of an instance {instance.uuid} are there: {directory.path}"
        raise InstanceExists(what, hint="delete_instance_files removes them")


def _write_config_drive(site: Site, instance: Instance, packed: str | None) -> None:
    if packed is None:
        return
    path = site.directory(instance).config_drive()
    with localdisks.translated(), translated(path):
        write_durably(path, checks.unpacked(packed), mode=_MODE)


def _undo_quietly(site: Site, instance: Instance, mark: Mark) -> None:
    try:
        returning.undo_arrival(site, site.directory(instance), mark)
    except ComputeError as error:
        _LOG.warning("what was prepared for the instance %s cannot be removed yet: %s", instance.uuid, error)


def give_up(site: Site, moves: Moves, instance: Instance) -> None:
    """Undo what was made ready for a guest that stays where it was. Without a mark nothing was, or the guest has arrived.

    Raises:
        OperationFailed: it runs here, or its source does not say that it has it.
        HypervisorUnavailable; as `localdisks.translated`
    """
    directory = site.directory(instance)
    mark = marks.read(directory, marks.ARRIVING, site.name)
    if mark is None:
        _LOG.info("nothing was prepared for the instance %s on %s, or it has arrived", instance.uuid, site.name)
        return
    if not returning.may_go(site, directory, mark):
        raise OperationFailed(f"the instance {directory.uuid} has come here, as far as is known")
    Domain(site.connection, directory.uuid).remove()
    returning.undo_arrival(site, directory, mark)
    moves.settled(instance.uuid)


def make_last(site: Site, moves: Moves, instance: Instance) -> None:
    """Have a guest that has come last over a restart of the host, and take the mark away.

    It is defined as its source had it, with each device at its address: its guest, and who has written down where its tagged
    devices are, find them there after its next start too.

    Raises:
        InstanceNotFound: it has not come. OperationFailed, HypervisorUnavailable
    """
    domain = site.domain(instance)
    if not domain.is_active():
        raise InstanceNotFound(instance_id=instance.uuid)
    domains.define(site.connection, domain.xml(inactive=True))
    marks.remove(site.directory(instance), marks.ARRIVING, site.name)
    moves.settled(instance.uuid)
