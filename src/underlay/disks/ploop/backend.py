"""Ploop disks: a directory with an image that has all of the base in it, in Parallels' expanding form, and its description."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from underlay import filedisk, later
from underlay.contracts import BackendTraits
from underlay.disks.ploop import descriptor, directory, tool
from underlay.disks.ploop.directory import IMAGE, Content
from underlay.errors import DiskNotFound, DiskUnrecorded, FormatMismatch, Unsupported
from underlay.files import open_regular, translated
from underlay.formats import parallels
from underlay.formats.parallels import CLUSTER_BYTES
from underlay.model import Attachment, BaseImage, DiskSpec, Extraction, ImageVersion, InstanceDisk

if TYPE_CHECKING:
    from underlay import fileview, qemuimg
else:
    fileview = later.module("underlay.fileview")  # who makes a disk reads none
    qemuimg = later.module("underlay.qemuimg")

_LIBVIRTS = {"parallels": "ploop", "raw": "raw"}  # what libvirt calls the formats of images


class PloopBackend(msgspec.Struct, frozen=True, kw_only=True):
    """Directories that stand alone: nothing of the base is needed once they are made.

    Attributes:
        cache_mode, discard: of the hypervisor's driver; None: as it does by itself.
    """

    cache_mode: str | None = None
    discard: str | None = None
    traits: ClassVar[BackendTraits] = BackendTraits(name="ploop", needs_raw=True, overlays=False, disk_format="parallels")

    def place(self, instance: str, name: str) -> Path | None:
        """None: a directory goes where the host wants it."""
        return None

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Take over the clusters of the base that have data, by reflink where that can be, and describe the image."""
        if base.format != "raw":
            raise FormatMismatch(
                f"a ploop disk needs a raw image, {base.name} is {base.format}", hint="fetch it for this backend"
            )
        filedisk.refuse_unsupported(want, self.traits)
        size = filedisk.size_for(base, want, unit=CLUSTER_BYTES)
        parallels.refuse_size(size)
        if found := self._existing(base, want):
            return found
        with directory.making(want.path, filedisk.record_of(base, want, self.traits)) as inside:
            _fill(inside, base, size=size)
        return self.describe(want)

    def _existing(self, base: BaseImage, want: DiskSpec) -> InstanceDisk | None:
        try:
            found = self.describe(want)
            with translated(want.path):
                record = filedisk.recorded_directory(want.path)
        except DiskNotFound:
            return None
        filedisk.check_wanted(found, record, base, want, self.traits, unit=CLUSTER_BYTES)
        return found

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        """No directory holds an image already."""
        raise Unsupported(self.traits.name, "clone an image")

    def exists(self, want: DiskSpec) -> bool:
        """Whether anything has the directory's name."""
        return os.path.lexists(want.path)

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The disk that is there."""
        return directory.describe(want, backend=self.traits.name, disk_format=self.traits.disk_format)

    def is_open(self, disk: InstanceDisk) -> bool | None:
        """The host finds it out."""
        return None

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Give the image room for more, and describe it again."""
        size = filedisk.whole(size, CLUSTER_BYTES)
        content = self._content(disk)
        if size < content.size:
            raise filedisk.shrink_refused(self._again(disk), size)
        if size > content.size or content.descriptor.size != content.size:
            parallels.refuse_size(size)
            with translated(disk.path):
                _grow(disk.path, content, size)
        return self._again(disk)

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the directory."""
        directory.remove(disk.path)

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Convert the image."""
        said = self._content(disk).descriptor
        image = disk.path.absolute() / said.files[0]
        fileview.write_out(qemuimg.node(image, format=said.format), target, want)

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """It stands alone."""
        return disk

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """It has no base."""
        raise Unsupported(self.traits.name, "put a disk on another base image")

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """What the tool keeps within a directory is no image that other disks can be made from."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")

    def discard_snapshot(self, location: str) -> None:
        """There is none."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """The image in the directory, in libvirt's word for its format."""
        said = self._content(disk).descriptor
        return Attachment(
            type="file",
            source=os.fspath(disk.path / said.files[0]),
            format=_LIBVIRTS[said.format],
            cache=self.cache_mode,
            discard=self.discard,
        )

    def _content(self, disk: InstanceDisk) -> Content:
        """What is in a disk that has one image; what others have to do with a disk that has more, the tool knows."""
        self._again(disk)
        with translated(disk.path):
            content = directory.content(disk.path)
        if len(content.descriptor.files) > 1:
            what = f"read or change {disk.path}, of which there are snapshots"
            raise Unsupported(self.traits.name, what, hint="merge them: ploop snapshot-merge")
        return content

    def _again(self, disk: InstanceDisk) -> InstanceDisk:
        return self.describe(DiskSpec(instance=disk.instance, name=disk.name, path=disk.path))


def _fill(inside: Path, base: BaseImage, *, size: int) -> None:
    source = open_regular(base.path)
    try:
        with directory.new_file(inside / IMAGE) as fd:
            parallels.write(source, fd, length=base.size, size=size)
    finally:
        os.close(source)
    if tool.is_usable():
        tool.describe(inside, IMAGE, mode=directory.FILE_MODE)
    else:
        directory.write_descriptor(inside, size=size, cluster=CLUSTER_BYTES)
    if (found := directory.content(inside)).size != size:
        raise DiskUnrecorded(f"the image for {inside} has {found.size} bytes, not {size}")


def _grow(path: Path, content: Content, size: int) -> None:
    """Grow the image, then what describes it."""
    if content.header is None:
        what = f"grow {path}, whose image is raw"
        raise Unsupported("ploop", what, hint="ploop convert -f expanded gives it the form that grows")
    said = descriptor.resized(directory.read_descriptor(path), size, where=path / descriptor.NAME)
    fd = open_regular(path / content.descriptor.files[0], os.O_RDWR)
    try:
        with directory.replacing_descriptor(path, said):
            if size > content.size:
                parallels.grow(fd, content.header, size, what=os.fspath(path))
    finally:
        os.close(fd)
