"""Nova's image of an instance's disk over our core: its base image is made once, and its disk by a backend of ours.

Names, parameters and what is called back are Nova's. There is one class, and what it does follows from the backend's traits.
Nothing is opened or written before a method is called.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from underlay import diskchanges, instances
from underlay.contracts import BackendTraits, DiskBackend
from underlay.errors import DiskExists, DiskNotFound, DiskTooSmall, InvalidName, NotCached, UnderlayError, Unsupported
from underlay.model import BaseImage, Extraction, InstanceDisk
from underlay.naming import kind_of_name
from underlay.openstack.nova import guestdisk, making, places, rbdimages, templates
from underlay.openstack.nova.around import LOG, Around
from underlay.openstack.nova.exceptions import OF_DISKS, OF_TYPES, in_nova_s_words
from underlay.store import Store, images

_TRIES = 5  # a Nova that takes no lock of ours may remove an image between its making and its use
_COPIER = "copy_from_host"
"""What Nova's driver calls the callback that copies an image from another host, by the path that it is to have on both."""
_IN_PLACE = frozenset({"swap", "ephemeral"})
_NOVA_FORMATS: Mapping[str, str] = {"iso": "raw"}  # which is raw to QEMU


class Image:
    """The image of one disk.

    Attributes:
        path, source_type, driver_format, is_block_dev: as Nova has them for this type of images. The format of a disk that is
            there is the recorded one, whatever the type.
        driver_io, discard_mode, preallocate: as Nova's options have them.
        disk_info_mapping: what is known of the disk in its guest. disk_info_path: of the file with the formats of the
            instance's disks; None: what is no file has none. lock_path: the directory of Nova's locks.
    """

    SUPPORTS_LUKS = False

    def __init__(
        self,
        around: Around,
        backend: DiskBackend,
        instance: Any,
        disk_name: str | None = None,
        *,
        path: str | None = None,
        disk_info_mapping: Mapping[str, Any] | None = None,
    ) -> None:
        """Made by `Backend`.

        Raises:
            InvalidName: no disk can be called so.
            InternalError: Nova's, where Nova is around us: its disks are to be encrypted, and this cannot be.
        """
        self._around = around
        self._backend = backend
        self._spec = places.spec_of(around.config, backend, instance, disk_name, path)
        with in_nova_s_words(self._spec.name, OF_TYPES):
            guestdisk.refuse_encryption(around.conf, self._spec.name)
        shown = places.shown(self._spec, self.traits, around.conf)
        self.path = shown.path
        self.source_type = shown.source_type
        self.is_block_dev = shown.is_block_dev
        self._driver_format = shown.driver_format
        self.disk_info_mapping = disk_info_mapping
        self.preallocate = guestdisk.preallocates(around.conf, self.traits)
        self.driver_io = "native" if self.preallocate else None
        self.discard_mode = None if around.conf is None else around.conf.libvirt.hw_disk_discard
        is_file = places.is_file(self.traits)
        self.disk_info_path = os.path.join(os.path.dirname(self.path), "disk.info") if is_file else None
        self.lock_path = os.fspath(around.config.instances / "locks")

    # ------------------------------------------------------------------------------------------------------ what it is like

    @property
    def traits(self) -> BackendTraits:
        """Of the backend that keeps the disk."""
        return self._backend.traits

    @property
    def SUPPORTS_CLONE(self) -> bool:  # noqa: N802 - Nova's name
        """Whether the disk can be made from what the storage has already."""
        return self.traits.clones

    def is_shared_block_storage(self) -> bool:
        """Whether the disk is no file, and other hosts reach it."""
        return self.traits.shared_storage and not self.traits.on_host_filesystem

    def is_file_in_instance_path(self) -> bool:
        """Whether the disk is one file in its instance's directory."""
        return places.is_file(self.traits)

    @property
    def driver_format(self) -> str:
        """The format of the disk, as is recorded, else that of its type; never what the disk itself claims to be."""
        if not places.is_file(self.traits):
            return self._driver_format
        try:
            return self._backend.describe(self._spec).format or self._driver_format
        except DiskNotFound:
            return self._driver_format

    def exists(self) -> bool:
        """Whether anything has the disk's place.

        Raises:
            BackendUnavailable: it cannot be told.
        """
        return self._backend.exists(self._spec)

    def get_disk_size(self, name: str) -> int:
        """Bytes that a guest sees of a base image, by its path in the cache; of this disk, by its own.

        Where the disk is no file of this host, its own are told whatever the name.

        Raises:
            InvalidName: it is neither. NotCached, DiskNotFound; DiskUnrecorded: nothing trustworthy says what format it has.
        """
        with in_nova_s_words(name, OF_DISKS):
            if self.is_shared_block_storage() or os.path.abspath(name) == self.path:
                return making.size_of(self._describe())
            return self._base(name).virtual_size

    def verify_base_size(self, base: str, size: int | None, base_size: int = 0) -> None:
        """Make sure that a base image is not larger than the disk that is to be made of it.

        Args:
            base: its path in the cache. size: bytes; None: any. base_size: bytes that are known to be the image's; 0: they are
                looked up.

        Raises:
            FlavorDiskSmallerThanImage: Nova's, where Nova is around us; DiskTooSmall, where it is not. As `get_disk_size`
        """
        if size is None:
            return
        if size and not base_size:
            base_size = self.get_disk_size(base)
        if size < base_size:
            LOG.error("%s shows a guest %d bytes, which is more than the %d bytes of the disk", base, base_size, size)
            with in_nova_s_words(base, OF_DISKS):
                raise DiskTooSmall(f"the disk {self.path}", size=size, virtual_size=base_size, image=os.path.basename(base))

    # --------------------------------------------------------------------------------------------------------------- making

    def cache(
        self,
        fetch_func: Callable[..., object],
        filename: str,
        size: int | None = None,
        *args: Any,
        safe: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make the disk from a base image of this name, which is made first unless it is in the cache; grow one that is there.

        Args:
            fetch_func: makes the base image, as ``fetch_func(*args, target=PATH, **kwargs)``: a file at the path, in a
                directory where it may make others; or it makes the disk itself, by `clone`, and nothing at the path.
            filename: of the base image. size: bytes that the disk is to have; None or 0: as many as the image.
            safe: as in Nova, where such an image is not inspected; here every image is.

        Raises:
            as `create_image` and `resize_image`
        """
        base = os.path.join(self._around.store.root, filename)
        if not self.exists() or not os.path.lexists(base):
            self.create_image(fetch_func, base, size, *args, safe=safe, **kwargs)
        if size:
            self.resize_image(size)

    def create_image(
        self,
        prepare_template: Callable[..., object],
        base: str,
        size: int | None,
        *args: Any,
        safe: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make the disk, and its base image first unless that is in the cache; a disk that is there stays as it is.

        The base image of a disk that reads from it is made also when only the disk is there.

        The callback makes the base image in staging. It is inspected, and published under its name when it is whole. A swap or
        an ephemeral that the disk does not go on reading from is made for this disk alone.

        Args:
            prepare_template: as for `cache`. base: the path of the base image in the cache.
            size: as for `cache`. safe: as for `cache`.

        Raises:
            FlavorDiskSmallerThanImage, InvalidDiskInfo: Nova's, where Nova is around us.
            DiskTooSmall, ImageRefused: ours, where it is not, when what was made breaks a rule.
            NotCached: nothing was made. CacheError, DiskError, LockError, ToolError; what the callback raises.
        """
        store = self._around.store
        name = _name_in(store, base)

        def make(target: Path) -> None:
            if getattr(prepare_template, "__name__", None) != _COPIER:
                prepare_template(*args, target=os.fspath(target), **kwargs)
                return
            with templates.named(store, name, target) as path:
                prepare_template(*args, target=os.fspath(path), **kwargs)

        making.make_cache_directory(store)
        with in_nova_s_words(base, OF_DISKS):
            if not self.traits.overlays and self.exists():
                return
            if self.traits.overlays or kind_of_name(name, kind=store.kind) not in _IN_PLACE:
                self._create_from_base(store, name, make, size)
            else:
                self._create_alone(store, name, make, size)

    def _create_from_base(self, store: Store, name: str, make: templates.Make, size: int | None) -> None:
        was_there = False

        def make_unless_there(target: Path) -> None:
            nonlocal was_there
            was_there = self.exists()
            if self.traits.overlays or not was_there:
                make(target)

        if not self._made_from_base(store, name, make_unless_there, size):
            self._check_cloned(name, size, was_there=was_there)

    def _made_from_base(self, store: Store, name: str, make: templates.Make, size: int | None) -> bool:
        """Make the disk from its base image, and again when somebody removes that meanwhile; False: there is no base image."""
        for attempt in range(1, _TRIES + 1):
            try:
                with ExitStack() as holding:
                    return self._made_once(store, name, make, size, holding)
            except NotCached:
                if attempt == _TRIES:
                    raise
        raise AssertionError("unreachable")

    def _made_once(self, store: Store, name: str, make: templates.Make, size: int | None, holding: ExitStack) -> bool:
        image = templates.ensure(store, name, make, self._around.parts.observer, holding)
        if image is None:
            return False
        self._around.touch(image.path)
        self._create(store, image, size, holding)
        return True

    def _create(self, store: Store, image: BaseImage, size: int | None, holding: ExitStack) -> None:
        observer, config = self._around.parts.observer, self._around.config
        self.verify_base_size(os.fspath(image.path), size or None, image.virtual_size)
        if self.exists():
            making.restore_backing(store, image, self._describe(), observer, holding)
            return
        if self.traits.needs_raw:
            image = templates.raw_form(store, image, observer, holding)
        if self._is_beside_disks():
            with images.held(store, image.name) as hold:
                self._make_alone(hold.image, size)
            return
        want = making.wanted(self._spec, self.traits, image, size)
        self._hand_over(instances.create(config, self._backend, image, want, store=store))

    def _is_beside_disks(self) -> bool:
        """Whether it is a kernel or a ramdisk: nobody looks for it among the disks, and it needs its base image no more.

        Nova removes it without a word to us, so a root would keep its base for good.
        """
        is_file = self.traits.on_host_filesystem and not self.traits.overlays
        return is_file and not instances.is_scanned(self._around.config, self._spec.path)

    def _create_alone(self, store: Store, name: str, make: templates.Make, size: int | None) -> None:
        def make_unless_there(target: Path) -> None:
            if not self.exists():
                make(target)

        whose = f"{self._spec.instance}/{self._spec.name}"
        with templates.alone(store, name, whose, make_unless_there, self._around.parts.observer) as content:
            if content is not None:
                self._make_alone(content, size)
            elif not self.exists():
                raise NotCached(f"nothing was made for the disk {self.path}", hint="look into what makes it")

    def _make_alone(self, content: BaseImage, size: int | None) -> None:
        want = making.wanted(self._spec, self.traits, content, size)
        try:
            disk = instances.create_alone(self._around.config, self._backend, content, want)
        except DiskExists:
            if not self.exists():  # it is another one's that is in the way
                raise
        else:
            self._hand_over(disk)

    def _hand_over(self, disk: InstanceDisk) -> None:
        if places.is_file(self.traits):
            making.open_to_nova(disk.path)

    def _check_cloned(self, name: str, size: int | None, *, was_there: bool) -> None:
        """Make sure that what a callback has made in place of a base image is a disk that may be so large, or take it away.

        Args:
            was_there: the disk was, before the callback; then it stays as it is.
        """
        if self.traits.overlays or not self.exists():
            raise NotCached(f"nothing was made for the image {name}", hint="look into what fetches it")
        if was_there:
            return
        try:
            self.verify_base_size(self.path, size or None, making.size_of(self._describe()))
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Remove the disk because of an error, which one on the way does not hide."""
        try:
            self._remove()
        except UnderlayError as error:
            LOG.warning("The disk %s could not be removed: %s", self.path, error)

    def _remove(self) -> None:
        instances.remove(self._around.config, self._backend, self._spec, assume_closed=True)

    def clone(self, context: Any, image_id_or_uri: str) -> None:
        """Make the disk from what its storage has of an image already.

        Raises:
            ImageUnacceptable: Nova's, where Nova is around us: it has to be fetched. Unsupported, where it is not.
        """
        with in_nova_s_words(image_id_or_uri, OF_DISKS):
            if not self.traits.clones:
                raise Unsupported(self.traits.name, "clone an image")
            version = rbdimages.version_of(self._around, context, image_id_or_uri)
            instances.clone(self._around.config, self._backend, version, self._spec)

    def import_file(self, instance: Any, local_file: str, remote_name: str) -> None:
        """Have the storage keep a file, such as a config drive, as this disk; what is a file itself is where it is to be.

        Raises:
            as `create_image`
        """
        if self.traits.on_host_filesystem:
            return
        with in_nova_s_words(local_file, OF_DISKS):
            if self.exists():
                self._remove()
            content = making.raw_file(Path(os.path.abspath(local_file)))
            instances.create_alone(self._around.config, self._backend, content, self._spec)

    # ------------------------------------------------------------------------------------------------------------- changing

    def resize_image(self, size: int) -> None:
        """Grow the disk, and the file system that fills a raw one where that is safe; one that is as large is left as it is.

        Raises:
            InvalidDiskInfo: Nova's, where Nova is around us; DiskUnrecorded, where it is not.
            DiskNotFound, DiskInUse, ToolError
        """
        config = self._around.config
        with in_nova_s_words(self.path, OF_DISKS):
            disk = self._describe()
            if making.size_of(disk) >= size:
                return
            if disk.format == "raw" and self.traits.on_host_filesystem and making.has_file_system(disk.path):
                diskchanges.resize_with_filesystem(config, self._backend, self._spec, size, assume_closed=True)
            else:
                instances.resize(config, self._backend, self._spec, size, assume_closed=True)

    def snapshot_extract(self, target: str, out_format: str) -> None:
        """Write what the guest sees into a new file; the guest must not run.

        Args:
            out_format: raw, iso or qcow2, compressed where Nova's ``snapshot_compression`` says so; vmdk or vdi.

        Raises:
            ImageUnacceptable, DiskNotFound, InvalidDiskInfo: Nova's, where Nova is around us. InvalidForm; DiskExists: the
            target is there. DiskInUse, ToolError, InsufficientSpace
        """
        conf = self._around.conf
        out_format = _NOVA_FORMATS.get(out_format, out_format)
        compressed = out_format == "qcow2" and conf is not None and conf.libvirt.snapshot_compression
        with in_nova_s_words(self.path, OF_DISKS):
            self._describe()
            path = Path(os.path.abspath(target))
            with making.extraction(path, out_format) as (there, written):
                want = Extraction(format=written, compressed=compressed)
                diskchanges.extract(self._around.config, self._backend, self._spec, there, want, assume_closed=True)

    def flatten(self) -> None:
        """Have a disk stand alone that was cloned.

        Raises:
            NotImplementedError: of all other disks, as in Nova, whose driver goes on without.
        """
        if not self.traits.clones:
            raise NotImplementedError("flatten() is only for disks that can be cloned")
        with in_nova_s_words(self.path, OF_DISKS):
            diskchanges.flatten(self._around.config, self._backend, self._spec, assume_closed=True)

    def direct_snapshot(
        self,
        context: Any,
        snapshot_name: str,
        image_format: str,
        image_id: str,
        base_image_id: str,
    ) -> str:
        """Make an image of the disk within its storage, which the guest may go on using; its location, for Glance.

        Raises:
            NotImplementedError: the storage keeps none; Nova's driver then extracts one.
        """
        if not self.traits.snapshots:
            raise NotImplementedError("direct_snapshot() is only for storage that keeps images")
        with in_nova_s_words(self.path, OF_DISKS):
            return diskchanges.snapshot(self._around.config, self._backend, self._spec, image_id)

    def cleanup_direct_snapshot(
        self,
        location: Mapping[str, str] | None,
        also_destroy_volume: bool = False,  # noqa: FBT001, FBT002 - as in Nova
        ignore_errors: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Remove an image that `direct_snapshot` has made.

        Raises:
            DiskInUse, BackendUnavailable: unless errors are to be passed over, and then logged.
        """
        if not location or not self.traits.snapshots:
            return
        try:
            self._backend.discard_snapshot(location["url"])
        except UnderlayError as error:
            if not ignore_errors:
                raise
            LOG.warning("The snapshot could not be removed: %s", error)

    def create_snap(self, name: str) -> None:
        """Keep what a disk in a Ceph is now, for a resize that is taken back; of other disks nothing is kept, as in Nova."""
        rbdimages.snap(self._around, self._spec, self.traits, "create_snap", name)

    def remove_snap(self, name: str, ignore_errors: bool = False) -> None:  # noqa: FBT001, FBT002 - as in Nova
        """Forget what `create_snap` has kept."""
        rbdimages.snap(self._around, self._spec, self.traits, "remove_snap", name, ignore_errors)

    def rollback_to_snap(self, name: str) -> None:
        """Have the disk be what `create_snap` has kept."""
        rbdimages.snap(self._around, self._spec, self.traits, "rollback_to_snap", name)

    # -------------------------------------------------------------------------------------------------- what others are told

    def libvirt_info(
        self, cache_mode: str, extra_specs: Mapping[str, str], boot_order: str | None = None, disk_unit: int | None = None
    ) -> Any:
        """The disk in a domain's XML, as Nova's ``LibvirtConfigGuestDisk``.

        Args:
            extra_specs: of the flavor. disk_unit: of a SCSI disk, on its controller.

        Raises:
            AttributeError: there is no ``disk_info_mapping``. ExtraMissing: there is no Nova around us.
        """
        if self.disk_info_mapping is None:
            raise AttributeError("an image needs its disk_info_mapping for libvirt_info()")
        attachment = None if self.traits.on_host_filesystem or self.is_block_dev else self._backend.attachment(self._describe())
        info = guestdisk.disk(self, self.disk_info_mapping, attachment, cache_mode)
        info.boot_order = boot_order
        guestdisk.place(info, self.disk_info_mapping, disk_unit)
        guestdisk.limit(info, extra_specs)
        return info

    def libvirt_fs_info(self, target: str, driver_type: str | None = None) -> Any:
        """The disk as a container's file system, as Nova's ``LibvirtConfigGuestFilesys``.

        Raises:
            ExtraMissing: there is no Nova around us.
        """
        return guestdisk.file_system(self, target, driver_type)

    def get_model(self, connection: Any) -> Any:
        """The disk for those who look into it: a value of Nova's ``nova.virt.image.model``.

        Raises:
            ExtraMissing: there is no Nova around us.
        """
        is_elsewhere = not self.traits.on_host_filesystem and not self.is_block_dev
        attachment = self._backend.attachment(self._describe()) if is_elsewhere else None
        return guestdisk.model(self, attachment, connection)

    # ---------------------------------------------------------------------------------------------------------------- parts

    def _describe(self) -> InstanceDisk:
        """The disk that is there. Of one that Nova itself has made without a record, the type is noted as its format."""
        disk = self._backend.describe(self._spec)
        if disk.format is not None or not places.is_file(self.traits):
            return disk
        if making.can_be(disk.path, self.traits.disk_format, self._around.store):
            instances.note_format(self._around.config, disk.path, self.traits.disk_format)
        return self._backend.describe(self._spec)

    def _base(self, path: str) -> BaseImage:
        """A base image by its path.

        Raises:
            InvalidName, NotCached; as `underlay.store.images.find`.
        """
        store = self._around.store
        image = templates.find(store, _name_in(store, path))
        if image is None:
            raise NotCached(f"there is no image {path}", hint="fetch it first")
        return image


def _name_in(store: Store, path: str) -> str:
    """The name of a base image.

    Raises:
        InvalidName: the path is not directly in the cache.
    """
    where = Path(os.path.abspath(path))
    if where.parent != store.root:
        raise InvalidName(f"{path!r} is no base image: it is not in {store.root}", hint="name a file of the cache")
    return where.name
