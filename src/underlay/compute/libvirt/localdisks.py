"""The local disks of instances, made and removed through Underlay, and its errors as a compute service knows them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, takewhile

from underlay import errors
from underlay.compute.arguments import Instance
from underlay.compute.errors import (
    ComputeError,
    DiskNotFound,
    FlavorDiskSmallerThanImage,
    ImageNotFound,
    InvalidInput,
    OperationFailed,
)
from underlay.compute.libvirt.directory import RESCUE, ROOT, SWAP
from underlay.compute.libvirt.diskplan import LocalDisk
from underlay.compute.libvirt.site import Site
from underlay.host import Host
from underlay.model import Attachment
from underlay.refs import parse_ref


@contextmanager
def translated() -> Iterator[None]:
    """Errors of Underlay inside the block leave it as those of the contract, with the same words and hint.

    Raises:
        FlavorDiskSmallerThanImage, ImageNotFound, DiskNotFound; InvalidInput: what was asked for; OperationFailed: any other.
    """
    try:
        yield
    except ComputeError:
        raise
    except errors.DiskTooSmall as error:
        smallest = max(error.virtual_size, error.min_disk)
        raise FlavorDiskSmallerThanImage(flavor_size=error.size, image_size=smallest) from error
    except errors.ImageNotFound as error:
        raise ImageNotFound(error.message, hint=error.hint) from error
    except errors.DiskNotFound as error:
        raise DiskNotFound(error.message, hint=error.hint) from error
    except errors.BadInput as error:
        raise InvalidInput(error.message, hint=error.hint) from error
    except errors.UnderlayError as error:
        raise OperationFailed(error.message, hint=error.hint) from error


def make(site: Site, instance: Instance, disks: Iterable[LocalDisk], *, image_id: str) -> None:
    """Make disks that are not there yet, the image fetched first unless it is here.

    Raises:
        as `translated`
    """
    with translated():
        for disk in disks:
            _make_one(site, instance, disk, image_id)


def _make_one(site: Site, instance: Instance, disk: LocalDisk, image_id: str) -> None:
    host, uuid, backend, cache = site.host, instance.uuid, site.options.images_type, site.options.cache
    if disk.role == "image":
        host.create_disk(uuid, parse_ref(image_id), size=disk.size, backend=backend, name=disk.name, cache=cache)
    elif disk.role == "swap":
        host.create_swap(uuid, disk.size or 0, backend=backend, name=disk.name, cache=cache)
    else:
        host.create_ephemeral(
            uuid,
            disk.size or 0,
            file_system=disk.file_system,
            os_type=instance.os_type,
            backend=backend,
            name=disk.name,
            cache=cache,
        )


def attachment(site: Site, instance: Instance, name: str) -> Attachment:
    """How a disk is to be opened.

    Raises:
        as `translated`
    """
    with translated():
        return site.host.attachment(instance.uuid, name=name)


def remove_all(host: Host, uuid: str) -> None:
    """Remove every local disk of an instance; none is a success.

    Raises:
        as `translated`
    """
    numbers = takewhile(lambda number: _is_there(host, uuid, _ephemeral(number)), count())
    last = sum(1 for _ in numbers)  # one more may have been half made
    # Backwards, so that a removal which is interrupted leaves no gap that hides those behind it.
    for name in (*map(_ephemeral, range(last, -1, -1)), SWAP, RESCUE, ROOT):
        remove(host, uuid, name)


def remove(host: Host, uuid: str, name: str) -> bool:
    """Remove a local disk and what its making has left; whether it was there.

    Raises:
        as `translated`
    """
    with translated():
        try:
            host.remove_disk(uuid, name=name, assume_closed=True)
        except errors.DiskNotFound:
            return False
    return True


def _ephemeral(number: int) -> str:
    return f"disk.eph{number}"


def _is_there(host: Host, uuid: str, name: str) -> bool:
    with translated():
        try:
            host.disk(uuid, name=name)
        except errors.DiskNotFound:
            return False
    return True
