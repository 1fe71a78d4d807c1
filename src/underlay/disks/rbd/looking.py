"""What an image in a pool is: its size, what it says of itself, what it reads from, who has it open. Changes nothing.

A disk's record is a value of the image's metadata (``rbd image-meta``), which no guest reaches. A second one is on a disk that
is going: from then on it is no disk any more, however much of it is there.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from underlay.attributes import decode_disk_record
from underlay.disks.rbd.cluster import Cluster
from underlay.errors import DiskNotFound
from underlay.filedisk import base_path_of
from underlay.model import DiskRecord, DiskSpec, InstanceDisk

RECORD = "underlay"
"""The key of a disk's record."""
GOING = "underlay.going"
"""The key of what marks a disk that is going: a `Claim`."""
SNAPSHOT = "underlay.snapshot"
"""The key of what marks an image that is the snapshot of a disk."""

_FAST_DIFF = 1 << 4  # RBD_FEATURE_FAST_DIFF of librbd's features.h


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at work on an image.

    Attributes:
        host: where. address: of the connection, as Ceph shows those who watch an image.
        made_at: seconds since the epoch, by that host's clock.
    """

    host: str
    address: str
    made_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An image.

    Attributes:
        id: by which Ceph tells it from others, whatever its name. size, allocated: bytes.
        record: what it says of itself; None: it is not ours, or not yet. claim: of who removes it.
        parent: what it reads from, as Ceph's tools write it, or None. watchers: the addresses of those who have it open.
        snapshots: by name. is_snapshot: it was made as the snapshot of a disk.
    """

    id: str
    size: int
    allocated: int
    record: DiskRecord | None
    claim: Claim | None
    parent: str | None
    watchers: tuple[str, ...]
    snapshots: tuple[str, ...]
    is_snapshot: bool


def look(cluster: Cluster, pool: Any, name: str) -> Found:
    """The image of a name.

    Raises:
        DiskNotFound, BackendUnavailable
    """
    with cluster.image(pool, name) as image:
        return cluster.ask(lambda: _found(cluster, image), of=f"image {pool.name}/{name}")


def find(cluster: Cluster, pool: Any, name: str) -> Found | None:
    """As `look`; None when there is none."""
    try:
        return look(cluster, pool, name)
    except DiskNotFound:
        return None


def _found(cluster: Cluster, image: Any) -> Found:
    told = dict(image.metadata_list())
    return Found(
        id=image.id(),
        size=image.size(),
        allocated=_allocated(image),
        record=decode_disk_record(_value(told, RECORD)),
        claim=_claim(_value(told, GOING)),
        parent=_parent(cluster, image),
        watchers=tuple(watcher["addr"] for watcher in image.watchers_list()),
        snapshots=tuple(snapshot["name"] for snapshot in image.list_snaps()),
        is_snapshot=SNAPSHOT in told,
    )


def _value(told: dict[str, str], key: str) -> bytes | None:
    return told[key].encode() if key in told else None


def _claim(value: bytes | None) -> Claim | None:
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=Claim)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Claim(host="", address="", made_at=0.0)  # marked all the same


def _allocated(image: Any) -> int:
    """Bytes of the objects that are there, by the image's map of them; without a map, all that it may have."""
    size: int = image.size()
    if not image.features() & _FAST_DIFF:
        return size
    lengths: list[int] = []

    def hear(_: int, length: int, exists: bool) -> None:  # noqa: FBT001 - librbd calls it so
        lengths.append(length if exists else 0)

    image.diff_iterate(0, size, None, hear, include_parent=False, whole_object=True)
    return sum(lengths)


def _parent(cluster: Cluster, image: Any) -> str | None:
    try:
        parent = image.get_parent_image_spec()
    except cluster.library.rbd.ImageNotFound:
        return None
    space = f"{parent['pool_namespace']}/" if parent["pool_namespace"] else ""
    return f"rbd:{parent['pool_name']}/{space}{parent['image_name']}@{parent['snap_name']}"


def is_disk(found: Found | None, want: DiskSpec) -> bool:
    """Whether it is a disk, as far as it says, and the one that is meant."""
    if found is None or found.record is None or found.claim is not None:
        return False
    return (found.record.instance, found.record.name) == (want.instance, want.name)


def disk_of(found: Found, want: DiskSpec) -> InstanceDisk:
    """The image as a disk."""
    base_path = base_path_of(found.record)
    return InstanceDisk(
        instance=want.instance,
        name=want.name,
        path=want.path,
        backend="rbd",
        format=found.record.format if found.record else None,
        size=found.size,
        allocated=found.allocated,
        base=base_path.name if base_path else None,
        base_path=base_path,
        parent=found.parent,
    )
