"""Snapshots of root disks: a disk as it is at one moment, whole and on its own, in a file called as its image is to be.

A guest that runs is not stopped: QEMU copies the disk as it was when the copy began (libvirt's backups, in push mode), while
the guest writes on. Where such files go an operator says; who uploads them finds them there.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from underlay.compute.arguments import Instance
from underlay.compute.errors import ComputeError, OperationFailed
from underlay.compute.libvirt import guestxml, localdisks
from underlay.compute.libvirt.directory import ROOT
from underlay.compute.libvirt.site import Site
from underlay.compute.taskstates import IMAGE_PENDING_UPLOAD, IMAGE_UPLOADING
from underlay.diskchanges import publish
from underlay.errors import DiskExists
from underlay.files import translated
from underlay.naming import plain_name

_POLL = 0.1  # seconds between two looks how far a copy is


def snapshot(site: Site, instance: Instance, image_id: str, update_task_state: Callable[..., Any]) -> None:
    """Write the root disk of an instance into a file that has the image's id as its name. One that fails leaves none.

    Raises:
        InstanceNotFound; InvalidInput: the id can be no file's name; OperationFailed: such a file is there, there is no room.
    """
    site.domain(instance).state()
    with localdisks.translated():
        target = directory(site) / plain_name(image_id, what="an image")
        with _new(target, temporary_of(site, instance)) as temporary:
            _copy(site, instance, temporary)
            update_task_state(IMAGE_PENDING_UPLOAD)
            update_task_state(IMAGE_UPLOADING, expected_state=IMAGE_PENDING_UPLOAD)


def clean(site: Site, instance: Instance) -> None:
    """End a copy that goes on, and remove what it has written. Safe to repeat.

    Raises:
        InstanceNotFound, HypervisorUnavailable
    """
    site.domain(instance).end_backup()
    with localdisks.translated():
        temporary = temporary_of(site, instance)
        with translated(temporary):
            temporary.unlink(missing_ok=True)


def directory(site: Site) -> Path:
    """Where snapshots are written: as configured, or beside the instances as Nova has it."""
    return site.options.snapshots_directory or site.host.config.instances / "snapshots"


def temporary_of(site: Site, instance: Instance) -> Path:
    """The file in which an instance's snapshot is while it is written."""
    return directory(site) / f".{instance.uuid}.snapshot"


def _copy(site: Site, instance: Instance, temporary: Path) -> None:
    domain, wanted = site.domain(instance), site.options.snapshot_image_format
    if not domain.is_active():
        site.host.extract_disk(instance.uuid, temporary, format=wanted, name=ROOT, assume_closed=True)
        return
    opened = localdisks.attachment(site, instance, ROOT).source
    device = guestxml.devices_by_path(domain.xml()).get(opened)
    if device is None:
        raise OperationFailed(f"the guest of {instance.uuid} runs without its root disk {opened}")
    domain.begin_backup(guestxml.backup_xml(domain.xml(), device=device, target=temporary, disk_format=wanted))
    try:
        while not domain.has_backed_up():
            time.sleep(_POLL)
    except BaseException:
        with suppress(ComputeError):  # the error that goes on is the one that matters
            domain.end_backup()
        raise


@contextmanager
def _new(target: Path, temporary: Path) -> Iterator[Path]:
    """A file that gets its name when the block ends well; else nothing of it is left."""
    with translated(target):
        target.parent.mkdir(mode=0o750, exist_ok=True)
        if os.path.lexists(target):
            raise DiskExists(f"{target} is there", hint="a snapshot is written once")
        temporary.unlink(missing_ok=True)  # what a crash left
        try:
            yield temporary  # crash: a dot file, which the next snapshot of the instance removes
            publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
