"""Images that are damaged: a note beside each of them, by which nobody is served it again.

The file itself stays in its place. Overlays name it as their backing file, and a disk that reads some of its clusters wrong is
better than one that does not open; who needs it no more lets a prune take it. So the quarantine keeps notes, not files. A note
is of one inode: a sound file that takes the name is not meant by it.
"""

import os
from contextlib import suppress
from datetime import datetime

import msgspec

from underlay.files import keep_directory, read_regular, sync_directory, translated, write_durably
from underlay.model import LAYOUT, Damage
from underlay.store.layout import Store

_MODE, _DIRECTORY_MODE = 0o644, 0o755


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    layout: int
    inode: int
    code: str
    detail: str
    found_at: datetime


def put(store: Store, name: str, *, inode: int, damage: Damage) -> None:
    """Note that this file is damaged, durably. The caller holds the name's locks alone.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    path = store.paths.quarantined(name)
    note = _Note(layout=LAYOUT, inode=inode, code=damage.code, detail=damage.detail, found_at=damage.found_at)
    with translated(path):
        if keep_directory(path.parent, _DIRECTORY_MODE):
            sync_directory(path.parent.parent)
        write_durably(path, msgspec.json.encode(note), mode=_MODE)  # crash: served as before, or never again


def lift(store: Store, name: str) -> None:
    """Drop the note of a name: its file is sound, or gone. Idempotent. The caller holds the name's locks alone.

    Raises:
        CacheNotWritable, StorageFailed
    """
    path = store.paths.quarantined(name)
    with translated(path), suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)  # crash before this: the note of a file that is not there any more, or is sound


def damage_of(store: Store, name: str, *, inode: int) -> Damage | None:
    """What is the matter with this file; None when nothing is known to be.

    A note that cannot be read means any file of its name: nobody is served what may be damaged. The next scrub tells.

    Raises:
        CacheNotWritable, StorageFailed: it cannot be told.
    """
    path = store.paths.quarantined(name)
    with translated(path):
        try:
            content = read_regular(path)
            note = msgspec.json.decode(content, type=_Note)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
            note = None
        if note is None or note.layout != LAYOUT or note.found_at.tzinfo is None:
            found_at = datetime.fromtimestamp(os.stat(path).st_mtime).astimezone()
            return Damage(code="content-differs", detail=f"the note of it, {path}, cannot be read", found_at=found_at)
    return Damage(code=note.code, detail=note.detail, found_at=note.found_at) if note.inode == inode else None


def names(store: Store) -> frozenset[str]:
    """The names of which there is a note; whether it means the file that has the name now is not looked at.

    Raises:
        CacheNotWritable, StorageFailed
    """
    with translated(store.paths.quarantine):
        try:
            entries = os.listdir(store.paths.quarantine)
        except FileNotFoundError:
            return frozenset()
    return frozenset(entry.removesuffix(".json") for entry in entries if entry.endswith(".json") and entry[0] != ".")
