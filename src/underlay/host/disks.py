"""The disks of this host's instances: which base, which backend, and whose a disk is that is there."""

from contextlib import ExitStack
from pathlib import Path

from underlay import filedisk, instances, lookup, registry
from underlay.contracts import DiskBackend
from underlay.errors import DiskNotFound, DiskUnrecorded, OverlayRefused
from underlay.files import translated
from underlay.host import bring
from underlay.host.parts import Parts
from underlay.model import BaseImage, DiskSpec, ImageRef, InstanceDisk
from underlay.naming import CacheKind
from underlay.policy.form import Want
from underlay.refs import is_ref, parse_ref
from underlay.store import Store


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


def spec_of(parts: Parts, instance: str, name: str, path: Path | None) -> DiskSpec:
    """Where a disk is that is there; a path of the caller's must be one that something records as this instance's disk.

    Raises:
        DiskNotFound, DiskUnrecorded, InvalidName
    """
    spec = instances.disk_spec(parts.config, instance, name, path=path)
    disk = filedisk.describe(spec)
    if path is not None:
        with translated(path):
            record = filedisk.recorded(path)
        if record is None and disk.format is None:
            raise DiskUnrecorded(f"nothing says that {path} is a disk", hint="only recorded disks are shown or touched")
        if record is not None and record.instance != instance:
            raise DiskNotFound(f"{path} is not a disk of {instance}", hint=f"it is one of {record.instance}")
    return spec


def backend_of(spec: DiskSpec) -> DiskBackend:
    """The backend that made a disk which is there.

    Raises:
        DiskNotFound, UnknownBackend
    """
    name = filedisk.describe(spec).backend
    return registry.open_backend("flat" if name == "unknown" else name)
