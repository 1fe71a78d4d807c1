"""The disks of this host's instances: which base they are made from or put on, and by which backend."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from underlay import instances, later, lookup, registry
from underlay.contracts import BackendTraits, DiskBackend
from underlay.errors import ConfigError, ExtraMissing, OverlayRefused, SourceUnavailable, UnknownCache, Unsupported
from underlay.host import bring
from underlay.host.parts import Parts
from underlay.model import BaseImage, DiskSpec, Event, ImageRef, InstanceDisk, Level
from underlay.naming import CacheKind
from underlay.policy.form import Want
from underlay.refs import is_ref, parse_ref
from underlay.store import Store, images

if TYPE_CHECKING:
    from underlay import diskchanges, generated
    from underlay.generated import Generated
else:
    generated = later.module("underlay.generated")
    diskchanges = later.module("underlay.diskchanges")  # who makes a disk changes none


def create(
    parts: Parts, image: str | ImageRef | BaseImage, spec: DiskSpec, adapter: DiskBackend, *, cache: str | None
) -> InstanceDisk:
    """Make a disk from an image, which is fetched first unless it is here.

    Raises:
        OverlayRefused: a disk that reads from its base, on a cache that replaces images in their place. As
        `underlay.instances.create` and `underlay.host.bring.verified`.
    """
    found = _image_here(parts, image)
    store = parts.store_of(found) if isinstance(found, BaseImage) else parts.cache(cache).store
    _check_base(adapter, store)
    with ExitStack() as holding:  # from its arrival to the disk's, or it could go in between
        if not isinstance(found, BaseImage):
            if adapter.traits.clones and (cloned := _cloned(parts, found, spec, adapter)):
                return cloned
            want = Want(traits=adapter.traits)
            found = bring.verified(parts, found, parts.cache(cache), want, None, holding).image
        parts.make_directories()
        return instances.create(parts.config, adapter, found, spec, store=store)


def _image_here(parts: Parts, image: str | ImageRef | BaseImage) -> ImageRef | BaseImage:
    if not isinstance(image, str):
        return image
    here = None if is_ref(image) else lookup.find_only(parts.stores(), image)
    return here or parse_ref(image)  # which says what is none


def _check_base(adapter: DiskBackend, store: Store) -> None:
    if adapter.traits.overlays and store.kind is CacheKind.MASTERS:
        raise OverlayRefused(
            f"no {adapter.traits.name} disk can be made on a master: {store.root} replaces masters in their place",
            hint="use the flat backend, or a cache of kind base",
        )


def _cloned(parts: Parts, ref: ImageRef, spec: DiskSpec, adapter: DiskBackend) -> InstanceDisk | None:
    """A disk of an image that the backend's storage has already; None, and why is told, when it has to be fetched."""
    try:
        version = parts.source(ref.scheme).describe(ref)
        parts.make_directories()
        return instances.clone(parts.config, adapter, version, spec)
    except (SourceUnavailable, UnknownCache, Unsupported) as error:
        fields = {"ref": str(ref), "backend": adapter.traits.name}
        parts.observer.event(Event(code="clone-refused", level=Level.INFO, detail=error.message, fields=fields))
    return None


def create_generated(
    parts: Parts, wanted: "Generated", spec: DiskSpec, adapter: DiskBackend, *, cache: str | None
) -> InstanceDisk:
    """Make a swap or an ephemeral disk from its base image, which is made first unless it is here.

    Raises:
        as `underlay.generated.ensure` and `underlay.instances.create`; UnknownCache: also when no cache is of kind base.
    """
    parts.make_directories()
    store = _base_cache(parts) if cache is None else parts.cache(cache).store
    with ExitStack() as holding:
        image = generated.ensure(store, wanted, parts.observer)
        images.keep_open(image.path, holding)
        return instances.create(parts.config, adapter, image, spec, store=store)


def _base_cache(parts: Parts) -> Store:
    for store in parts.config.caches.values():
        if store.kind is CacheKind.BASE:
            return store
    raise UnknownCache("no cache of kind base is configured", hint="swap and ephemeral images are kept in one")


def rebase(
    parts: Parts,
    found: tuple[DiskSpec, DiskBackend],
    image: str | ImageRef | BaseImage,
    *,
    cache: str | None,
    assume_closed: bool,
) -> InstanceDisk:
    """Put a disk on another base image, which is fetched first unless it is here.

    Raises:
        Unsupported, OverlayRefused; as `underlay.diskchanges.rebase` and `underlay.host.bring.verified`.
    """
    spec, adapter = found
    if not adapter.traits.rebases:
        raise Unsupported(adapter.traits.name, "put a disk on another base image")
    base = _image_here(parts, image)
    store = parts.store_of(base) if isinstance(base, BaseImage) else parts.cache(cache).store
    _check_base(adapter, store)
    with ExitStack() as holding:
        if not isinstance(base, BaseImage):
            base = bring.verified(parts, base, parts.cache(cache), Want(traits=adapter.traits), None, holding).image
        return diskchanges.rebase(parts.config, adapter, base, spec, store=store, assume_closed=assume_closed)


def backends(parts: Parts) -> list[BackendTraits]:
    """The traits of every backend that can be made; the others are told as events."""
    found = []
    for name in registry.known_backends():
        try:
            found.append(registry.open_backend(name, parts.config.disks).traits)
        except (ConfigError, ExtraMissing) as error:
            fields = {"backend": name}
            parts.observer.event(Event(code=error.code, level=Level.WARNING, detail=error.message, fields=fields))
    return found
