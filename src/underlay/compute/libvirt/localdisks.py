"""The local disks of instances, made and removed through Underlay, and its errors as a compute service knows them."""

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count, takewhile

from underlay import errors, instances
from underlay.compute.arguments import Instance
from underlay.compute.errors import (
    ComputeError,
    DiskNotFound,
    FlavorDiskSmallerThanImage,
    ImageNotFound,
    InvalidInput,
    OperationFailed,
)
from underlay.compute.libvirt import closing
from underlay.compute.libvirt.directory import RESCUE, ROOT, SWAP
from underlay.compute.libvirt.diskplan import LocalDisk
from underlay.compute.libvirt.site import Site
from underlay.host import Host
from underlay.model import Attachment, InstanceDisk


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


def make(site: Site, instance: Instance, disks: Iterable[LocalDisk], *, image_id: str, maker: str | None = None) -> None:
    """Make disks that are not there yet, the image fetched first unless it is here.

    Args:
        image_id: a ref, or the path of an image that is in a cache.
        maker: who makes them, as `underlay.model.DiskSpec` has it.

    Raises:
        as `translated`
    """
    with translated():
        for disk in disks:
            _make_one(site, instance, disk, image_id, maker=maker)


def _make_one(site: Site, instance: Instance, disk: LocalDisk, image_id: str, *, maker: str | None) -> None:
    host, uuid, backend, cache = site.host, instance.uuid, site.options.images_type, site.options.cache
    if disk.role == "image":
        host.create_disk(uuid, image_id, size=disk.size, backend=backend, name=disk.name, cache=cache, maker=maker)
    elif disk.role == "swap":
        host.create_swap(uuid, disk.size or 0, backend=backend, name=disk.name, cache=cache, maker=maker)
    else:
        host.create_ephemeral(
            uuid,
            disk.size or 0,
            file_system=disk.file_system,
            os_type=instance.os_type,
            backend=backend,
            name=disk.name,
            cache=cache,
            maker=maker,
        )


def attachment(site: Site, instance: Instance, name: str) -> Attachment:
    """How a disk is to be opened.

    Raises:
        as `translated`
    """
    with translated():
        return site.host.attachment(instance.uuid, name=name)


def facts(site: Site, instance: Instance) -> str:
    """Each local disk that the host reaches as a file or a device, as the contract's JSON.

    Raises:
        InstanceNotFound: libvirt does not know it. As `translated`
    """
    site.domain(instance).state()
    with translated():
        found = [_fact(disk) for disk in _disks(site.host, instance.uuid) if disk.path.exists()]
    return json.dumps(found)


def names_of(host: Host, uuid: str) -> list[str]:
    """The names of an instance's local disks that are there, wherever their backend keeps them.

    Raises:
        as `translated`
    """
    with translated():
        return [disk.name for disk in _disks(host, uuid)]


def sizes(host: Host, uuid: str) -> dict[str, int | None]:
    """Bytes of an instance's local disks that are there, by their names; None: not known.

    Raises:
        as `translated`
    """
    with translated():
        return {disk.name: disk.size for disk in _disks(host, uuid)}


def _disks(host: Host, uuid: str) -> Iterator[InstanceDisk]:
    for name in (ROOT, *map(_ephemeral, range(_ephemerals(host, uuid))), SWAP):
        with suppress(errors.DiskNotFound):
            yield host.disk(uuid, name=name)


def _fact(disk: InstanceDisk) -> dict[str, str]:
    size = disk.size or 0
    is_overlay = disk.format == "qcow2" and disk.base_path is not None
    return {
        "path": str(disk.path),
        "type": disk.format or "",
        "backing_file": disk.base_path.name if disk.base_path is not None and is_overlay else "",
        "virt_disk_size": str(size),
        "disk_size": str(disk.allocated),
        "over_committed_disk_size": str(max(0, size - disk.allocated)),
    }


def refuse_open(host: Host, uuid: str) -> None:
    """Refuse to go on while a local disk that is a file is known to be open, be it by another host's QEMU.

    Raises:
        as `translated`
    """
    with translated():
        for disk in _disks(host, uuid):
            if disk.path.is_file():
                instances.refuse_open(disk.path)


def remove_all(host: Host, uuid: str, *, maker: str | None = None, but: Collection[str] = ()) -> None:
    """Remove every local disk of an instance; none is a success.

    Args:
        maker: what another one has made stays. but: the names of disks that stay.

    Raises:
        as `translated`
    """
    last = _ephemerals(host, uuid)  # one more may have been half made
    # Backwards, so that a removal which is interrupted leaves no gap that hides those behind it.
    for name in (*map(_ephemeral, range(last, -1, -1)), SWAP, RESCUE, ROOT):
        if name not in but:
            remove(host, uuid, name, maker=maker)


def remove(host: Host, uuid: str, name: str, *, maker: str | None = None) -> bool:
    """Remove a local disk and what its making has left; whether it was there.

    Args:
        maker: a disk that another one has made stays, as if it were not there.

    Raises:
        as `translated`
    """
    with translated():
        try:
            closing.retried(host, uuid, name, lambda: host.remove_disk(uuid, name=name, assume_closed=True, maker=maker))
        except errors.DiskNotFound:
            return False
    return True


def _ephemerals(host: Host, uuid: str) -> int:
    """How many there are; they are numbered without a gap."""
    return sum(1 for _ in takewhile(lambda number: _is_there(host, uuid, _ephemeral(number)), count()))


def _ephemeral(number: int) -> str:
    return f"disk.eph{number}"


def _is_there(host: Host, uuid: str, name: str) -> bool:
    with translated():
        try:
            host.disk(uuid, name=name)
        except errors.DiskNotFound:
            return False
    return True
