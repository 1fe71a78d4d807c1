"""Where a snapshot is while it is written: a directory of its own, whose maker has it locked, and which goes when it ends.

What is not locked was left by who was killed, and is found by the instance's UUID in its name.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from uuid import UUID

from underlay import locks
from underlay.compute.errors import OperationFailed
from underlay.files import make_directory, remove_tree, translated

_MAKER = "maker"
_DIRECTORY_MODE = 0o711  # QEMU, which may be another user, goes through it, and nobody sees what is in it
_PRIVATE_MODE, _PASSED_MODE = 0o700, 0o711
_ATTEMPTS = 5  # who looks for what is left may take the lock of one that has just been made


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One such directory.

    Attributes:
        instance: whose disk it is. content: the file that becomes the snapshot; only who made it knows its name, because QEMU
            may be a user whom only everybody's rights let write.
    """

    path: Path
    instance: str
    content: Path


@contextmanager
def begun(directory: Path, instance: str, *, host: str) -> Iterator[Work]:
    """A new one in a directory, which is made when it is not there.

    Args:
        host: on which the snapshot is made.

    Raises:
        CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
    """
    with ExitStack() as holding:
        with translated(directory):
            make_directory(directory, _DIRECTORY_MODE)
            work = _claimed(directory, instance, host, holding)
        try:
            yield work  # crash: what `left` finds
        finally:
            with translated(directory):
                remove_tree(work.path, nested=True)


def let_in(work: Work) -> None:
    """Have any user write into the content that can name it.

    Raises:
        OSError
    """
    work.content.chmod(0o666)
    work.path.chmod(_PASSED_MODE)


@contextmanager
def left(directory: Path, *, host: str, instance: str | None = None) -> Iterator[list[Work]]:
    """What makers on this host have left who were killed, of one instance or of all; nobody else takes it meanwhile.

    Raises:
        CacheNotWritable, StorageFailed
    """
    with ExitStack() as holding:
        with translated(directory):
            works = [work for work in _works(directory) if instance in (None, work.instance)]
            found = [work for work in works if _is_left(work, host, holding)]
        yield found


def _claimed(directory: Path, instance: str, host: str, holding: ExitStack) -> Work:
    for _ in range(_ATTEMPTS):
        path = directory / f".{instance}.{token_hex(4)}"
        path.mkdir(_PRIVATE_MODE)
        with suppress(FileNotFoundError):
            if lock := holding.enter_context(locks.try_exclusive(path / _MAKER)):
                os.write(lock.fd, host.encode())
                return Work(path=path, instance=instance, content=path / token_hex(16))
    raise OperationFailed(f"no snapshot can be begun in {directory}", hint="try again")


def _works(directory: Path) -> Iterator[Work]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        parts = name.split(".")
        with suppress(ValueError):
            if len(parts) == 3 and not parts[0]:
                yield Work(path=directory / name, instance=str(UUID(parts[1])), content=directory / name / _MAKER)


def _is_left(work: Work, host: str, holding: ExitStack) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        if holding.enter_context(locks.try_exclusive(work.path / _MAKER)):
            return (work.path / _MAKER).read_bytes() in (b"", host.encode())
    return False
