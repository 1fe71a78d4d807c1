"""What a resize keeps of an instance as it was: its directory under another name, until the resize is confirmed or reverted.

While a new directory is being filled a mark in the old one says so, which whoever does it has locked, and in which its host
stands. Who was killed leaves the mark and no lock, and the next driver of that host puts the old directory back. Without a mark
both directories are whole, and which of them stays is for a confirmation or a reversal to say. Those lock the mark too, so that
no two of them rename at once; nothing stands in theirs.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from underlay import locks
from underlay.compute.errors import ComputeError, InvalidInput, OperationFailed
from underlay.compute.libvirt import keptdisks
from underlay.compute.libvirt.directory import KEPT, InstanceDirectory, directory_of, rename_durably, rename_over_doomed
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.site import Site
from underlay.files import sync_directory, translated as translated_at

_LOG = logging.getLogger(__name__)
_MARK = "resizing"
_DISK = r"disk(\.eph\d+)?"  # what a guest's data is in; swap is made anew


def is_marked(directory: InstanceDirectory) -> bool:
    """Whether the new directory is not whole: it is being filled, or was when whoever filled it was killed.

    Raises:
        OSError
    """
    with suppress(FileNotFoundError):
        return bool((directory.kept / _MARK).read_bytes())
    return False


@contextmanager
def held(directory: InstanceDirectory) -> Iterator[bool]:
    """Have nobody else put back or drop what is kept while the block lasts, nor fill the new directory; whether there is any.

    Two that put back at once would take the one's old directory for the other's new one, and remove it.

    Raises:
        OperationFailed: somebody else does.
    """
    if not os.path.lexists(directory.kept):
        yield False
        return
    mark = directory.kept / _MARK
    with _at(mark), locks.try_exclusive(mark) as lock:  # crash: an empty mark, which goes with the next driver that starts
        if lock is None:
            raise _is_being_resized(directory)
        yield True


@contextmanager
def marked(directory: InstanceDirectory, *, host: str) -> Iterator[None]:
    """Have it said, durably, that the instance's directory is changed, and nobody else change it, while the block lasts.

    After a failure the mark stays where the directory could not be put back, so that somebody does it later.

    Args:
        host: whose next driver takes care of it.

    Raises:
        OperationFailed: somebody else changes it; or the directory cannot be written.
    """
    mark = directory.path / _MARK
    with _at(mark), locks.try_exclusive(mark) as lock:
        if lock is None:
            raise _is_being_resized(directory)
        os.pwrite(lock.fd, host.encode(), 0)
        os.ftruncate(lock.fd, len(host.encode()))
        os.fsync(lock.fd)
        sync_directory(directory.path)
        try:
            yield  # crash: `undo_all_interrupted` finds the mark
        except BaseException:
            _unmark(directory.path)
            raise
        _unmark(directory.kept)  # crash before: the old directory is put back, as nobody was told of the new one


def keep(directory: InstanceDirectory) -> None:
    """Give the instance's directory the name under which it is kept, and make an empty one in its place.

    Raises:
        OperationFailed: something is kept already, among others.
    """
    with _at(directory.kept):
        rename_durably(directory.path, directory.kept)  # crash: the mark is in what is kept, which is put back
        directory.make()  # crash: the same


def put_back(directory: InstanceDirectory) -> None:
    """Drop the instance's directory and put what is kept in its place; nothing that is kept is a success. Safe to repeat.

    The caller holds the mark, by `held` or by `marked`.

    Raises:
        OperationFailed
    """
    with _at(directory.kept):
        if not os.path.lexists(directory.kept):
            return
        with suppress(FileNotFoundError):
            rename_over_doomed(directory.path, directory.doomed)  # crash: what is kept is all, and this can be repeated
        rename_durably(directory.kept, directory.path)  # crash: the old one, and one that goes when the next driver starts
        _unmark(directory.path)
    shutil.rmtree(directory.doomed, ignore_errors=True)


@contextmanager
def dropped(directory: InstanceDirectory) -> Iterator[bool]:
    """Remove what is kept at the end of the block, in one step as far as anybody can see; whether there is any.

    Raises:
        OperationFailed: there is data of the instance that is nowhere else, or it cannot be removed.
    """
    with held(directory) as is_kept:
        if not is_kept:
            yield False
            return
        _refuse_dropping(directory)
        yield True
        rename_over_doomed(directory.kept, directory.doomed)  # crash: what goes when the next driver starts
    shutil.rmtree(directory.doomed, ignore_errors=True)


def _refuse_dropping(directory: InstanceDirectory) -> None:
    """Whoever is killed while it removes the new disks, or makes them anew, leaves a new directory without some of them."""
    if is_marked(directory) or not directory.path.is_dir():
        what = f"what the resize of the instance {directory.uuid} kept is all that is whole of it: {directory.kept}"
        raise OperationFailed(what, hint="revert the resize")
    there = os.listdir(directory.path)
    if missing := [name for name in sorted(os.listdir(directory.kept)) if re.fullmatch(_DISK, name) and name not in there]:
        what = (
            f"only what the resize kept has the disks {', '.join(missing)} of the instance {directory.uuid}: {directory.kept}"
        )
        raise OperationFailed(what, hint="revert the resize")


def refuse_changing(directory: InstanceDirectory) -> None:
    """Refuse to touch a directory that is being changed now: resized, or made, rebuilt or removed.

    Raises:
        OperationFailed
    """
    with _at(directory.making):
        if locks.is_held(directory.making):
            what = f"the instance {directory.uuid} is being made or removed"
            raise OperationFailed(what, hint="wait for the end of that")
    for place in (directory.path, directory.kept):
        with _at(place):
            if locks.is_held(place / _MARK):
                raise _is_being_resized(directory)


def refuse_unfilled(directory: InstanceDirectory) -> None:
    """Refuse to finish what was not begun, or was interrupted as it was begun.

    A network file system may show a host for a while what was there before, the old directory under its old name: a guest that
    is started then would write to what is kept.

    Raises:
        OperationFailed
    """
    with _at(directory.kept):
        if not directory.kept.is_dir():
            what = f"no resize of the instance {directory.uuid} waits to be finished: {directory.kept} is not there"
            raise OperationFailed(what, hint="begin it, or try again where another host has begun it just now")
        if is_marked(directory):
            raise OperationFailed(f"the resize of the instance {directory.uuid} was interrupted", hint="revert it")
        if directory.path.is_dir() and os.path.samefile(directory.path, directory.kept):
            what = f"this host sees what was kept of the instance {directory.uuid} where its new directory is"
            raise OperationFailed(what, hint="try again in a minute")


def undo_all_interrupted(site: Site) -> None:
    """Put back every directory whose change was interrupted on this host. What cannot be put back now is logged.

    Disks that are kept for a resize which has ended are let go of: whoever reverted it was killed at the very end.
    """
    instances = site.host.config.instances
    ended = (place / _MARK for place in keptdisks.places(instances) if not place.name.endswith(KEPT))
    for mark in sorted({*instances.glob(f"*/{_MARK}"), *ended}):
        with suppress(InvalidInput):
            directory = directory_of(instances, mark.parent.name.removesuffix(KEPT))
            try:
                _undo_interrupted(site, directory, mark)
            except ComputeError as error:
                _LOG.warning("the instance %s cannot be put back to what it was yet: %s", directory.uuid, error)


def _undo_interrupted(site: Site, directory: InstanceDirectory, mark: Path) -> None:
    with _at(mark), locks.try_exclusive(mark) as lock:
        if lock is None:
            return  # it is being changed now
        said = mark.read_bytes()
        if said not in (b"", site.name.encode()):
            return  # where hosts share the directory, this is another one's business
        if said and mark.parent == directory.kept:
            _refuse_running(Domain(site.connection, directory.uuid))
            _LOG.info("putting the instance %s back to what it was: its resize was interrupted", directory.uuid)
            put_back(directory)
        if said or Domain(site.connection, directory.uuid).exists():  # else the disks may be another host's to find
            keptdisks.clear(site, directory)
        _unmark(mark.parent)


def _is_being_resized(directory: InstanceDirectory) -> OperationFailed:
    what = f"the instance {directory.uuid} is being resized by somebody else"
    return OperationFailed(what, hint="wait for the end of that")


def _refuse_running(domain: Domain) -> None:
    """Somebody may have started the guest on what was copied so far, and only a reversal may take that from it."""
    if domain.exists() and domain.is_active():
        raise OperationFailed("it runs on what was copied for its resize", hint="revert the resize")


def _unmark(place: Path) -> None:
    with suppress(FileNotFoundError):
        (place / _MARK).unlink()
        sync_directory(place)


@contextmanager
def _at(place: Path) -> Iterator[None]:
    with translated(), translated_at(place):
        yield
