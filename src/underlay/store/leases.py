"""Pins and leases: holds on base images of one cache by a named holder, one file each.

Who makes one holds the image's lock shared until its record is durable, so no eviction falls in between; one lock for all
records keeps writers, and a sweep of those that ended, from each other. What cannot be read is reported, never ignored: it may
keep an image.
"""

import hashlib
import os
from contextlib import suppress
from datetime import datetime

import msgspec

from underlay.errors import InvalidName, LeaseNotFound
from underlay.files import read_regular, sync_directory, translated, write_durably
from underlay.model import LAYOUT, Lease, Problem
from underlay.store.images import Hold
from underlay.store.layout import Store
from underlay.store.locking import writing_records

_MODE = 0o664
LONGEST_HOLDER = 256
FOLLOWERS = "follow:"
"""What the holders of followed refs begin with (`underlay.following`)."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    layout: int
    holder: str
    names: tuple[str, ...]
    refs: tuple[str, ...]
    made_at: datetime
    expires: datetime | None


def take(hold: Hold, *, holder: str, ref: str | None, now: datetime, expires: datetime | None) -> Lease:
    """Keep an image that is held, durably. The same holder's lease of it is renewed, and never made shorter.

    Args:
        expires: when it ends; None for a pin. ref: what the image was asked for by.

    Raises:
        InvalidName: the holder. LockLost, NotCached: the image may be gone already; nothing is kept.
        CacheNotWritable, InsufficientSpace, StorageFailed, LockTimeout
    """
    _check_holder(holder)
    with writing_records(hold.store):
        return _take(hold, holder=holder, ref=ref, now=now, expires=expires)


def _take(hold: Hold, *, holder: str, ref: str | None, now: datetime, expires: datetime | None) -> Lease:
    store, name = hold.store, hold.image.name
    lease_id = _id(holder, name, pinned=expires is None)
    earlier = _read(store, f"{lease_id}.json")
    if isinstance(earlier, Lease) and earlier.expires and expires:
        expires = max(earlier.expires, expires)
    refs = (ref,) if ref else ()
    record = _Record(layout=LAYOUT, holder=holder, names=(name,), refs=refs, made_at=now, expires=expires)
    path = store.paths.lease(lease_id)
    with translated(path):
        write_durably(path, msgspec.json.encode(record), mode=_MODE)  # crash: no lease, or the whole lease
    try:
        hold.confirm()
    except Exception:
        if not isinstance(earlier, Lease):
            with suppress(OSError):
                path.unlink()
        raise
    return Lease(id=lease_id, holder=holder, names=(name,), refs=refs, made_at=now, expires=expires)


def drop(store: Store, lease_id: str) -> None:
    """Let go of a lease or pin, durably.

    Raises:
        LeaseNotFound, CacheNotWritable
    """
    path = store.paths.lease(lease_id)
    with translated(path):
        try:
            path.unlink()
        except FileNotFoundError as error:
            raise LeaseNotFound(f"there is no lease {lease_id}", hint="'underlay leases' shows them") from error
        sync_directory(path.parent)


def drop_ended(store: Store, *, now: datetime) -> list[str]:
    """Drop the leases that have ended by now; one that is renewed at this moment stays. Their ids.

    Raises:
        CacheNotWritable, StorageFailed, LockTimeout
    """
    if all(lease.holds_at(now) for lease in leases(store)[0]):
        return []
    with writing_records(store):
        ended = [lease.id for lease in leases(store)[0] if not lease.holds_at(now)]
        for lease_id in ended:
            with suppress(LeaseNotFound):
                drop(store, lease_id)
    return ended


def leases(store: Store) -> tuple[list[Lease], list[Problem]]:
    """Every lease and pin, expired ones among them, by holder; and what cannot be read as one.

    Raises:
        CacheNotWritable, StorageFailed: the directory cannot be read.
    """
    found: list[Lease] = []
    problems: list[Problem] = []
    with translated(store.paths.leases):
        try:
            names = sorted(os.listdir(store.paths.leases))
        except FileNotFoundError:
            return [], []
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                one = _read(store, name)
                if isinstance(one, Lease):
                    found.append(one)
                elif one is not None:
                    problems.append(one)
    return sorted(found, key=lambda lease: (lease.holder, lease.names)), problems


def _read(store: Store, name: str) -> Lease | Problem | None:
    """A lease, or why its file is none; None when it is gone."""
    path = store.paths.leases / name
    try:
        record = msgspec.json.decode(read_regular(path), type=_Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        return Problem("lease-unreadable", path, f"{path} cannot be read as a lease: {error}")
    if record.layout != LAYOUT or (record.expires is not None and record.expires.tzinfo is None):
        return Problem("lease-unreadable", path, f"{path} was not written by this version of Underlay")
    return Lease(
        id=name.removesuffix(".json"),
        holder=record.holder,
        names=record.names,
        refs=record.refs,
        made_at=record.made_at,
        expires=record.expires,
    )


def _id(holder: str, name: str, *, pinned: bool) -> str:
    kind = "pin" if pinned else "lease"
    return f"{kind}-{hashlib.sha256(f'{holder}/{name}'.encode(errors='surrogateescape')).hexdigest()[:16]}"


def _check_holder(holder: str) -> None:
    if not holder.strip() or not holder.isprintable() or len(holder) > LONGEST_HOLDER:
        raise InvalidName(f"{holder!r} is no name for a holder", hint=f"use up to {LONGEST_HOLDER} printable characters")
