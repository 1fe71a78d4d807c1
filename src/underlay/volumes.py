"""Disks in places of their backends' own, which no look through a directory finds: how they are recorded and found again.

What is recorded is in `underlay.store.volumes`; here it is brought together with the backends that are to be asked. A disk is
called ``at`` the path that it would have as a file in its instance's directory, whichever backend has it, so an instance has
one disk of a name.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from underlay import registry
from underlay.config import Config
from underlay.contracts import DiskBackend
from underlay.errors import BackendUnavailable, DiskExists, DiskNotFound, ToolError, UnderlayError, UnknownBackend
from underlay.model import DiskSpec, InstanceDisk, Problem
from underlay.store import Store, volumes as records
from underlay.store.volumes import Volume


def called(config: Config, instance: str, name: str) -> Path:
    """The path that a disk would have as a file."""
    return config.instances / instance / name


def find(config: Config, at: Path) -> Volume | None:
    """What is recorded of a disk, by the path that it would have as a file; None: nothing is.

    Raises:
        CacheNotWritable, StorageFailed
    """
    found = (records.find(store, at) for store in config.caches.values())
    return next((volume for volume in found if volume is not None), None)


def find_by_place(config: Config, place: Path) -> Volume | None:
    """As `find`, by where the backend keeps it."""
    recorded = (volume for store in config.caches.values() for volume in records.volumes(store))
    return next((volume for volume in recorded if Path(volume.path) == place), None)


def spec_of(volume: Volume) -> DiskSpec:
    """The disk that is recorded."""
    return DiskSpec(instance=volume.instance, name=volume.name, path=Path(volume.path))


def backend_of(config: Config, volume: Volume) -> DiskBackend:
    """The backend that has it.

    Raises:
        UnknownBackend, ExtraMissing, ConfigError
    """
    return registry.open_backend(volume.backend, config.disks)


def disks(config: Config, problems: list[Problem]) -> list[InstanceDisk]:
    """Every disk that is recorded and there; what cannot be looked at is added to the problems."""
    found, silent = [], dict[str, str]()
    for store in config.caches.values():
        try:
            listed = records.volumes(store)
        except UnderlayError as error:
            problems.append(Problem(error.code, store.paths.volumes, error.message))
            continue
        for volume in listed:
            try:
                found.append(_described(config, volume, silent))
            except DiskNotFound:  # gone meanwhile, or one that never came
                continue
            except UnderlayError as error:
                problems.append(Problem(error.code, Path(volume.path), error.message))
    return found


def _described(config: Config, volume: Volume, silent: dict[str, str]) -> InstanceDisk:
    """A disk; a backend that has not answered about one is not asked about another, as each would be waited for.

    Args:
        silent: what the backends said that did not answer, by name; grows.
    """
    if volume.backend in silent:
        raise BackendUnavailable(silent[volume.backend])
    try:
        return backend_of(config, volume).describe(spec_of(volume))
    except BackendUnavailable as error:
        silent[volume.backend] = error.message
        raise


def refuse_another(config: Config, store: Store, want: DiskSpec) -> None:
    """Refuse a disk whose instance has one of this name already, in another place; one that is gone is forgotten.

    The caller holds the disk's lock.

    Raises:
        DiskExists; BackendUnavailable, UnknownBackend: it cannot be told.
    """
    at = called(config, want.instance, want.name)
    volume = records.find(store, at)
    if volume is None or Path(volume.path) == want.path:
        return
    if backend_of(config, volume).exists(spec_of(volume)):
        what = f"the disk {want.name} of {want.instance} exists: {volume.path} of the {volume.backend} backend"
        raise DiskExists(what, hint="remove it, or choose another name")
    records.forget(store, at)


@contextmanager
def recorded(config: Config, store: Store, backend: DiskBackend, want: DiskSpec, *, base: str | None) -> Iterator[None]:
    """Record a disk that is about to appear; forget it again when it does not. The caller holds the disk's lock.

    What is there and is none of ours is not recorded, so that nobody takes it for the disk after a crash.

    Args:
        store: the cache of its base image; of a clone, the configuration's first.
    """
    at = called(config, want.instance, want.name)
    was_there = backend.exists(want)
    is_new = find(config, at) is None and not (was_there and _is_foreign(backend, want))
    if is_new:
        volume = Volume(
            instance=want.instance,
            name=want.name,
            backend=backend.traits.name,
            path=str(want.path),
            base=base,
            keeps_base=base is not None and backend.traits.overlays,
        )
        records.record(store, at, volume)
    try:
        yield
    except BaseException:
        with suppress(OSError, UnderlayError):  # what cannot be asked may have it: then the record stays
            if is_new and (was_there or not backend.exists(want)):
                records.forget(store, at)
        raise


def _is_foreign(backend: DiskBackend, want: DiskSpec) -> bool:
    """Whether what has a disk's place is no disk of ours, so that no record of it may outlive who asks for the disk."""
    try:
        return backend.describe(want).format is None
    except DiskExists:
        return True
    except DiskNotFound:  # it is going, or gone meanwhile
        return False


def forget(config: Config, at: Path) -> None:
    """Forget a disk that was removed. The caller holds its lock."""
    for store in config.caches.values():
        records.forget(store, at)


def forget_missing(config: Config, volume: Volume) -> None:
    """Forget a disk that is gone for good, with what kept it. The caller holds its lock.

    A storage that is gone as a whole answers nothing; then who asks is believed, unless a base image is kept for the disk.

    Raises:
        DiskExists: it is there. BackendUnavailable, UnknownBackend, ToolError
    """
    try:
        backend, want = backend_of(config, volume), spec_of(volume)
        is_there = backend.exists(want) and not _is_foreign(backend, want)
    except (BackendUnavailable, UnknownBackend, ToolError):
        if volume.keeps_base:
            raise
        is_there = False
    if is_there:
        raise DiskExists(f"{volume.path} is there", hint="'underlay disk remove' removes it")
    forget(config, called(config, volume.instance, volume.name))
