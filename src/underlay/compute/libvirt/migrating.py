"""How a resize or a cold migration begins: the guest is shut down, and its disks get twins beside them.

The instance's directory is kept under another name, and a new one in its place has a copy of each disk, on the same base image.
A disk in a storage that can put it back to what it was stays where it is, and is kept there.
Another host can go on from there where it shares the directory of instances. Whatever fails, the instance is what it was.
"""

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from underlay import diskinfo, filedisk, instances
from underlay.compute import states
from underlay.compute.arguments import BlockDeviceInfo, Flavor, Instance, NetworkInfo
from underlay.compute.errors import ComputeError, InstanceFaultRollback, InstanceNotFound, MigrationPreCheckError, ResizeError
from underlay.compute.libvirt import (
    kept,
    keptdisks,
    localdisks,
    networks,
    power,
    resizeplan,
    resizeroom,
    sharing,
    swapping,
    volumedisks,
)
from underlay.compute.libvirt.directory import RESCUED, ROOT, SWAP, InstanceDirectory
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import refuse_leaving, start
from underlay.files import link, sync_directory, translated, write_durably
from underlay.model import InstanceDisk
from underlay.values import replace

_LOG = logging.getLogger(__name__)
_LIKE_A_DISK = r"disk(\..+)?"


def begin(
    site: Site,
    instance: Instance,
    dest: str,
    flavor: Flavor,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    *,
    here: str,
    timeout: float,
    retry_interval: float,
) -> str:
    """Shut a guest down, keep its directory, and copy its disks into a new one; what `localdisks.facts` says of them.

    Swap is not copied: nothing in it outlasts the guest's end, and whoever finishes makes it anew.

    Args:
        dest: the address of the host that finishes. here: this host's.
        timeout, retry_interval: seconds, as for `underlay.compute.libvirt.power.power_off`.

    Raises:
        InstanceFaultRollback: the instance is as it was. InstanceNotFound
        HypervisorUnavailable, OperationFailed: it could not be put back to what it was; the next driver that starts, or a
        reversal, does it.
    """
    directory, domain = site.directory(instance), site.domain(instance)
    with ExitStack() as holding:
        with _changing_nothing():
            domain.state()
            refuse_leaving(site, instance.uuid)
            holding.enter_context(kept.marked(directory, host=site.name))
            disks = _disks(site, instance)
            _check_volumes(site, instance, info, leaves=dest != here)
            _check(site, instance, dest, here=here)
            keptdisks.clear(site, directory)  # of an earlier one, which says so: what nobody lists is somebody else's
            _check_disks(site, instance, disks)
            _check_size(instance, flavor, info, disks)
            resizeroom.make(site, _copied(directory, disks))
            volumedisks.forget_known_swaps(site, instance, info)
            was_on = domain.is_active()
        with _or_as_it_was(site, instance, network_info, was_on=was_on):
            power.power_off(site, instance, timeout=timeout, retry_interval=retry_interval)
            networks.unplug(instance, network_info)
            localdisks.refuse_open(site.host, instance.uuid)  # somebody may have started it again, or look into its disks
            told = localdisks.facts(site, instance)
            _replace(site, directory, disks)
        return told


# ----------------------------------------------------------------------------------------------------------------- the checks


def _disks(site: Site, instance: Instance) -> tuple[InstanceDisk, ...]:
    with localdisks.translated():
        names = localdisks.names_of(site.host, instance.uuid)
        return tuple(site.host.disk(instance.uuid, name=name) for name in names)


def _check(site: Site, instance: Instance, dest: str, *, here: str) -> None:
    domain, directory = site.domain(instance), site.directory(instance)
    state, _ = domain.state()
    if state in (states.PAUSED, states.SUSPENDED) or domain.is_saved():
        raise MigrationPreCheckError(reason="its memory would be lost: it is paused or suspended")
    if directory.kept.exists():
        raise MigrationPreCheckError(reason=f"an earlier resize was neither confirmed nor reverted: {directory.kept}")
    if directory.unrescue.exists() or directory.making.exists():
        raise MigrationPreCheckError(reason="it is being rescued, or made")
    if dest != here and not sharing.is_shared_with(site.host, dest):
        what = f"no host at {dest} has said that it shares {site.host.config.instances}"
        raise MigrationPreCheckError(
            what, hint="name the hosts that share it in 'hosts' of the table [instances] on each of them"
        )


def _check_volumes(site: Site, instance: Instance, info: BlockDeviceInfo | None, *, leaves: bool) -> None:
    if swapping.is_unfinished(site.directory(instance)):
        raise MigrationPreCheckError(reason="a volume of it is being swapped, or a swap was interrupted")
    volumedisks.refuse_unknown_swaps(site, instance, info)
    if leaves and (names := volumedisks.with_snapshots(site, instance, info)):
        what = f"only this host's libvirt knows to which files its volumes {', '.join(names)} are written since their snapshots"
        raise MigrationPreCheckError(what, hint="merge their files, or say where they are written")


def _check_disks(site: Site, instance: Instance, disks: tuple[InstanceDisk, ...]) -> None:
    for disk in disks:
        if keptdisks.is_kept_in_place(site, disk):
            keptdisks.refuse_taken(site, disk)
            continue
        if not _is_file(site.directory(instance), disk):
            what = f"the disk {disk.name} is kept by the {disk.backend} backend, which neither has files nor keeps what it was"
            raise MigrationPreCheckError(reason=what)
        with localdisks.translated():
            filedisk.known(disk)
    if others := _others(site.directory(instance), {disk.name for disk in disks}):
        what = f"{', '.join(others)} may be disks, which would not be copied and go with what is kept"
        raise MigrationPreCheckError(reason=what)


def _is_file(directory: InstanceDirectory, disk: InstanceDisk) -> bool:
    return disk.path.parent == directory.path and disk.path.is_file()


def _others(directory: InstanceDirectory, names: set[str]) -> list[str]:
    """What is called as a disk is, and is none that was found: another driver's, or one that follows a gap in their numbers."""
    with localdisks.translated(), translated(directory.path):
        there = os.listdir(directory.path)
    known = names | {diskinfo.NAME, directory.config_drive().name}
    return sorted(
        name for name in there if re.fullmatch(_LIKE_A_DISK, name) and name not in known and not name.endswith(RESCUED)
    )


def _check_size(instance: Instance, flavor: Flavor, info: BlockDeviceInfo | None, disks: tuple[InstanceDisk, ...]) -> None:
    root = next((disk.size for disk in disks if disk.name == ROOT), None)
    ephemeral = sum(disk.size or 0 for disk in disks if disk.name not in (ROOT, SWAP))
    if (why := resizeplan.refused(instance.flavor, flavor, info, root=root, ephemeral=ephemeral)) is not None:
        raise ResizeError(reason=why)


@contextmanager
def _changing_nothing() -> Iterator[None]:
    try:
        yield
    except InstanceNotFound:
        raise
    except ComputeError as error:
        raise InstanceFaultRollback(error, hint=error.hint) from error


@contextmanager
def _or_as_it_was(site: Site, instance: Instance, network_info: NetworkInfo | None, *, was_on: bool) -> Iterator[None]:
    """Start a guest again that ran, when the block fails and has put its directory back."""
    try:
        yield
    except ComputeError as error:
        if site.directory(instance).kept.exists():
            raise  # it could not be put back, so it is not as it was
        if was_on:
            _LOG.info("starting the instance %s again, whose resize failed: %s", instance.uuid, error)
            networks.plug(instance, network_info)
            start(site, site.domain(instance))
        raise InstanceFaultRollback(error, hint=error.hint) from error


# ----------------------------------------------------------------------------------------------------------------- the copies


def _replace(site: Site, directory: InstanceDirectory, disks: tuple[InstanceDisk, ...]) -> None:
    """Keep the directory, and have one like it in its place; or nothing of it."""
    copied = _copied(directory, disks)
    try:
        keptdisks.keep(site, directory, [disk.name for disk in disks if disk.name != SWAP and disk not in copied])
        kept.keep(directory)
        _fill(site, directory, copied)
    except BaseException:
        kept.put_back(directory)
        keptdisks.clear(site, directory)
        raise


def _copied(directory: InstanceDirectory, disks: Iterable[InstanceDisk]) -> list[InstanceDisk]:
    return [disk for disk in disks if disk.name != SWAP and _is_file(directory, disk)]


def _fill(site: Site, directory: InstanceDirectory, disks: Iterable[InstanceDisk]) -> None:
    """Copy the disks from what is kept, and have what is only read under both names. A crash leaves the mark."""
    for disk in disks:
        _copy(site, disk, directory.kept / disk.path.name)
    for path in (directory.kernel(), directory.ramdisk(), directory.config_drive()):
        source = directory.kept / path.name
        if source.exists():
            _have_too(source, path)
    with localdisks.translated(), translated(directory.path):
        sync_directory(directory.path)


def _copy(site: Site, disk: InstanceDisk, source: Path) -> None:
    with localdisks.translated():
        disk_format, _ = filedisk.known(disk_there := replace(disk, path=source))
        instances.note_format(site.host.config, disk.path, disk_format)
        filedisk.copy(disk_there, disk.path)


def _have_too(source: Path, path: Path) -> None:
    """One more name for a file that nobody writes to, or a copy where it can have none."""
    with localdisks.translated(), translated(path):
        if not link(source, path):
            write_durably(path, source.read_bytes(), mode=stat.S_IMODE(source.stat().st_mode))
