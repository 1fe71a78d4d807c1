"""What each ref was last seen to mean: the version ids, the validators that have meant them, and when we last asked.

Written under the ref's ingest lock. A record may name versions that are not in the cache: it is a memory, not an inventory.
"""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from underlay.files import translated, write_durably
from underlay.model import LAYOUT, ImageRef
from underlay.naming import ref_key
from underlay.store.layout import Store
from underlay.values import replace

MAX_VERSIONS = 16
MAX_VALIDATORS = 8


class SeenVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a ref has meant."""

    id: str
    validators: tuple[str, ...] = ()


class RefRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A ref's history, newest version last.

    Attributes:
        no_store: the source asked, of the newest, that nobody keep a copy: it answers no other request.
        unavailable_at: when its source was last asked in vain, if that was after ``checked_at``.
    """

    layout: int
    ref: str
    checked_at: datetime
    versions: tuple[SeenVersion, ...]
    unavailable_at: datetime | None = None
    no_store: bool = False

    @property
    def newest(self) -> SeenVersion:
        """What the ref meant when we last asked."""
        return self.versions[-1]

    def meant_by(self, validator: str | None) -> SeenVersion | None:
        """The version that this validator has meant, or None."""
        if validator is None:
            return None
        return next((seen for seen in reversed(self.versions) if validator in seen.validators), None)


def recall(store: Store, ref: ImageRef) -> RefRecord | None:
    """What the ref was last seen to mean; None when we never asked, or the record is not one of ours.

    Raises:
        CacheNotWritable: the record may not be read.
    """
    path = store.paths.ref_record(ref_key(ref.canonical))
    with translated(path):
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    record = _decoded(content)
    return record if record is not None and record.ref == ref.canonical else None


def all_records(store: Store) -> list[RefRecord]:
    """What every ref was last seen to mean; what is no record of ours is left out.

    Raises:
        CacheNotWritable, StorageFailed: they may not or cannot be read.
    """
    with translated(store.paths.refs):
        try:
            with os.scandir(store.paths.refs) as entries:
                contents = [Path(entry.path).read_bytes() for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []
    return [record for content in contents if (record := _decoded(content))]


def _decoded(content: bytes) -> RefRecord | None:
    try:
        record = msgspec.json.decode(content, type=RefRecord)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    return record if record.layout == LAYOUT and record.versions and _is_aware(record) else None


def _is_aware(record: RefRecord) -> bool:
    return all(time is None or time.tzinfo is not None for time in (record.checked_at, record.unavailable_at))


def remember(
    store: Store, ref: ImageRef, version_id: str, *, validator: str | None, now: datetime, no_store: bool = False
) -> None:
    """Note that the ref means this version now.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    known = recall(store, ref)
    record = RefRecord(
        layout=LAYOUT,
        ref=ref.canonical,
        checked_at=now,
        versions=_with_newest(known.versions if known else (), version_id, validator),
        no_store=no_store,
    )
    _write(store, ref, record)


def note_unavailable(store: Store, ref: ImageRef, *, now: datetime) -> None:
    """Note that the ref's source was asked in vain; of a ref that never meant anything there is nothing to note.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    known = recall(store, ref)
    if known is not None:
        _write(store, ref, replace(known, unavailable_at=now))


def _write(store: Store, ref: ImageRef, record: RefRecord) -> None:
    path = store.paths.ref_record(ref_key(ref.canonical))
    with translated(path):
        write_durably(path, msgspec.json.encode(record), mode=0o644)


def _with_newest(versions: Sequence[SeenVersion], version_id: str, validator: str | None) -> tuple[SeenVersion, ...]:
    newest = next((seen for seen in versions if seen.id == version_id), SeenVersion(id=version_id))
    if validator is not None:
        others = (known for known in newest.validators if known != validator)
        newest = replace(newest, validators=(*others, validator)[-MAX_VALIDATORS:])
    # A validator means one version only: the one that it was last seen with.
    older = (
        replace(seen, validators=tuple(known for known in seen.validators if known != validator))
        for seen in versions
        if seen.id != version_id
    )
    return (*older, newest)[-MAX_VERSIONS:]
