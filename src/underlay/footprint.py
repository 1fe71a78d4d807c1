"""What files occupy together: bytes that several of them share, by hard links or reflinks, are counted once.

Where a file system tells no extents, each file counts as if nothing were shared but its hard links.
"""

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from underlay.extents import extents
from underlay.files import allocated_bytes, is_regular, open_regular
from underlay.filesystems import FileSystem, file_system
from underlay.naming import kind_of_name
from underlay.store import Store

OTHER = "other"
"""Kind of a file whose name is outside the cache's grammar."""

_SHARE_NOTHING = frozenset({"ext2", "ext3", "ext4", "tmpfs", "ramfs", "squashfs"})

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What some files occupy.

    Attributes:
        count: how many there are. allocated: bytes that the file system holds for them, as far as no group before has them.
        shared: bytes that count elsewhere: with a file of theirs, or with a group before.
    """

    count: int
    allocated: int
    shared: int


@dataclass(frozen=True, slots=True)
class _File:
    size: int
    identity: tuple[int, int]
    pool: str
    shared: tuple[tuple[int, int], ...]  # where its shared bytes begin and end


@dataclass(frozen=True, slots=True)
class _Systems:
    """The file systems that were met, by device number."""

    known: dict[int, FileSystem] = field(default_factory=dict)

    def of(self, fd: int) -> FileSystem:
        device = os.fstat(fd).st_dev
        if device not in self.known:
            self.known[device] = file_system(fd)
        return self.known[device]


def footprints(groups: Mapping[_Key, Iterable[Path]]) -> dict[_Key, Footprint]:
    """What each group of files occupies, in order: what a group has in common with one before it counts there. Only reads."""
    systems = _Systems()
    files = {key: [file for path in paths if (file := _measure(path, systems))] for key, paths in groups.items()}
    charged = dict(zip(files, _charged(list(files.values())), strict=True))
    return {
        key: Footprint(len(those), charged[key], sum(file.size for file in those) - charged[key])
        for key, those in files.items()
    }


def files_of(store: Store) -> Iterator[tuple[str, Path]]:
    """Every plain file directly in a cache, with the kind that its name says, and what is on its way out, as leftovers.

    Raises:
        OSError
    """
    for name in sorted(os.listdir(store.root)):
        path = store.root / name
        if _is_file(path):
            yield kind_of_name(name, kind=store.kind) or OTHER, path
    if os.access(store.paths.trash, os.R_OK | os.X_OK):
        yield from (("leftover", path) for path in sorted(store.paths.trash.iterdir()) if _is_file(path))


def _is_file(path: Path) -> bool:
    try:
        return is_regular(path.lstat())
    except FileNotFoundError:
        return False


def _measure(path: Path, systems: _Systems) -> _File | None:
    """A file and its shared bytes; None when it is gone. One that may not be read shares nothing as far as we know."""
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        return None
    except OSError:
        status = os.lstat(path)
        return _File(allocated_bytes(status), (status.st_dev, status.st_ino), "", ())
    try:
        status, system = os.fstat(fd), systems.of(fd)
        size = allocated_bytes(status)
        found = extents(fd) if size and system.kind not in _SHARE_NOTHING else None
        shared = tuple(
            (extent.physical, extent.physical + extent.length)
            for extent in found or ()
            if extent.shared and extent.physical is not None
        )
        return _File(size, (status.st_dev, status.st_ino), system.key, shared)
    finally:
        os.close(fd)


def _charged(groups: list[list[_File]]) -> list[int]:
    """Bytes of each group, everything once."""
    sums = [0] * len(groups)
    pieces: list[tuple[str, int, int, int]] = []
    seen: set[tuple[int, int]] = set()
    for number, files in enumerate(groups):
        for file in files:
            if file.identity not in seen:
                seen.add(file.identity)
                # A compressed extent has its length before compression, so what is shared may look longer than the file is.
                sums[number] += max(0, file.size - sum(end - start for start, end in file.shared))
                pieces += [(file.pool, start, number, end) for start, end in file.shared]
    last_pool, covered = "", 0
    for pool, start, number, end in sorted(pieces):
        covered = covered if pool == last_pool else 0
        sums[number] += max(0, end - max(start, covered))
        last_pool, covered = pool, max(covered, end)
    return sums
