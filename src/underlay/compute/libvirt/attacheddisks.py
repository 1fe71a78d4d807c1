"""The disks that a domain has, read from its XML: on which devices, and from which files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os.path import realpath
from xml.etree.ElementTree import Element, tostring

from underlay.compute.libvirt.guestxml import parsed
from underlay.compute.libvirt.volume import LOCAL, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """One disk.

    Attributes:
        device: its name in the guest. source: the file, the device, or what its protocol calls it; empty: nothing is in it.
        format: as the driver is told. behind: the sources that it stands on, the nearest first, with libvirt's index of each.
        copied_to: where it is being copied to. commits: what is written is being merged into what is below.
        may_pivot: either is as far that the other may be written from now on.
        shared: other guests may have it at the same time. xml: as libvirt has it.
    """

    device: str
    bus: str
    serial: str | None
    source: str
    type: str
    format: str
    behind: tuple[tuple[str, int | None], ...]
    copied_to: str | None
    commits: bool
    may_pivot: bool
    shared: bool
    xml: str


def disks_in(xml: str) -> tuple[AttachedDisk, ...]:
    """All disks of a domain."""
    return tuple(_disk(element) for element in parsed(xml).iterfind("devices/disk"))


def has_scsi_controller(xml: str) -> bool:
    """Whether disks can sit on SCSI without a further controller."""
    return parsed(xml).find("devices/controller[@type='scsi']") is not None


def at(device: str, disks: Iterable[AttachedDisk]) -> AttachedDisk | None:
    """The disk on a device."""
    return next((disk for disk in disks if disk.device == device), None)


def of_volume(volume: Volume, disks: Iterable[AttachedDisk]) -> AttachedDisk | None:
    """The disk that a volume is, in a definition that lasts: by where it is, else by its id.

    A running guest keeps the serial of the volume that it began with when another is put in its place, so its definition for
    the next start is what to ask.
    """
    disks = tuple(disks)
    return reading(volume, disks) or with_id(volume.id, disks)


def reading(volume: Volume, disks: Iterable[AttachedDisk]) -> AttachedDisk | None:
    """The disk that reads from a volume, or stands on it."""
    return next((disk for disk in disks if any(is_same(volume, source) for source in sources_of(disk))), None)


def with_id(volume_id: str | None, disks: Iterable[AttachedDisk]) -> AttachedDisk | None:
    """The disk with a volume's id."""
    return next((disk for disk in disks if volume_id is not None and disk.serial == volume_id), None)


def sources_of(disk: AttachedDisk) -> tuple[str, ...]:
    """What it is read from, the uppermost first."""
    return tuple(filter(None, (disk.source, *(source for source, _ in disk.behind))))


def is_written_above(volume: Volume, disk: AttachedDisk) -> bool:
    """Whether what is written to a volume goes to another file since a snapshot."""
    return bool(disk.behind) and not is_same(volume, disk.source)


def backing_of(disk: AttachedDisk) -> str | None:
    """What it stands on, down to the last, as libvirt has it."""
    layer = parsed(disk.xml).find("backingStore")
    return None if layer is None else tostring(layer, encoding="unicode")


def is_same(volume: Volume, source: str) -> bool:
    """Whether a source of a disk is a volume."""
    if volume.source == source:
        return True
    return volume.kind == LOCAL and source.startswith("/") and realpath(volume.source) == realpath(source)


def _disk(element: Element) -> AttachedDisk:
    target, driver, mirror = element.find("target"), element.find("driver"), element.find("mirror")
    return AttachedDisk(
        device=_word(target, "dev"),
        bus=_word(target, "bus"),
        serial=element.findtext("serial"),
        source=_source(element),
        type=element.get("type", ""),
        format=_word(driver, "type"),
        behind=tuple(_behind(element)),
        copied_to=_source(mirror) if mirror is not None and mirror.get("job") == "copy" else None,
        commits=_word(mirror, "job") == "active-commit",
        may_pivot=_word(mirror, "ready") == "yes",
        shared=element.find("shareable") is not None,
        xml=tostring(element, encoding="unicode"),
    )


def _behind(element: Element) -> Iterator[tuple[str, int | None]]:
    layer = element.find("backingStore")
    while layer is not None and (found := _source(layer)):
        index = layer.get("index") or _word(layer.find("source"), "index")
        yield found, int(index) if index else None
        layer = layer.find("backingStore")


def _source(element: Element) -> str:
    source = element.find("source")
    return _word(source, "file") or _word(source, "dev") or _word(source, "name")


def _word(element: Element | None, name: str) -> str:
    return "" if element is None else element.get(name, "")
