"""This machine: its caches, sources, backends and instances put together. The composition root, and the public face.

Everything that it does is a call further down; what it adds is which cache, which source, which backend.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from underlay import instances, registry
from underlay.cache import Cache, Ensured
from underlay.config import Config, load_config
from underlay.contracts import BackendTraits, DiskBackend, ImageSource, Observer
from underlay.errors import DiskNotFound, NotCached, UnknownCache
from underlay.filedisk import recorded
from underlay.files import make_directory, translated
from underlay.model import BaseImage, Digest, Event, ImageRef, InstanceDisk, Problem, Progress
from underlay.naming import candidate_names, is_image_name
from underlay.refs import is_ref, parse_ref
from underlay.store import Store, images
from underlay.units import parse_size

_SHORTEST_PREFIX = 6


class Silent:
    """An observer that listens to nothing."""

    def event(self, event: Event) -> None:
        """Let it pass."""

    def progress(self, progress: Progress) -> None:
        """Let it pass."""


@dataclass(frozen=True, slots=True)
class Host:
    """This machine's Underlay. Safe to share between threads; holds nothing open between calls."""

    config: Config
    observer: Observer

    @classmethod
    def open(cls, config: Config | Path | str | None = None, *, observer: Observer | None = None) -> "Host":
        """A host by its configuration.

        Args:
            config: a configuration, the path of its file, or None for ``$UNDERLAY_CONFIG``, the system's or the user's file,
                and without any of them the embedded default.
            observer: hears events and progress.

        Raises:
            ConfigError
        """
        if not isinstance(config, Config):
            config = load_config(None if config is None else Path(config))
        return cls(config, observer or Silent())

    # --------------------------------------------------------------------------------------------------------------- images

    def ensure(self, ref: str | ImageRef, *, checksum: str | Digest | None = None, cache: str | None = None) -> BaseImage:
        """Make an image present in a cache and return it; from any number of threads and processes, one fetches it.

        Args:
            ref: ``https://…``, ``file:///…`` or another scheme's.
            checksum: ``algorithm:hex`` of the bytes as served.
            cache: the cache's name; None for the configuration's first.

        Returns:
            The image: verified, durable, its use recorded.

        Raises:
            InvalidRef, InvalidDigest, UnknownScheme, UnknownCache: correct the request.
            SourceError, ImageRefused, CacheError, LockError, ToolError: see `underlay.errors`.
        """
        return self.fetch(ref, checksum=checksum, cache=cache).image

    def fetch(
        self,
        ref: str | ImageRef,
        *,
        checksum: str | Digest | None = None,
        cache: str | None = None,
        traits: BackendTraits | None = None,
    ) -> Ensured:
        """As `ensure`, and say how the image came to be there.

        Args:
            traits: of the backend that the image is for; one that needs raw images gets one.
        """
        ref = parse_ref(ref) if isinstance(ref, str) else ref
        checksum = Digest.parse(checksum) if isinstance(checksum, str) else checksum
        self._make_directories()
        return self.cache(cache).ensure(ref, self.source(ref.scheme), self.observer, checksum=checksum, traits=traits)

    def images(self, *, cache: str | None = None) -> tuple[list[BaseImage], list[Problem]]:
        """The images of one cache, or of all, and what stands in an image's place but is none."""
        found: list[BaseImage] = []
        problems: list[Problem] = []
        for store in self._stores(cache):
            if store.root.is_dir() or self.config.origin is not None:
                of_cache, wrong = images.images(store)
                found += of_cache
                problems += wrong
        return found, problems

    def find(self, text: str) -> list[BaseImage]:
        """The images that a name (or six characters of its beginning), a ref or a path means. Never needs the network.

        Raises:
            NotCached: none. InvalidRef. NotAnImage.
        """
        found = [image for store, name in self._named(text) if (image := images.find(store, name))]
        if not found and is_ref(text):
            ref = parse_ref(text)
            found = [image for image in self.images()[0] if image.ref == ref.canonical]
        if not found:
            raise NotCached(f"no cache has {text!r}", hint="'underlay list' shows what is there")
        return found

    def _named(self, text: str) -> Iterator[tuple[Store, str]]:
        path = Path(text)
        for store in self.config.caches.values():
            if is_ref(text):
                # Images that Nova or Ironic fetched carry no record, but a ref that fixes its version fixes their names.
                ref = parse_ref(text)
                version_id = ref.location if ref.scheme == "glance" else None
                for name in candidate_names(version_id, ref=ref, kind=store.kind, raw_only=False) if version_id else ():
                    yield store, name
            elif path.is_absolute():
                if path.parent == store.root and is_image_name(path.name, kind=store.kind):
                    yield store, path.name
            elif is_image_name(text, kind=store.kind):
                yield store, text
            elif len(text) >= _SHORTEST_PREFIX and store.root.is_dir():
                for name in images.names(store):
                    if name.startswith(text):
                        yield store, name

    # ---------------------------------------------------------------------------------------------------------------- disks

    def create_disk(
        self,
        instance: str,
        image: str | ImageRef | BaseImage,
        *,
        size: int | str | None = None,
        backend: str | None = None,
        name: str = "disk",
        path: Path | None = None,
        cache: str | None = None,
    ) -> InstanceDisk:
        """Make a disk for an instance from an image, which is fetched first unless it is here.

        Idempotent: the same disk is returned when it is there. Whole or not at all.

        Args:
            instance: its UUID or name.
            image: a ref, or an image that `ensure` returned.
            size: bytes, or text with a unit such as ``20GiB``; None for the image's virtual size.
            backend: ``qcow2``, ``flat``, ``default`` or another's; None for ``default``, which is qcow2 when the
                configuration's ``use_cow_images`` is true, else flat.
            name: ``disk`` or ``disk.SUFFIX``.
            path: where the disk goes instead of the instance's directory.

        Raises:
            DiskTooSmall, DiskExists, BackingPathTooLong, FormatMismatch; as `ensure`.
        """
        adapter = self.backend(backend)
        wanted = parse_size(size) if isinstance(size, str) else size
        spec = instances.disk_spec(self.config.instances, instance, name, size=wanted, path=path)
        if not isinstance(image, BaseImage):
            image = self.fetch(image, cache=cache, traits=adapter.traits).image
        self._make_directories()
        return instances.create(adapter, image, spec, store=self.store_of(image), instances=self.config.instances)

    def disks(self) -> list[InstanceDisk]:
        """Every disk in the instances path, and every disk of ours elsewhere."""
        return instances.disks(self.config.instances, list(self.config.caches.values()))

    def disk(self, instance: str, *, name: str = "disk", path: Path | None = None) -> InstanceDisk:
        """One disk.

        Raises:
            DiskNotFound, InvalidName
        """
        spec = instances.disk_spec(self.config.instances, instance, name, path=path)
        disk = self.backend(None).describe(spec)
        if path is not None and disk.instance != (record.instance if (record := recorded(path)) else instance):
            raise DiskNotFound(f"{path} is not a disk of {instance}")
        return disk

    def resize_disk(self, instance: str, size: int | str, *, name: str = "disk", path: Path | None = None) -> InstanceDisk:
        """Grow a disk that nobody has open; its own size is a success.

        Raises:
            DiskNotFound, DiskInUse, ShrinkRefused, DiskUnrecorded, InvalidSize, ToolFailed
        """
        wanted = parse_size(size) if isinstance(size, str) else size
        disk = self.disk(instance, name=name, path=path)
        return instances.resize(self._backend_of(disk), disk, wanted, store=self._lock_store(disk))

    def remove_disk(self, instance: str, *, name: str = "disk", path: Path | None = None) -> InstanceDisk:
        """Remove a disk that nobody has open, and return what it was.

        Raises:
            DiskNotFound, DiskInUse
        """
        disk = self.disk(instance, name=name, path=path)
        backend, store = self._backend_of(disk), self._lock_store(disk)
        instances.remove(backend, disk, store=store, instances=self.config.instances)
        return disk

    # -------------------------------------------------------------------------------------------------------------- the parts

    def cache(self, name: str | None) -> Cache:
        """A cache by name; None for the configuration's first.

        Raises:
            UnknownCache
        """
        name = name or next(iter(self.config.caches))
        self._check_cache(name)
        neighbours = [store for other, store in self.config.caches.items() if other != name]
        return Cache(name=name, store=self.config.caches[name], neighbours=neighbours)

    def source(self, scheme: str) -> ImageSource:
        """The source that serves a scheme.

        Raises:
            UnknownScheme
        """
        return registry.open_source(scheme, self.config.sources.get(scheme, {}))

    def backend(self, name: str | None) -> DiskBackend:
        """A disk backend by name; None and ``default`` as the configuration says.

        Raises:
            UnknownBackend
        """
        default = "qcow2" if self.config.use_cow_images else "flat"
        return registry.open_backend(default if name in (None, "default") else str(name))

    def store_of(self, image: BaseImage) -> Store:
        """The store of the cache that holds an image.

        Raises:
            NotCached: none of the configured ones.
        """
        for store in self.config.caches.values():
            if store.root == image.cache:
                return store
        raise NotCached(f"{image.path} is in no configured cache")

    def _stores(self, cache: str | None) -> list[Store]:
        if cache is None:
            return list(self.config.caches.values())
        self._check_cache(cache)
        return [self.config.caches[cache]]

    def _check_cache(self, name: str) -> None:
        if name not in self.config.caches:
            known = ", ".join(self.config.caches)
            raise UnknownCache(f"there is no cache {name!r}", hint=f"configured caches: {known}")

    def _backend_of(self, disk: InstanceDisk) -> DiskBackend:
        return registry.open_backend("flat" if disk.backend in ("raw", "unknown") else disk.backend)

    def _lock_store(self, disk: InstanceDisk) -> Store:
        """The store whose lock guards a disk: of the cache that its base is in, else the configuration's first."""
        stores = list(self.config.caches.values())
        store = next((store for store in stores if disk.base_path and disk.base_path.parent == store.root), stores[0])
        store.prepare()
        return store

    def _make_directories(self) -> None:
        """The embedded default makes its directories; a configuration names directories that are there."""
        if self.config.origin is not None:
            return
        for directory in (*(store.root for store in self.config.caches.values()), self.config.instances):
            with translated(directory):
                for missing in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
                    make_directory(missing, 0o755)
