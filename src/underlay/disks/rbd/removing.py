"""An image goes: by librbd, which moves it into the pool's trash first and takes it apart there."""

from contextlib import suppress

from underlay.disks.rbd import renaming
from underlay.disks.rbd.looking import find
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.snapshots import remove_snapshot
from underlay.errors import DiskNotFound
from underlay.waiting import Pulse


def remove_image(image: ImageName) -> None:
    """Remove an image that has no snapshots; one that is gone is a success.

    Raises:
        DiskInUse, BackendUnavailable
    """
    pulse = Pulse()
    remove = image.cluster.library.rbd.RBD().remove
    with suppress(DiskNotFound):
        image.ask(lambda: remove(image.pool, image.name, pulse.beat), pulse=pulse)  # crash: a part of it, in the trash


def finish_removal(image: ImageName) -> None:
    """Take away what killed removers have left of an image that is not there any more.

    An image that others moved into the trash, to keep it there, is none of it.

    Raises:
        DiskInUse, BackendUnavailable
    """
    renaming.free(image)
    rbd = image.cluster.library.rbd.RBD()
    for one in image.ask(lambda: list(rbd.trash_list(image.pool))):
        if (one["name"], one["source"]) == (image.name, "REMOVING"):
            _purge(image, one["id"])


def _purge(image: ImageName, image_id: str) -> None:
    pulse = Pulse()
    remove = image.cluster.library.rbd.RBD().trash_remove
    with suppress(DiskNotFound):
        image.ask(lambda: remove(image.pool, image_id, force=True, on_progress=pulse.beat), pulse=pulse)


def discard(temporary: ImageName) -> None:
    """Remove an image that never got its name, with the snapshots that it may have already.

    Raises:
        DiskInUse, BackendUnavailable
    """
    left = find(temporary)
    if left is None:
        finish_removal(temporary)
        return
    for snapshot in left.snapshots:
        remove_snapshot(temporary, snapshot)
    remove_image(temporary)
