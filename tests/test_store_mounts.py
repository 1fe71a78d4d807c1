"""What the directories of instances were: remembered durably, and forgotten rather than misread."""

import os
from pathlib import Path

import pytest

from storing import laid_out
from underlay.errors import StorageFailed, UnderlayError
from underlay.naming import CacheKind
from underlay.store import Store, mounts
from underlay.store.mounts import SeenRoot

ROOTS = {
    "/var/lib/nova/instances": SeenRoot(uuid="7b6d2a0e-9c1f-4d57-8a34-0e5f6c7d8e9f", source="/dev/vdb", directories=12),
    "/srv/pool": SeenRoot(uuid=None, source="server:/pool", directories=0),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


def test_nothing_was_noted(store: Store, tmp_path: Path) -> None:
    assert {} == mounts.recall(store)
    assert {} == mounts.recall(Store(root=tmp_path, kind=CacheKind.BASE))


def test_what_was_noted_is_recalled(store: Store) -> None:
    mounts.remember(store, ROOTS)
    assert ROOTS == mounts.recall(store)
    assert 0o644 == store.paths.instance_roots.stat().st_mode & 0o7777


def test_a_later_note_replaces_an_earlier_one(store: Store) -> None:
    mounts.remember(store, ROOTS)
    later = {"/elsewhere": SeenRoot(uuid=None, source="x", directories=1)}
    mounts.remember(store, later)
    assert later == mounts.recall(store)
    mounts.remember(store, {})
    assert {} == mounts.recall(store)


def test_the_same_note_is_not_written_again(store: Store) -> None:
    mounts.remember(store, ROOTS)
    before = os.stat(store.paths.instance_roots).st_ino
    mounts.remember(store, dict(ROOTS))
    assert before == os.stat(store.paths.instance_roots).st_ino


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"layout":99,"roots":{}}', b'{"layout":1}', b"[" * 100_000])
def test_what_is_no_note_of_ours_is_an_error_until_it_is_replaced(store: Store, content: bytes) -> None:
    store.paths.instance_roots.write_bytes(content)
    with pytest.raises(StorageFailed):
        mounts.recall(store)
    mounts.remember(store, ROOTS)
    assert ROOTS == mounts.recall(store)


def test_a_note_that_cannot_be_read_is_an_error(store: Store) -> None:
    store.paths.instance_roots.mkdir()
    with pytest.raises(UnderlayError):
        mounts.recall(store)
    with pytest.raises(UnderlayError):
        mounts.remember(store, ROOTS)
