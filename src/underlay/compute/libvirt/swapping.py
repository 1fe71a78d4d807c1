"""How another volume is put in an attached one's place while the guest runs: copied to, and then pivoted to.

While that goes on a file in the instance's directory says so, which its maker has locked. Who is killed leaves the file and no
lock, and whoever finds it makes things whole: the next driver that starts, or the next swap. Until the pivot that means that
the copy ends and the old volume stays; after it the new one does, and what is left to be done is done.

QEMU copies only between disks of one size. A volume that is larger is written as far as the old one reaches, and a guest sees
the rest when it starts next; a file can be told to be that size for the while, and then the guest sees all of it at once.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

import msgspec

from underlay import locks
from underlay.compute.arguments import ConnectionInfo, Instance
from underlay.compute.errors import (
    ComputeError,
    DiskNotFound,
    InstanceNotRunning,
    InvalidInput,
    NotSupported,
    OperationFailed,
)
from underlay.compute.libvirt import (
    attacheddisks,
    attaching,
    blockjobs,
    domain as domains,
    guestxml,
    localdisks,
    swapped,
    volumedisks,
    volumeplaces,
)
from underlay.compute.libvirt.attacheddisks import AttachedDisk
from underlay.compute.libvirt.directory import InstanceDirectory, directory_of
from underlay.compute.libvirt.diskplan import GIB
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.guest import GuestDisk
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.swapped import Swapped
from underlay.compute.libvirt.volume import Volume
from underlay.files import sync_directory, translated
from underlay.model import Attachment

_LOG = logging.getLogger(__name__)
_ENDS, _POLL = 10.0, 0.2  # seconds that libvirt may take to see that a guest has ended, and between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """What is being done, as it is written down.

    Attributes:
        device: whose volume is replaced. source, id: of the new volume.
        copied: bytes that are copied, of a volume that has more; None: all of it.
        file_size: bytes that the new volume's file really has; None: it is copied to as it is.
    """

    device: str
    source: str
    id: str | None
    copied: int | None = None
    file_size: int | None = None


def swap(site: Site, instance: Instance, old: ConnectionInfo, new: ConnectionInfo, name: str, *, resize_to: int) -> None:
    """Put a volume in another one's place, with what is on it. On any failure the old one stays.

    Args:
        name: the device. resize_to: GiB that the guest is to see from now on; 0: as many bytes as before.

    Raises:
        DiskNotFound: the old one is not attached. InstanceNotRunning, InstanceNotFound, VolumeDriverNotFound
        NotSupported: one of them is shared: what others write meanwhile would be lost.
        VolumeAttachFailed, InvalidInput, NotSupported: the new one. OperationFailed: it has not the room, or the copy failed.
    """
    before, after = volumedisks.read(site, old), volumedisks.read(site, new)
    for volume in (before, after):
        if volume.shared:
            raise NotSupported(f"volume {volume.name} cannot be swapped: other instances may have it")
    disks = DomainDisks(site.domain(instance))
    if not disks.domain.is_active():
        raise InstanceNotRunning(instance_id=instance.uuid)
    if volumeplaces.leads_to_own(site, before):
        raise DiskNotFound(location=before.source)
    if (why := attaching.kept_by(site, instance, disks)) is not None:
        raise OperationFailed(f"volume {before.name} cannot be swapped: {why}")
    with _alone(site.directory(instance)) as record:
        _settle(disks, record)
        if not _is_done(disks, before, after, name):
            disk = _attached(disks, before, after)
            volumeplaces.refuse_others(site, instance, after)  # all of it is about to be written over
            volumeplaces.refuse_open(after)
            wanted = _planned(disks, disk, after, resize_to=resize_to)
            noted = Swapped(old=before, new=after)
            swapped.note(site.directory(instance), noted)  # crash: it counts once the guest has the new one
            _replace(disks, record, wanted, volumedisks.opened(site, after), disk)
        if resize_to:
            _grow(disks, after, resize_to * GIB)


def settle_all(site: Site) -> None:
    """Make whole what is left of swaps whose maker was killed. What cannot be now is logged, and is by the next swap."""
    for uuid in domains.uuids(site.connection):
        path = _record(directory_of(site.host.config.instances, uuid))
        try:
            if path.exists():
                _settle_left(DomainDisks(Domain(site.connection, uuid)), path)
        except ComputeError as error:
            _LOG.warning("the swap of a volume of %s was interrupted, and cannot be made whole yet: %s", uuid, error)


def is_unfinished(directory: InstanceDirectory) -> bool:
    """Whether a volume is being swapped, or a swap was interrupted and is not made whole yet."""
    return os.path.lexists(_record(directory))


def forget(directory: InstanceDirectory) -> None:
    """Give the new volume of an interrupted swap its size again, before its record goes with the instance.

    Raises:
        OperationFailed
    """
    path = _record(directory)
    with localdisks.translated(), translated(path):
        told = path.read_bytes() if path.exists() else b""
    if told and (wanted := _read(told)) is not None:
        with localdisks.translated(), translated(Path(wanted.source)):
            _restore_size(wanted)


# ------------------------------------------------------------------------------------------------------------ before the copy


def _is_done(disks: DomainDisks, before: Volume, after: Volume, name: str) -> bool:
    """Whether the device has the new volume already, because who began was killed before it could say so."""
    live, lasting = disks.live(), disks.lasting()
    found = attacheddisks.reading(after, lasting)
    is_there = found is not None and found.device == name.removeprefix("/dev/")
    return is_there and attacheddisks.reading(after, live) is not None and attacheddisks.reading(before, lasting) is None


def _attached(disks: DomainDisks, before: Volume, after: Volume) -> AttachedDisk:
    lasting, running = attacheddisks.of_volume(before, disks.lasting()), disks.live()
    live = None if lasting is None else attacheddisks.at(lasting.device, running)
    if live is None:
        raise DiskNotFound(location=before.name)
    if attacheddisks.reading(after, running) is not None:
        raise OperationFailed(f"volume {after.name} is attached to the instance already")
    if disks.job(live.device) is not None:
        raise OperationFailed(f"something else is being done with {live.device}", hint="try again when it has ended")
    return live


def _planned(disks: DomainDisks, disk: AttachedDisk, after: Volume, *, resize_to: int) -> Swap:
    """Decide how the new volume is copied to.

    Raises:
        InvalidInput, NotSupported, OperationFailed
    """
    if after.read_only or after.format != "raw":
        raise NotSupported(f"volume {after.name} has to be raw, and to be written, for another to be copied to it")
    size, room = disks.capacity(disk.device), volumedisks.size_of(after)
    if resize_to and resize_to * GIB < size:
        raise InvalidInput(reason=f"resize_to is {resize_to} GiB, and {disk.device} has {size} bytes already")
    is_file = Path(after.source).is_file()
    if room is not None and (room < size or (resize_to * GIB > room and not is_file)):
        raise OperationFailed(f"volume {after.name} has {room} bytes, and is to have {max(size, resize_to * GIB)}")
    plan = Swap(device=disk.device, source=after.source, id=after.id)
    if room is None or room == size:
        return plan
    return replace(plan, file_size=room, copied=size) if is_file and resize_to else replace(plan, copied=size)


# ------------------------------------------------------------------------------------------------------------------- the copy


def _replace(disks: DomainDisks, record: Path, wanted: Swap, target: Attachment, disk: AttachedDisk) -> None:
    with localdisks.translated(), translated(record):
        _write(record, msgspec.json.encode(wanted))
    try:
        _copy(disks, wanted, _target_xml(wanted, target, disk))
    except ComputeError as error:
        if not _settled_as_new(disks, record, wanted):
            raise
        _LOG.warning("%s has its new volume, though libvirt did not say so: %s", wanted.device, error)
    except BaseException:
        _settled_as_new(disks, record, wanted)
        raise
    else:
        _settle(disks, record)


def _settled_as_new(disks: DomainDisks, record: Path, wanted: Swap) -> bool:
    """Make whole what failed, and tell whether the guest has the new volume nevertheless.

    A pivot whose answer was lost is one: who was told that it failed would give up the volume that the guest writes to.
    """
    try:
        _settle(disks, record)
        lasting, live = (attacheddisks.at(wanted.device, known) for known in (disks.lasting(), disks.live()))
    except ComputeError as error:  # the error that goes on is the one that matters; the record stays
        _LOG.warning("a failed swap of %s cannot be made whole yet: %s", wanted.device, error)
        return False
    is_running_with_it = live is None or live.source == wanted.source  # None: it has ended since
    return lasting is not None and lasting.source == wanted.source and is_running_with_it


def _copy(disks: DomainDisks, wanted: Swap, xml: str) -> None:
    try:
        if wanted.file_size is not None:
            _set_size(wanted, wanted.copied or 0)
        disks.begin_copy(wanted.device, xml)
        blockjobs.await_copy(disks, wanted.device)
        disks.pivot(wanted.device)
    except OperationFailed as error:
        what = f"volume {wanted.id or wanted.source} could not be put in the place of {wanted.device}: {error.message}"
        raise OperationFailed(what, hint=error.hint) from error


def _target_xml(wanted: Swap, target: Attachment, disk: AttachedDisk) -> str:
    element = guestxml.parsed(guestxml.disk_xml(GuestDisk(attachment=target, device=disk.device, bus=disk.bus)))
    source = element.find("source")
    if source is not None and wanted.copied is not None and wanted.file_size is None:
        slices = SubElement(source, "slices")
        SubElement(slices, "slice", type="storage", offset="0", size=str(wanted.copied))
    return tostring(element, encoding="unicode")


def _grow(disks: DomainDisks, after: Volume, size: int) -> None:
    """The new volume is in its place, so what fails now is told and does not undo that."""
    disk = attacheddisks.reading(after, disks.live())
    room = volumedisks.size_of(after)
    wanted = size if room is None or not Path(after.source).is_file() else max(size, room)
    try:
        if disk is not None and disks.capacity(disk.device) < wanted:
            attaching.grow(disks, disk.device, wanted)
    except ComputeError as error:
        _LOG.warning("the guest sees the size of volume %s when it starts next: %s", after.name, error)


# -------------------------------------------------------------------------------------------------------------- made whole


@contextmanager
def _alone(directory: InstanceDirectory) -> Iterator[Path]:
    """Nobody else swaps a volume of the instance. At the end nothing is left, unless it could not be made whole."""
    path = _record(directory)
    with ExitStack() as holding:
        with localdisks.translated(), translated(path):
            if holding.enter_context(locks.try_exclusive(path)) is None:
                raise OperationFailed(f"another volume of the instance {directory.uuid} is being swapped")
        try:
            yield path
        finally:
            with suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()


def _settle_left(disks: DomainDisks, path: Path) -> None:
    with localdisks.translated(), translated(path), locks.try_exclusive(path) as lock:
        if lock is not None:
            _settle(disks, path)
            path.unlink(missing_ok=True)


def _settle(disks: DomainDisks, record: Path) -> None:
    """What the record says is undone, or done to its end. The caller holds its lock."""
    with localdisks.translated(), translated(record):
        told = record.read_bytes()
    if not told:
        return
    if (wanted := _read(told)) is not None:
        _settle_swap(disks, wanted)
    with localdisks.translated(), translated(record):
        _write(record, b"")  # crash before: all of it is done once more, and finds nothing to do


def _settle_swap(disks: DomainDisks, wanted: Swap) -> None:
    disk = attacheddisks.at(wanted.device, disks.live())
    if disk is not None and disk.copied_to == wanted.source:
        _end_copy(disks, wanted.device)
    lasting = attacheddisks.at(wanted.device, disks.lasting())
    if lasting is not None and lasting.source == wanted.source:
        _finish_definition(disks, wanted)
    with localdisks.translated(), translated(Path(wanted.source)):
        _restore_size(wanted)


def _end_copy(disks: DomainDisks, device: str) -> None:
    """End a copy. QEMU answers nothing while its guest ends, with which the copy ends as well."""
    try:
        disks.abort(device)
        blockjobs.await_end(disks, device)
    except OperationFailed:
        if not _ends(disks.domain):
            raise


def _ends(domain: Domain) -> bool:
    deadline = time.monotonic() + _ENDS
    while domain.is_active():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def _finish_definition(disks: DomainDisks, wanted: Swap) -> None:
    """libvirt writes down where the new volume is, but not whose it is; that a part of it was copied matters no more."""
    domain = guestxml.parsed(disks.domain.xml(inactive=True))
    for disk in domain.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or source is None or target.get("dev") != wanted.device:
            continue
        for slices in source.findall("slices"):
            source.remove(slices)
        _set_serial(disk, wanted.id)
    domains.define(disks.domain.connection, tostring(domain, encoding="unicode"))


def _set_serial(disk: Element, volume_id: str | None) -> None:
    for serial in disk.findall("serial"):
        disk.remove(serial)
    if volume_id is not None:
        SubElement(disk, "serial").text = volume_id


def _set_size(wanted: Swap, size: int) -> None:
    with localdisks.translated(), translated(Path(wanted.source)):
        os.truncate(wanted.source, size)


def _restore_size(wanted: Swap) -> None:
    with suppress(FileNotFoundError):  # its owner has removed it
        if wanted.file_size is not None and os.stat(wanted.source).st_size < wanted.file_size:
            os.truncate(wanted.source, wanted.file_size)


def _record(directory: InstanceDirectory) -> Path:
    return directory.path / "swapping"


def _read(told: bytes) -> Swap | None:
    """The record; None of half a one, whose maker had begun nothing yet.

    Raises:
        OperationFailed
    """
    try:
        return msgspec.json.decode(told, type=Swap)
    except msgspec.ValidationError as error:
        raise OperationFailed(f"the record of a swap makes no sense: {error}", hint="remove the file 'swapping'") from error
    except msgspec.DecodeError:
        return None


def _write(record: Path, content: bytes) -> None:
    """In place: its lock is on the file itself."""
    with record.open("r+b") as file:
        file.truncate()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(record.parent)
