"""Snapshots within an image: those of disks, for as long as they are copied, and those from which disks are cloned.

A clone needs the snapshot that it was made from for as long as it reads from it. Clones of the older kind want it protected
(``rbd snap protect``) before they are made, and keep it there. Those of the newer kind do not; a snapshot that they read from
goes into a namespace of its own when it is removed, until they are gone. Which kind is made, librbd decides by what the Ceph's
clients must understand.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from underlay.disks.rbd.cluster import Cluster
from underlay.disks.rbd.looking import RECORD, SNAPSHOT, Found, said
from underlay.disks.rbd.named import ImageName
from underlay.errors import DiskInUse, DiskNotFound, StorageFailed
from underlay.waiting import Pulse

_OURS = "underlay."
_TOLD = 3  # children that a message names


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """An image that reads from a snapshot."""

    pool: str
    namespace: str
    name: str
    id: str
    is_in_trash: bool

    def __str__(self) -> str:
        return f"{self.pool}/{f'{self.namespace}/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot of an image.

    Attributes:
        is_asked_for: somebody made it, and may want it, other than those that Ceph keeps for itself.
    """

    name: str
    is_asked_for: bool
    children: tuple[Child, ...]


def clone(parent: ImageName, snapshot: str, new: ImageName, *, data_pool: str | None) -> None:
    """Make an image that reads from a snapshot; nothing is copied, however large it is.

    Raises:
        DiskNotFound: the snapshot. StorageFailed: it is none to clone from. BackendUnavailable, InsufficientSpace
    """
    rbd, options = parent.cluster.library.rbd.RBD(), {} if data_pool is None else {"data_pool": data_pool}

    def make() -> None:
        rbd.clone(parent.pool, parent.name, snapshot, new.pool, new.name, **options)

    try:
        new.ask(make)
    except StorageFailed:
        if is_protected(parent, snapshot):
            raise
        protect(parent, snapshot)
        new.ask(make)


def is_protected(image: ImageName, snapshot: str) -> bool:
    """Whether a snapshot is protected."""
    with image.opened() as opened:
        return bool(image.ask(lambda: opened.is_protected_snap(snapshot)))


def protect(image: ImageName, snapshot: str) -> None:
    """Protect a snapshot; one that another has protected meanwhile is a success."""
    try:
        with image.opened(read_only=False) as opened:
            image.ask(lambda: opened.protect_snap(snapshot))
    except DiskInUse:
        if not is_protected(image, snapshot):
            raise


def make_snapshot(image: ImageName, snapshot: str) -> None:
    """Have an image keep what it is now.

    Raises:
        DiskExists: there is one of this name.
    """
    with image.opened(read_only=False) as opened:
        image.ask(lambda: opened.create_snap(snapshot))


def remove_snapshot(image: ImageName, snapshot: str) -> None:
    """Remove a snapshot that nothing reads from; one that is gone is a success.

    Raises:
        DiskInUse: something does.
    """
    with suppress(DiskNotFound), image.opened(read_only=False) as opened:
        if image.ask(lambda: opened.is_protected_snap(snapshot)):
            image.ask(lambda: opened.unprotect_snap(snapshot))  # crash: one that is not protected
        image.ask(lambda: opened.remove_snap(snapshot))


def name_of_ours(token: str) -> str:
    """The name of a snapshot that lasts as long as a piece of work."""
    return f"{_OURS}{token}"


def take_away_ours(image: ImageName, found: Found, *, alive: Collection[str]) -> None:
    """Remove the snapshots of a disk that work has left which is not ``alive`` any more. The caller holds the disk's lock.

    Raises:
        DiskInUse: what was made of one is still there.
    """
    for snapshot in found.snapshots:
        if snapshot.startswith(_OURS) and snapshot.removeprefix(_OURS) not in alive:
            remove_snapshot(image, snapshot)


def flatten(image: ImageName) -> None:
    """Have an image hold all that it reads; one that reads from no other is left as it is.

    A crash leaves an image that holds more of it, and reads the same.
    """
    pulse = Pulse()
    with image.opened(read_only=False) as opened:
        image.ask(lambda: _flatten(image.cluster, opened, pulse), pulse=pulse)


def _flatten(cluster: Cluster, image: Any, pulse: Pulse) -> None:
    try:
        image.get_parent_image_spec()
    except cluster.library.rbd.ImageNotFound:
        return
    image.flatten(pulse.beat)


# ------------------------------------------------------------------------------------------------------- what is needed


def refuse_needed(image: ImageName, *, besides: Collection[str] = ()) -> None:
    """Refuse to remove an image of which something else is kept or reads; what reads from it in the trash only, is purged.

    Args:
        besides: snapshots that go with the image.

    Raises:
        DiskInUse
    """
    snapshots = kept(image)
    for snapshot in snapshots:
        if needed_by := [child for child in snapshot.children if not _is_purgeable(image, child)]:
            what = f"{image}@{snapshot.name} is read by {_told(list(map(str, needed_by)))}"
            raise DiskInUse(what, hint="flatten or remove what was made from it")
    if names := [snapshot.name for snapshot in snapshots if snapshot.is_asked_for and snapshot.name not in besides]:
        raise DiskInUse(f"{image} has snapshots: {_told(names)}", hint="remove them: rbd snap purge")
    for snapshot in snapshots:
        for child in snapshot.children:
            _purge(image, child)


def kept(image: ImageName) -> Sequence[Snapshot]:
    """The snapshots of an image, and what reads from each; changes nothing."""
    rbd, pulse = image.cluster.library.rbd, Pulse()
    asked_for = (rbd.RBD_SNAP_NAMESPACE_TYPE_USER, rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP)

    def look() -> list[Snapshot]:
        return [
            Snapshot(
                name=one["trash"]["original_name"] if "trash" in one else one["name"],
                is_asked_for=one["namespace"] in asked_for,
                children=_children(opened, one["id"], pulse),
            )
            for one in opened.list_snaps()
        ]

    with image.opened() as opened:
        return image.ask(look, pulse=pulse)


def _children(image: Any, snapshot_id: int, pulse: Pulse) -> tuple[Child, ...]:
    pulse.beat()
    image.set_snap_by_id(snapshot_id)  # those that Ceph keeps for itself have no name to open them by
    return tuple(
        Child(pool=one["pool"], namespace=one["pool_namespace"], name=one["image"], id=one["id"], is_in_trash=one["trash"])
        for one in image.list_children2()
    )


def _is_purgeable(image: ImageName, child: Child) -> bool:
    """Whether an image is in the trash, ours, and not to be kept there any longer."""
    if not child.is_in_trash:
        return False
    library, pool = image.cluster.library.rbd, _pool_of(image, child)

    def look() -> bool:
        told = library.RBD().trash_get(pool, child.id)
        with library.Image(pool, image_id=child.id, read_only=True) as opened:
            is_ours = said(opened, RECORD) is not None or said(opened, SNAPSHOT) is not None
        return is_ours and told["deferment_end_time"].replace(tzinfo=UTC) <= datetime.now(UTC)

    try:
        return image.cluster.ask(look, of=f"image {child} in the trash")
    except DiskNotFound:  # restored, or gone: the next look tells
        return False


def _purge(image: ImageName, child: Child) -> None:
    pool, pulse, remove = _pool_of(image, child), Pulse(), image.cluster.library.rbd.RBD().trash_remove
    with suppress(DiskNotFound):
        image.cluster.ask(lambda: remove(pool, child.id, False, pulse.beat), of=f"image {child} in the trash", pulse=pulse)


def _pool_of(image: ImageName, child: Child) -> Any:
    pool = image.cluster.pool(child.pool)
    pool.set_namespace(child.namespace)
    return pool


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
