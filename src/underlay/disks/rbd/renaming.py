"""How an image gets its name, and what becomes of a name that was half given or half taken away.

A name is an object of its own, ``rbd_id.NAME``, and an entry in the pool's directory of images. librbd's renaming writes the
new object, changes the directory, and removes the old object; its removal takes the entry, then the object. Whoever is killed
in between leaves what is brought to its end here, by the methods of Ceph's own class ``rbd`` (src/cls/rbd), which refuse when
another was here first.
"""

import struct
from contextlib import suppress

from underlay.disks.rbd.looking import is_header_there, named_id
from underlay.disks.rbd.named import ImageName
from underlay.errors import DiskExists, DiskNotFound, StorageFailed

_DIRECTORY = "rbd_directory"


def rename(old: ImageName, new: ImageName) -> None:
    """Give an image its name, which may be left of an image that is gone.

    Raises:
        DiskExists: another has it.
    """
    try:
        _rename(old, new)
    except DiskExists:
        if not free(new):
            raise
        _rename(old, new)


def _rename(old: ImageName, new: ImageName) -> None:
    image_id = named_id(old)
    new.ask(lambda: new.cluster.library.rbd.RBD().rename(new.pool, old.name, new.name))
    if named_id(new) != image_id:  # of two that give a name at once, librbd says to both that all went well
        raise DiskExists(f"{new} is there", hint="remove it, or choose another name")


def finish(old: ImageName, new: ImageName, image_id: str) -> None:
    """Bring a renaming to its end that stopped halfway, when both names mean one image."""
    with suppress(DiskNotFound):  # the directory has the new name
        _in_directory(new, "dir_rename_image", old.name, new.name, image_id)  # crash: two objects, and the new name
    with suppress(DiskNotFound):
        _drop(old, image_id)


def free(image: ImageName) -> bool:
    """Take away a name without an image; whether the name is free then.

    Raises:
        BackendUnavailable
    """
    image_id = named_id(image)
    if image_id is None:
        return True
    if is_header_there(image, image_id):
        return False
    with suppress(DiskNotFound):
        _in_directory(image, "dir_remove_image", image.name, image_id)  # crash: an object that no directory has
    with suppress(DiskNotFound):
        return _drop(image, image_id)
    return True


def _in_directory(image: ImageName, method: str, *arguments: str) -> None:
    image.ask(lambda: image.pool.execute(_DIRECTORY, "rbd", method, b"".join(map(_encoded, arguments))))


def _drop(image: ImageName, image_id: str) -> bool:
    """Remove the object of a name, if it still means that image; whether it did."""

    def drop() -> None:
        with image.cluster.library.rados.WriteOpCtx() as operation:
            operation.cmpext(_encoded(image_id), 0)
            operation.remove()
            image.pool.operate_write_op(operation, f"rbd_id.{image.name}")

    try:
        image.ask(drop)
    except StorageFailed:  # a difference is an error of a number that nothing else has
        if named_id(image) == image_id:
            raise
        return False
    return True


def _encoded(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()
