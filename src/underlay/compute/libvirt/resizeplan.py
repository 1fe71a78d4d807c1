"""What a resize makes of an instance's disks, decided from the two flavors before anything changes. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from underlay.compute.arguments import BlockDeviceInfo, Flavor
from underlay.compute.blockdevices import block_device_info_get_ephemerals
from underlay.compute.libvirt.diskplan import GIB, LocalDisk


def refused(old: Flavor, new: Flavor, info: BlockDeviceInfo | None, *, root: int | None) -> str | None:
    """Why the disks cannot be what the new flavor says, or None: they only ever grow, but for swap, which is made anew.

    Args:
        root: bytes of the root disk; None: it is none of this host's.
    """
    wanted = new.root_gb * GIB
    if root is not None and (wanted < root if wanted else old.root_gb):
        return f"the root disk of {root} bytes would be made smaller, {wanted} bytes" if wanted else "its root disk has a size"
    ephemeral = sum(one["size"] for one in block_device_info_get_ephemerals(info)) or old.ephemeral_gb
    if new.ephemeral_gb < ephemeral:
        return f"the ephemeral disks of {ephemeral} GiB would be made smaller, {new.ephemeral_gb} GiB"
    return None


def resized(disks: Sequence[LocalDisk], old: Flavor | None, new: Flavor) -> tuple[LocalDisk, ...]:
    """The disks of the new flavor: where there is one ephemeral disk, and it was the old flavor's, it becomes the new one's.

    Which of several is to take what the flavor has more, nobody says, so they keep the sizes that they have.
    """
    ephemerals = [disk for disk in disks if disk.role == "ephemeral"]
    if old is None or len(ephemerals) != 1 or ephemerals[0].size != old.ephemeral_gb * GIB:
        return tuple(disks)
    size = max(old.ephemeral_gb, new.ephemeral_gb) * GIB
    return tuple(replace(disk, size=size) if disk.role == "ephemeral" else disk for disk in disks)
