"""The marks that a move leaves in the instance's directory for who comes after a crash.

``arriving`` is there while a guest may come to a host, from before anything is made for it until it is known to be there;
``leaving`` from before a guest may go until it is known to have stayed, or its files are removed. On shared storage those of
both hosts lie in one directory, so each has its host's name behind it, and no host reads, writes or removes another one's. Who
is at work holds its mark's lock; without one it is what is left.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec

from underlay import locks
from underlay.compute.errors import InvalidInput, OperationFailed
from underlay.compute.libvirt import localdisks
from underlay.compute.libvirt.directory import InstanceDirectory, directory_of
from underlay.compute.libvirt.volume import Volume
from underlay.files import sync_directory, translated

Kind = Literal["arriving", "leaving"]
ARRIVING: Kind = "arriving"
LEAVING: Kind = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is under way.

    Attributes:
        host: whose mark it is. other: the other host's name. address: at which that is reached, if it has told one.
        shared: both hosts have the same directory, so neither removes it.
        libvirt: the UUID of the other host as its libvirt has it, as names and addresses come to be another's.
        volumes: with which the guest comes to this host.
    """

    host: str
    other: str
    shared: bool
    address: str | None = None
    libvirt: str | None = None
    volumes: tuple[Volume, ...] = ()


def path_of(directory: InstanceDirectory, kind: Kind, host: str) -> Path:
    """Where a host's mark lies."""
    return directory.path / name_of(kind, host)


def name_of(kind: Kind, host: str) -> str:
    """The file name of a host's mark, which no name of a host can lead elsewhere."""
    return f"{kind}.{quote(host, safe='')}"


@contextmanager
def made(directory: InstanceDirectory, kind: Kind, mark: Mark) -> Iterator[None]:
    """Put the mark down, durably, and hold it for as long as the block lasts; it stays there.

    Raises:
        OperationFailed: somebody is at work on that already. As `localdisks.translated`
    """
    path = path_of(directory, kind, mark.host)
    with ExitStack() as holding:
        with localdisks.translated(), translated(path):
            lock = holding.enter_context(locks.try_exclusive(path))
            if lock is None:
                raise OperationFailed(f"the instance {directory.uuid} is {kind} already")
            with path.open("r+b") as file:
                file.truncate()
                file.write(msgspec.json.encode(mark))
                file.flush()
                os.fsync(file.fileno())
            sync_directory(directory.path)
        yield


def read(directory: InstanceDirectory, kind: Kind, host: str) -> Mark | None:
    """A host's mark; None when there is none, or who put it down was killed before it was written, and had done nothing yet.

    Raises:
        as `localdisks.translated`
    """
    path = path_of(directory, kind, host)
    with localdisks.translated(), translated(path):
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Mark)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
    return found if found.host == host else None


def remove(directory: InstanceDirectory, kind: Kind, host: str) -> None:
    """Take a host's mark away, durably; none is a success.

    Raises:
        as `localdisks.translated`
    """
    path = path_of(directory, kind, host)
    with localdisks.translated(), translated(path), suppress(FileNotFoundError):
        path.unlink()
        sync_directory(directory.path)


@contextmanager
def left(directory: InstanceDirectory, kind: Kind, host: str) -> Iterator[Mark | None]:
    """A mark of a host at which nobody works, held while the block lasts; None when there is no such.

    Raises:
        as `localdisks.translated`
    """
    path = path_of(directory, kind, host)
    with ExitStack() as holding:
        mark = None
        if path.exists():
            with localdisks.translated(), translated(path):
                lock = holding.enter_context(locks.try_exclusive(path))
            mark = _read_left(directory, kind, host) if lock is not None else None
        yield mark


def _read_left(directory: InstanceDirectory, kind: Kind, host: str) -> Mark | None:
    """As `read`. A mark that nobody wrote goes, and so does the directory if it was made for that."""
    found = read(directory, kind, host)
    if found is None:
        with suppress(OSError):
            path_of(directory, kind, host).unlink()
            directory.path.rmdir()
    return found


def marked(instances: Path, kind: Kind, host: str) -> list[InstanceDirectory]:
    """The directories that have such a mark of a host's."""
    found = []
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(instances)):
            with suppress(InvalidInput):
                directory = directory_of(instances, name)
                if path_of(directory, kind, host).exists():
                    found.append(directory)
    return found
