"""How much room instances' disks have, and how much of it is promised: to the cache, and to disks that may still grow."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.site import Site
from underlay.contracts import MeasuresRoom
from underlay.files import allocated_bytes, translated as translated_files
from underlay.filesystems import file_system
from underlay.footprint import files_of
from underlay.model import InstanceDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The storage of instances' disks. All in bytes.

    Attributes:
        cached: that images take of it. promised: that disks may still take of what is free, as they are larger than what they
            occupy.
    """

    total: int
    free: int
    cached: int
    promised: int


def room_of(site: Site) -> Room:
    """The storage that disks of this site are made in.

    Raises:
        OperationFailed: it does not answer, or its backend cannot tell.
    """
    with translated():
        backend = site.host.parts.backend(site.options.images_type)
        disks = site.host.disks()
    if not backend.traits.on_host_filesystem:
        if not isinstance(backend, MeasuresRoom):
            raise OperationFailed(f"the backend {backend.traits.name} does not tell how large its storage is")
        with translated():
            told = backend.room()
        own = [disk for disk in disks if disk.backend == backend.traits.name]
        return Room(total=told.total, free=told.free, cached=0, promised=_promised(own))
    return _of_file_system(site, disks)


def _of_file_system(site: Site, disks: Iterable[InstanceDisk]) -> Room:
    instances = site.host.config.instances
    with translated(), translated_files(instances):
        here = file_system(instances).key
        status = os.statvfs(instances)
        caches = [store for store in site.host.parts.stores() if _lies_on(store.root, here)]
        return Room(
            total=status.f_blocks * status.f_frsize,
            free=status.f_bavail * status.f_frsize,
            cached=_occupied(path for store in caches for _, path in files_of(store)),
            promised=_promised(disk for disk in disks if _lies_on(disk.path.parent, here)),
        )


def _lies_on(directory: Path, key: str) -> bool:
    with suppress(OSError):  # gone meanwhile, or never there, as that of a volume
        return file_system(directory).key == key
    return False


def _occupied(paths: Iterable[Path]) -> int:
    """Bytes of files, those that have several names once."""
    return sum(dict(_measured(paths)).values())


def _measured(paths: Iterable[Path]) -> Iterator[tuple[tuple[int, int], int]]:
    for path in paths:
        with suppress(FileNotFoundError):
            status = path.lstat()
            yield (status.st_dev, status.st_ino), allocated_bytes(status)


def _promised(disks: Iterable[InstanceDisk]) -> int:
    return sum(max(0, (disk.size or 0) - disk.allocated) for disk in disks)
