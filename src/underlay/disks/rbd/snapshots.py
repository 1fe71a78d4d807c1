"""Snapshots: those of disks, which become images of their own, and those of images, from which disks are cloned.

A clone needs the snapshot that it was made from for as long as it reads from it. Clones of the older kind want it protected
(``rbd snap protect``) before they are made; which kind is made, librbd decides by what the Ceph's clients must understand.
"""

from collections.abc import Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any

from underlay.disks.rbd.cluster import Cluster, spoken
from underlay.disks.rbd.looking import GOING, RECORD, SNAPSHOT, Found
from underlay.disks.rbd.places import Location
from underlay.errors import DiskInUse, DiskNotFound, StorageFailed, UnderlayError
from underlay.waiting import Pulse

_OURS = "underlay."
LASTING = "snap"
"""The snapshot of an image that disks are cloned from, as Glance calls its own."""

_TOLD = 3  # children that a message names


def clone(cluster: Cluster, pool: Any, name: str, *, parent: tuple[Any, str, str], data_pool: str | None = None) -> None:
    """Make an image that reads from a snapshot; nothing is copied, however large it is.

    Args:
        parent: its pool, image and snapshot.

    Raises:
        DiskNotFound: the snapshot. BackendUnavailable, InsufficientSpace
    """
    of, image, snapshot = parent
    options = {} if data_pool is None else {"data_pool": data_pool}

    def make() -> None:
        cluster.library.rbd.RBD().clone(of, image, snapshot, pool, name, **options)

    try:
        cluster.ask(make, of=spoken(pool, name))
    except StorageFailed:
        if is_protected(cluster, of, image, snapshot):
            raise
        protect(cluster, of, image, snapshot)
        cluster.ask(make, of=spoken(pool, name))


def is_protected(cluster: Cluster, pool: Any, image: str, snapshot: str) -> bool:
    """Whether a snapshot is protected."""
    with cluster.image(pool, image) as opened:
        return bool(cluster.ask(lambda: opened.is_protected_snap(snapshot), of=spoken(pool, image, snapshot)))


def protect(cluster: Cluster, pool: Any, image: str, snapshot: str) -> None:
    """Protect a snapshot, which is not yet."""
    with cluster.image(pool, image, read_only=False) as opened:
        cluster.ask(lambda: opened.protect_snap(snapshot), of=spoken(pool, image, snapshot))


def make_snapshot(cluster: Cluster, pool: Any, image: str, snapshot: str) -> None:
    """Have an image keep what it is now.

    Raises:
        DiskExists: there is one of this name.
    """
    with cluster.image(pool, image, read_only=False) as opened:
        cluster.ask(lambda: opened.create_snap(snapshot), of=spoken(pool, image, snapshot))


def remove_snapshot(cluster: Cluster, pool: Any, image: str, snapshot: str) -> None:
    """Remove a snapshot that nothing reads from; one that is gone is a success.

    Raises:
        DiskInUse: something does.
    """
    what = spoken(pool, image, snapshot)
    with cluster.image(pool, image, read_only=False) as opened, suppress(DiskNotFound):
        if cluster.ask(lambda: opened.is_protected_snap(snapshot), of=what):
            cluster.ask(lambda: opened.unprotect_snap(snapshot), of=what)  # crash: one that is not protected
        cluster.ask(lambda: opened.remove_snap(snapshot), of=what)


def name_of_ours() -> str:
    """A name for a snapshot that lasts as long as a piece of work."""
    return f"{_OURS}{token_hex(8)}"


def take_away_our_snapshots(cluster: Cluster, pool: Any, image: str, found: Found) -> None:
    """Remove what a killed maker of a snapshot left on a disk. The caller holds the disk's lock.

    Raises:
        DiskInUse: what it made of it is still there.
    """
    for snapshot in found.snapshots:
        if snapshot.startswith(_OURS):
            remove_snapshot(cluster, pool, image, snapshot)


def refuse_needed(cluster: Cluster, pool: Any, image: str) -> None:
    """Refuse to remove an image of which something else is kept or reads.

    Raises:
        DiskInUse
    """
    with cluster.image(pool, image) as opened:
        snapshots = cluster.ask(lambda: [one["name"] for one in opened.list_snaps()], of=spoken(pool, image))
    for snapshot in snapshots:
        if needed_by := children(cluster, pool, image, snapshot):
            raise DiskInUse(
                f"{spoken(pool, image, snapshot)} is read by {_told(needed_by)}", hint="flatten or remove what was made from it"
            )
    if snapshots:
        raise DiskInUse(f"{spoken(pool, image)} has snapshots: {_told(snapshots)}", hint="remove them: rbd snap purge")


def children(cluster: Cluster, pool: Any, image: str, snapshot: str) -> list[str]:
    """What reads from a snapshot, after what is only waiting in the trash was purged as far as it may be.

    Raises:
        DiskNotFound: there is no such snapshot. BackendUnavailable
    """
    with cluster.image(pool, image, snapshot=snapshot) as opened:
        found = cluster.ask(lambda: list(opened.list_children2()), of=spoken(pool, image, snapshot))
    return [f"{child['pool']}/{child['image']}" for child in found if not (child["trash"] and _purged(cluster, child))]


def _purged(cluster: Cluster, child: dict[str, Any]) -> bool:
    """Whether an image in the trash could be removed for good: not so before the time that it is kept there for is over."""
    pulse = Pulse()
    try:
        pool = cluster.pool(child["pool"])
        pool.set_namespace(child["pool_namespace"])
        remove = cluster.library.rbd.RBD().trash_remove
        cluster.ask(
            lambda: remove(pool, child["id"], False, pulse.beat), of=f"image {child['image']} in the trash", pulse=pulse
        )
    except UnderlayError:
        return False
    return True


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def flatten(cluster: Cluster, pool: Any, image: str) -> None:
    """Have an image hold all that it reads; one that reads from no other is left as it is.

    A crash leaves an image that holds more of it, and reads the same.
    """
    pulse = Pulse()
    with cluster.image(pool, image, read_only=False) as opened:
        cluster.ask(lambda: _flatten(cluster, opened, pulse), of=spoken(pool, image), pulse=pulse)


def _flatten(cluster: Cluster, image: Any, pulse: Pulse) -> None:
    try:
        image.get_parent_image_spec()
    except cluster.library.rbd.ImageNotFound:
        return
    image.flatten(pulse.beat)


def make_lasting(cluster: Cluster, pool: Any, name: str) -> None:
    """Make an image the kind that disks are cloned from: with a snapshot that is protected, and no record of a disk."""

    def say(image: Any) -> None:
        for key in {RECORD, GOING} & dict(image.metadata_list()).keys():
            image.metadata_remove(key)  # librbd gives a clone what its parent says of itself
        image.metadata_set(SNAPSHOT, "1")

    with cluster.image(pool, name, read_only=False) as opened:
        cluster.ask(lambda: say(opened), of=spoken(pool, name))
    make_snapshot(cluster, pool, name, LASTING)
    protect(cluster, pool, name, LASTING)


def location_of(cluster: Cluster, pool: Any, name: str) -> Location:
    """Where an image is that was made so."""
    return Location(fsid=cluster.fsid(), pool=pool.name, image=name, snapshot=LASTING)
