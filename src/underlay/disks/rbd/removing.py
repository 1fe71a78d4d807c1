"""An image goes: by librbd, which moves it into the pool's trash first and takes it apart there."""

import struct
from contextlib import suppress

from underlay.disks.rbd import renaming
from underlay.disks.rbd.looking import find, named_id
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.snapshots import remove_snapshot
from underlay.errors import DiskNotFound, StorageFailed
from underlay.waiting import Pulse

_TRASH, _ID = "rbd_trash", "id_"  # RBD_TRASH of librbd, and with what its keys begin
_REMOVING = b"\x03"  # TRASH_IMAGE_SOURCE_REMOVING
_AT_ONCE = 1000


def keep_trash(image: ImageName) -> None:
    """Have the pool's trash be there: a pool that is full has no room for a new one, and nothing could be removed any more."""
    rados = image.cluster.library.rados

    def make() -> None:
        with rados.WriteOpCtx() as operation:
            operation.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
            image.pool.operate_write_op(operation, _TRASH)

    image.ask(make)


def remove_image(image: ImageName) -> None:
    """Remove an image that has no snapshots; one that is gone is a success.

    Raises:
        DiskInUse, BackendUnavailable; StorageFailed: all of it is there still.
    """
    image_id, pulse = named_id(image), Pulse()
    remove = image.cluster.library.rbd.RBD().remove
    try:
        image.ask(lambda: remove(image.pool, image.name, pulse.beat), pulse=pulse)  # crash: a part of it, in the trash
    except DiskNotFound as error:
        if image_id is not None and named_id(image) == image_id:
            hint = "a full pool that never had anything in its trash needs room for that first: raise its quota"
            raise StorageFailed(f"{image} cannot be moved into the trash of its pool", hint=hint) from error


def finish_removal(image: ImageName) -> None:
    """Take away what killed removers have left of an image that is not there any more.

    An image that others moved into the trash, to keep it there, is none of it.

    Raises:
        DiskInUse, BackendUnavailable
    """
    renaming.free(image)
    for image_id in _half_removed(image):
        _purge(image, image_id)


def _half_removed(image: ImageName) -> list[str]:
    """The ids of images of this name that librbd has in the trash to remove them; it lists only the others.

    An entry is a version and a length (6 bytes), who put the image there, and its name (TrashImageSpec of cls_rbd_types.h).
    """
    entry = _REMOVING + struct.pack("<I", len(image.name.encode())) + image.name.encode()
    found, last = [], ""
    while pairs := _trash(image, after=last):
        found += [key.removeprefix(_ID) for key, value in pairs if value[6:].startswith(entry)]
        last = pairs[-1][0]
    return found


def _trash(image: ImageName, *, after: str) -> list[tuple[str, bytes]]:
    def read() -> list[tuple[str, bytes]]:
        with image.cluster.library.rados.ReadOpCtx() as operation:
            pairs, _ = image.pool.get_omap_vals(operation, after, _ID, _AT_ONCE)
            image.pool.operate_read_op(operation, _TRASH)
            return list(pairs)

    try:
        return image.ask(read)
    except DiskNotFound:  # nothing was ever removed from the pool
        return []


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
