"""Nova's registry of hosts: stamped under Nova's lock, whole at every moment, left alone when it cannot be read."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from children import start, tell, told
from storing import laid_out
from underlay import locks
from underlay.errors import LockTimeout, UnderlayError
from underlay.store import Store, registry
from underlay.values import replace


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "instances/_base", nova_locks=tmp_path / "instances/locks")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "instances/compute_nodes"


def test_it_lies_beside_a_cache_that_nova_shares_and_nowhere_else(store: Store, path: Path, tmp_path: Path) -> None:
    assert path == registry.path_beside(store)
    alone = laid_out(tmp_path / "alone")
    assert None is registry.path_beside(alone)
    registry.stamp(alone, "node1")
    assert not registry.forget(alone, "node1")
    assert not (tmp_path / "compute_nodes").exists()


def test_a_stamp_is_the_time_now(store: Store, path: Path) -> None:
    assert {} == registry.read(path)
    before = time.time()
    registry.stamp(store, "node1")
    stamps = json.loads(path.read_bytes())
    assert ["node1"] == list(stamps)
    assert before <= stamps["node1"] <= time.time()
    assert stamps == registry.read(path)
    assert 0o644 == path.stat().st_mode & 0o7777


def test_other_hosts_stamps_stay_as_they_are(store: Store, path: Path) -> None:
    path.write_text('{"node0": 1234.5, "node1": 1, "node2": 99}', encoding="utf-8")
    registry.stamp(store, "node1")
    stamps = registry.read(path)
    assert stamps is not None
    assert (1234.5, 99.0) == (stamps["node0"], stamps["node2"])
    assert stamps["node1"] > 1e9


def test_a_host_is_forgotten_once(store: Store, path: Path) -> None:
    path.write_text('{"node0": 1234.5, "node1": 1}', encoding="utf-8")
    assert registry.forget(store, "node1")
    assert {"node0": 1234.5} == registry.read(path)
    before = path.stat().st_ino
    assert not registry.forget(store, "node1")
    assert before == path.stat().st_ino


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"node1": null}', b"\xff", b"[" * 100_000])
def test_what_is_no_registry_is_left_alone(store: Store, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert None is registry.read(path)
    registry.stamp(store, "node1")
    assert not registry.forget(store, "node1")
    assert content == path.read_bytes()


def test_an_empty_registry_is_one_that_is_just_being_made(store: Store, path: Path) -> None:
    path.write_bytes(b" \n")
    assert {} == registry.read(path)
    registry.stamp(store, "node1")
    assert ["node1"] == list(registry.read(path) or {})


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_stands_in_its_place_is_an_error_and_stays(store: Store, path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UnderlayError):
        registry.stamp(store, "node1")
    assert not path.is_file()


def hold_novas_lock(lock: str) -> None:
    with locks.exclusive(Path(lock), timeout=5):
        tell("held")
        told()


def test_novas_lock_is_waited_for_and_not_for_ever(store: Store, path: Path, tmp_path: Path) -> None:
    registry.stamp(store, "node1")
    lock = tmp_path / "instances/locks/nova-storage-registry-lock"
    assert lock.exists()
    content = path.read_bytes()
    with start(hold_novas_lock, lock) as child:
        assert "held" == child.hear()
        with pytest.raises(LockTimeout):
            registry.stamp(store, "node2")
        assert content == path.read_bytes()
        child.say()
        child.end()
    registry.stamp(store, "node2")
    assert {"node1", "node2"} == set(registry.read(path) or {})


def test_stamps_at_once_lose_none(store: Store, path: Path) -> None:
    store = replace(store, lock_timeout=60.0)
    threads = [threading.Thread(target=registry.stamp, args=(store, f"node{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"node{number}" for number in range(8)} == set(registry.read(path) or {})
