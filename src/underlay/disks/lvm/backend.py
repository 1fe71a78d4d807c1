"""Logical volumes as disks: of their own extents, in a thin pool, or snapshots of a volume that holds their image."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from underlay import extfs, filedisk, qemuimg
from underlay.contracts import BackendTraits, StorageRoom
from underlay.disks.lvm import bases, changes, content, crypt, looking, making, names
from underlay.disks.lvm.commands import Group
from underlay.disks.lvm.looking import HEADER_BYTES, Found, Volume
from underlay.disks.lvm.storage import Clearing, Storage, measured, room, written
from underlay.errors import (
    ConfigError,
    DiskExists,
    DiskNotFound,
    DiskUnrecorded,
    FormatMismatch,
    UnderlayError,
    Unsupported,
)
from underlay.files import device_bytes, translated
from underlay.model import Attachment, BaseImage, DiskRecord, DiskSpec, Extraction, ImageVersion, InstanceDisk
from underlay.values import replace


@dataclass(frozen=True, slots=True, kw_only=True)
class LvmBackend:
    """Logical volumes in one volume group.

    Attributes:
        volume_group: of the disks. type: thick, thin or snapshot. thin_pool: of thin disks, and of snapshots if they are thin.
        volume_clear: what is done to a disk's bytes when it goes: none, zero or shred. volume_clear_size: to how many of them,
            from the beginning; None: all.
        lock_timeout: seconds to wait for the volume group's lock.
        cache_mode, discard: of the hypervisor's driver; None: as it does by itself.

    Raises:
        ConfigError: there is no volume group, or no pool where one is needed.
    """

    volume_group: str | None = None
    type: str = "thick"
    thin_pool: str | None = None
    volume_clear: str = "zero"
    volume_clear_size: int | None = None
    lock_timeout: float = 60.0
    cache_mode: str | None = None
    discard: str | None = None
    traits: ClassVar[BackendTraits] = BackendTraits(
        name="lvm",
        needs_raw=True,
        overlays=False,
        disk_format="raw",
        on_host_filesystem=False,
        encrypts=True,
    )

    def __post_init__(self) -> None:
        if self.volume_group is None:
            raise ConfigError("the lvm backend has no volume group", hint="set volume_group under [disks.lvm]")
        if self.type == "thin" and self.thin_pool is None:
            raise ConfigError("thin disks have no pool", hint="set thin_pool under [disks.lvm]")

    @property
    def _group(self) -> Group:
        assert self.volume_group is not None
        return Group(name=self.volume_group, patience=self.lock_timeout)

    @property
    def _storage(self) -> Storage:
        pool = None if self.type == "thick" else self.thin_pool
        clearing = Clearing(how=self.volume_clear, size=self.volume_clear_size)
        return Storage(group=self._group, pool=pool, clearing=clearing)

    def place(self, instance: str, name: str) -> Path | None:
        """``/dev/VG/INSTANCE_NAME``, the volume's device."""
        group = self._group.name
        return names.device(group, names.volume_name(group, instance, name))

    def room(self) -> StorageRoom:
        """That of the volume group, or of the pool of thin disks."""
        return measured(self._storage)

    # --------------------------------------------------------------------------------------------------------------- making

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Make a volume, and fill it with the image; or make it a snapshot of the image's own volume."""
        if base.format != "raw":
            raise FormatMismatch(f"{base.path} is {base.format}, and a logical volume is made of raw images only")
        size = filedisk.size_for(base, want)
        storage = self._storage
        try:
            with self._image_held(storage, base, want, size=size) as image:
                return self._create(storage, base, want, size=size, image=image)
        except BaseException:
            if self.type == "snapshot":
                with suppress(UnderlayError):  # crash: an image's volume that the next removal takes away
                    bases.sweep(storage)
            raise

    @contextmanager
    def _image_held(self, storage: Storage, base: BaseImage, want: DiskSpec, *, size: int) -> Iterator[str | None]:
        """The name of the image's volume, if the disk is to be a snapshot of one; what is encrypted shares nothing."""
        if self.type != "snapshot" or want.key is not None:
            yield None
            return
        with bases.held(storage, base, size=size) as image:
            yield image

    def _create(self, storage: Storage, base: BaseImage, want: DiskSpec, *, size: int, image: str | None) -> InstanceDisk:
        volume = self._volume_of(want.path)
        found = making.settled(storage, volume, image=image)
        if found.disk is None:
            try:
                return self._make(storage, found, base, want, size=size, image=image)
            except DiskExists:  # a program that a killed maker began has ended
                found = looking.find(storage.group, volume, pool=None)
                if found.disk is None:
                    raise
        assert found.disk is not None
        return self._made_from(storage, found.disk, base, want)

    def _make(
        self, storage: Storage, found: Found, base: BaseImage, want: DiskSpec, *, size: int, image: str | None
    ) -> InstanceDisk:
        volume, record = self._volume_of(want.path), filedisk.record_of(base, want, self.traits)
        tags = [*names.record_tags(record), names.made_for(volume)]
        if image is not None and not want.grow_filesystem:  # it is whole at once
            origin = bases.snapshot(storage, base, volume, found=found, base=image, size=size, tags=tags)
            occupied = origin.occupied
        else:
            with making.making(storage, volume) as temporary:
                occupied = self._fill(storage, temporary, found, base, want, size=size, image=image, tags=tags)
                changes.rename(storage.group, temporary, volume)
        if want.key is not None:
            crypt.open_side(want.path, want.key)
        return self._made(storage, want, record, image=image, occupied=occupied)

    def _fill(
        self,
        storage: Storage,
        temporary: str,
        found: Found,
        base: BaseImage,
        want: DiskSpec,
        *,
        size: int,
        image: str | None,
        tags: list[str],
    ) -> int:
        """Make a whole disk under another name; the bytes that it occupies in a pool."""
        side = storage.device(temporary)
        if want.key is not None:
            side, tags, occupied = names.mapped(temporary), [*tags, names.ENCRYPTED], size + HEADER_BYTES
            with room(storage, needed=occupied):
                self._fill_encrypted(storage, temporary, base, want.key, size=size, tags=tags)
        elif image is not None:
            occupied = bases.snapshot(storage, base, temporary, found=found, base=image, size=size, tags=tags).occupied
        else:
            occupied = bases.fill(storage, temporary, base, size=size, tags=tags)
        if want.grow_filesystem:
            _grow_filesystem(side, base)
        crypt.close_side(storage.device(temporary))
        return occupied

    def _made(self, storage: Storage, want: DiskSpec, record: DiskRecord, *, image: str | None, occupied: int) -> InstanceDisk:
        """What was made, by what its making told."""
        with written(storage, self._volume_of(want.path)), content.opened(want.path, os.O_RDONLY) as fd:
            size = device_bytes(fd)
        if storage.pool is None:
            occupied = 0 if image else size
        parent = f"lvm:{storage.group.name}/{image}" if image and storage.pool is None else None
        header = HEADER_BYTES if want.key is not None else 0
        return looking.made(want, record, size=size - header, occupied=occupied, parent=parent)

    def _fill_encrypted(
        self,
        storage: Storage,
        temporary: str,
        base: BaseImage,
        key: bytes,
        *,
        size: int,
        tags: list[str],
    ) -> None:
        group, occupied = storage.group, size + HEADER_BYTES
        if storage.pool is None:
            changes.make_plain(group, temporary, size=occupied, tags=tags)
        else:
            changes.make_thin(group, temporary, pool=storage.pool, size=occupied, tags=tags)
        device = storage.device(temporary)
        crypt.encrypt(device, key)
        crypt.open_side(device, key)
        with written(storage, temporary):
            content.write_file(base.path, names.mapped(temporary), size=base.size, skips_zeros=False)

    def _made_from(self, storage: Storage, volume: Volume, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """The disk that is there, if it is the wanted one; made ready for use."""
        if not looking.is_disk(volume, want):
            raise DiskExists(f"{want.path} exists and is no disk of ours", hint="rename or remove it")
        if volume.is_encrypted != (want.key is not None):
            which = "is encrypted, and no key was given" if volume.is_encrypted else "is not encrypted, and a key was given"
            raise DiskExists(f"the disk {want.path} exists and {which}", hint="remove it, or choose another name")
        disk, wanted = looking.disk_of(storage.group, volume, want), filedisk.size_for(base, want)
        header = HEADER_BYTES if volume.is_encrypted else 0
        as_wanted = looking.rounded(wanted + header, volume.extent) - header == disk.size
        compared = replace(disk, size=wanted) if as_wanted else disk
        filedisk.check_wanted(compared, volume.record, base, want, self.traits)
        changes.activate(storage.group, volume)
        if want.key is not None:
            crypt.open_side(want.path, want.key)
        return disk

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        """No image comes in a volume group."""
        raise Unsupported(self.traits.name, "clone an image")

    # -------------------------------------------------------------------------------------------------------------- looking

    def exists(self, want: DiskSpec) -> bool:
        """Whether a volume has the disk's name."""
        found = looking.find(self._group, self._volume_of(want.path), pool=None)
        return found.named is not None or found.replacement is not None

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The volume, as it says of itself."""
        return looking.disk_of(self._group, self._look(want)[1], want)

    def is_open(self, disk: InstanceDisk) -> bool | None:
        """Whether anybody has the volume open, or the device of its decrypted side."""
        _, volume = self._look(_spec(disk))
        return crypt.is_in_use(self._storage.device(volume.name)) if volume.is_encrypted else volume.is_open

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """A block device; of an encrypted disk, that of its decrypted side."""
        volume = self._recorded(disk)
        goes_around = self.cache_mode in ("none", "directsync")
        return Attachment(
            type="block",
            source=os.fspath(self._side(volume)),
            format="raw",
            cache=self.cache_mode,
            io="native" if goes_around and not (volume.is_thin or volume.is_snapshot) else None,
            discard=self.discard,
        )

    def _look(self, want: DiskSpec) -> tuple[Found, Volume]:
        found, volume = looking.look(self._group, self._volume_of(want.path), pool=self._storage.pool)
        if volume.record is not None and not looking.is_disk(volume, want):
            raise DiskExists(f"{want.path} is another disk: {volume.record.name} of {volume.record.instance}")
        return found, volume

    def _volume_of(self, path: Path) -> str:
        return names.volume_of(path, group=self._group.name)

    def _side(self, volume: Volume) -> Path:
        """The device that the disk's guest sees."""
        return names.mapped(volume.name) if volume.is_encrypted else self._storage.device(volume.name)

    def _recorded(self, disk: InstanceDisk) -> Volume:
        _, volume = self._look(_spec(disk))
        return _checked(volume, disk)

    # ------------------------------------------------------------------------------------------------------------- changing

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow the volume; a snapshot outside a pool, whose size is its origin's, stands alone then."""
        storage, want = self._storage, _spec(disk)
        volume = self._settled(storage, disk)
        header = volume.size - volume.visible
        size = looking.rounded(filedisk.whole_sectors(size) + header, volume.extent)
        if size < volume.size:
            raise filedisk.shrink_refused(looking.disk_of(storage.group, volume, want), size - header)
        if size > volume.size or _is_half_grown(storage, volume):
            changes.activate(storage.group, volume)
            self._grow(storage, volume, size=size)
        return self.describe(want)

    def _grow(self, storage: Storage, volume: Volume, *, size: int) -> None:
        if volume.is_encrypted:
            if not crypt.is_opened(storage.device(volume.name)):
                hint = "ask for the disk again, with its key"
                raise Unsupported(self.traits.name, f"grow {volume.name}, which is encrypted and not open", hint=hint)
            with room(storage, needed=size - volume.size) if volume.is_thin else nullcontext():
                making.grow_encrypted(storage, volume, size=size)
        elif volume.is_snapshot:
            making.stand_alone(storage, volume, size=size)
            bases.sweep(storage)
        elif volume.is_thin:
            changes.extend(storage.group, volume.name, size)
        else:
            making.grow_plain(storage, volume, size=size)

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the volume, after what was written to it is cleared; and its image's, when nobody stands on that any more."""
        storage = self._storage
        found = making.settled(storage, self._volume_of(disk.path))
        if found.disk is not None:
            making.remove(storage, _checked(found.disk, disk))
        if self.type == "snapshot" or (found.disk is not None and found.disk.origin is not None):
            bases.sweep(storage)

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Read the device."""
        volume = self._recorded(disk)
        changes.activate(self._group, volume)
        if volume.is_encrypted and not crypt.is_opened(self._storage.device(volume.name)):
            hint = "ask for the disk again, with its key"
            raise Unsupported(self.traits.name, f"read {disk.path}, which is encrypted and not open", hint=hint)
        source: qemuimg.Node = {
            "driver": "raw",
            "file": {"driver": "host_device", "filename": os.fspath(self._side(volume))},
        }
        with translated(target.parent):
            qemuimg.convert(source, target, format=want.format, compressed=want.compressed)

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """Put a volume of its own extents in the place of a snapshot outside a pool; any other stands alone."""
        storage = self._storage
        volume = self._settled(storage, disk)
        if volume.is_snapshot:
            making.stand_alone(storage, volume, size=volume.size)
            bases.sweep(storage)
        return self.describe(_spec(disk))

    def _settled(self, storage: Storage, disk: InstanceDisk) -> Volume:
        found = making.settled(storage, self._volume_of(disk.path))
        if found.disk is None:
            raise DiskNotFound(f"there is no disk {disk.path}")
        return _checked(found.disk, disk)

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """No volume reads from a file."""
        raise Unsupported(self.traits.name, "put a disk on another base image")

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """No image stays in a volume group."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")

    def discard_snapshot(self, location: str) -> None:
        """There is none."""
        raise Unsupported(self.traits.name, "keep a snapshot within its storage")


def _is_half_grown(storage: Storage, volume: Volume) -> bool:
    """Whether a growth of an encrypted disk did not come to its end."""
    device = storage.device(volume.name)
    return volume.is_encrypted and crypt.is_opened(device) and crypt.side_bytes(device) < volume.visible


def _spec(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)


def _checked(volume: Volume, disk: InstanceDisk) -> Volume:
    """The volume, if it is the disk.

    Raises:
        DiskUnrecorded
    """
    if not looking.is_disk(volume, _spec(disk)):
        raise DiskUnrecorded(f"nothing says that {disk.path} is this disk", hint="only a disk that Underlay made is touched")
    return volume


def _grow_filesystem(device: Path, base: BaseImage) -> None:
    with translated(device), content.opened(device, os.O_RDONLY) as fd:
        extfs.check(fd, size=base.virtual_size, backend="lvm", what=base.name)
    extfs.grow(device)
    with translated(device), content.opened(device, os.O_RDONLY) as fd:
        os.fsync(fd)
