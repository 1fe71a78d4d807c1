"""Ploop disks: a directory with an image that has all of the base in it, in Parallels' expanding form, and its description."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from underlay import filedisk, later, locks
from underlay.contracts import BackendTraits
from underlay.disks.ploop import descriptor, directory, tool
from underlay.disks.ploop.directory import IMAGE, Content, Held
from underlay.errors import DiskInUse, DiskNotFound, DiskUnrecorded, FormatMismatch, Unsupported
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
        with directory.making(want.path, filedisk.record_of(base, want, self.traits)) as held:
            _fill(held, base, size=size)
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
        with self._opened(disk, os.O_RDWR) as (held, content):
            size = _wanted(size, content.size)
            if size < content.size:
                raise filedisk.shrink_refused(self._again(disk), size)
            if size > content.size or content.descriptor.size != content.size:
                parallels.refuse_size(size)
                _grow(held, content, size)
            return directory.describe_held(held, _spec(disk), backend=self.traits.name, disk_format=self.traits.disk_format)

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the directory."""
        directory.remove(disk.path)

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Convert the image."""
        with self._opened(disk) as (_, content):  # and no other file than was compared with its description is read
            image = Path(f"/proc/{os.getpid()}/fd/{content.image}")
            fileview.write_out(qemuimg.node(image, format=content.descriptor.format), target, want)

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
        with self._opened(disk) as (_, content):
            said = content.descriptor
        return Attachment(
            type="file",
            source=os.fspath(disk.path / said.files[0]),
            format=_LIBVIRTS[said.format],
            cache=self.cache_mode,
            discard=self.discard,
        )

    @contextmanager
    def _opened(self, disk: InstanceDisk, flags: int = os.O_RDONLY) -> Iterator[tuple[Held, Content]]:
        """A disk that has one image, open; what others have to do with a disk that has more, the tool knows."""
        with translated(disk.path), directory.found(disk.path) as held:
            directory.describe_held(held, _spec(disk), backend=self.traits.name, disk_format=self.traits.disk_format)
            with directory.opened(held, flags) as content:
                if len(content.descriptor.files) > 1:
                    what = f"read or change {disk.path}, of which there are snapshots"
                    raise Unsupported(self.traits.name, what, hint="merge them: ploop snapshot-merge")
                yield held, content

    def _again(self, disk: InstanceDisk) -> InstanceDisk:
        return self.describe(_spec(disk))


def _spec(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)


def _wanted(size: int, there: int) -> int:
    """Bytes that a disk is to have: whole clusters, but for one that somebody made with others, which stays as it is."""
    rounded = filedisk.whole(size, CLUSTER_BYTES)
    return there if size <= there < rounded else rounded


def _fill(held: Held, base: BaseImage, *, size: int) -> None:
    source, has_driver = open_regular(base.path), tool.is_usable()
    try:
        with directory.new_file(held.inside / IMAGE) as fd:
            parallels.write(source, fd, length=base.size, size=size, share=not has_driver)
    finally:
        os.close(source)
    if has_driver:
        tool.describe(held.inside, IMAGE, mode=directory.FILE_MODE)
    else:
        directory.write_descriptor(held, size=size, cluster=CLUSTER_BYTES)
    with directory.opened(held) as content:
        if content.size != size:
            raise DiskUnrecorded(f"the image for {held.path} has {content.size} bytes, not {size}")


def _grow(held: Held, content: Content, size: int) -> None:
    """Grow the image, then what describes it, while nobody can open the image."""
    if content.descriptor.format == "raw":
        what = f"grow {held.path}, whose image is raw"
        raise Unsupported("ploop", what, hint="ploop convert -f expanded gives it the form that grows")
    said = descriptor.resized(content.text, size, where=held.path / descriptor.NAME)
    with locks.image_held(content.image) as is_ours:
        if not is_ours:
            raise DiskInUse(f"{held.path} is open in QEMU", hint="stop the instance first")
        with directory.replacing_descriptor(held, said):
            if size > content.size:
                parallels.grow(content.image, size, what=os.fspath(held.path))
