"""What a logical volume is: its size, what its tags say of it, what it stands on, who has it open. Changes nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from underlay.disks.lvm import names
from underlay.disks.lvm.commands import Group
from underlay.errors import DiskNotFound, ToolFailed
from underlay.filedisk import base_path_of
from underlay.model import DiskRecord, DiskSpec, InstanceDisk

HEADER_BYTES = 16 << 20
"""At the beginning of an encrypted volume, which its guest does not see."""

_FIELDS = (
    *("lv_name", "lv_uuid", "lv_size", "lv_tags", "lv_role", "lv_active", "lv_device_open", "lv_descendants"),
    *(
        "lv_snapshot_invalid",
        "origin",
        "origin_size",
        "pool_lv",
        "segtype",
        "data_percent",
        "metadata_percent",
        "chunk_size",
        "zero",
    ),
    "vg_extent_size",
)

_OPEN: Mapping[str, bool] = MappingProxyType({"open": True, "": False, "unknown": False})  # unknown: there is no device


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A logical volume.

    Attributes:
        uuid: by which LVM tells it from others, whatever its name.
        size: bytes that who opens it sees. occupied: bytes that it has of its group or its pool.
        origin: the volume of which it is a snapshot, or None. is_snapshot: and that outside a thin pool, so that it cannot do
            without its origin. is_lost: and it ran out of room, so that nobody reads or writes it any more.
        is_thin: in a pool, where what nobody wrote reads as zeros.
        snapshots: volumes that were made as snapshots of it.
        extent: bytes of which its size is a multiple.
        used, used_by_tables: of a pool, percent of its data and of its metadata. chunk: bytes that it gives out at once.
        gives_zeros: of a pool: what it gives out reads as zeros.
    """

    name: str
    uuid: str
    size: int
    occupied: int
    tags: tuple[str, ...]
    origin: str | None
    is_snapshot: bool
    is_lost: bool
    is_thin: bool
    is_active: bool
    is_open: bool
    snapshots: tuple[str, ...]
    extent: int
    used: float
    used_by_tables: float
    chunk: int
    gives_zeros: bool

    @property
    def record(self) -> DiskRecord | None:
        """What it says of itself; None: it is no disk of ours."""
        return names.record_in(self.tags)

    @property
    def is_encrypted(self) -> bool:
        """Whether its guest's bytes are encrypted."""
        return names.ENCRYPTED in self.tags

    @property
    def is_whole(self) -> bool:
        """Whether its making came to its end, and nobody removes it."""
        return names.GOING not in self.tags and names.unfinished(self.size) not in self.tags

    @property
    def visible(self) -> int:
        """Bytes that its guest sees."""
        return self.size - (HEADER_BYTES if self.is_encrypted else 0)

    @property
    def free(self) -> int:
        """Of a pool: bytes that it can give out."""
        return int(self.size * max(0.0, 100.0 - self.used) / 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is of a disk.

    Attributes:
        named: what has the disk's name, whatever it is. left: what was made for it and has not got its name.
        pool: the thin pool. image: the volume of its image, which was asked for by name.
    """

    named: Volume | None
    left: tuple[Volume, ...]
    pool: Volume | None
    image: Volume | None

    @property
    def replacement(self) -> Volume | None:
        """What is whole and about to take the disk's place."""
        return next((volume for volume in self.left if names.WHOLE in volume.tags), None)

    @property
    def disk(self) -> Volume | None:
        """What is the disk now, or stands where it should be."""
        named = self.named if self.named is not None and self.named.is_whole else None
        return self.replacement or named


def find(group: Group, volume: str, *, pool: str | None, image: str | None = None) -> Found:
    """What there is of the disk of a volume.

    Args:
        pool, image: the names of a thin pool, and of an image's volume, that are looked at as well.

    Raises:
        BackendUnavailable, ToolMissing, ToolFailed
    """
    wanted = [f'lv_tags="{names.made_for(volume)}"', *(f'lv_name="{name}"' for name in (volume, pool, image) if name)]
    found = {one.name: one for one in volumes(group, " || ".join(wanted))}
    return Found(
        named=found.get(volume),
        left=tuple(one for name, one in found.items() if names.is_temporary(name, volume)),
        pool=found.get(pool or ""),
        image=found.get(image or ""),
    )


def look(group: Group, volume: str, *, pool: str | None = None) -> tuple[Found, Volume]:
    """As `find`, with the disk.

    Raises:
        DiskNotFound
    """
    found = find(group, volume, pool=pool)
    if found.disk is None:
        why = "it is being removed" if found.named else "nothing is there"
        raise DiskNotFound(f"there is no disk {names.device(group.name, volume)}: {why}")
    return found, found.disk


def volumes(group: Group, which: str) -> Iterator[Volume]:
    """The volumes that a selection of LVM's (lvmreport(7)) names."""
    rows = group.report("lvs", "--select", which, fields=_FIELDS)  # one for each segment
    return map(_volume, {row["lv_uuid"]: row for row in rows}.values())


def _volume(row: Mapping[str, str]) -> Volume:
    roles, size, used = row["lv_role"].split(","), int(row["lv_size"]), _number(row["data_percent"])
    is_snapshot, is_thin = "thicksnapshot" in roles, row["segtype"] == "thin"
    return Volume(
        name=row["lv_name"],
        uuid=row["lv_uuid"],
        size=int(row["origin_size"]) if is_snapshot else size,
        occupied=int(size * used / 100) if is_thin or is_snapshot else size,
        tags=tuple(filter(None, row["lv_tags"].split(","))),
        origin=row["origin"] or None,
        is_snapshot=is_snapshot,
        is_lost=row["lv_snapshot_invalid"] == "snapshot invalid",
        is_thin=is_thin,
        is_active=row["lv_active"] == "active",
        is_open=_is_open(row["lv_device_open"]),
        snapshots=tuple(filter(None, row["lv_descendants"].split(","))),
        extent=int(row["vg_extent_size"]),
        used=used,
        used_by_tables=_number(row["metadata_percent"]),
        chunk=int(row["chunk_size"] or 0),
        gives_zeros=row["zero"] == "zero",
    )


def _is_open(word: str) -> bool:
    if word not in _OPEN:
        raise ToolFailed(f"LVM's report cannot be read: it says of a device, which is open or not, that it is {word}")
    return _OPEN[word]


def _number(text: str) -> float:
    return float(text) if text else 0.0


def rounded(size: int, extent: int) -> int:
    """A size as the group has it."""
    return -(-size // extent) * extent


def is_disk(volume: Volume, want: DiskSpec) -> bool:
    """Whether it is the disk that is meant, as far as it says."""
    record = volume.record
    return record is not None and (record.instance, record.name) == (want.instance, want.name)


def disk_of(group: Group, volume: Volume, want: DiskSpec) -> InstanceDisk:
    """The volume as a disk."""
    parent = f"lvm:{group.name}/{volume.origin}" if volume.is_snapshot else None
    return made(want, volume.record, size=volume.visible, occupied=volume.occupied, parent=parent)


def made(want: DiskSpec, record: DiskRecord | None, *, size: int, occupied: int, parent: str | None) -> InstanceDisk:
    """A disk of which this is known."""
    base_path = base_path_of(record)
    return InstanceDisk(
        instance=want.instance,
        name=want.name,
        path=want.path,
        backend="lvm",
        format=record.format if record else None,
        size=size,
        allocated=occupied,
        base=base_path.name if base_path else None,
        base_path=base_path,
        parent=parent,
        maker=record.maker if record else None,
    )
