"""A fake of `underlay.contracts.DiskBackend`: disks in memory, in a place of their own, as in a storage that hosts share.

It keeps the contract to the letter and has every trait that no file has, so what works with it works with a volume group or a
Ceph. What is the matter with its storage is said by its attributes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from underlay import filedisk, qemuimg
from underlay.contracts import BackendTraits
from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    FormatMismatch,
    InsufficientSpace,
    Unsupported,
)
from underlay.model import (
    LAYOUT,
    Attachment,
    BaseImage,
    DiskRecord,
    DiskSpec,
    Extraction,
    ImageVersion,
    InstanceDisk,
)
from underlay.values import replace

_PLACE = Path("/fake/disks")
_TRAITS = BackendTraits(
    name="fake",
    needs_raw=True,
    overlays=False,
    disk_format="raw",
    on_host_filesystem=False,
    shared_storage=True,
    clones=True,
    snapshots=True,
    encrypts=True,
)


@dataclass(frozen=True, slots=True)
class _Disk:
    """One disk in memory; the key stands for its encryption."""

    record: DiskRecord
    content: bytearray
    key: bytes | None


class FakeBackend:
    """A `DiskBackend` over disks in memory.

    Attributes:
        traits: what it is like.
        capacity: bytes that all disks may have together; None: any number.
        is_away: whether the storage answers nothing.
    """

    def __init__(self, traits: BackendTraits = _TRAITS) -> None:
        self.traits = traits
        self.capacity: int | None = None
        self.is_away = False
        self._lock = threading.RLock()
        self._disks: dict[Path, _Disk] = {}
        self._images: dict[str, bytes] = {}
        self._held: list[Path] = []

    # What a stage or a test does with the storage itself.

    def add_image(self, location: str, content: bytes) -> None:
        """From now on the storage has an image of its own."""
        with self._lock:
            self._images[location] = content

    def guest_bytes(self, disk: InstanceDisk) -> bytes:
        """Everything that a disk's guest sees."""
        with self._lock:
            return bytes(self._disks[disk.path].content)

    def guest_writes(self, disk: InstanceDisk, offset: int, content: bytes) -> None:
        """Write as a disk's guest does."""
        with self._lock:
            self._disks[disk.path].content[offset : offset + len(content)] = content

    @contextmanager
    def opened(self, disk: InstanceDisk) -> Iterator[None]:
        """Hold a disk open."""
        self._held.append(disk.path)
        try:
            yield
        finally:
            self._held.remove(disk.path)

    def names(self) -> frozenset[str]:
        """Every disk and image that there is."""
        with self._lock:
            return frozenset({*(path.name for path in self._disks), *self._images})

    # The contract.

    def place(self, instance: str, name: str) -> Path | None:
        """A path below which nothing is; an underscore is doubled, so that no two names meet."""
        return _PLACE / "_".join(part.replace("_", "__") for part in (instance, name))

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Take the image's bytes into memory."""
        self._check_key(want)
        if base.format != "raw":
            raise FormatMismatch(f"a fake disk needs a raw image, {base.name} is {base.format}")
        size = filedisk.size_for(base, want)
        with self._answering():
            if want.path in self._disks:
                found = self.describe(want)
                filedisk.check_wanted(found, self._disks[want.path].record, base, want, self.traits)
                return found
            self._make_room(size)
            record = filedisk.record_of(base, want, self.traits)
            self._disks[want.path] = _Disk(record, _padded(base.path.read_bytes(), size), want.key)
            return self.describe(want)

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        """Take the bytes of an image of the storage."""
        self._check_key(want)
        if not self.traits.clones:
            raise Unsupported(self.traits.name, "clone an image")
        with self._answering():
            location = next((one for one in version.locations if one in self._images), None)
            if location is None:
                raise Unsupported(self.traits.name, f"clone {version.ref}: none of its locations is in this storage")
            image = self._images[location]
            size = filedisk.size_of(want, virtual_size=len(image), min_disk=version.min_disk, ref=str(version.ref))
            record = self._record_of_clone(version, want, location)
            if (there := self._disks.get(want.path)) is not None:
                filedisk.refuse_another_maker(want, there.record)
                if (replace(there.record, maker=None), len(there.content)) != (replace(record, maker=None), size):
                    raise DiskExists(f"the disk {want.path} exists, of another image or size")
                return self.describe(want)
            self._make_room(size)
            self._disks[want.path] = _Disk(record, _padded(image, size), want.key)
            return self.describe(want)

    def _record_of_clone(self, version: ImageVersion, want: DiskSpec, location: str) -> DiskRecord:
        return DiskRecord(
            layout=LAYOUT,
            instance=want.instance,
            name=want.name,
            backend=self.traits.name,
            format=self.traits.disk_format,
            base=None,
            cache=None,
            version_id=version.id,
            parent=location,
            maker=want.maker,
        )

    def exists(self, want: DiskSpec) -> bool:
        """Whether there is such a disk."""
        with self._answering():
            return want.path in self._disks

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The disk that is there."""
        with self._answering():
            disk = self._of(want.path)
            base_path = filedisk.base_path_of(disk.record)
            return InstanceDisk(
                instance=disk.record.instance,
                name=disk.record.name,
                path=want.path,
                backend=disk.record.backend,
                format=disk.record.format,
                size=len(disk.content),
                allocated=len(disk.content),
                base=disk.record.base,
                base_path=base_path,
                parent=disk.record.parent,
                maker=disk.record.maker,
            )

    def is_open(self, disk: InstanceDisk) -> bool | None:
        """Whether somebody holds it."""
        with self._answering():
            return disk.path in self._held

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Add zeros."""
        size = filedisk.whole_sectors(size)
        with self._answering():
            there = self._of(disk.path)
            if size < len(there.content):
                raise filedisk.shrink_refused(disk, size)
            self._make_room(size - len(there.content))
            there.content.extend(bytes(size - len(there.content)))
            return self.describe(_spec(disk))

    def remove(self, disk: InstanceDisk) -> None:
        """Forget its bytes, unless another maker's have its place."""
        with self._answering():
            there = self._disks.get(disk.path)
            if there is not None and disk.maker in (None, there.record.maker):
                del self._disks[disk.path]

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Write its bytes into a file."""
        with self._answering():
            content = bytes(self._of(disk.path).content)
        raw = target if want.format == "raw" else target.with_name(f"{target.name}.raw")
        raw.write_bytes(content)
        if want.format != "raw":
            try:
                qemuimg.convert(qemuimg.node(raw, format="raw"), target, format=want.format, compressed=want.compressed)
            finally:
                raw.unlink()

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """Forget its parent; it has all of its bytes."""
        with self._answering():
            there = self._of(disk.path)
            self._disks[disk.path] = replace(there, record=replace(there.record, parent=None))
            return self.describe(_spec(disk))

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """It reads from no base image."""
        raise Unsupported(self.traits.name, "put a disk on another base image")

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """Keep its bytes as an image."""
        if not self.traits.snapshots:
            raise Unsupported(self.traits.name, "keep a snapshot within its storage")
        location = f"fake://images/{name}"
        with self._answering():
            if location in self._images:
                raise DiskExists(f"there is an image {location}")
            self._images[location] = bytes(self._of(disk.path).content)
        return location

    def discard_snapshot(self, location: str) -> None:
        """Forget an image that nothing reads from."""
        if not self.traits.snapshots:
            raise Unsupported(self.traits.name, "keep a snapshot within its storage")
        with self._answering():
            if any(disk.record.parent == location for disk in self._disks.values()):
                raise DiskInUse(f"disks were cloned from {location}", hint="flatten or remove them first")
            self._images.pop(location, None)

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """A network disk of a protocol that no hypervisor knows."""
        return Attachment(type="network", source=disk.path.name, format=self.traits.disk_format, protocol="fake")

    def _check_key(self, want: DiskSpec) -> None:
        if want.key is not None and not self.traits.encrypts:
            raise Unsupported(self.traits.name, "encrypt a disk")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with self._lock:
            if self.is_away:
                raise BackendUnavailable("the fake storage does not answer")
            yield

    def _make_room(self, size: int) -> None:
        used = sum(len(disk.content) for disk in self._disks.values())
        if self.capacity is not None and used + size > self.capacity:
            raise InsufficientSpace(str(_PLACE), needed=size, free=max(0, self.capacity - used), reclaimable={})

    def _of(self, path: Path) -> _Disk:
        if path not in self._disks:
            raise DiskNotFound(f"there is no disk {path}")
        return self._disks[path]


def _padded(content: bytes, size: int) -> bytearray:
    return bytearray(content.ljust(size, b"\0"))


def _spec(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)
