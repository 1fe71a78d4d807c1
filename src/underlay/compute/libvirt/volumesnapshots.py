"""Snapshots of volumes through the hypervisor that has them open: writes go to a further file, and files are merged again.

The files are the storage's: it makes them, or has libvirt make them, and it removes them. A service that was killed calls
again, and finds what is done already.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from underlay.compute.arguments import ImageMeta, Instance
from underlay.compute.errors import (
    InstanceNotFound,
    InstanceNotRunning,
    InstanceQuiesceFailed,
    InternalError,
    NotSupported,
    OperationFailed,
    QemuGuestAgentNotEnabled,
)
from underlay.compute.libvirt import attacheddisks, attaching, blockjobs, volumeplaces
from underlay.compute.libvirt.attacheddisks import AttachedDisk, sources_of
from underlay.compute.libvirt.diskplan import properties_of
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.volume import LOCAL, Volume
from underlay.errors import InvalidName
from underlay.naming import plain_name

_HINT = "libvirt's log of the guest says why"
_TRUE = frozenset({"true", "yes", "1", "on"})


def create(site: Site, instance: Instance, volume_id: str, wanted: Mapping[str, Any]) -> None:
    """From now on have what is written to a volume go to a further file, beside the one that it has.

    Args:
        wanted: ``type``, ``snapshot_id`` and ``new_file``, the name of the file: an empty qcow2 image, or nothing yet.

    Raises:
        InternalError: another type, no id, no name of a file, or a volume that is none or no file. InstanceNotRunning
        NotSupported: it is shared: others would go on writing to the file below.
        QemuGuestAgentNotEnabled, InstanceQuiesceFailed: its image requires that it is quiesced. OperationFailed
    """
    _check_type(wanted)
    if not wanted.get("snapshot_id"):
        raise InternalError(err="a snapshot of a volume has no snapshot_id")
    disks = _running(site, instance)
    live = disks.live()
    disk = _disk(disks, volume_id, live)
    if disk.shared:
        raise NotSupported(f"volume {volume_id} has no snapshots: other instances may have it")
    new = _beside(site, disk, wanted.get("new_file"))
    if disk.source == new:
        return  # it is: who asked was killed before it heard so
    if new in sources_of(disk):
        raise InternalError(err=f"volume {volume_id} stands on {new} already")
    try:
        _take(disks, instance.image_meta, _snapshot_xml(live, disk, new), reuse=os.path.lexists(new))
    except OperationFailed:
        now = attacheddisks.at(disk.device, disks.live())
        if now is None or now.source != new:  # else libvirt was still doing it for who was killed
            raise


def delete(site: Site, instance: Instance, volume_id: str, snapshot_id: str, wanted: Mapping[str, Any]) -> None:
    """Merge files of a volume, so that one of them is needed no more.

    Args:
        wanted: ``type``; ``file_to_merge`` and ``merge_target_file``, names of files below the one that is written. With a
            target the first is written into it. Without one the file that is written takes in all down to the first, which
            it stands on then; without either, all.

    Raises:
        InternalError: another type, no id, or files that the volume does not stand on. InstanceNotRunning, OperationFailed
    """
    _check_type(wanted)
    if not snapshot_id:
        raise InternalError(err="a snapshot of a volume has no snapshot_id")
    disks = _running(site, instance)
    disk = _await_quiet(disks, volume_id)
    if wanted.get("merge_target_file") is None:
        _pull(disks, disk, wanted.get("file_to_merge"))
    else:
        _commit(disks, disk, wanted.get("file_to_merge"), wanted["merge_target_file"])


# ---------------------------------------------------------------------------------------------------------------- which volume


def _check_type(wanted: Mapping[str, Any]) -> None:
    if wanted.get("type") != "qcow2":
        raise InternalError(err=f"a snapshot of a volume is of the type {wanted.get('type')}: only qcow2 is known")


def _running(site: Site, instance: Instance) -> DomainDisks:
    disks = DomainDisks(site.domain(instance))
    try:
        if disks.domain.is_active():
            _refuse_rescued(site, instance, disks)
            return disks
    except InstanceNotFound as error:
        raise InstanceNotRunning(instance_id=instance.uuid) from error
    raise InstanceNotRunning(instance_id=instance.uuid)


def _refuse_rescued(site: Site, instance: Instance, disks: DomainDisks) -> None:
    """It comes back with the files that there were: of a further one it would know nothing, and write to the one below."""
    if (why := attaching.kept_by(site, instance, disks)) is not None:
        raise OperationFailed(f"the files of volumes stay as they are: {why}")


def _disk(disks: DomainDisks, volume_id: str, live: tuple[AttachedDisk, ...]) -> AttachedDisk:
    lasting = attacheddisks.with_id(volume_id, disks.lasting())
    found = None if lasting is None else attacheddisks.at(lasting.device, live)
    if found is None:
        raise InternalError(err=f"no volume {volume_id} is attached")
    return found


def _beside(site: Site, disk: AttachedDisk, name: object) -> str:
    if disk.type != "file":
        raise InternalError(err=f"volume {disk.serial} is no file, so nothing can lie beside it")
    try:
        new = Path(disk.source).parent / plain_name(str(name or ""), what="a snapshot's file")
    except InvalidName as error:
        raise InternalError(err=error.message) from error
    volumeplaces.check_place(site, os.fspath(new), Volume(kind=LOCAL, id=disk.serial, source=os.fspath(new)))
    return os.fspath(new)


# ------------------------------------------------------------------------------------------------------------------- snapshot


def _take(disks: DomainDisks, image: ImageMeta, xml: str, *, reuse: bool) -> None:
    """Quiesced where the guest has an agent; without, only if its image does not require it."""
    required = _is_true(image, "os_require_quiesce")
    if not _is_true(image, "hw_qemu_guest_agent"):
        if required:
            raise QemuGuestAgentNotEnabled
        disks.snapshot(xml, reuse=reuse, quiesced=False)
        return
    try:
        disks.snapshot(xml, reuse=reuse, quiesced=True)
    except OperationFailed as error:
        if required:
            raise InstanceQuiesceFailed(reason=error.message) from error
        disks.snapshot(xml, reuse=reuse, quiesced=False)


def _is_true(image: ImageMeta, name: str) -> bool:
    return str(properties_of(image).get(name)).lower() in _TRUE


def _snapshot_xml(live: tuple[AttachedDisk, ...], disk: AttachedDisk, new: str) -> str:
    """A snapshot of one disk, and of no other: libvirt takes those that are not named as well."""
    snapshot = Element("domainsnapshot")
    disks = SubElement(snapshot, "disks")
    for one in live:
        if one.device != disk.device:
            SubElement(disks, "disk", name=one.device, snapshot="no")
    element = SubElement(disks, "disk", name=disk.device, snapshot="external", type="file")
    SubElement(element, "driver", type="qcow2")
    SubElement(element, "source", file=new)
    return tostring(snapshot, encoding="unicode")


# ---------------------------------------------------------------------------------------------------------------------- merge


def _await_quiet(disks: DomainDisks, volume_id: str) -> AttachedDisk:
    """What was begun for who was killed meanwhile goes on by itself; only a commit of what is written has to be ended."""
    disk = _disk(disks, volume_id, disks.live())
    if disk.commits:
        _end_commit(disks, disk)
    else:
        blockjobs.await_end(disks, disk.device)
    return _disk(disks, volume_id, disks.live())


def _pull(disks: DomainDisks, disk: AttachedDisk, base: str | None) -> None:
    position = None if base is None else _position(disk, base)
    if position == 0:
        raise InternalError(err=f"{base} is what the guest writes, and cannot be merged into itself")
    if position == 1 or (position is None and not disk.behind):
        return  # it is
    disks.begin_pull(disk.device, None if position is None else _layer(disk, position))
    blockjobs.await_end(disks, disk.device)
    now = attacheddisks.at(disk.device, disks.live())
    wanted = () if position is None else sources_of(disk)[position:]
    if now is None or sources_of(now)[1:] != wanted:
        raise OperationFailed(f"the files of volume {disk.serial} could not be merged", hint=_HINT)


def _commit(disks: DomainDisks, disk: AttachedDisk, top: str | None, base: str) -> None:
    if top is None:
        raise InternalError(err="a merge with a target has a file that is merged into it")
    below = _position(disk, base)
    if not _stands_on(disk, top):
        return  # it is merged
    above = _position(disk, top)
    if above >= below:
        raise InternalError(err=f"volume {disk.serial} does not stand on {base} below {top}")
    disks.begin_commit(disk.device, top=_layer(disk, above) if above else None, base=_layer(disk, below))
    if above:
        blockjobs.await_end(disks, disk.device)
    else:
        _end_commit(disks, disk)
    now = attacheddisks.at(disk.device, disks.live())
    if now is None or _stands_on(now, top):
        raise OperationFailed(f"the files of volume {disk.serial} could not be merged", hint=_HINT)


def _end_commit(disks: DomainDisks, disk: AttachedDisk) -> None:
    try:
        blockjobs.await_copy(disks, disk.device)
        disks.pivot(disk.device)
    except OperationFailed:
        with suppress(OperationFailed):  # it may have ended by itself
            disks.abort(disk.device)
        raise


def _stands_on(disk: AttachedDisk, name: str) -> bool:
    return any(_is_called(source, name) for source in sources_of(disk))


def _position(disk: AttachedDisk, name: str) -> int:
    """Which of the files that a volume is made of has this name, from the one that is written on.

    Raises:
        InternalError
    """
    for position, source in enumerate(sources_of(disk)):
        if _is_called(source, name):
            return position
    raise InternalError(err=f"volume {disk.serial} does not stand on {name}")


def _is_called(source: str, name: str) -> bool:
    return source == name or ("/" not in name and os.path.basename(source) == name)


def _layer(disk: AttachedDisk, position: int) -> str:
    """How libvirt is told of one of them."""
    source, index = disk.behind[position - 1]
    return source if index is None else f"{disk.device}[{index}]"
