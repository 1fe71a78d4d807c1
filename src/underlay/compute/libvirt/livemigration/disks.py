"""The local disks of a guest that moves: as the source has them, and made on the destination from its own cache.

What a disk holds beside its base image is all that is copied, and the destination makes an empty overlay on *its* copy of that
image. For that the two must be the same image, which their digests say: what was served, or what is stored. Swap space and
empty file systems are made on each host, with UUIDs of their own, so those of two hosts are hardly ever the same. A disk whose
base cannot be had there becomes a raw file that stands alone.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from underlay import errors, instances
from underlay.attributes import decode_disk_record, encode_record
from underlay.compute.arguments import Instance
from underlay.compute.errors import InvalidInput, InvalidSharedStorage, MigrationPreCheckError
from underlay.compute.libvirt import localdisks
from underlay.compute.libvirt.site import Site
from underlay.compute.livemigration import LocalDiskMigrateData
from underlay.contracts import BackendTraits
from underlay.files import open_regular, read_attribute, translated, write_attribute
from underlay.model import Attachment, BaseImage, InstanceDisk
from underlay.naming import plain_name
from underlay.values import replace as with_changes

_LOG = logging.getLogger(__name__)
GENERATED = "generated:"
"""How the refs of images begin that are made on each host: swap space and empty file systems."""

_FORMATS = ("raw", "qcow2")
_ALONE = "flat"  # the backend of disks that stand alone
_TRIES = 3  # a prune may take an image that nobody uses yet between our look and the disk
_EPOCH = datetime.fromtimestamp(0, UTC)


# ------------------------------------------------------------------------------------------------------------ at the source


def attachments(site: Site, uuid: str) -> Mapping[str, Attachment]:
    """How each local disk of an instance is opened, by its name.

    Raises:
        as `localdisks.translated`
    """
    with localdisks.translated():
        return {name: site.host.attachment(uuid, name=name) for name in localdisks.names_of(site.host, uuid)}


def in_storage(opened: Mapping[str, Attachment]) -> dict[str, str]:
    """What is opened of those that are in a storage which every host reaches, such as a Ceph, by their names."""
    return {name: told.source for name, told in opened.items() if told.type == "network"}


def on_source(site: Site, instance: Instance, opened: Mapping[str, Attachment]) -> tuple[LocalDiskMigrateData, ...]:
    """The local disks of an instance that nobody but this host reaches. They are files.

    Raises:
        MigrationPreCheckError: a disk is none. As `localdisks.translated`
    """
    names = [name for name in opened if name not in in_storage(opened)]
    with localdisks.translated():
        return tuple(_described(site, site.host.disk(instance.uuid, name=name), opened[name]) for name in names)


def refuse_of_host(site: Site, instance: Instance, opened: Mapping[str, Attachment]) -> None:
    """Refuse to copy nothing where a local disk, or what it reads from, is not reached from both hosts.

    Raises:
        InvalidSharedStorage: one is a device of this host, or its base image may be. As `localdisks.translated`
    """
    with localdisks.translated():
        for name, told in opened.items():
            if told.type == "block":
                raise InvalidSharedStorage(path=told.source, reason=f"it is a device of {site.name} alone")
            if told.type == "file":
                _refuse_base_elsewhere(site, site.host.disk(instance.uuid, name=name))


def _refuse_base_elsewhere(site: Site, disk: InstanceDisk) -> None:
    """Swap and empty file systems have one name on all hosts, and other UUIDs on each: an overlay on another's is damaged."""
    if disk.format != "qcow2" or disk.base_path is None:
        return
    shared, base = site.host.config.instances, disk.base_path
    with translated(base):
        is_below = Path(os.path.realpath(base)).is_relative_to(os.path.realpath(shared))
        is_shared = is_below and base.stat().st_dev == shared.stat().st_dev
    if not is_shared:
        raise InvalidSharedStorage(path=str(base), reason=f"it is not in {shared}, so another host may have another file there")


def _described(site: Site, disk: InstanceDisk, told: Attachment) -> LocalDiskMigrateData:
    if told.type == "block":  # nobody makes one there, and Nova's driver does not either
        reason = f"the disk {disk.name} of {disk.instance} is {told.source}, a device of {site.name} alone"
        raise MigrationPreCheckError(reason=f"{reason}: a guest with such a disk moves while it is off, by a snapshot")
    if told.type != "file" or told.format not in _FORMATS or disk.size is None:
        raise MigrationPreCheckError(reason=f"the disk {disk.name} of {disk.instance} is no file that could be copied")
    base = _base_of(site, disk)
    record = base.record if base is not None else None
    return LocalDiskMigrateData(
        name=disk.name,
        path=told.source,
        format=told.format,
        size=disk.size,
        allocated=disk.allocated,
        base=disk.base_path.name if disk.format == "qcow2" and disk.base_path is not None else None,
        base_ref=record.ref if record is not None else None,
        base_digest=_served(base),
        base_stored=record.stored if record is not None else None,
    )


def _base_of(site: Site, disk: InstanceDisk) -> BaseImage | None:
    """The base image that an overlay reads from, as its cache has it; None when it is none of a cache's."""
    if disk.format != "qcow2" or disk.base_path is None:
        return None
    try:
        [found] = site.host.look(os.fspath(disk.base_path))
    except (errors.NotCached, ValueError):
        return None
    return found


def _served(image: BaseImage | None) -> str | None:
    """The digest of an image as it was served."""
    digests = image.record.digests if image is not None and image.record is not None else ()
    return next((one for one in digests if one.startswith("sha256:")), None)


def record_alone(site: Site, disk: LocalDiskMigrateData, uuid: str) -> None:
    """Have a disk that holds all of its content by now say that it keeps no base image.

    Raises:
        as `localdisks.translated`
    """
    with localdisks.translated(), translated(Path(disk.path)):
        spec, backend = instances.find(site.host.config, uuid, disk.name)
        with instances.locked(site.host.config, backend, spec):
            fd = open_regular(Path(disk.path))
            try:
                if (record := decode_disk_record(read_attribute(fd))) is not None:
                    write_attribute(fd, encode_record(with_changes(record, base=None, cache=None)))
                    os.fsync(fd)
            finally:
                os.close(fd)


def remove_of_host(site: Site, uuid: str) -> None:
    """Remove the local disks of an instance that has gone, but for those that its new host has as well.

    Raises:
        as `localdisks.translated`
    """
    opened = attachments(site, uuid)
    if not in_storage(opened):
        localdisks.remove_all(site.host, uuid)
        return
    for name in opened.keys() - in_storage(opened).keys():
        localdisks.remove(site.host, uuid, name)


# ------------------------------------------------------------------------------------------------------- on the destination


def check_in_storage(site: Site, instance: Instance, disks: Mapping[str, str]) -> None:
    """Make sure that this host reaches the disks which nobody copies.

    Args:
        disks: what the source opens, by their names.

    Raises:
        MigrationPreCheckError; as `localdisks.translated`
    """
    if (here := in_storage(attachments(site, instance.uuid))) != disks:
        told = ", ".join(disks.values()) or "no disk in a storage that every host reaches"
        reason = f"the guest has {told}, and host {site.name} finds {', '.join(here.values()) or 'nothing of it'}"
        raise MigrationPreCheckError(reason=reason)


def make(site: Site, instance: Instance, disks: tuple[LocalDiskMigrateData, ...]) -> tuple[LocalDiskMigrateData, ...]:
    """Make a disk for each, empty but for what it reads from its base; what they became.

    Raises:
        MigrationPreCheckError: this host does not keep its disks in files. As `localdisks.translated`
    """
    with localdisks.translated():
        traits = site.host.parts.backend(site.options.images_type).traits
        if not traits.on_host_filesystem or traits.disk_format not in _FORMATS:
            reason = f"host {site.name} keeps disks as {traits.name}, and what is copied becomes files"
            raise MigrationPreCheckError(reason=reason)
        return tuple(_made(site, instance, disk) for disk in disks)


def _made(site: Site, instance: Instance, disk: LocalDiskMigrateData) -> LocalDiskMigrateData:
    _check(disk)
    whole = disk.base is not None and not _is_made_on_base(site, instance, disk)
    if disk.base is None or whole:
        _make_alone(site, instance, disk)
    told = site.host.attachment(instance.uuid, name=disk.name)
    return replace(disk, there=told.source, format_there=told.format, whole=whole)


def _check(disk: LocalDiskMigrateData) -> None:
    """Refuse what no driver says: it becomes paths and sizes here."""
    if disk.size <= 0 or disk.format not in _FORMATS:
        raise InvalidInput(reason=f"the disk {disk.name} is {disk.format} of {disk.size} bytes")


def _is_made_on_base(site: Site, instance: Instance, disk: LocalDiskMigrateData) -> bool:
    """Make the disk on this host's copy of its base image; whether there is one."""
    for _ in range(_TRIES):
        base = _base_here(site, disk)
        if base is None:
            return False
        size = (
            None if disk.size == base.virtual_size else disk.size
        )  # one as large as its image may be smaller than it asks for
        backend, cache = site.options.images_type, site.options.cache
        try:
            site.host.create_disk(instance.uuid, base, size=size, backend=backend, name=disk.name, cache=cache)
        except errors.NotCached:
            continue
        return True
    return False


def _base_here(site: Site, disk: LocalDiskMigrateData) -> BaseImage | None:
    """This host's copy of a disk's base image, fetched unless it is here; None when it cannot be had."""
    traits = site.host.parts.backend(site.options.images_type).traits
    try:
        found = _found(site, disk, traits) or _fetched(site, disk, traits)
    except errors.InsufficientSpace:
        raise
    except errors.UnderlayError as error:
        _LOG.warning("the base image of %s cannot be had, so it is copied whole: %s", disk.path, error)
        return None
    if found is None or not _is_same(found, disk):
        _LOG.info("no base image here is that of %s, so it is copied whole", disk.path)
        return None
    return found


def _fetched(site: Site, disk: LocalDiskMigrateData, traits: BackendTraits) -> BaseImage | None:
    if disk.base_ref is None or disk.base_digest is None or disk.base_ref.startswith(GENERATED):
        return None
    return site.host.fetch(disk.base_ref, checksum=disk.base_digest, cache=site.options.cache, traits=traits).image


def _found(site: Site, disk: LocalDiskMigrateData, traits: BackendTraits) -> BaseImage | None:
    """The image of that name and content in the cache that disks are made from."""
    name = plain_name(disk.base or "", what="an image")
    home = site.host.parts.cache(site.options.cache).store.root
    try:
        images = [one for one in site.host.find(name) if one.name == name and one.cache == home and _is_same(one, disk)]
    except (errors.NotCached, errors.ImageDamaged):
        return None
    return next((one for one in images if one.format == "raw" or not traits.needs_raw), None)


def _is_same(image: BaseImage, disk: LocalDiskMigrateData) -> bool:
    """Whether an image shows a guest what the source's base does."""
    if image.record is None:
        return False  # nobody has said what is in it
    is_as_served = disk.base_digest is not None and disk.base_digest in image.record.digests
    return is_as_served or (disk.base_stored is not None and disk.base_stored == image.record.stored)


def _make_alone(site: Site, instance: Instance, disk: LocalDiskMigrateData) -> None:
    """Make a raw file of nothing but holes."""
    config, backend = site.host.config, site.host.parts.backend(_ALONE)
    want = instances.disk_spec(config, instance.uuid, disk.name, size=disk.size, backend=backend)
    with _nothing(site.directory(instance).path / f".{disk.name}.empty", disk.size) as content:
        instances.create_alone(config, backend, content, want)


@contextmanager
def _nothing(path: Path, size: int) -> Iterator[BaseImage]:
    """A file of so many bytes, none of which is written, as what a disk can be made from."""
    with translated(path):
        path.write_bytes(b"")
        try:
            os.truncate(path, size)
            yield BaseImage(
                name=path.name,
                cache=path.parent,
                format="raw",
                size=size,
                virtual_size=size,
                allocated=0,
                last_used=_EPOCH,
                record=None,
            )
        finally:
            path.unlink(missing_ok=True)
