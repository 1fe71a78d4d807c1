"""Whether what a resize copies has room, found out while the guest still runs."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from underlay import room
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.site import Site
from underlay.errors import InsufficientSpace
from underlay.files import reflink, translated as translated_at
from underlay.filesystems import free_bytes
from underlay.model import InstanceDisk

_PROBE = 1 << 16  # bytes: a whole number of blocks of any file system that shares them
_MOST_TRIES = 3


def make(site: Site, disks: Iterable[InstanceDisk]) -> None:
    """Make sure that the disks can be copied beside themselves; images that nobody needs go for that, if that is enough.

    The guest may still write, and others may take what is free, so the copies may fail for want of room all the same.

    Args:
        disks: that are copied, and no others: what its storage keeps needs no room here.

    Raises:
        OperationFailed: there is no room, or it cannot be told.
    """
    needed, path = sum(disk.allocated for disk in disks), site.host.config.instances
    with translated(), translated_at(path):
        for _ in range(_MOST_TRIES):
            free = free_bytes(path)
            if needed <= free or _shares_blocks(path):
                return
            parts, error = site.host.parts, InsufficientSpace(os.fspath(path), needed=needed, free=free, reclaimable={})
            room.make_room(parts.config, parts.known(None), error, path, spared=(), observer=parts.observer)


def _shares_blocks(directory: Path) -> bool:
    """Whether copies need no room until somebody writes to them: seen at one, as file systems tell no other way."""
    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as target:
        with suppress(OSError):  # not even so little
            source.write(bytes(_PROBE))
            source.flush()
            return reflink(source.fileno(), target.fileno())
    return False
