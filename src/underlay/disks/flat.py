"""Flat disks: a raw file with the whole image in it, sharing blocks with the base where the file system can."""

import os
from typing import ClassVar

import msgspec

from underlay import filedisk
from underlay.contracts import BackendTraits
from underlay.errors import FormatMismatch
from underlay.files import copy_sparse, open_regular
from underlay.model import BaseImage, DiskSpec, InstanceDisk


class FlatBackend(msgspec.Struct, frozen=True):
    """Raw files that stand alone: nothing of the base is needed once they are made."""

    traits: ClassVar[BackendTraits] = BackendTraits(name="flat", needs_raw=True, overlays=False, disk_format="raw")

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Copy the base, by reflink or hole by hole, and give the file the wanted size."""
        if base.format != "raw":
            raise FormatMismatch(
                f"a flat disk needs a raw image, {base.name} is {base.format}", hint="fetch it for this backend"
            )
        if found := filedisk.existing(base, want, self.traits):
            return found
        with filedisk.publishing(base, want, self.traits) as fd:
            _copy(base, fd, size=filedisk.size_for(base, want))
        return self.describe(want)

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The disk that is there."""
        return filedisk.describe(want)

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow the file."""
        filedisk.grow(disk, size)
        return self.describe(DiskSpec(instance=disk.instance, name=disk.name, path=disk.path))

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the file."""
        filedisk.remove(disk)


def _copy(base: BaseImage, target: int, *, size: int) -> None:
    source = open_regular(base.path)
    try:
        copy_sparse(source, target, base.size)
        os.ftruncate(target, size)
    finally:
        os.close(source)
