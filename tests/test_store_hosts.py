"""What each host needs of a cache: said by the host itself, kept until somebody retires it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storing import laid_out
from underlay.errors import CacheNotWritable, InvalidName, UnderlayError, UnknownHost
from underlay.naming import CacheKind
from underlay.store import Store, hosts

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


def say(store: Store, host: str = "node1", names: tuple[str, ...] = ("swap_1",), *, complete: bool = True) -> None:
    hosts.record(store, host=host, at=NOW, names=names, complete=complete)


def test_nobody_has_said_anything(store: Store) -> None:
    assert ([], []) == hosts.hosts(store)


def test_a_cache_that_is_not_laid_out_has_no_hosts(tmp_path: Path) -> None:
    assert ([], []) == hosts.hosts(Store(root=tmp_path, kind=CacheKind.BASE))


def test_what_is_said_is_read_again(store: Store) -> None:
    say(store, "node2", ("a", "b"), complete=False)
    say(store, "node1", ())
    (first, second), problems = hosts.hosts(store)
    assert [] == problems
    assert ("node1", (), True) == (first.host, first.names, first.complete)
    assert ("node2", ("a", "b"), False) == (second.host, second.names, second.complete)
    assert {NOW} == {first.at, second.at}
    assert {hosts.machine_id()} == {first.machine, second.machine}


def test_a_host_that_says_it_again_replaces_what_it_said(store: Store) -> None:
    say(store, names=("a",))
    say(store, names=("b",))
    assert [("b",)] == [use.names for use in hosts.hosts(store)[0]]
    assert ["node1.json"] == os.listdir(store.paths.hosts)


def test_ten_thousand_names_are_kept(store: Store) -> None:
    names = tuple(f"swap_{number}" for number in range(10_000))
    say(store, names=names)
    assert names == hosts.hosts(store)[0][0].names


def test_members_of_the_group_may_say_it_too(store: Store) -> None:
    os.umask(before := os.umask(0o077))
    try:
        os.umask(0o077)
        say(store)
    finally:
        os.umask(before)
    assert 0o2775 == store.paths.hosts.stat().st_mode & 0o7777
    assert 0o664 == store.paths.host("node1").stat().st_mode & 0o7777


@pytest.mark.parametrize("host", ["../escape", "a/b", "", ".hidden", "x" * 200])
def test_no_host_leaves_the_directory(store: Store, host: str) -> None:
    with pytest.raises(InvalidName):
        say(store, host)
    with pytest.raises(InvalidName):
        hosts.retire(store, host)


def test_a_host_is_retired_once(store: Store) -> None:
    say(store)
    say(store, "node2")
    hosts.retire(store, "node1")
    assert ["node2"] == [use.host for use in hosts.hosts(store)[0]]
    with pytest.raises(UnknownHost, match="node1"):
        hosts.retire(store, "node1")


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b"{}"])
def test_what_cannot_be_read_is_told_and_hides_nothing_else(store: Store, content: bytes) -> None:
    say(store)
    store.paths.host("node0").write_bytes(content)
    found, problems = hosts.hosts(store)
    assert ["node1"] == [use.host for use in found]
    assert [("host-unreadable", store.paths.host("node0"))] == [(problem.code, problem.path) for problem in problems]


def test_a_word_of_another_layout_is_told(store: Store) -> None:
    say(store)
    path = store.paths.host("node1")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"layout": 99}), encoding="utf-8")
    found, problems = hosts.hosts(store)
    assert ([], ["host-unreadable"]) == (found, [problem.code for problem in problems])


def test_what_a_crash_left_is_no_host(store: Store) -> None:
    say(store)
    (store.paths.hosts / ".node1.json.new").write_bytes(b"{")
    (store.paths.hosts / "README").touch()
    found, problems = hosts.hosts(store)
    assert (1, []) == (len(found), problems)
    say(store)
    assert not (store.paths.hosts / ".node1.json.new").exists()


def test_a_directory_that_cannot_be_listed_is_an_error(store: Store) -> None:
    store.paths.hosts.touch()
    with pytest.raises(UnderlayError):
        hosts.hosts(store)
    with pytest.raises((UnderlayError, CacheNotWritable)):
        say(store)
