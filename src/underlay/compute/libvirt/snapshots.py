"""Snapshots of root disks: a disk as it is at one moment, whole and on its own.

A guest that runs is not stopped: QEMU copies the disk as it was when the copy began, while the guest writes on. The snapshot of
an image of Glance's is uploaded there, where that is configured; any other becomes a file that is called as its image is to be,
in a directory of the operator's choice, and who uploads it finds it there.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from underlay import qemuimg
from underlay.compute.arguments import Instance
from underlay.compute.errors import ComputeError, OperationFailed
from underlay.compute.libvirt import guestagent, guestxml, livecopies, localdisks, snapshotwork, uploads
from underlay.compute.libvirt.directory import ROOT
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.snapshotwork import Work
from underlay.compute.taskstates import IMAGE_PENDING_UPLOAD, IMAGE_UPLOADING
from underlay.diskchanges import publish
from underlay.errors import DiskExists
from underlay.files import remove_tree, translated
from underlay.naming import plain_name

_LOG = logging.getLogger(__name__)


def snapshot(
    site: Site, instance: Instance, image_id: str, update_task_state: Callable[..., Any], *, token: str | None = None
) -> None:
    """Make an image of the root disk of an instance. One that fails leaves nothing of it, in a file or in Glance.

    Args:
        token: of who asks, for Glance; None: the configured user's.

    Raises:
        InstanceNotFound; ImageNotFound: Glance has no such image, or not any more. InvalidInput: the id can be no file's name.
        OperationFailed: such a file is there, the image has its data already, there is no room.
    """
    site.domain(instance).state()
    with localdisks.translated():
        keep = _keeper(site, image_id, token)
        with snapshotwork.begun(directory(site), instance.uuid, host=site.name) as work:
            _copy(site, instance, work)
            update_task_state(IMAGE_PENDING_UPLOAD)
            update_task_state(IMAGE_UPLOADING, expected_state=IMAGE_PENDING_UPLOAD)
            keep(work.content)


def _keeper(site: Site, image_id: str, token: str | None) -> Callable[[Path], None]:
    """What is done with the snapshot once it is written; that it cannot be done is said before."""
    if upload := uploads.upload_for(site, image_id, token=token):
        upload.check()
        return upload.send
    target = directory(site) / plain_name(image_id, what="an image")
    if os.path.lexists(target):
        raise DiskExists(f"{target} is there", hint="a snapshot is written once")
    return partial(_publish, target)


def clean(site: Site, instance: Instance) -> None:
    """Thaw what who was killed has frozen, end the copy that it has begun, and remove what it has written. Safe to repeat.

    Raises:
        InstanceNotFound, HypervisorUnavailable, OperationFailed
    """
    site.domain(instance).state()
    guestagent.thaw_left(site, instance.uuid)  # first, whatever becomes of the rest
    _clean(site, instance.uuid)


def clean_all(site: Site) -> None:
    """As `clean`, of all instances of this host. What cannot be removed now is logged, and stays for the next time."""
    try:
        _clean(site, None)
    except ComputeError as error:
        _LOG.warning("what interrupted snapshots have left cannot be removed yet: %s", error)


def directory(site: Site) -> Path:
    """Where snapshots are written: as configured, or beside the instances as Nova has it."""
    return site.options.snapshots_directory or site.host.config.instances / "snapshots"


def _clean(site: Site, uuid: str | None) -> None:
    with localdisks.translated(), snapshotwork.left(directory(site), host=site.name, instance=uuid) as works:
        if uuid is None:
            for instance in {work.instance for work in works}:
                guestagent.thaw_left(site, instance)
        for work in works:
            livecopies.end(Domain(site.connection, work.instance), into=work.path)
            with translated(work.path):
                remove_tree(work.path, nested=True)  # crash: the rest, for the next time


def _copy(site: Site, instance: Instance, work: Work) -> None:
    domain, wanted = site.domain(instance), site.options.snapshot_image_format
    if not domain.is_active():
        site.host.extract_disk(instance.uuid, work.content, format=wanted, name=ROOT, assume_closed=True)
        return
    opened = localdisks.attachment(site, instance, ROOT).source
    device = guestxml.devices_by_path(domain.xml()).get(opened)
    if device is None:
        raise OperationFailed(f"the guest of {instance.uuid} runs without its root disk {opened}")
    with translated(work.path):
        qemuimg.create(work.content, format=wanted, size=livecopies.capacity(domain, device))
        snapshotwork.let_in(work)
    frozen = guestagent.quiesced(site, instance, instance.image_meta)
    livecopies.copy(domain, device=device, target=work.content, disk_format=wanted, begins_in=frozen)


def _publish(target: Path, content: Path) -> None:
    with translated(target):
        publish(content, target)
