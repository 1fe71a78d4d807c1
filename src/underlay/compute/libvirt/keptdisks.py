"""Disks that a resize leaves where they are: what they were is kept by their storage, and they are put back by it.

Which they are is listed in a file of the instance's directory, which goes with it into what is kept. It is there also when they
are none: without it, another driver has begun the resize. Where that file is in the directory itself, nothing of them is needed
any more: it is what is left of an end that was interrupted.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from underlay import errors, instances
from underlay.compute.errors import MigrationPreCheckError, OperationFailed
from underlay.compute.libvirt import closing, localdisks
from underlay.compute.libvirt.directory import SWAP, InstanceDirectory
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
    """The names of the disks that a directory says are kept so; none also where it says nothing.

    Raises:
        OperationFailed: the list cannot be read.
    """
    return _listed(place) or ()


def _listed(place: Path) -> tuple[str, ...] | None:
    with translated(), translated_at(place):
        try:
            return msgspec.json.decode((place / _LIST).read_bytes(), type=tuple[str, ...])
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise OperationFailed(f"{place / _LIST} is no list of disks: {error}") from error


def places(instances: Path) -> Iterator[Path]:
    """The directories that have a list."""
    return (path.parent for path in instances.glob(f"*/{_LIST}"))


def refuse_taken(site: Site, disk: InstanceDisk) -> None:
    """Refuse to keep a disk of which something is kept that no list of ours names: somebody else may need it.

    Raises:
        MigrationPreCheckError; OperationFailed: it cannot be told.
    """
    with translated():
        backend = open_backend(disk.backend, site.host.config.disks)
        if isinstance(backend, KeepsInPlace) and backend.keeps(disk):
            what = f"its disk {disk.name} is kept as it was already, and not by a resize of this driver"
            raise MigrationPreCheckError(what, hint="see who needs that, and remove it: in a Ceph, the snapshot nova-resize")


def keep(site: Site, directory: InstanceDirectory, names: Sequence[str]) -> None:
    """Keep what these disks are now. The caller holds the mark of the resize; after a failure it calls `clear`.

    Raises:
        OperationFailed: one is open, among others.
    """
    with translated(), translated_at(directory.path):
        write_durably(directory.path / _LIST, msgspec.json.encode(names), mode=_MODE)
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
    names = _listed(directory.path)
    if names is None:
        return
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
        OperationFailed: one is open, as while the guest runs on another host; or one is not kept any more, or was never.
    """
    _refuse_unlisted(site, directory)
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

    To be called after `put_back`, which refuses where nothing is listed.

    Raises:
        OperationFailed
    """
    names = listed(directory.kept)
    for name in localdisks.names_of(site.host, directory.uuid):
        if name not in names and is_kept_in_place(site, _disk(site, directory, name)):
            localdisks.remove(site.host, directory.uuid, name)


def refuse_missing(site: Site, directory: InstanceDirectory) -> None:
    """Refuse to go on with a resize while one of the disks that are listed in what is kept is not there, or is not listed.

    Raises:
        DiskNotFound, OperationFailed
    """
    _refuse_unlisted(site, directory)
    for name in listed(directory.kept):
        _disk(site, directory, name)


def _refuse_unlisted(site: Site, directory: InstanceDirectory) -> None:
    """Refuse to end what another driver has begun: which disks it keeps, and how, is not known."""
    if _listed(directory.kept) is not None:
        return
    found = [_disk(site, directory, name) for name in localdisks.names_of(site.host, directory.uuid) if name != SWAP]
    if names := [disk.name for disk in found if is_kept_in_place(site, disk)]:
        what = f"{directory.kept} does not say whether the disks {', '.join(names)} of the instance {directory.uuid} are kept"
        raise OperationFailed(what, hint="end the resize with the driver that began it")


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
