"""Images that were delivered as copies, where no link could be: which file each is, so that it is known and counts as a use.

A link says by itself that somebody has the image; a copy does not, so a record does. It is durable before the copy appears, and
a file that is another than the record says is no copy of ours.
"""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from underlay.files import keep_directory, sync_directory, translated, write_durably
from underlay.model import LAYOUT, BaseImage, Problem
from underlay.naming import path_key
from underlay.store.layout import Store
from underlay.store.locking import writing_records


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRecord:
    """A copy that was delivered.

    Attributes:
        path: where.
        inode, size, mtime_ns: which file it is.
        name, version_id: of the image; a master's content may change under its name.
        fetched_at: of the image that it was made from, to the second; one that is fetched again, as a damaged one is, has
            another. None: the image is unrecorded, or this was written before that was kept.
    """

    layout: int
    path: str
    inode: int
    size: int
    mtime_ns: int
    name: str
    version_id: str | None
    fetched_at: datetime | None = None

    def is_of(self, status: os.stat_result) -> bool:
        """Whether a file is this copy, unchanged."""
        return (status.st_ino, status.st_size, status.st_mtime_ns) == (self.inode, self.size, self.mtime_ns)

    def is_from(self, image: BaseImage) -> bool:
        """Whether it was made from this image, as far as was recorded, and not from what had its name before."""
        version_id, fetched_at = (image.record.version_id, image.record.fetched_at) if image.record else (None, None)
        if (self.name, self.version_id) != (image.name, version_id):
            return False
        return self.fetched_at is None or self.fetched_at == fetched_at


def record(store: Store, *, path: Path, status: os.stat_result, image: BaseImage) -> None:
    """Record a copy that is about to appear at a path, durably. The caller holds the image's lock and the path's.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed, LockTimeout
    """
    made = CopyRecord(
        layout=LAYOUT,
        path=os.fspath(path),
        inode=status.st_ino,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        name=image.name,
        version_id=image.record.version_id if image.record else None,
        fetched_at=image.record.fetched_at if image.record else None,
    )
    file = store.paths.copy(path_key(path))
    with writing_records(store), translated(file):
        keep_directory(file.parent, 0o2775)
        write_durably(file, msgspec.json.encode(made), mode=0o664)  # crash: the record of a copy that never came, or did


def recorded(store: Store, path: Path) -> CopyRecord | None:
    """What is recorded of a path; None when nothing of ours was copied there.

    Raises:
        CacheNotWritable, StorageFailed
    """
    file = store.paths.copy(path_key(path))
    with translated(file):
        found = _read(file)
    return found if isinstance(found, CopyRecord) and found.path == os.fspath(path) else None


def copies(store: Store) -> tuple[list[CopyRecord], list[Problem]]:
    """Every recorded copy, there or not, and what cannot be read.

    Raises:
        CacheNotWritable, StorageFailed: the directory cannot be read.
    """
    found: list[CopyRecord] = []
    problems: list[Problem] = []
    with translated(store.paths.copies):
        try:
            names = sorted(os.listdir(store.paths.copies))
        except FileNotFoundError:
            return [], []
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                one = _read(store.paths.copies / name)
                if isinstance(one, CopyRecord):
                    found.append(one)
                elif one is not None:
                    problems.append(one)
    return found, problems


def forget(store: Store, copy: CopyRecord) -> None:
    """Drop the record of a copy that is gone, or another file by now. The caller holds the path's lock.

    Raises:
        CacheNotWritable, StorageFailed, LockTimeout
    """
    file = store.paths.copy(path_key(Path(copy.path)))
    with writing_records(store), translated(file):
        if _read(file) == copy:
            file.unlink(missing_ok=True)
            sync_directory(file.parent)


def is_there(copy: CopyRecord) -> bool | None:
    """Whether the copy is where it was delivered, unchanged; None when that cannot be told.

    A copy that is not mounted at the moment may be taken for gone: it does not need its image to be read.
    """
    try:
        return copy.is_of(os.lstat(copy.path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None


def _read(file: Path) -> CopyRecord | Problem | None:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=CopyRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        return Problem("copy-unreadable", file, f"{file} cannot be read as the record of a copy: {error}")
    if found.layout != LAYOUT:
        return Problem("copy-unreadable", file, f"{file} was not written by this version of Underlay")
    return found
