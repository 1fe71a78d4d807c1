"""Caches for tests of the store: a directory laid out, content staged as an ingest stages it, and its record."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from underlay.files import create
from underlay.model import LAYOUT, BaseImage, ImageRecord, ImageRef
from underlay.naming import CacheKind, master_name, original_name, ref_key
from underlay.refs import parse_ref
from underlay.store import Store, images, staging as stagings
from underlay.store.staging import Staging
from underlay.stream import stored_digest
from underlay.values import replace

REF = parse_ref("https://images.example/debian.raw")
MIB = 1 << 20


def laid_out(root: Path, *, kind: CacheKind = CacheKind.BASE, **rules: Any) -> Store:
    """A cache in this directory, which is made, with short time-outs."""
    root.mkdir(parents=True, exist_ok=True)
    store = Store(root=root, kind=kind, **{"lock_timeout": 0.5, **rules})
    store.prepare()
    return store


def staging_of(store: Store, ref: ImageRef = REF) -> Staging:
    """Where an ingest of the ref works."""
    return Staging(store.paths.ingest(ref_key(ref.canonical)))


def stage(store: Store, content: bytes, *, ref: ImageRef = REF) -> Path:
    """A file as an ingest leaves it before publication."""
    staging = staging_of(store, ref)
    stagings.begin(staging)
    staging.download.unlink(missing_ok=True)
    fd = create(staging.download, 0o600)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
    return staging.download


def record_of(staged: Path, *, version: str = "1", ref: ImageRef = REF, **changes: Any) -> ImageRecord:
    """What an ingest says of a staged raw file."""
    content = staged.read_bytes()
    with staged.open("rb") as file:
        stored = stored_digest(file.fileno())
    record = ImageRecord(
        layout=LAYOUT,
        version_id=f"{ref.canonical}#{version}",
        ref=ref.canonical,
        format="raw",
        size=len(content),
        virtual_size=len(content),
        digests=(f"sha256:{hashlib.sha256(content).hexdigest()}",),
        stored=stored,
        as_served=True,
        fetched_at=datetime(2026, 1, 2, tzinfo=UTC),
        underlay="0",
    )
    return replace(record, **changes)


def name_of(store: Store, record: ImageRecord, *, ref: ImageRef = REF) -> str:
    """The name under which the cache keeps such an image."""
    if store.kind is CacheKind.MASTERS:
        return master_name(record.version_id, ref=ref, raw=False)
    return original_name(record.version_id, ref=ref, stored_format=record.format)


def published(store: Store, content: bytes, *, version: str = "1", ref: ImageRef = REF) -> BaseImage:
    """An image that is in the cache."""
    staged = stage(store, content, ref=ref)
    record = record_of(staged, version=version, ref=ref)
    put = images.publish_over if store.kind is CacheKind.MASTERS else images.publish
    return put(store, staged, name_of(store, record, ref=ref), record)


def snapshot(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything below a directory but locks: type and mode, inode; of files the time of the last change and the content."""
    found = {}
    for path in sorted(root.rglob("*")):
        if "locks" not in path.parts:
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            changed = 0 if path.is_dir() else status.st_mtime_ns
            found[os.fspath(path.relative_to(root))] = (status.st_mode, status.st_ino, changed, content)
    return found
