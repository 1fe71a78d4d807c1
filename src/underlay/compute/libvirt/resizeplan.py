"""What a resize makes of an instance's disks, decided from the two flavors before anything changes. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from underlay.compute.arguments import BlockDeviceInfo, Flavor
from underlay.compute.blockdevices import block_device_info_get_ephemerals
from underlay.compute.libvirt.diskplan import GIB, LocalDisk


def refused(old: Flavor, new: Flavor, info: BlockDeviceInfo | None, *, root: int | None, ephemeral: int = 0) -> str | None:
    """Why the disks cannot be what the new flavor says, or None: they only ever grow, but for swap, which is made anew.

    What the flavor has as before stays as it is, whatever size that really has.

    Args:
        root: bytes of the root disk; None: it is none of this host's.
        ephemeral: bytes of all ephemeral disks; an earlier resize may have made one larger than the block devices tell.
    """
    wanted = new.root_gb * GIB
    if root is not None and new.root_gb != old.root_gb and wanted < root:
        return f"the root disk of {root} bytes would be made smaller, {wanted} bytes" if wanted else "its root disk has a size"
    told = sum(one["size"] for one in block_device_info_get_ephemerals(info)) or old.ephemeral_gb
    least = max(told, -(-ephemeral // GIB))
    if new.ephemeral_gb != old.ephemeral_gb and new.ephemeral_gb < least:
        return f"the ephemeral disks of {least} GiB would be made smaller, {new.ephemeral_gb} GiB"
    return None


def resized(
    disks: Sequence[LocalDisk], old: Flavor | None, new: Flavor, *, sizes: Mapping[str, int | None]
) -> tuple[LocalDisk, ...]:
    """The disks of the new flavor: where there is one ephemeral disk, and it was the old flavor's, it becomes the new one's.

    Which of several is to take what the flavor has more, nobody says, so they keep the sizes that they have.

    Args:
        sizes: bytes of those that are there, by their names. The block devices still tell the size before the first resize.
    """
    ephemerals = [disk for disk in disks if disk.role == "ephemeral"]
    if old is None or len(ephemerals) != 1 or _size(ephemerals[0], sizes) != old.ephemeral_gb * GIB:
        return tuple(disks)
    size = max(old.ephemeral_gb, new.ephemeral_gb) * GIB
    return tuple(replace(disk, size=size) if disk.role == "ephemeral" else disk for disk in disks)


def _size(disk: LocalDisk, sizes: Mapping[str, int | None]) -> int | None:
    return sizes.get(disk.name) or disk.size
