"""The claim on an instance: that somebody makes it, or removes it, and nobody else does meanwhile.

It is a lock by the instance's UUID, which needs no directory of the instance: that comes and goes under it. In the directory a
file says the same, locked as well, for as long as that takes. Who makes the instance writes himself into the file once he is
sure that nobody else has it. A file without a lock is what is left of who was killed: one that names its maker of an instance
that is half made, an empty one of nothing.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from uuid import UUID

from underlay import locks
from underlay.compute.errors import InstanceExists, OperationFailed
from underlay.compute.libvirt import localdisks
from underlay.compute.libvirt.directory import InstanceDirectory
from underlay.errors import LockLost
from underlay.files import sync_directory, translated
from underlay.locks import Lock

_ID_BYTES = 16
_LOCKS = ".underlay-claims"  # a file in the directory of all instances, with a lock for each UUID
_NUMBERS = 1 << 62  # two UUIDs of one number only keep each other waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Who makes an instance.

    Attributes:
        host: of the compute service. id: a text that nobody else has, by which the disks are known that this one makes.
    """

    host: str
    id: str


def new_maker(host: str) -> Maker:
    """One that makes nothing else."""
    return Maker(host=host, id=token_hex(_ID_BYTES))


@contextmanager
def claimed(directory: InstanceDirectory, *, name: str) -> Iterator[Lock]:
    """The claim on an instance that is not there yet, held; with it, its directory.

    Args:
        name: of the instance, for messages.

    Raises:
        InstanceExists: somebody makes it, or has files there. OperationFailed: there is no room, for example.
    """
    with ExitStack() as holding:
        if not holding.enter_context(ours(directory)):
            raise InstanceExists(name=name)
        with localdisks.translated(), translated(directory.making):
            is_new = directory.make()
            try:
                _refuse_files(directory)
                lock = holding.enter_context(locks.try_exclusive(directory.making))
            except BaseException:
                if is_new:
                    directory.remove_if_empty()
                raise
            if lock is None:
                raise InstanceExists(name=name)
            try:
                _refuse_files(directory, but=directory.making)  # of who made it whole between our look and our lock
            except BaseException:
                give_up(directory)
                raise
        yield lock


@contextmanager
def ours(directory: InstanceDirectory) -> Iterator[bool]:
    """Nobody makes or removes an instance while the block lasts, whether it has a directory or not; False: somebody does.

    Raises:
        OperationFailed
    """
    path = directory.instances / _LOCKS
    with ExitStack() as holding:
        is_ours = True  # without a place for any instance, nobody makes one
        with localdisks.translated(), translated(path), suppress(FileNotFoundError):
            number = UUID(directory.uuid).int % _NUMBERS
            is_ours = holding.enter_context(locks.try_exclusive(path, number=number)) is not None
        yield is_ours


def _refuse_files(directory: InstanceDirectory, *, but: Path | None = None) -> None:
    if any(directory.path / name != but for name in os.listdir(directory.path)):
        raise InstanceExists(
            f"files of an instance {directory.uuid} are there: {directory.path}", hint="delete_instance_files removes them"
        )


@contextmanager
def alone(directory: InstanceDirectory) -> Iterator[bool]:
    """Nobody makes, rebuilds or removes an instance meanwhile; whether its directory is there.

    Raises:
        OperationFailed: somebody does.
    """
    busy = OperationFailed(f"the instance {directory.uuid} is being made or removed", hint="try again when that is done")
    with ExitStack() as holding:
        if not holding.enter_context(ours(directory)):
            raise busy
        with localdisks.translated(), translated(directory.making):
            try:
                lock = holding.enter_context(locks.try_exclusive(directory.making))
            except FileNotFoundError:
                lock, is_there = None, False
            else:
                is_there = True
        if not is_there:
            yield False
            return
        if lock is None:
            raise busy
        try:
            yield True  # crash: an empty claim, which says nothing
        finally:
            _drop_empty(lock)


def _drop_empty(lock: Lock) -> None:
    with suppress(LockLost, OSError):
        lock.confirm()
        if not os.fstat(lock.fd).st_size:  # else it is what is left of a maker, for who undoes that
            lock.path.unlink()


def finish(directory: InstanceDirectory, lock: Lock) -> None:
    """Drop a claim: the instance is made.

    Raises:
        OperationFailed: the claim is no more ours.
    """
    with localdisks.translated(), translated(directory.making):
        lock.confirm()
        directory.making.unlink()
        sync_directory(directory.path)  # crash before: the instance is taken for half made, as its caller does not know better


def give_up(directory: InstanceDirectory) -> None:
    """Drop a claim under which nothing was made, and the directory if nothing is in it. The caller holds the claim."""
    with suppress(OSError):
        directory.making.unlink()
    directory.remove_if_empty()


def sign(directory: InstanceDirectory, maker: Maker) -> None:
    """Have a claim say whose it is, durably.

    Raises:
        OperationFailed
    """
    with localdisks.translated(), translated(directory.making):
        with directory.making.open("r+b") as file:
            file.write(f"{maker.host}\n{maker.id}".encode())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(directory.path)


def signed_by(directory: InstanceDirectory) -> Maker | None:
    """Whose a claim is; None: nobody's yet, as of one whose signing was interrupted, under which nothing was made.

    Raises:
        OSError
    """
    host, _, id_ = directory.making.read_text(encoding="utf-8", errors="replace").partition("\n")
    return Maker(host=host, id=id_) if host and len(id_) == 2 * _ID_BYTES else None


def is_half_made(directory: InstanceDirectory) -> bool:
    """Whether somebody makes the instance, or was killed as he did.

    Raises:
        OperationFailed
    """
    with localdisks.translated(), translated(directory.making), suppress(FileNotFoundError, NotADirectoryError):
        return signed_by(directory) is not None
    return False
