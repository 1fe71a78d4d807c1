"""Flat disks: a raw file with the whole image in it, sharing blocks with the base where the file system can."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from underlay import filedisk, later
from underlay.contracts import BackendTraits
from underlay.errors import FormatMismatch, Unsupported
from underlay.files import copy_sparse, open_regular
from underlay.model import Attachment, BaseImage, DiskSpec, Extraction, ImageVersion, InstanceDisk

if TYPE_CHECKING:
    from underlay import extfs, fileview
else:
    extfs = later.module("underlay.extfs")
    fileview = later.module("underlay.fileview")  # who makes a disk reads no chain


class FlatBackend(msgspec.Struct, frozen=True, kw_only=True):
    """Raw files that stand alone: nothing of the base is needed once they are made.

    Attributes:
        preallocation: none, falloc (the file system reserves all blocks) or full (all of them are written).
        cache_mode, discard: of the hypervisor's driver; None: as it does by itself.
    """

    preallocation: str = "none"
    cache_mode: str | None = None
    discard: str | None = None
    traits: ClassVar[BackendTraits] = BackendTraits(
        name="flat",
        needs_raw=True,
        overlays=False,
        disk_format="raw",
        preallocations=frozenset({"none", "falloc", "full"}),
    )

    def place(self, instance: str, name: str) -> Path | None:
        """None: a file goes where the host wants it."""
        return None

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Copy the base, by reflink or hole by hole, and give the file the wanted size.

        What is made of a file that does not stay, and for which no size is wanted, has every byte of it and no more: so a
        kernel is the very file that was fetched.
        """
        if base.format != "raw":
            raise FormatMismatch(
                f"a flat disk needs a raw image, {base.name} is {base.format}", hint="fetch it for this backend"
            )
        if found := filedisk.existing(base, want, self.traits):
            return found
        with filedisk.publishing(base, want, self.traits) as fd:
            is_copy = want.size is None and not want.origin_stays
            size = base.size if is_copy else filedisk.size_for(base, want)
            _copy(base, fd, size=size)
            if want.grow_filesystem:
                extfs.check(fd, size=base.virtual_size, backend=self.traits.name, what=base.name)
                extfs.grow(Path(f"/proc/{os.getpid()}/fd/{fd}"))  # by the descriptor: the name may be another's
            filedisk.preallocate(fd, size, self.preallocation)
        return self.describe(want)

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        """No file holds an image already."""
        raise Unsupported(self.traits.name, "clone an image")

    def exists(self, want: DiskSpec) -> bool:
        """Whether anything has the file's name."""
        return os.path.lexists(want.path)

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The disk that is there."""
        return filedisk.describe(want)

    def is_open(self, disk: InstanceDisk) -> bool | None:
        """The host finds it out."""
        return None

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow the file."""
        filedisk.grow(disk, size)
        return self.describe(DiskSpec(instance=disk.instance, name=disk.name, path=disk.path))

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the file."""
        filedisk.remove(disk)

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Copy or convert the file."""
        fileview.extract(disk, target, want)

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """It stands alone."""
        return disk

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """It has no base."""
        raise Unsupported(self.traits.name, "put a disk on another base image")

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """A raw file keeps nothing of what it was."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")

    def discard_snapshot(self, location: str) -> None:
        """There is none."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """A file."""
        return filedisk.attachment(disk, self.preallocation, cache=self.cache_mode, discard=self.discard)


def _copy(base: BaseImage, target: int, *, size: int) -> None:
    source = open_regular(base.path)
    try:
        copy_sparse(source, target, base.size)
        os.ftruncate(target, size)
    finally:
        os.close(source)
