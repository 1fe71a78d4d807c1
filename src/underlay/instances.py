"""Disks of instances on this host: made under the right locks, recorded where they must be, listed, grown and removed.

A disk lies in its instance's directory below the instances path, which usage scans, or at a path of the caller's, which a root
in its image's cache remembers (see `underlay.store.roots`), or in a place of its backend's own, which a record in that cache
remembers (see `underlay.store.volumes`). The locks of disks lie in the configuration's first cache, whatever cache an image
comes from, so that two makers of one disk always meet; a disk in a place of its backend's own has the lock of the file that it
would be. A thread that makes a disk holds its image's locks first; nobody who holds a disk's lock waits for an image's.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from underlay import diskinfo, filedisk, later, locks
from underlay.config import Config
from underlay.contracts import DiskBackend
from underlay.errors import (
    CacheMissing,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskUnrecorded,
    InvalidName,
    NotCached,
    UnderlayError,
    Unsupported,
)
from underlay.files import keeps_attributes, make_directory, sync_directory, translated
from underlay.model import BaseImage, DiskSpec, ImageVersion, InstanceDisk, Problem
from underlay.naming import is_image_name, plain_name
from underlay.store import Store, images, roots
from underlay.values import replace

if TYPE_CHECKING:
    from underlay import registry, volumes
    from underlay.usage import openfiles
else:
    openfiles = later.module("underlay.usage.openfiles")  # who makes a disk need not know whether it is open
    registry, volumes = later.module("underlay.registry"), later.module("underlay.volumes")

_DISK_FILE = re.compile(r"disk(\..+)?", re.ASCII)
_TEMPORARY = re.compile(r"\..*\.underlay", re.DOTALL)  # see `filedisk.temporary_of`
_NOT_DISKS = frozenset({diskinfo.NAME, f"{diskinfo.NAME}.tmp"})
_CONFIG_DRIVES = frozenset({"disk.config", "disk.config.rescue"})
_DIRECTORY_MODE = 0o755
_LONGEST_PATH = 4095 - len("..underlay")  # PATH_MAX, less what a disk's temporary has more
_BRIEFLY, _POLL = 0.5, 0.02  # seconds: how long somebody who only looks at a disk may have it open, and between our looks


def disk_spec(
    config: Config,
    instance: str,
    name: str,
    *,
    size: int | None = None,
    path: Path | None = None,
    backend: DiskBackend | None = None,
    key: bytes | None = None,
    maker: str | None = None,
) -> DiskSpec:
    """Where an instance's disk goes; names and paths are checked.

    Args:
        backend: in whose own place it goes, if it has one; None: the disk is a file.

    Raises:
        InvalidName
    """
    plain_name(instance, what="an instance")
    plain_name(name, what="a disk")
    if path is None and not _DISK_FILE.fullmatch(name):
        raise InvalidName(f"{name!r} is no name for a disk", hint="use 'disk' or 'disk.SUFFIX', as Nova does")
    if backend is not None and (place := backend.place(instance, name)) is not None:
        if path is not None:
            what = f"no disk of the {backend.traits.name} backend can lie at {path}: it has a place of its own"
            raise InvalidName(what, hint="leave the path out")
        return DiskSpec(instance=instance, name=name, path=place, size=size, key=key, maker=maker)
    path = config.instances / instance / name if path is None else path
    check_place(config, path)
    if path.parent.parent == config.instances and path.parent.name != instance:
        raise InvalidName(f"{path} lies in the directory of another instance than {instance}", hint="name that instance")
    return DiskSpec(instance=instance, name=name, path=path, size=size, key=key, maker=maker)


def check_place(config: Config, path: Path) -> None:
    """Refuse a path at which no disk can lie.

    Raises:
        InvalidName
    """
    text = os.fspath(path)
    if not path.is_absolute() or text.startswith("//") or ".." in path.parts or not text.isprintable() or not path.name:
        raise InvalidName(f"{text!r} is no place for a disk", hint="use a plain absolute path")
    if len(os.fsencode(path.name)) > filedisk.LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise InvalidName(
            f"the path of {len(os.fsencode(path))} bytes is too long for a disk: {text[:60]}…",
            hint=f"use a file name of at most {filedisk.LONGEST_NAME} bytes",
        )
    if _TEMPORARY.fullmatch(path.name):
        raise InvalidName(f"{text!r} is no place for a disk: so is called what another is made in", hint="use another name")
    if path.name in _NOT_DISKS:
        raise InvalidName(f"{text!r} is no place for a disk: the name is taken by Nova's record", hint="use another name")
    for store in config.caches.values():
        for taken in (store.root, store.nova_locks):
            if taken is not None and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(taken)):
                raise InvalidName(f"{text!r} is no place for a disk: {taken} is a cache or its locks", hint="use another name")


def called(config: Config, backend: DiskBackend, want: DiskSpec) -> Path:
    """The path by which a disk is locked and recorded: its own if it is a file, else that of the file that it would be."""
    return want.path if backend.traits.on_host_filesystem else config.instances / want.instance / want.name


def is_scanned(config: Config, path: Path) -> bool:
    """Whether a look through the instances path finds the disk; any other needs a root."""
    return path.parent.parent == config.instances and bool(_DISK_FILE.fullmatch(path.name))


# --------------------------------------------------------------------------------------------------------------------- making


def create(config: Config, backend: DiskBackend, base: BaseImage, want: DiskSpec, *, store: Store) -> InstanceDisk:
    """Make a disk on a base image of ``store``; after a failure nothing of it is left.

    Holds the base's lock shared and the disk's exclusively. The use is recorded before the disk appears.

    Raises:
        as `DiskBackend.create`; NotCached: the base is gone. CacheMissing, CacheNotWritable, LockTimeout.
    """
    home, at = _home(config), called(config, backend, want)
    if backend.traits.on_host_filesystem:
        _check_directory(config, want.path)
    with images.held(store, base.name) as hold, _disk_lock(home, at):
        if _content(hold.image) != _content(base):
            raise NotCached(f"the image {base.name} was replaced meanwhile", hint="ask for the disk again")
        images.mark_used(store, base.name)
        refuse_another(config, backend, want)
        is_new = not is_there(backend, want)
        with _recorded(config, home, backend, hold.image, want, store=store):
            disk = backend.create(hold.image, want)
            try:
                hold.confirm()
            except UnderlayError:
                if is_new:
                    backend.remove(disk)  # nobody has it yet, and its base may be gone
                raise
        return disk


def create_alone(config: Config, backend: DiskBackend, content: BaseImage, want: DiskSpec) -> InstanceDisk:
    """Make a disk from a file that is in no cache, and of which nothing is needed then; after a failure nothing is left.

    Args:
        content: the file, which the caller keeps until the disk is there.

    Raises:
        Unsupported: the backend's disks go on reading from what they are made from. As `create`.
    """
    if backend.traits.overlays:
        raise Unsupported(backend.traits.name, "make a disk of a file that does not stay")
    home = _home(config)
    if backend.traits.on_host_filesystem:
        _check_directory(config, want.path)
    with _disk_lock(home, called(config, backend, want)):
        refuse_another(config, backend, want)
        with _recorded_alone(config, home, backend, want):
            return backend.create(content, replace(want, origin_stays=False))


def clone(config: Config, backend: DiskBackend, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
    """Make a disk from what its backend's storage has already; after a failure nothing of it is left.

    Raises:
        as `DiskBackend.clone`; CacheMissing, CacheNotWritable, LockTimeout.
    """
    if not backend.traits.clones or backend.traits.on_host_filesystem:
        raise Unsupported(backend.traits.name, "clone an image")
    home = _home(config)
    with _disk_lock(home, called(config, backend, want)):
        refuse_another(config, backend, want)
        with volumes.recorded(config, home, backend, want, base=None):
            return backend.clone(version, want)


def is_there(backend: DiskBackend, want: DiskSpec) -> bool:
    """Whether anything has the disk's place."""
    return os.path.lexists(want.path) if backend.traits.on_host_filesystem else backend.exists(want)


def refuse_another(config: Config, backend: DiskBackend, want: DiskSpec) -> None:
    """Refuse a disk of an instance that has one of this name already, kept by another backend in another place.

    The caller holds the disk's lock.

    Raises:
        DiskExists; BackendUnavailable: it cannot be told.
    """
    at = config.instances / want.instance / want.name
    if want.path != at and backend.traits.on_host_filesystem:
        return  # at a path of its own, where it is no other disk's
    for store in config.caches.values():
        if os.path.lexists(store.paths.volume(at)):
            volumes.refuse_another(config, store, want)
    if want.path != at and os.path.lexists(at):
        raise DiskExists(f"the disk {want.name} of {want.instance} exists: {at}", hint="remove it, or choose another name")


def _recorded(
    config: Config, home: Store, backend: DiskBackend, base: BaseImage, want: DiskSpec, *, store: Store
) -> AbstractContextManager[None]:
    """Record a disk that is about to appear; forget it again when it does not."""
    if backend.traits.on_host_filesystem:
        return _use_recorded(config, home, store, base, want, disk_format=backend.traits.disk_format)
    return volumes.recorded(config, store, backend, want, base=base.name)


def _recorded_alone(config: Config, home: Store, backend: DiskBackend, want: DiskSpec) -> AbstractContextManager[None]:
    """As `_recorded`, of a disk that is made from no base image."""
    if backend.traits.on_host_filesystem:
        return _noted(config, home, want, disk_format=backend.traits.disk_format)
    return volumes.recorded(config, home, backend, want, base=None)


@contextmanager
def _noted(config: Config, home: Store, want: DiskSpec, *, disk_format: str) -> Iterator[None]:
    """Note the format of a disk that is about to appear in its directory; forget it again when it does not appear."""
    if os.path.lexists(want.path):
        yield
        return
    made_directory = False
    with translated(want.path), _directory_lock(home, want.path.parent):
        if is_scanned(config, want.path) or not keeps_attributes(want.path.parent):
            made_directory = _note(want.path, disk_format)
    try:
        yield
    except BaseException:
        if not os.path.lexists(want.path):
            with suppress(OSError, UnderlayError):
                _forget(home, want.path, rooted=[], with_directory=made_directory)
        raise


def _check_directory(config: Config, path: Path) -> None:
    directory = config.instances if is_scanned(config, path) else path.parent
    with translated(directory):
        if not directory.is_dir():
            raise CacheMissing(f"{directory} is not there, so no disk can be made in it", hint="make the directory")


def _content(image: BaseImage) -> tuple[object, ...]:
    """What makes two images of one name the same; digests may be learnt meanwhile."""
    if image.record is None:
        return image.format, image.size
    return image.record.version_id, image.record.stored


@contextmanager
def _use_recorded(
    config: Config, home: Store, store: Store, base: BaseImage, want: DiskSpec, *, disk_format: str
) -> Iterator[None]:
    """Record a disk that is about to appear; forget it again when it does not."""
    if os.path.lexists(want.path):
        yield  # whether it is the wanted one is the backend's to say; its records stand
        return
    scanned = is_scanned(config, want.path)
    with translated(want.path):
        made_directory = _record(home, store, base, want, disk_format=disk_format, scanned=scanned)
    try:
        yield
    except BaseException:
        if not os.path.lexists(want.path):
            with suppress(OSError, UnderlayError):
                _forget(home, want.path, rooted=[(store, base.name)], with_directory=made_directory)
        raise


def _record(home: Store, store: Store, base: BaseImage, want: DiskSpec, *, disk_format: str, scanned: bool) -> bool:
    """Record the disk, or nothing at all; whether its directory had to be made."""
    directory = want.path.parent
    if scanned:
        roots.note(store, directory.parent)
        with _directory_lock(home, directory):
            return _note(want.path, disk_format)
    try:
        roots.add(store, base.name, want.path)
        if not keeps_attributes(directory):  # then nothing on the disk itself can say what format it has
            with _directory_lock(home, directory):
                _note(want.path, disk_format)
    except BaseException:
        with suppress(OSError, UnderlayError):
            roots.retire(store, base.name, want.path)
        raise
    return False


def _note(path: Path, disk_format: str) -> bool:
    """Note the disk in its directory, which is made when it is not there. The caller holds the directory's lock."""
    directory = path.parent
    is_new = not os.path.lexists(directory)
    try:
        if is_new:
            make_directory(directory, _DIRECTORY_MODE)  # crash: an empty directory, which the next attempt uses
        diskinfo.record(path, disk_format)  # crash: a record of a disk that never came, which says nothing wrong
        if is_new:
            # Last, because where a journal has it with the record already there is nothing left to write. The disk comes after.
            sync_directory(directory.parent)
    except BaseException:
        with suppress(OSError, UnderlayError):
            diskinfo.forget(path)
        if is_new:
            _remove_if_empty(directory)
        raise
    return is_new


def note_format(config: Config, path: Path, disk_format: str) -> None:
    """Note the format of a disk that is there in its directory: for who knows it, where nothing says any.

    Raises:
        CacheMissing, CacheNotWritable, LockTimeout; DiskUnrecorded: the directory's record cannot be read.
    """
    with translated(path), _directory_lock(_home(config), path.parent):
        diskinfo.record(path, disk_format)


def _forget(home: Store, path: Path, *, rooted: list[tuple[Store, str]], with_directory: bool) -> None:
    with _directory_lock(home, path.parent):
        diskinfo.forget(path)
        if with_directory:
            _remove_if_empty(path.parent)
    for store, name in rooted:
        roots.retire(store, name, path)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # not empty: other disks, a console log
        directory.rmdir()
        sync_directory(directory.parent)


# -------------------------------------------------------------------------------------------------------- growing and removing


def find(config: Config, instance: str, name: str, *, path: Path | None = None) -> tuple[DiskSpec, DiskBackend]:
    """A disk that is there, and the backend that has it; a path must be that of what something records as this disk.

    Raises:
        DiskNotFound, DiskUnrecorded, InvalidName; UnknownBackend, ExtraMissing: nothing here can look at it.
    """
    spec = disk_spec(config, instance, name, path=path)
    if not os.path.lexists(spec.path) and path is None and (volume := volumes.find(config, spec.path)):
        return volumes.spec_of(volume), volumes.backend_of(config, volume)
    if path is not None and (volume := volumes.find_by_place(config, path)):
        _check_owner(path, instance, volume.instance)
        return volumes.spec_of(volume), volumes.backend_of(config, volume)
    return spec, _backend_of_file(config, spec, must_be_recorded=path is not None)


def _backend_of_file(config: Config, spec: DiskSpec, *, must_be_recorded: bool) -> DiskBackend:
    with translated(spec.path):
        if os.path.isdir(spec.path) and not os.path.islink(spec.path):
            record = filedisk.recorded_directory(spec.path)
            if record is None and (noted := filedisk.backend_of_directory(spec.path)):
                return registry.open_backend(noted, config.disks)
        else:
            found = filedisk.describe(spec)
            record = filedisk.recorded(spec.path) if must_be_recorded else None
            if record is None and (found.format is not None or not must_be_recorded):
                name = "flat" if found.backend == "unknown" else found.backend
                return registry.open_backend(name, config.disks)
    if record is None:
        raise DiskUnrecorded(f"nothing says that {spec.path} is a disk", hint="only recorded disks are shown or touched")
    _check_owner(spec.path, spec.instance, record.instance)
    return registry.open_backend(record.backend, config.disks)


def _check_owner(path: Path, instance: str, owner: str) -> None:
    if owner != instance:
        raise DiskNotFound(f"{path} is not a disk of {instance}", hint=f"it is one of {owner}")


def resize(config: Config, backend: DiskBackend, want: DiskSpec, size: int, *, assume_closed: bool) -> InstanceDisk:
    """Grow a disk that nobody has open.

    Args:
        assume_closed: the caller knows that it is closed; one that is seen to be open is left alone all the same.

    Raises:
        DiskNotFound, DiskInUse, ShrinkRefused, DiskUnrecorded, Unsupported, ToolFailed
    """
    with closed(config, backend, want, assume_closed=assume_closed) as disk:
        return backend.resize(disk, size)


def remove(
    config: Config, backend: DiskBackend, want: DiskSpec, *, assume_closed: bool, maker: str | None = None
) -> InstanceDisk:
    """Remove a disk that nobody has open, then what was recorded of it, then its instance's directory if that is empty.

    Args:
        assume_closed: as for `resize`.
        maker: who has made it; a disk that another has made stays, and one in a storage that hosts share is known here no more.
            Where hosts share the storage, so does a disk that does not say who made it.

    Raises:
        DiskNotFound: also when it was being made or removed by who was killed; then what is left of it goes.
            Also of another maker's disk.
        DiskInUse, DiskUnrecorded: the directory's record cannot be read, so nothing was removed.
    """
    with locked(config, backend, want):
        if maker is not None:
            _leave_to_its_maker(config, backend, want, maker)
        if not backend.traits.on_host_filesystem:
            return _remove_elsewhere(config, backend, replace(want, maker=maker), assume_closed=assume_closed)
        disk = _closed(backend, want, assume_closed=assume_closed)
        with translated(disk.path):
            diskinfo.recorded_format(disk.path)
            backend.remove(disk)  # crash: records of a disk that is gone, which say nothing wrong
            scanned = is_scanned(config, disk.path)
            recorded = roots_of(config, disk) or ([] if scanned else _rooted_at(config, disk.path))
            _forget(_home(config), disk.path, rooted=recorded, with_directory=scanned)
    return disk


def _leave_to_its_maker(config: Config, backend: DiskBackend, want: DiskSpec, maker: str) -> None:
    """Raises DiskNotFound when a disk is another maker's. The caller holds its lock."""
    try:
        found = backend.describe(want)
    except DiskNotFound:
        return  # the removal takes away what a making has left
    if found.maker == maker or (found.maker is None and not backend.traits.shared_storage):
        return
    if backend.traits.shared_storage:  # else its maker is on this host, and has no other record of it
        volumes.forget(config, called(config, backend, want))
    raise DiskNotFound(f"the disk {want.path} was made by somebody else", hint="it stays")


def take_away_left(config: Config, instance: str, name: str, *, path: Path | None = None) -> None:
    """Take away what a maker or a remover that was killed left of a disk that is not there.

    Only a disk below the instances path is forgotten with it: one elsewhere may come back with its file system.

    Raises:
        InvalidName, CacheNotWritable, DiskUnrecorded
    """
    spec = disk_spec(config, instance, name, path=path)
    left, scanned = filedisk.temporary_of(spec.path), is_scanned(config, spec.path)
    if not os.path.lexists(left) and not (scanned and filedisk.noted_format(spec.path) is not None):
        return
    home = _home(config)
    with _disk_lock(home, spec.path), translated(spec.path):
        if os.path.lexists(spec.path) or not (scanned or _rooted_at(config, spec.path)):
            return
        filedisk.clear_away(left)
        if scanned:
            _forget(home, spec.path, rooted=[], with_directory=True)


def _remove_elsewhere(config: Config, backend: DiskBackend, want: DiskSpec, *, assume_closed: bool) -> InstanceDisk:
    try:
        disk = _closed(backend, want, assume_closed=assume_closed)
    except DiskNotFound:
        backend.remove(_nothing(backend, want))
        volumes.forget(config, called(config, backend, want))
        raise
    if want.maker is not None and backend.traits.shared_storage:
        disk = replace(disk, maker=want.maker)  # what another host has made since stays
    backend.remove(disk)  # crash: a record of a disk that is gone, which says nothing wrong
    volumes.forget(config, called(config, backend, want))
    return disk


def _nothing(backend: DiskBackend, want: DiskSpec) -> InstanceDisk:
    """A disk that is not there, of which something may be left."""
    return InstanceDisk(
        instance=want.instance,
        name=want.name,
        path=want.path,
        backend=backend.traits.name,
        format=None,
        size=None,
        allocated=0,
        base=None,
        base_path=None,
        maker=want.maker,
    )


def locked(config: Config, backend: DiskBackend, want: DiskSpec) -> AbstractContextManager[None]:
    """A disk's lock, held."""
    return _disk_lock(_home(config), called(config, backend, want))


@contextmanager
def closed(config: Config, backend: DiskBackend, want: DiskSpec, *, assume_closed: bool) -> Iterator[InstanceDisk]:
    """A disk that nobody has open, with its lock held.

    Args:
        assume_closed: as for `resize`.

    Raises:
        DiskNotFound, DiskInUse, DiskUnrecorded
    """
    with locked(config, backend, want):
        yield _closed(backend, want, assume_closed=assume_closed)


def _closed(backend: DiskBackend, want: DiskSpec, *, assume_closed: bool) -> InstanceDisk:
    """A disk that nobody has open. The caller holds its lock."""
    if backend.traits.on_host_filesystem:
        _refuse_open(want.path, lambda: _is_open(want.path), assume_closed=assume_closed)
        return backend.describe(want)
    disk = backend.describe(want)
    _refuse_open(disk.path, lambda: backend.is_open(disk), assume_closed=assume_closed)
    return disk


def forget(config: Config, path: Path) -> None:
    """Forget a disk elsewhere that is gone for good, so that its base is kept for it no more.

    Raises:
        DiskExists: it is there. DiskNotFound: no disk is recorded at this path. InvalidName
    """
    if volume := volumes.find_by_place(config, path):
        with _disk_lock(_home(config), volumes.called(config, volume.instance, volume.name)):
            volumes.forget_missing(config, volume)
        return
    check_place(config, path)
    with _disk_lock(_home(config), path):
        if os.path.lexists(path):
            raise DiskExists(f"{path} is there", hint="'underlay disk remove' removes it")
        recorded = _rooted_at(config, path)
        if not recorded:
            raise DiskNotFound(f"no disk is recorded at {path}", hint="'underlay prune --dry-run' names those that are missing")
        left = filedisk.temporary_of(path)
        if os.path.lexists(left):
            with translated(left):
                filedisk.clear_away(left)  # which nobody would know of any more
        for store, name in recorded:
            roots.retire(store, name, path)


def _rooted_at(config: Config, path: Path) -> list[tuple[Store, str]]:
    """Where a disk elsewhere is recorded, whatever it says of its base itself."""
    return [(store, name) for store in config.caches.values() for name, disk in roots.disks(store) if disk == path]


def roots_of(config: Config, disk: InstanceDisk) -> list[tuple[Store, str]]:
    """Where a root of the disk may be: in the cache that holds its base."""
    base = disk.base_path
    return [
        (store, base.name)
        for store in config.caches.values()
        if base is not None and base.parent == store.root and is_image_name(base.name, kind=store.kind)
    ]


def refuse_open(path: Path) -> None:
    """Refuse a disk that is known to be open. Who only looks at it for a moment is waited for.

    Raises:
        DiskInUse, DiskNotFound
    """
    _refuse_open(path, lambda: _is_open(path), assume_closed=True)


def _refuse_open(path: Path, look: Callable[[], bool | None], *, assume_closed: bool) -> None:
    deadline = time.monotonic() + _BRIEFLY
    while (opened := look()) is not False and time.monotonic() < deadline:
        time.sleep(_POLL)  # a listing has it open for a moment, a machine for long
    if opened:
        raise DiskInUse(f"{path} is open in QEMU or another program", hint="stop the instance first")
    if opened is None and not assume_closed:
        raise DiskInUse(
            f"it cannot be told whether {path} is open somewhere",
            hint="run as its owner; if you know that it is closed, say --assume-closed",
        )


def _is_open(path: Path) -> bool | None:
    try:
        if not os.path.isdir(path):
            return openfiles.is_open(path)
        with translated(path):
            answers = set(openfiles.opened(path / name for name in os.listdir(path)).values())
    except CacheMissing as error:
        raise DiskNotFound(f"there is no disk {path}") from error
    return True if True in answers else None if None in answers else False


# -------------------------------------------------------------------------------------------------------------------- listing


def disks(config: Config) -> tuple[list[InstanceDisk], list[Problem]]:
    """Every disk in the instances path and every disk of ours elsewhere, by path; and what could not be looked at."""
    problems: list[Problem] = []
    found: list[InstanceDisk] = volumes.disks(config, problems) if _has_volumes(config) else []
    specs = {spec.path: spec for spec in (*_rooted(config, problems), *_scanned(config, problems))}
    for path in sorted(specs):
        try:
            found.append(_described(config, specs[path]))
        except DiskNotFound:  # gone meanwhile, or a root whose disk never came
            continue
        except UnderlayError as error:
            problems.append(Problem(error.code, path, error.message))
    return sorted(found, key=lambda disk: disk.path), problems


def _has_volumes(config: Config) -> bool:
    return any(os.path.lexists(store.paths.volumes) for store in config.caches.values())


def _described(config: Config, spec: DiskSpec) -> InstanceDisk:
    if not os.path.isdir(spec.path) or os.path.islink(spec.path):
        return filedisk.describe(spec)
    return _backend_of_file(config, spec, must_be_recorded=False).describe(spec)


def _scanned(config: Config, problems: list[Problem]) -> list[DiskSpec]:
    caches = {store.root for store in config.caches.values()}
    return [
        DiskSpec(instance=directory.name, name=file.name, path=Path(file.path))
        for directory in _entries(config.instances, problems)
        if directory.is_dir(follow_symlinks=False) and Path(directory.path) not in caches
        for file in _entries(Path(directory.path), problems)
        if is_scanned(config, Path(file.path)) and file.name not in _NOT_DISKS and _may_be_disk(file)
    ]


def _may_be_disk(entry: os.DirEntry[str]) -> bool:
    """A plain file, or a directory that says it is a disk."""
    if entry.is_file(follow_symlinks=False):
        return entry.name not in _CONFIG_DRIVES or _is_recorded(Path(entry.path))
    with suppress(OSError):
        return entry.is_dir(follow_symlinks=False) and filedisk.backend_of_directory(Path(entry.path)) is not None
    return False


def _is_recorded(path: Path) -> bool:
    """Whether we made it as a disk; a CD by the same name is Nova's, or of ``underlay vm``, and has no format to be noted."""
    with suppress(UnderlayError, OSError):
        return filedisk.recorded(path) is not None
    return False


def _entries(directory: Path, problems: list[Problem]) -> list[os.DirEntry[str]]:
    """What is in a directory; one that is gone has nothing, one that may not be read is a problem."""
    try:
        with translated(directory), suppress(FileNotFoundError), os.scandir(directory) as entries:
            return list(entries)
    except UnderlayError as error:
        problems.append(Problem(error.code, directory, error.message))
    return []


def _rooted(config: Config, problems: list[Problem]) -> Iterator[DiskSpec]:
    for store in config.caches.values():
        try:
            listed = roots.disks(store)
        except UnderlayError as error:
            problems.append(Problem(error.code, store.paths.disks, error.message))
            continue
        for _, path in listed:
            instance, name = _owner(path)
            yield DiskSpec(instance=instance, name=name, path=path)


def _owner(path: Path) -> tuple[str, str]:
    """The instance and the name that a disk says it has; one that does not say is still listed, by its file's name."""
    with suppress(UnderlayError, OSError):
        is_directory = path.is_dir() and not path.is_symlink()
        if record := filedisk.recorded_directory(path) if is_directory else filedisk.recorded(path):
            return record.instance, record.name
    return "?", path.name


# ---------------------------------------------------------------------------------------------------------------------- locks


def _home(config: Config) -> Store:
    """The cache that has the locks of disks."""
    store = next(iter(config.caches.values()))
    store.prepare()
    return store


@contextmanager
def _disk_lock(home: Store, path: Path) -> Iterator[None]:
    # Without a deadline: another disk may share the lock, and a large copy takes as long as it takes. The kernel frees what a
    # dead holder held.
    with _locked(home.paths.disk_lock(path), timeout=math.inf):
        yield


@contextmanager
def _directory_lock(home: Store, directory: Path) -> Iterator[None]:
    """The lock under which an instance's directory and its ``disk.info`` come, change and go."""
    with _locked(home.paths.disk_info_lock(directory), timeout=home.lock_timeout):
        yield


@contextmanager
def _locked(path: Path, *, timeout: float) -> Iterator[None]:
    with ExitStack() as stack:
        with translated(path):
            stack.enter_context(locks.exclusive(path, timeout=timeout))
        yield
