"""A guest that leaves this host while it runs, and one that was to and stays."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from underlay.compute import states
from underlay.compute.arguments import Context, Instance, MigrateData
from underlay.compute.errors import ComputeError, OperationFailed
from underlay.compute.libvirt import claiming
from underlay.compute.libvirt.diskplan import MIB
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.livemigration import addresses, checks, disks, marks, monitor, returning, volumes, xml
from underlay.compute.libvirt.livemigration.marks import Mark
from underlay.compute.libvirt.livemigration.moves import Move, Moves
from underlay.compute.libvirt.livemigration.pace import Pace, pace_of
from underlay.compute.libvirt.livemigration.verdicts import Where
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import TAKEN
from underlay.compute.livemigration import LocalDiskMigrateData, UnderlayLiveMigrateData
from underlay.compute.metadata import field_of

_LOG = logging.getLogger(__name__)
_POLL = 0.1  # seconds between two looks how far a disk's base image is taken in
_ATTEMPTS = 3  # another program may take a port there between libvirt's look and QEMU's
_MONTH = 30 * 86400.0  # seconds: as long as it takes; the time-out is the monitor's


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """How the service hears what became of it: one of them, once.

    Attributes:
        moved: called with context, instance, dest, block_migration and migrate_data when the guest runs there.
        stayed: called with context, instance, dest and migrate_data when it runs here; and with ``migration_status`` as
            ``cancelled`` when it was ended on purpose.
    """

    moved: Callable[..., Any]
    stayed: Callable[..., Any]


def move(
    site: Site,
    moves: Moves,
    context: Context,
    instance: Instance,
    dest: str,
    callbacks: Callbacks,
    data: MigrateData | None,
    *,
    block_migration: bool,
) -> None:
    """Move a guest, look after that, and say what became of it.

    Raises:
        InvalidInput: the destination's name. InstanceNotFound; MigrationPreCheckError: it was not prepared. OperationFailed: it
        is being moved already, or it cannot be found out where the guest is, after this move or an earlier one.
        HypervisorUnavailable. Then neither callback is called.
    """
    told = checks.ours(data)
    uri = addresses.of_libvirt(site.options.moves, addresses.check(dest), told.target_connect_addr)
    was_running = site.domain(instance).state()[0] == states.RUNNING
    mark = Mark(
        host=site.name,
        other=dest,
        shared=bool(told.is_shared_instance_path),
        address=told.target_connect_addr,
        libvirt=told.libvirt,
    )
    directory = site.directory(instance)
    moves.settled(instance.uuid)  # it has come here, though nobody may have made it last
    returning.refuse_unsettled(site, directory)
    with marks.made(directory, marks.LEAVING, mark):
        with moves.begun(instance.uuid) as one:
            failure = _tried(site, instance, uri, told, one)
            where = _where(site, instance, mark, failure)
        if where is Where.THERE:
            _LOG.info("the instance %s has moved to %s", instance.uuid, dest)
            callbacks.moved(context, instance, dest, block_migration, data)
            return
        if where is Where.HERE:
            marks.remove(directory, marks.LEAVING, site.name)
            if was_running and one.complete.is_set():
                _go_on(site.domain(instance))  # it may stand still because its move was to complete
            _LOG.error("the instance %s has not moved to %s: %s", instance.uuid, dest, failure)
            cancelled = {"migration_status": "cancelled"} if one.abort.is_set() else {}
            callbacks.stayed(context, instance, dest, data, **cancelled)
            return
    raise OperationFailed(
        f"it is not known whether the instance {instance.uuid} runs here or on {dest}: {failure}",
        hint="see that libvirt on both hosts can be reached; the next start of the driver looks again",
    )


def _where(site: Site, instance: Instance, mark: Mark, failure: ComputeError | None) -> Where:
    if failure is None:
        return Where.THERE
    return returning.whereabouts(site, instance.uuid, mark, patience=site.options.timeout)


def _go_on(domain: Domain) -> None:
    if domain.state()[0] == states.PAUSED:
        domain.unpause()


def force(site: Site, moves: Moves, instance: Instance) -> None:
    """Let a move come to its end, at the cost of a pause.

    Raises:
        InstanceNotFound; OperationFailed: it is not being moved.
    """
    site.domain(instance).state()
    _under_way(moves, instance).complete.set()


def end(site: Site, moves: Moves, instance: Instance) -> None:
    """End a move; the guest stays.

    Raises:
        InstanceNotFound; OperationFailed: it is not being moved, or has come too far.
    """
    domain = site.domain(instance)
    domain.state()
    if (one := moves.of(instance.uuid)) is not None:
        one.abort.set()
    if monitor.statistics(domain) is not None:
        monitor.end(domain)
    elif one is None:
        raise _not_moving(instance)


def _under_way(moves: Moves, instance: Instance) -> Move:
    if (one := moves.of(instance.uuid)) is None:
        raise _not_moving(instance)
    return one


def _not_moving(instance: Instance) -> OperationFailed:
    return OperationFailed(f"the instance {instance.uuid} is not being migrated")


def let_stay(site: Site, instance: Instance) -> None:
    """After a failure: see that the guest goes on here. Safe to repeat.

    Raises:
        HypervisorUnavailable, OperationFailed; as `localdisks.translated`
    """
    returning.settle_departure(site, site.directory(instance))


def let_go(site: Site, instance: Instance) -> None:
    """The guest runs elsewhere. Of shared storage nothing else is to be let go of; other files are removed by `cleanup`.

    Raises:
        as `localdisks.translated`
    """
    directory = site.directory(instance)
    mark = marks.read(directory, marks.LEAVING, site.name)
    if mark is not None and mark.shared:
        marks.remove(directory, marks.LEAVING, site.name)


def has_let_go(site: Site, instance: Instance, data: MigrateData | None) -> bool:
    """Whether the instance's files have become another host's, so that nobody here removes them."""
    if field_of(data, "is_shared_instance_path"):
        return True
    mark = marks.read(site.directory(instance), marks.LEAVING, site.name)
    return mark is not None and mark.shared


def remove_files(site: Site, instance: Instance) -> None:
    """Remove what is left here of an instance that has gone, but for disks that its new host has as well.

    Raises:
        OperationFailed: a disk is still open, or something cannot be removed. As `localdisks.translated`
    """
    directory = site.directory(instance)
    with claiming.alone(directory) as is_there:
        disks.remove_of_host(site, instance.uuid)
        if not (directory.remove() if is_there else directory.remove_doomed()):  # crash: one that the next driver removes
            raise OperationFailed(f"{directory.path} cannot be removed whole", hint="see what is left of it, and remove it")


def leaves_directory(data: MigrateData | None) -> bool:
    """Whether disks stay where they are and the instance's directory is of no use here any more, though no disk is to go."""
    return bool(field_of(data, "is_shared_block_storage")) and not field_of(data, "is_shared_instance_path")


# ----------------------------------------------------------------------------------------------------------------- the move


def _tried(site: Site, instance: Instance, uri: str, data: UnderlayLiveMigrateData, one: Move) -> ComputeError | None:
    """Why the guest has not moved, as far as is known; None: it has."""
    domain, pace = site.domain(instance), _pace(site, instance, data)
    ended, outcomes = threading.Event(), list[ComputeError | None]()

    def run() -> None:
        try:
            monitor.allow(domain, pace.downtime(0))
            _run(site, domain, uri, data, one)
            outcomes.append(None)
        except ComputeError as error:
            outcomes.append(error)
        finally:
            ended.set()

    working = threading.Thread(target=run, name=f"underlay-move-{instance.uuid}", daemon=True)
    working.start()
    try:
        monitor.watch(domain, one, ended, pace, site.options.moves)
    finally:
        working.join()
    return outcomes[0] if outcomes else OperationFailed(f"the move of the instance {instance.uuid} broke off unexpectedly")


def _pace(site: Site, instance: Instance, data: UnderlayLiveMigrateData) -> Pace:
    return pace_of(
        site.options.moves, memory=instance.flavor.memory_mb * MIB, disks=[disk.allocated for disk in data.local_disks]
    )


def _run(site: Site, domain: Domain, uri: str, data: UnderlayLiveMigrateData, one: Move) -> None:
    volumes.refuse_changed(domain, data, own=checks.own_sources(site, domain.uuid))
    copied = xml.copied_devices(domain.xml(), data) if data.block_migration else {}
    copies_all = any(disk.whole and not _is_small(disk) for disk in copied.values())
    if not copies_all:
        for device, disk in copied.items():
            if disk.whole:
                _take_in(site, domain, device, disk, one)
    flags, parameters = _flags(site, domain, data, copies_all=copies_all), _parameters(site, domain, data, list(copied))
    for left in reversed(range(_ATTEMPTS)):
        if one.abort.is_set():
            raise OperationFailed("it was ended before it began")
        try:
            _send(domain, uri, parameters, flags)
            return
        except OperationFailed as error:
            if not left or TAKEN not in error.message:
                raise


def _send(domain: Domain, uri: str, parameters: Mapping[str, Any], flags: int) -> None:
    domain.ask(lambda found: found.migrateToURI3(uri, dict(parameters), flags), seconds=_MONTH)


def _is_small(disk: LocalDiskMigrateData) -> bool:
    """Whether a base image has next to nothing in it, as swap space and empty file systems have."""
    return (disk.base_ref or "").startswith(disks.GENERATED)


def _take_in(site: Site, domain: Domain, device: str, disk: LocalDiskMigrateData, one: Move) -> None:
    """Have a disk hold what its guest reads from a base image that the destination has otherwise.

    Raises:
        OperationFailed: it was ended meanwhile.
    """
    if disk.base is None or not _reads_from_base(domain, device):
        return
    domain.ask(lambda found: found.blockPull(device, 0, 0))
    while domain.ask(lambda found: found.blockJobInfo(device, 0)):
        if one.abort.is_set():
            domain.ask(lambda found: found.blockJobAbort(device, 0))
            raise OperationFailed("it was ended before it began")
        time.sleep(_POLL)
    if _reads_from_base(domain, device):
        raise OperationFailed(f"the disk {disk.path} could not be made to stand alone")
    disks.record_alone(site, disk, domain.uuid)


def _reads_from_base(domain: Domain, device: str) -> bool:
    return xml.has_backing(domain.xml(), device)


def _flags(site: Site, domain: Domain, data: UnderlayLiveMigrateData, *, copies_all: bool) -> int:
    libvirt, options = library(), site.options.moves
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    )
    if data.block_migration:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK if copies_all else libvirt.VIR_MIGRATE_NON_SHARED_INC
    if not data.block_migration or data.volumes:
        # libvirt goes by the kind of the file system, of which it knows few. The probe has shown that the hosts share it, and
        # the destination has looked at each volume.
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    if options.permit_post_copy and domain.state()[0] == states.RUNNING:  # one that is paused has nothing to go on with
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    elif options.permit_auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    return int(flags)


def _parameters(site: Site, domain: Domain, data: UnderlayLiveMigrateData, devices: list[str]) -> dict[str, Any]:
    libvirt, there = library(), xml.there_of(data)
    found: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml.moved(domain.xml(migratable=True), there),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: xml.moved(domain.xml(inactive=True, migratable=True), there),
    }
    if devices:
        found[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = devices
    if site.options.moves.bandwidth:
        found[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = site.options.moves.bandwidth
    if (stream := addresses.of_stream(data.target_connect_addr)) is not None:
        found[libvirt.VIR_MIGRATE_PARAM_URI] = stream
    return found
