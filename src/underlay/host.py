"""This machine: its caches, sources, backends and instances put together. The composition root, and the public face.

Everything that it does is a call further down; what it adds is which cache, which source, which backend.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from underlay import filedisk, instances, registry
from underlay.cache import Cache, Ensured
from underlay.config import Config, load_config
from underlay.contracts import BackendTraits, DiskBackend, ImageSource, Observer
from underlay.errors import CacheError, DiskNotFound, DiskUnrecorded, NotCached, OverlayRefused, UnknownCache
from underlay.files import make_directory, translated
from underlay.model import BaseImage, Digest, DiskSpec, Event, ImageRef, InstanceDisk, Level, Problem, Progress
from underlay.naming import CacheKind, candidate_names, is_image_name
from underlay.refs import is_ref, parse_ref
from underlay.store import Store, images
from underlay.units import parse_size

_SHORTENED = re.compile(r"([0-9a-z][0-9a-z-]{5,})([._].*)?", re.ASCII)
"""Six characters or more of a name's beginning, and its suffix if that is given."""


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
        chosen, source = self.cache(cache), self.source(ref.scheme)
        self._make_directories()
        return chosen.ensure(ref, source, self.observer, checksum=checksum, traits=traits)

    def images(self, *, cache: str | None = None) -> tuple[list[BaseImage], list[Problem]]:
        """The images of one cache, or of all, and what stands in an image's place but is none.

        Raises:
            UnknownCache, CacheMissing, CacheNotWritable, UnknownLayout, LayoutDisagrees
        """
        found: list[BaseImage] = []
        problems: list[Problem] = []
        for store in self.stores(cache):
            of_cache, wrong = images.images(store)
            found += of_cache
            problems += wrong
        return found, problems

    def stores(self, cache: str | None = None) -> list[Store]:
        """One cache, or all that can be looked at. The embedded default's come with the first fetch.

        Raises:
            UnknownCache, CacheMissing, UnknownLayout, LayoutDisagrees
        """
        names = list(self.config.caches) if cache is None else [self.cache(cache).name]
        stores = [self.config.caches[name] for name in names]
        if self.config.origin is None:
            stores = [store for store in stores if os.path.lexists(store.root)]
        return self._usable(stores)

    def _usable(self, stores: list[Store]) -> list[Store]:
        """Those that can be looked at; the others are told as events, unless there is nothing but them."""
        usable: list[Store] = []
        problems: list[Problem] = []
        for store in stores:
            try:
                store.check()
                usable.append(store)
            except CacheError as error:
                if store is stores[-1] and not usable:
                    raise
                problems.append(Problem(error.code, store.root, error.message))
        self._tell(problems)
        return usable

    def _tell(self, problems: Sequence[Problem]) -> None:
        for problem in problems:
            path = {"path": os.fspath(problem.path)}
            self.observer.event(Event(code=problem.code, level=Level.WARNING, detail=problem.detail, fields=path))

    def find(self, text: str) -> list[BaseImage]:
        """The images that a name (or six characters of its beginning), a ref or a path means. Never needs the network.

        A name may be shortened in its middle as well, as tables do it: ``3f786850e387.raw``.

        Raises:
            NotCached: none. InvalidRef. NotAnImage, UnsafeImage: as `underlay.store.images.find`.
        """
        ref = parse_ref(text) if is_ref(text) else None
        found: list[BaseImage] = []
        for store in self.stores():
            names = _names_of_ref(store, ref) if ref else _names_meant(store, text)
            found += [image for name in names if (image := images.find(store, name))]
        if not found and ref is not None:
            found = [image for image in self.images()[0] if image.ref == ref.canonical]
        if not found:
            what = ref.canonical if ref else text
            raise NotCached(f"no cache has {what!r}", hint="'underlay list' shows what is there")
        return found

    def _only(self, text: str) -> BaseImage | None:
        """The one image that a name or a path means, or None.

        Raises:
            NotCached: several.
        """
        try:
            found = self.find(text)
        except NotCached:
            return None
        if len(found) > 1:
            names = ", ".join(os.fspath(image.path) for image in found)
            raise NotCached(f"{text!r} means {len(found)} images: {names}", hint="name one of them")
        return found[0]

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
            image: a ref, the name or path of an image that is here, or what `ensure` returned.
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
        spec = instances.disk_spec(self.config, instance, name, size=wanted, path=path)
        if isinstance(image, str) and not is_ref(image):
            image = self._only(image) or parse_ref(image)  # which says that it is none
        store = self.store_of(image) if isinstance(image, BaseImage) else self.cache(cache).store
        if adapter.traits.overlays and store.kind is CacheKind.MASTERS:
            raise OverlayRefused(
                f"no {adapter.traits.name} disk can be made on a master: {store.root} replaces masters in their place",
                hint="use the flat backend, or a cache of kind base",
            )
        if not isinstance(image, BaseImage):
            image = self.fetch(image, cache=cache, traits=adapter.traits).image
        self._make_directories()
        return instances.create(self.config, adapter, image, spec, store=store)

    def disks(self) -> list[InstanceDisk]:
        """Every disk in the instances path, and every disk of ours elsewhere; what cannot be looked at is told as an event."""
        found, problems = instances.disks(self.config)
        self._tell(problems)
        return found

    def disk(self, instance: str, *, name: str = "disk", path: Path | None = None) -> InstanceDisk:
        """One disk.

        Raises:
            DiskNotFound, InvalidName
        """
        return filedisk.describe(self._spec_of_disk(instance, name, path))

    def resize_disk(
        self, instance: str, size: int | str, *, name: str = "disk", path: Path | None = None, assume_closed: bool = False
    ) -> InstanceDisk:
        """Grow a disk that nobody has open; its own size is a success.

        Args:
            assume_closed: the caller knows that it is closed where that cannot be told (a network file system, for one).

        Raises:
            DiskNotFound, DiskInUse, ShrinkRefused, DiskUnrecorded, InvalidSize, ToolFailed
        """
        wanted = parse_size(size) if isinstance(size, str) else size
        spec = self._spec_of_disk(instance, name, path)
        return instances.resize(self.config, self._backend_of(spec), spec, wanted, assume_closed=assume_closed)

    def remove_disk(
        self, instance: str, *, name: str = "disk", path: Path | None = None, assume_closed: bool = False
    ) -> InstanceDisk:
        """Remove a disk that nobody has open, and return what it was.

        Args:
            assume_closed: as for `resize_disk`.

        Raises:
            DiskNotFound, DiskInUse, DiskUnrecorded
        """
        spec = self._spec_of_disk(instance, name, path)
        return instances.remove(self.config, self._backend_of(spec), spec, assume_closed=assume_closed)

    def _spec_of_disk(self, instance: str, name: str, path: Path | None) -> DiskSpec:
        """Where a disk is that is there; a path of the caller's must be one that something records as this instance's disk."""
        spec = instances.disk_spec(self.config, instance, name, path=path)
        disk = filedisk.describe(spec)
        if path is not None:
            with translated(path):
                record = filedisk.recorded(path)
            if record is None and disk.format is None:
                raise DiskUnrecorded(f"nothing says that {path} is a disk", hint="only recorded disks are shown or touched")
            if record is not None and record.instance != instance:
                raise DiskNotFound(f"{path} is not a disk of {instance}", hint=f"it is one of {record.instance}")
        return spec

    # -------------------------------------------------------------------------------------------------------------- the parts

    def cache(self, name: str | None) -> Cache:
        """A cache by name; None for the configuration's first.

        Raises:
            UnknownCache
        """
        name = next(iter(self.config.caches)) if name is None else name
        if name not in self.config.caches:
            known = ", ".join(self.config.caches)
            raise UnknownCache(f"there is no cache {name!r}", hint=f"configured caches: {known}")
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
        return registry.open_backend(default if name is None or name == "default" else name)

    def store_of(self, image: BaseImage) -> Store:
        """The store of the cache that holds an image.

        Raises:
            NotCached: none of the configured ones.
        """
        for store in self.config.caches.values():
            if store.root == image.cache:
                return store
        raise NotCached(f"{image.path} is in no configured cache")

    def _backend_of(self, spec: DiskSpec) -> DiskBackend:
        name = filedisk.describe(spec).backend
        return registry.open_backend("flat" if name == "unknown" else name)

    def _make_directories(self) -> None:
        """The embedded default makes its directories; a configuration names directories that are there."""
        if self.config.origin is not None:
            return
        for directory in (*(store.root for store in self.config.caches.values()), self.config.instances):
            with translated(directory):
                for missing in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
                    make_directory(missing, 0o755)


def _names_of_ref(store: Store, ref: ImageRef) -> Sequence[str]:
    """The names that a ref fixes by itself: images that Nova or Ironic fetched carry no record, but have them."""
    return candidate_names(ref.location, ref=ref, kind=store.kind, raw_only=False) if ref.scheme == "glance" else ()


def _names_meant(store: Store, text: str) -> Sequence[str]:
    """The names in a cache that a path, a name or a shortened name means."""
    if "/" in text:
        directory, name = os.path.split(os.path.abspath(text))
        is_here = "\0" not in text and os.path.realpath(directory) == os.path.realpath(store.root)
        return [name] if is_here and is_image_name(name, kind=store.kind) else []
    if is_image_name(text, kind=store.kind):
        return [text]
    match = _SHORTENED.fullmatch(text)
    if match is None:
        return []
    beginning, suffix = match[1], match[2] or ""
    return [
        name
        for name in images.names(store)
        if name.startswith(text) or (suffix and name.startswith(beginning) and name.endswith(suffix))
    ]
