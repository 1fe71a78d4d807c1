"""Disks that a resize leaves where they are: what they were is kept by their storage, and they are put back by it.

Which they are is listed in a file of the instance's directory, which goes with it into what is kept. Where that file is in the
directory itself, nothing of them is needed any more: it is what is left of an end that was interrupted.
"""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from underlay import errors, instances
from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt import closing, localdisks
from underlay.compute.libvirt.directory import InstanceDirectory
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.site import Site
from underlay.contracts import KeepsInPlace
from underlay.files import sync_directory, translated as translated_at, write_durably
from underlay.model import InstanceDisk
from underlay.registry import open_backend

_LIST = "resized-in-place"
_MODE = 0o644


def is_kept_in_place(site: Site, disk: InstanceDisk) -> bool:
    """Whether a disk's storage can keep what it is now."""
    with translated():
        return isinstance(open_backend(disk.backend, site.host.config.disks), KeepsInPlace)


def listed(place: Path) -> Sequence[str]:
    """The names of the disks that a directory says are kept so.

    Raises:
        OperationFailed: the list cannot be read.
    """
    with translated(), translated_at(place):
        try:
            told = json.loads((place / _LIST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except ValueError as error:
            raise OperationFailed(f"{place / _LIST} is no list of disks: {error}") from error
    return tuple(map(str, told))


def keep(site: Site, directory: InstanceDirectory, names: Sequence[str]) -> None:
    """Keep what these disks are now. The caller holds the mark of the resize; after a failure it calls `clear`.

    Raises:
        OperationFailed: one is open, among others.
    """
    if not names:
        return
    with translated(), translated_at(directory.path):
        write_durably(directory.path / _LIST, json.dumps(names).encode(), mode=_MODE)
    for name in names:  # crash: the mark, by which the next driver clears it
        _when_closed(site, directory.uuid, name, lambda backend, disk: backend.keep(disk))


def let_go(site: Site, directory: InstanceDirectory) -> None:
    """Keep nothing any more of the disks that are listed in what is kept, which is about to go. Safe to repeat.

    Raises:
        OperationFailed
    """
    _let_go(site, directory, listed(directory.kept))  # crash: nothing can be put back any more, which `put_back` finds out


def clear(site: Site, directory: InstanceDirectory) -> None:
    """As `let_go`, of the disks that are listed in the instance's directory itself, where the list goes then.

    Raises:
        OperationFailed
    """
    if names := listed(directory.path):
        _let_go(site, directory, names)
        with translated(), translated_at(directory.path):
            (directory.path / _LIST).unlink(missing_ok=True)
            sync_directory(directory.path)


def _let_go(site: Site, directory: InstanceDirectory, names: Sequence[str]) -> None:
    for name in names:
        _locked(site, directory.uuid, name, lambda backend, disk: backend.let_go(disk))


def put_back(site: Site, directory: InstanceDirectory) -> None:
    """Have the disks that are listed in what is kept be what they were. Safe to repeat: they stay kept.

    Raises:
        OperationFailed: one is open, as while the guest runs on another host; or one is not kept any more.
    """
    names = listed(directory.kept)
    for name in names:
        _refuse_dropped(site, directory, name)
    for name in names:
        _when_closed(site, directory.uuid, name, lambda backend, disk: backend.put_back(disk))


def spared(directory: InstanceDirectory) -> Collection[str]:
    """The names of disks that a reversal needs.

    Raises:
        OperationFailed
    """
    return frozenset(listed(directory.kept))


def refuse_kept(directory: InstanceDirectory) -> None:
    """Refuse to make disks anew that a reversal would put back.

    Raises:
        OperationFailed
    """
    if names := sorted(spared(directory)):
        what = f"a resize of the instance {directory.uuid} keeps what its disks {', '.join(names)} were"
        raise OperationFailed(what, hint="confirm or revert the resize")


def remove_others(site: Site, directory: InstanceDirectory) -> None:
    """Remove the disks in such storages that are not listed in what is kept: they were made since, or are made anew.

    Raises:
        OperationFailed
    """
    names = listed(directory.kept)
    for name in localdisks.names_of(site.host, directory.uuid):
        if name not in names and is_kept_in_place(site, _disk(site, directory, name)):
            localdisks.remove(site.host, directory.uuid, name)


def refuse_missing(site: Site, directory: InstanceDirectory) -> None:
    """Refuse to drop what is kept while one of the disks that are listed in it is not there.

    Raises:
        OperationFailed
    """
    for name in listed(directory.kept):
        _disk(site, directory, name)


def _disk(site: Site, directory: InstanceDirectory, name: str) -> InstanceDisk:
    with translated():
        return site.host.disk(directory.uuid, name=name)


def _refuse_dropped(site: Site, directory: InstanceDirectory, name: str) -> None:
    disk = _disk(site, directory, name)
    with translated():
        backend = open_backend(disk.backend, site.host.config.disks)
        if not isinstance(backend, KeepsInPlace) or not backend.keeps(disk):
            what = f"what the resize of the instance {directory.uuid} kept of its disk {name} is gone"
            raise OperationFailed(what, hint="confirm the resize")


_Change = Callable[[KeepsInPlace, InstanceDisk], object]


def _locked(site: Site, uuid: str, name: str, change: _Change) -> None:
    """Change a disk under its lock; one that is not there has nothing to be changed."""
    config = site.host.config
    with translated():
        try:
            spec, backend = instances.find(config, uuid, name)
            with instances.locked(config, backend, spec):
                if isinstance(backend, KeepsInPlace):
                    change(backend, backend.describe(spec))
        except errors.DiskNotFound:
            return


def _when_closed(site: Site, uuid: str, name: str, change: _Change) -> None:
    config = site.host.config

    def attempt() -> None:
        spec, backend = instances.find(config, uuid, name)
        with instances.closed(config, backend, spec, assume_closed=True) as disk:
            if not isinstance(backend, KeepsInPlace):
                raise errors.Unsupported(backend.traits.name, "keep what a disk was")
            change(backend, disk)

    with translated():
        closing.retried(site.host, uuid, name, attempt)
