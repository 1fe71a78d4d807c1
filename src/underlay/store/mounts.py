"""What each directory of instances was when a prune last looked at it: on which file system, with how many directories in it.

A file system that is not mounted looks like an empty directory; what was seen before tells the two apart.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from underlay.errors import StorageFailed
from underlay.files import translated, write_durably
from underlay.model import LAYOUT
from underlay.store.layout import Store
from underlay.store.locking import writing_records

_MODE = 0o644
_ACCEPT = "if the directories of instances are all there, say 'underlay check --accept'"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRoot:
    """A directory of instances as it was.

    Attributes:
        uuid, source: of its file system. directories: how many it had. inode: its own; a bind mount or a subvolume that is not
            there shows another directory of the same file system. mounts: directories below it with a file system of their own.
    """

    uuid: str | None
    source: str
    directories: int
    inode: int = 0
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    layout: int
    roots: dict[str, SeenRoot]


def recall(store: Store) -> Mapping[str, SeenRoot]:
    """The directories by path; empty when none was looked at.

    Raises:
        StorageFailed: the record cannot be read as one. CacheNotWritable
    """
    path = store.paths.instance_roots
    with translated(path):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Record)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise StorageFailed(f"{path} cannot be read: {error}", hint=_ACCEPT) from error
    if record.layout != LAYOUT:
        raise StorageFailed(f"{path} was not written by this version of Underlay", hint=_ACCEPT)
    return record.roots


def remember(store: Store, roots: Mapping[str, SeenRoot]) -> None:
    """Note the directories as they are now, durably; nothing is written when nothing has changed.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed, LockTimeout
    """
    with suppress(StorageFailed):
        if recall(store) == roots:
            return
    with writing_records(store), translated(store.paths.instance_roots):
        _write(store, roots)


def _write(store: Store, roots: Mapping[str, SeenRoot]) -> None:
    content = msgspec.json.encode(_Record(layout=LAYOUT, roots=dict(roots)))
    write_durably(store.paths.instance_roots, content, mode=_MODE)  # crash: what was noted before, or now
