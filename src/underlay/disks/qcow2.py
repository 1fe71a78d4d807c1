"""qcow2 disks: an overlay that holds what the guest writes, on top of the base image that it reads."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from underlay import filedisk, later
from underlay.contracts import BackendTraits
from underlay.errors import Unsupported
from underlay.formats.qcow2 import DEFAULT_CLUSTER_BYTES, write_overlay
from underlay.model import Attachment, BaseImage, DiskSpec, Extraction, ImageVersion, InstanceDisk

if TYPE_CHECKING:
    from underlay import fileview, qemuimg
else:
    fileview = later.module("underlay.fileview")  # who makes a disk reads no chain
    qemuimg = later.module("underlay.qemuimg")


class Qcow2Backend(msgspec.Struct, frozen=True, kw_only=True):
    """Overlays with an absolute backing path and an explicit backing format, so that QEMU guesses nothing.

    Attributes:
        preallocation: none, metadata (the tables), falloc (reserved blocks too) or full (written ones).
        cluster_bytes: of a new overlay.
        cache_mode, discard: of the hypervisor's driver; None: as it does by itself.
    """

    preallocation: str = "none"
    cluster_bytes: int = DEFAULT_CLUSTER_BYTES
    cache_mode: str | None = None
    discard: str | None = None
    traits: ClassVar[BackendTraits] = BackendTraits(
        name="qcow2",
        needs_raw=False,
        overlays=True,
        disk_format="qcow2",
        rebases=True,
        preallocations=frozenset({"none", "metadata", "falloc", "full"}),
    )

    def place(self, instance: str, name: str) -> Path | None:
        """None: a file goes where the host wants it."""
        return None

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Make an empty overlay of the wanted size on the base."""
        if found := filedisk.existing(base, want, self.traits):
            return found
        with filedisk.publishing(base, want, self.traits) as fd:
            self._write(fd, base, size=filedisk.size_for(base, want))
        return self.describe(want)

    def _write(self, fd: int, base: BaseImage, *, size: int) -> None:
        backing, cluster_bytes = base.path.absolute(), self.cluster_bytes
        if self.preallocation != "none":
            # By the descriptor, because who owns the directory may put another file under its name.
            qemuimg.create_overlay(
                Path(f"/proc/{os.getpid()}/fd/{fd}"),
                backing=os.fspath(backing),
                backing_format=base.format,
                size=size,
                cluster_bytes=cluster_bytes,
                preallocation=self.preallocation,
            )
            return
        write_overlay(fd, backing=backing, backing_format=base.format, size=size, cluster_bytes=cluster_bytes)

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
        """Grow what the guest sees; the file grows as the guest writes."""
        filedisk.grow(disk, size)
        return self._again(disk)

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the overlay; its base stays."""
        filedisk.remove(disk)

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Read the overlay and its base together."""
        fileview.extract(disk, target, want)

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """Take into the overlay what its guest reads from the base."""
        fileview.flatten(disk)
        return self._again(disk)

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """Take into the overlay what the other base has otherwise, then name that."""
        fileview.rebase(disk, base, filedisk.record_of(base, _spec(disk), self.traits))
        return self._again(disk)

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """What is within an overlay is no image that other disks can be made from."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")

    def discard_snapshot(self, location: str) -> None:
        """There is none."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """A file."""
        return filedisk.attachment(disk, self.preallocation, cache=self.cache_mode, discard=self.discard)

    def _again(self, disk: InstanceDisk) -> InstanceDisk:
        return self.describe(_spec(disk))


def _spec(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path, maker=disk.maker)
