"""When each image was last read again, and where the scrub of one has stopped: a small record beside each.

A record is of one file with one digest: of an image that was replaced meanwhile it says nothing. One that cannot be read says
nothing either; then the image is read from its beginning, which is never wrong.
"""

import os
from contextlib import suppress
from datetime import datetime

import msgspec

from underlay.attributes import decode_image_record
from underlay.errors import CacheError
from underlay.files import (
    allocated_bytes,
    keep_directory,
    open_regular,
    read_attribute,
    read_regular,
    sync_directory,
    translated,
    write_durably,
)
from underlay.midstate import State
from underlay.model import LAYOUT, ImageRecord, Problem
from underlay.policy.scrub import ScrubSubject
from underlay.store import images, quarantine
from underlay.store.layout import Store

_MODE, _DIRECTORY_MODE = 0o644, 0o755


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """Where the reading of an image stopped, and its stored digest so far.

    Attributes:
        offset: bytes from the beginning on that are in it. run: the run of data that has begun (`underlay.stream`).
    """

    offset: int
    content: State
    places: State
    run: tuple[int, int] | None


class ScrubRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The scrub of one image.

    Attributes:
        inode, size, stored: the file, and the digest that it should have; None: it is unrecorded.
        read_at: when all of it was last read. stopped: of a reading that did not come to its end.
    """

    layout: int
    inode: int
    size: int
    stored: str | None
    read_at: datetime | None
    stopped: Stopped | None = None


def recall(store: Store, name: str, *, inode: int, size: int, stored: str | None) -> ScrubRecord | None:
    """What is known of the scrub of this very file; None when it is nothing.

    Raises:
        CacheNotWritable, StorageFailed: the record may not or cannot be read.
    """
    path = store.paths.scrub(name)
    with translated(path):
        try:
            record = msgspec.json.decode(read_regular(path), type=ScrubRecord)
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError, RecursionError):
            return None
    is_ours = record.layout == LAYOUT and (record.read_at is None or record.read_at.tzinfo is not None)
    return record if is_ours and (record.inode, record.size, record.stored) == (inode, size, stored) else None


def note(store: Store, name: str, record: ScrubRecord) -> None:
    """Record the scrub of an image, durably. The caller holds the cache's scrub lock, and the file open.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    path = store.paths.scrub(name)
    with translated(path):
        if keep_directory(path.parent, _DIRECTORY_MODE):
            sync_directory(path.parent.parent)
        write_durably(path, msgspec.json.encode(record), mode=_MODE)  # crash: the record before, or this one


def sweep(store: Store) -> None:
    """Drop the records of images that are gone. The caller holds the cache's scrub lock.

    Raises:
        CacheNotWritable, StorageFailed
    """
    with translated(store.paths.scrubs), suppress(FileNotFoundError):
        for entry in os.listdir(store.paths.scrubs):
            if not entry.startswith(".") and not os.path.lexists(store.root / entry.removesuffix(".json")):
                with suppress(FileNotFoundError):
                    os.unlink(store.paths.scrubs / entry)  # crash: the record of no image, which says nothing


def subjects(store: Store, cache: str) -> tuple[list[ScrubSubject], list[Problem]]:
    """Every image of a cache with what is known of its content, and what could not be looked at. Nothing is inspected.

    Raises:
        CacheMissing, CacheNotWritable
    """
    found: list[ScrubSubject] = []
    problems: list[Problem] = []
    for name in images.names(store):
        try:
            found += [subject] if (subject := look(store, cache, name)) is not None else []
        except CacheError as error:
            problems.append(Problem(error.code, store.root / name, error.message))
    return found, problems


def look(store: Store, cache: str, name: str) -> ScrubSubject | None:
    """One image as it is now; None when it is gone, or is no plain file.

    Raises:
        CacheNotWritable, StorageFailed
    """
    path = store.paths.image(name)
    with translated(path):
        if not os.path.lexists(path) or not os.path.isfile(path) or os.path.islink(path):
            return None
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            return None
        try:
            return described(store, cache, name, fd)
        finally:
            os.close(fd)


def described(store: Store, cache: str, name: str, fd: int) -> ScrubSubject:
    """An image by its open file.

    Raises:
        OSError, CacheNotWritable, StorageFailed
    """
    status, image = os.fstat(fd), decode_image_record(read_attribute(fd))
    stored = image.stored if image else None
    record = recall(store, name, inode=status.st_ino, size=status.st_size, stored=stored)
    return ScrubSubject(
        cache=cache,
        root=store.root,
        name=name,
        inode=status.st_ino,
        size=status.st_size,
        allocated=allocated_bytes(status),
        ref=image.ref if image else None,
        version_id=image.version_id if image else None,
        stored=stored,
        recorded_size=image.size if image else None,
        published_at=_aware(image),
        read_at=record.read_at if record else None,
        reached=record.stopped.offset if record and record.stopped else 0,
        damage=quarantine.damage_of(store, name, inode=status.st_ino),
    )


def _aware(image: ImageRecord | None) -> datetime | None:
    return image.fetched_at if image is not None and image.fetched_at.tzinfo is not None else None
