"""Disks of instances on this host: made under the right locks, recorded where they must be, listed, grown and removed.

A disk lies in its instance's directory below the instances path, which usage scans, or at a path of the caller's, which a root
in the cache remembers (see `underlay.store.roots`).
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from underlay import diskinfo, filedisk, locks
from underlay.contracts import DiskBackend
from underlay.errors import DiskInUse, DiskNotFound, InvalidName, NotCached
from underlay.files import make_directory, sync_directory, translated
from underlay.model import BaseImage, DiskSpec, InstanceDisk
from underlay.naming import plain_name
from underlay.store import Store, images, roots

_DISK_FILE = re.compile(r"disk(\..+)?", re.ASCII)
_NOT_DISKS = frozenset({diskinfo.NAME, f"{diskinfo.NAME}.tmp"})
_DIRECTORY_MODE = 0o755


def disk_spec(instances: Path, instance: str, name: str, *, size: int | None = None, path: Path | None = None) -> DiskSpec:
    """Where an instance's disk goes; names and paths are checked.

    Raises:
        InvalidName
    """
    plain_name(instance, what="an instance")
    plain_name(name, what="a disk")
    if path is None:
        if not _DISK_FILE.fullmatch(name) or name in _NOT_DISKS:
            raise InvalidName(f"{name!r} is no name for a disk", hint="use 'disk' or 'disk.SUFFIX', as Nova does")
        path = instances / instance / name
    elif not path.is_absolute() or ".." in path.parts:
        raise InvalidName(f"{os.fspath(path)!r} is no place for a disk", hint="use a plain absolute path")
    return DiskSpec(instance=instance, name=name, path=path, size=size)


def create(backend: DiskBackend, base: BaseImage, want: DiskSpec, *, store: Store, instances: Path) -> InstanceDisk:
    """Make a disk on a base image of ``store``; after a failure nothing of it is left.

    Holds the base's lock shared and the disk's exclusively. The use is recorded before the disk appears.

    Raises:
        as `DiskBackend.create`; NotCached: the base is gone. LockTimeout.
    """
    scanned = want.path.is_relative_to(instances)
    with translated(want.path):
        made_directory = scanned and make_directory(want.path.parent, _DIRECTORY_MODE)
    try:
        with images.held(store, base.name) as current, _disk_lock(store, want.path):
            if current.record != base.record:
                raise NotCached(f"the image {base.name} was replaced meanwhile", hint="ask for the disk again")
            images.mark_used(store, base.name)
            with _use_recorded(store, base, want, disk_format=backend.traits.disk_format, scanned=scanned):
                return backend.create(current, want)
    except BaseException:
        if made_directory:
            with suppress(OSError):
                want.path.parent.rmdir()
        raise


@contextmanager
def _use_recorded(store: Store, base: BaseImage, want: DiskSpec, *, disk_format: str, scanned: bool) -> Iterator[None]:
    """Record a disk that is about to appear; forget it again when it does not."""
    if os.path.lexists(want.path):
        yield  # whether it is the wanted one is the backend's to say; its records stand
        return
    with translated(want.path):
        _record(store, base, want, disk_format=disk_format, scanned=scanned)
    try:
        yield
    except BaseException:
        if not os.path.lexists(want.path):
            with suppress(OSError):
                _forget(store, base.name, want.path)
        raise


def _record(store: Store, base: BaseImage, want: DiskSpec, *, disk_format: str, scanned: bool) -> None:
    if scanned:
        with _info_lock(store, want.path):
            diskinfo.record(want.path, disk_format)  # crash: a record of a disk that never came, which says nothing wrong
    else:
        roots.add(store, base.name, want.path)


def _forget(store: Store, base_name: str | None, path: Path) -> None:
    with _info_lock(store, path):
        diskinfo.forget(path)
    if base_name is not None:
        roots.retire(store, base_name, path)


def resize(backend: DiskBackend, disk: InstanceDisk, size: int, *, store: Store) -> InstanceDisk:
    """Grow a disk that nobody has open.

    Raises:
        DiskInUse, ShrinkRefused, DiskUnrecorded, ToolFailed
    """
    with _disk_lock(store, disk.path):
        _refuse_open(disk)
        return backend.resize(disk, size)


def remove(backend: DiskBackend, disk: InstanceDisk, *, store: Store, instances: Path) -> None:
    """Remove a disk that nobody has open, then what was recorded of it, then its instance's directory if that is empty.

    Raises:
        DiskInUse
    """
    with _disk_lock(store, disk.path):
        _refuse_open(disk)
        backend.remove(disk)  # crash: a record of a disk that is gone, which says nothing wrong
        with translated(disk.path):
            _forget(store, disk.base, disk.path)
            if disk.path.parent.parent == instances:
                with suppress(OSError):  # not empty: other disks, a console log
                    disk.path.parent.rmdir()
                    sync_directory(instances)


def disks(instances: Path, stores: Sequence[Store]) -> list[InstanceDisk]:
    """Every disk in the instances path, and every disk of ours elsewhere, by path.

    Raises:
        CacheNotWritable: a directory may not be read.
    """
    specs = [*_scanned(instances, {store.root for store in stores}), *_rooted(stores)]
    found = []
    for spec in sorted(specs, key=lambda spec: spec.path):
        with suppress(DiskNotFound, NotADirectoryError):
            found.append(filedisk.describe(spec))
    return found


def _scanned(instances: Path, caches: set[Path]) -> Iterator[DiskSpec]:
    with translated(instances), suppress(FileNotFoundError), os.scandir(instances) as directories:
        for directory in directories:
            if not directory.is_dir(follow_symlinks=False) or Path(directory.path) in caches:
                continue
            with os.scandir(directory.path) as files:
                for file in files:
                    if _DISK_FILE.fullmatch(file.name) and file.name not in _NOT_DISKS and file.is_file(follow_symlinks=False):
                        yield DiskSpec(instance=directory.name, name=file.name, path=Path(file.path))


def _rooted(stores: Sequence[Store]) -> Iterator[DiskSpec]:
    for store in stores:
        for _, path in roots.disks(store):
            with suppress(DiskNotFound):
                record = filedisk.recorded(path)
                instance, name = (record.instance, record.name) if record else ("?", path.name)
                yield DiskSpec(instance=instance, name=name, path=path)


def _refuse_open(disk: InstanceDisk) -> None:
    with translated(disk.path):
        opened = locks.opened_elsewhere(disk.path)
    if opened:
        raise DiskInUse(f"{disk.path} is open in QEMU or another program", hint="stop the instance first")


@contextmanager
def _disk_lock(store: Store, path: Path) -> Iterator[None]:
    with locks.exclusive(store.paths.disk_lock(path), timeout=store.lock_timeout):
        yield


@contextmanager
def _info_lock(store: Store, path: Path) -> Iterator[None]:
    with locks.exclusive(store.paths.disk_info_lock(path.parent), timeout=store.lock_timeout):
        yield
