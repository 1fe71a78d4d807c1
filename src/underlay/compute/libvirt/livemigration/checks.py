"""Whether a guest could move, found out before anything is made for it: first on the destination, then on the source."""

import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4
from xml.etree.ElementTree import Element, SubElement, tostring

from underlay.compute import states, versioneddata
from underlay.compute.arguments import BlockDeviceInfo, Instance, MigrateData
from underlay.compute.errors import (
    InvalidLocalStorage,
    InvalidSharedStorage,
    MigrationPreCheckError,
    UnableToMigrateToSelf,
)
from underlay.compute.libvirt import localdisks
from underlay.compute.libvirt.directory import directory_of
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.livemigration import disks, returning, sights, volumes
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.volumeplan import root_volume
from underlay.compute.livemigration import LocalDiskMigrateData, UnderlayLiveMigrateData
from underlay.files import translated
from underlay.filesystems import free_bytes

_MIB_IN_GIB, _MIB = 1024, 1 << 20
_PROBE = re.compile(r"\.probe-[0-9a-f]{8}-[0-9a-f]{32}", re.ASCII)
_LARGEST_DRIVE = 64 << 20  # bytes of a config drive that is handed over

# ------------------------------------------------------------------------------------------------------- on the destination


def on_destination(
    site: Site,
    instance: Instance,
    source: Mapping[str, Any],
    destination: Mapping[str, Any],
    *,
    block_migration: bool | None,
    disk_over_commit: bool,
) -> UnderlayLiveMigrateData:
    """Whether the instance could come here, and what its source has to know to say so too. Leaves a probe.

    Args:
        source, destination: the two nodes' records.

    Raises:
        UnableToMigrateToSelf, MigrationPreCheckError; as `localdisks.translated`
    """
    if instance.host == site.name:
        raise UnableToMigrateToSelf(instance_id=instance.uuid, host=site.name)
    if site.domain(instance).exists():
        reason = f"host {site.name} has a domain {instance.uuid} already, and the instance is said to be on {instance.host}"
        raise MigrationPreCheckError(reason=reason)
    if site.virt_type == "kvm":  # without, processors are QEMU's own, the same everywhere
        check_processor(site, source.get("cpu_info"))
    return UnderlayLiveMigrateData(
        host=site.name,
        libvirt=sights.identity(site.connection),
        filename=_put_probe(site),
        image_type=site.options.images_type,
        block_migration=block_migration,
        disk_over_commit=disk_over_commit,
        disk_available_mb=_room(site, destination, over_commit=disk_over_commit),
        graphics_listen_addr_vnc=site.options.vnc_listen if site.options.vnc_enabled else None,
        serial_listen_addr=site.options.serial_console_listen if site.options.serial_console_enabled else None,
    )


def check_processor(site: Site, described: str | None) -> None:
    """Make sure that this host's processor has what the source's has.

    Args:
        described: ``cpu_info`` of the source's record: ``arch``, ``model``, ``vendor``, ``topology``, ``features`` as JSON;
            None or empty: it says nothing.

    Raises:
        MigrationPreCheckError
    """
    if not described:
        return
    libvirt, wanted = library(), _processor(described)
    answer = site.connection.ask(lambda handle: handle.compareCPU(wanted, 0))
    if answer in (libvirt.VIR_CPU_COMPARE_INCOMPATIBLE, libvirt.VIR_CPU_COMPARE_ERROR):
        raise MigrationPreCheckError(reason=f"the processor of host {site.name} lacks something that the source's has")


def _processor(described: str) -> str:
    """A processor as libvirt has it (https://libvirt.org/formatcaps.html)."""
    cpu = Element("cpu")
    try:
        told = json.loads(described)
        for name in ("arch", "model", "vendor"):
            if told.get(name):
                SubElement(cpu, name).text = str(told[name])
        if topology := told.get("topology"):
            SubElement(cpu, "topology", {name: str(topology[name]) for name in ("sockets", "cores", "threads")})
        for feature in sorted(told.get("features") or ()):
            SubElement(cpu, "feature", name=str(feature))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MigrationPreCheckError(reason=f"what the source says of its processor cannot be read: {error}") from error
    return tostring(cpu, encoding="unicode")


def _room(site: Site, told: Mapping[str, Any], *, over_commit: bool) -> int:
    """MiB for disks, as the node's record has it, but no more than there are."""
    instances = site.host.config.instances
    with localdisks.translated(), translated(instances):
        free = free_bytes(instances) // _MIB
    counted = told.get("free_disk_gb" if over_commit else "disk_available_least")
    if counted is None:
        return free
    available = int(counted) * _MIB_IN_GIB - site.host.config.compute.reserved_host_disk_mb
    return min(available, free) if over_commit else available


def _put_probe(site: Site) -> str:
    """Make a file in the instances path; its name, by which the source looks for it in its own."""
    name = f".probe-{_whose(site)}-{uuid4().hex}"
    path = site.host.config.instances / name
    with localdisks.translated(), translated(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    return name


def _whose(site: Site) -> str:
    return hashlib.sha256(site.name.encode()).hexdigest()[:8]


def remove_probe(site: Site, name: str | None) -> None:
    """Remove a probe; one that is gone is a success."""
    if name is not None and _PROBE.fullmatch(name):
        path = site.host.config.instances / name
        with localdisks.translated(), translated(path):
            path.unlink(missing_ok=True)


def remove_probes(site: Site) -> None:
    """Remove the probes that this host left when it was killed."""
    with suppress(OSError):
        for path in site.host.config.instances.glob(f".probe-{_whose(site)}-*"):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ on the source


def on_source(site: Site, instance: Instance, data: MigrateData, info: BlockDeviceInfo | None) -> UnderlayLiveMigrateData:
    """Whether the instance can leave for where this comes from; that, with what the destination has to know.

    Raises:
        MigrationPreCheckError, InvalidLocalStorage, InvalidSharedStorage, InstanceNotFound; as `volumes.on_source` and
        `localdisks.translated`
    """
    told = ours(data)
    returning.refuse_unsettled(site, site.directory(instance))
    _check_guest(site, instance)
    path, opened = site.host.config.instances, disks.attachments(site, instance.uuid)
    is_shared = told.filename is not None and _PROBE.fullmatch(told.filename) is not None and (path / told.filename).exists()
    local = () if is_shared else disks.on_source(site, instance, opened)
    is_block = copies(told, path, here=site.name, is_shared=is_shared, has_own=bool(local))
    if is_block:
        _check_room(told, local)
    else:
        disks.refuse_of_host(site, instance, opened)
    shared = disks.in_storage(opened)
    check_storage(told, shared, images_type=site.options.images_type)
    drive = site.directory(instance).config_drive()
    return replace(
        told,
        source_libvirt=sights.identity(site.connection),
        block_migration=is_block,
        is_shared_instance_path=is_shared,
        is_shared_block_storage=not local,
        is_volume_backed=_is_volume_backed(told, instance, info),
        instance_relative_path=instance.uuid,
        directory=str(site.directory(instance).path),
        local_disks=local,
        shared_disks=shared,
        volumes=volumes.on_source(site, instance, info, own=own_sources(site, instance.uuid)),
        config_drive=None if is_shared else _packed(drive),
    )


def copies(told: UnderlayLiveMigrateData, path: Path, *, here: str, is_shared: bool, has_own: bool) -> bool:
    """Whether disks are copied, as was asked for, or as it has to be.

    Args:
        path: that of instances. is_shared: both hosts have the same one. has_own: a disk is on no storage that both reach.

    Raises:
        InvalidLocalStorage, InvalidSharedStorage
    """
    is_everywhere = is_shared or not has_own
    is_block = not is_everywhere if told.block_migration is None else told.block_migration
    if is_block and is_shared:
        raise InvalidLocalStorage(path=str(path), reason=f"it is the same on {here} and on {told.host}")
    if is_block and is_everywhere:
        raise InvalidLocalStorage(path=str(path), reason=f"no disk of the instance is on {here} alone, so none can be copied")
    if not is_block and not is_everywhere:
        raise InvalidSharedStorage(path=str(path), reason=f"on {told.host} it is another than on {here}")
    return is_block


def check_storage(told: UnderlayLiveMigrateData, shared: Mapping[str, str], *, images_type: str) -> None:
    """Refuse to move disks in a storage to a host that does not keep its own so.

    Raises:
        MigrationPreCheckError
    """
    if shared and told.image_type != images_type:
        reason = f"the disk {min(shared.values())} is not reached from host {told.host}, which keeps disks as {told.image_type}"
        raise MigrationPreCheckError(reason=reason)


def own_sources(site: Site, uuid: str) -> frozenset[str]:
    """What the hypervisor opens of the instance's own disks.

    Raises:
        as `localdisks.translated`
    """
    drive = directory_of(site.host.config.instances, uuid).config_drive()
    return frozenset({str(drive), *(one.source for one in disks.attachments(site, uuid).values())})


def _is_volume_backed(told: UnderlayLiveMigrateData, instance: Instance, info: BlockDeviceInfo | None) -> bool:
    return root_volume(instance, info) is not None if told.is_volume_backed is None else told.is_volume_backed


def ours(data: MigrateData | None) -> UnderlayLiveMigrateData:
    """What a destination said, as a driver of ours does, perhaps in one of Nova's own objects.

    Raises:
        MigrationPreCheckError: another driver said it, or it was lost on the way.
    """
    if versioneddata.is_versioned(data) and (told := versioneddata.read(data)).host is not None:
        return told
    if isinstance(data, UnderlayLiveMigrateData):
        return data
    raise MigrationPreCheckError(reason="the other host's driver does not say what Underlay's needs to know")


def answer(told: UnderlayLiveMigrateData, data: MigrateData) -> MigrateData:
    """The same for who gave us this: in the same object, if it is one of Nova's, as a service writes to that as well."""
    return versioneddata.write(told, data) if versioneddata.is_versioned(data) else told


def _check_guest(site: Site, instance: Instance) -> None:
    state, _ = site.domain(instance).state()
    if state not in (states.RUNNING, states.PAUSED):
        raise MigrationPreCheckError(reason=f"the instance {instance.uuid} does not run")
    if site.directory(instance).unrescue.exists():
        raise MigrationPreCheckError(reason=f"the instance {instance.uuid} is being rescued")
    if site.directory(instance).kept.exists():
        raise MigrationPreCheckError(reason=f"a resize of the instance {instance.uuid} is neither confirmed nor reverted")


def _check_room(told: UnderlayLiveMigrateData, local: tuple[LocalDiskMigrateData, ...]) -> None:
    """Over-committed disks need what they hold, others all that they may come to hold."""
    if told.disk_available_mb is None:
        return
    needed = -(-sum(disk.allocated if told.disk_over_commit else disk.size for disk in local) // _MIB)
    if needed > told.disk_available_mb:
        reason = f"the disks need {needed} MiB, and host {told.host} has {told.disk_available_mb} MiB"
        raise MigrationPreCheckError(reason=reason)


# ------------------------------------------------------------------------------------------------------------- config drive


def _packed(path: Path) -> str | None:
    """A config drive, small enough to be told: it is mostly zeros. None when there is none."""
    with localdisks.translated(), translated(path), suppress(FileNotFoundError):
        content = path.read_bytes()
        if len(content) > _LARGEST_DRIVE:
            raise MigrationPreCheckError(reason=f"the config drive {path} has {len(content)} bytes, too many to be handed over")
        return base64.b64encode(zlib.compress(content)).decode("ascii")
    return None


def unpacked(packed: str) -> bytes:
    """The config drive.

    Raises:
        MigrationPreCheckError: it is none.
    """
    try:
        inflating = zlib.decompressobj()
        content = inflating.decompress(base64.b64decode(packed, validate=True), _LARGEST_DRIVE)
    except (ValueError, zlib.error) as error:
        raise MigrationPreCheckError(reason="the config drive was damaged on its way") from error
    if not inflating.eof:
        raise MigrationPreCheckError(reason="the config drive was damaged on its way, or is too large")
    return content
