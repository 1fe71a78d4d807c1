"""What an image in a pool is: its size, what it says of itself, what it reads from, who has it open. Changes nothing.

A disk's record is a value of the image's metadata (``rbd image-meta``), which no guest reaches. A second one is on a disk that
is going: from then on it is no disk any more, however much of it is there.
"""

import struct
from dataclasses import dataclass
from typing import Any

from underlay.attributes import decode_disk_record
from underlay.disks.rbd.claim import Claim, decoded
from underlay.disks.rbd.cluster import Cluster
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.places import BACKEND
from underlay.errors import DiskExists, DiskNotFound, DiskUnrecorded
from underlay.filedisk import base_path_of
from underlay.model import DiskRecord, DiskSpec, InstanceDisk

RECORD = "underlay"
"""The key of a disk's record."""
GOING = "underlay.going"
"""The key of what marks a disk that is going: a `Claim`."""
SNAPSHOT = "underlay.snapshot"
"""The key of what marks an image that is the snapshot of a disk."""

_STRING = struct.Struct("<I")  # how Ceph encodes one: its length, then the bytes
_LOOKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An image.

    Attributes:
        id: by which Ceph tells it from others, whatever its name. size, allocated: bytes.
        record: what it says of itself; None: it is not ours, or not yet. claim: of who removes it.
        parent: what it reads from, as Ceph's tools write it, or None. watchers: the addresses of those who have it open.
        snapshots: by name, those that somebody asked for. is_snapshot: it was made as the snapshot of a disk.
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


def find(image: ImageName) -> Found | None:
    """The image of a name; None when there is none, though something may be left of one.

    Raises:
        DiskExists: it is there and cannot be opened. BackendUnavailable
    """
    for _ in range(_LOOKS):  # one that is published between the look and the question is seen by the second
        try:
            with image.opened() as opened:
                return image.ask(lambda: _found(image.cluster, opened))
        except DiskNotFound:
            if (image_id := named_id(image)) is None or not is_header_there(image, image_id):
                return None
    # Whose parent is not to be found is not to be found either, to librbd.
    hint = f"see rbd info {image.pool.name}/{image.name}"
    raise DiskExists(f"{image} is there and cannot be opened: what it reads from is gone", hint=hint)


def named_id(image: ImageName) -> str | None:
    """The id of the image that a name means, whether there is such an image; None: the name means nothing.

    It is in an object of the name's own, ``rbd_id.NAME`` (docs.ceph.com, "RBD layering" and librbd's `util::id_obj_name`).
    """
    try:
        content: bytes = image.ask(lambda: image.pool.read(f"rbd_id.{image.name}"))
    except DiskNotFound:
        return None
    return content[_STRING.size :].decode()


def is_header_there(image: ImageName, image_id: str) -> bool:
    """Whether there is anything of an image but its name."""
    try:
        image.ask(lambda: image.pool.stat(f"rbd_header.{image_id}"))
    except DiskNotFound:
        return False
    return True


def look(image: ImageName, want: DiskSpec) -> Found:
    """The image of a disk, which may be no disk of ours.

    Raises:
        DiskNotFound; DiskExists: another disk of ours has its place. BackendUnavailable
    """
    found = find(image)
    if found is None:
        raise DiskNotFound(f"there is no {image}")
    if found.claim is not None:
        raise DiskNotFound(f"{image} is being removed", hint="remove it again when who did was killed")
    if found.record is not None and not belongs_to(found, want):
        raise DiskExists(f"{image} is another disk: {found.record.name} of {found.record.instance}")
    return found


def look_at_ours(image: ImageName, want: DiskSpec) -> Found:
    """As `look`, for whoever is about to rely on its being the disk.

    Raises:
        DiskUnrecorded
    """
    found = look(image, want)
    refuse_foreign(image, found, want)
    return found


def refuse_foreign(image: ImageName, found: Found, want: DiskSpec) -> None:
    """Refuse an image that is not the disk, though it may be on its way out.

    Raises:
        DiskUnrecorded: nothing says that it is one. DiskExists: it is another.
    """
    if found.record is None:
        raise DiskUnrecorded(f"nothing says that {image} is a disk", hint="only a disk that Underlay made is touched")
    if not belongs_to(found, want):
        raise DiskExists(f"{image} is another disk: {found.record.name} of {found.record.instance}")


def belongs_to(found: Found, want: DiskSpec) -> bool:
    """Whether the image says that it is, or was, the disk that is meant."""
    return found.record is not None and (found.record.instance, found.record.name) == (want.instance, want.name)


def disk_of(found: Found, want: DiskSpec) -> InstanceDisk:
    """The image as a disk."""
    base_path = base_path_of(found.record)
    return InstanceDisk(
        instance=want.instance,
        name=want.name,
        path=want.path,
        backend=BACKEND,
        format=found.record.format if found.record else None,
        size=found.size,
        allocated=found.allocated,
        base=base_path.name if base_path else None,
        base_path=base_path,
        parent=found.parent,
        maker=found.record.maker if found.record else None,
    )


def said(image: Any, key: str) -> str | None:
    """What an open image says of itself by a key, if it does. To be called within `ImageName.ask`.

    The bindings of Ceph 16 that list all keys fail in the middle of an error of their own.
    """
    try:
        value: str = image.metadata_get(key)
    except KeyError:
        return None
    return value


def _found(cluster: Cluster, image: Any) -> Found:
    record, going = said(image, RECORD), said(image, GOING)
    asked_for = cluster.library.rbd.RBD_SNAP_NAMESPACE_TYPE_USER
    return Found(
        id=image.id(),
        size=image.size(),
        allocated=_allocated(cluster.library.rbd, image),
        record=decode_disk_record(None if record is None else record.encode()),
        claim=None if going is None else decoded(going.encode()),
        parent=_parent(cluster, image),
        watchers=tuple(watcher["addr"] for watcher in image.watchers_list()),
        snapshots=tuple(one["name"] for one in image.list_snaps() if one["namespace"] == asked_for),
        is_snapshot=said(image, SNAPSHOT) is not None,
    )


def _allocated(rbd: Any, image: Any) -> int:
    """Bytes of the objects that are there, by the image's map of them; without one that holds, all that it may have.

    librbd would ask each object in its stead, which takes minutes for a large image.
    """
    size: int = image.size()
    spoiled = rbd.RBD_FLAG_OBJECT_MAP_INVALID | rbd.RBD_FLAG_FAST_DIFF_INVALID
    if not image.features() & rbd.RBD_FEATURE_FAST_DIFF or image.flags() & spoiled:
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
