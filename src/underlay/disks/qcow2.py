"""qcow2 disks: an overlay that holds what the guest writes, on top of the base image that it reads."""

from typing import ClassVar

import msgspec

from underlay import filedisk
from underlay.contracts import BackendTraits
from underlay.formats.qcow2 import write_overlay
from underlay.model import BaseImage, DiskSpec, InstanceDisk


class Qcow2Backend(msgspec.Struct, frozen=True):
    """Overlays with an absolute backing path and an explicit backing format, so that QEMU guesses nothing."""

    traits: ClassVar[BackendTraits] = BackendTraits(name="qcow2", needs_raw=False, overlays=True, disk_format="qcow2")

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Make an empty overlay of the wanted size on the base."""
        if found := filedisk.existing(base, want, self.traits):
            return found
        with filedisk.publishing(base, want, self.traits) as fd:
            size = filedisk.size_for(base, want)
            write_overlay(fd, backing=base.path.absolute(), backing_format=base.format, size=size)
        return self.describe(want)

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The disk that is there."""
        return filedisk.describe(want)

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow what the guest sees; the file grows as the guest writes."""
        filedisk.grow(disk, size)
        return self.describe(DiskSpec(instance=disk.instance, name=disk.name, path=disk.path))

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the overlay; its base stays."""
        filedisk.remove(disk)
