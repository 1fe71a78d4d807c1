"""What each ref was last seen to mean: remembered within bounds, and never believed when it cannot be ours."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from children import NOBODY, start, tell
from storing import MIB, REF, laid_out
from underlay.errors import CacheNotWritable, InsufficientSpace, UnderlayError
from underlay.naming import CacheKind, ref_key
from underlay.refs import parse_ref
from underlay.store import Store, refs
from underlay.store.refs import MAX_VALIDATORS, MAX_VERSIONS, RefRecord, SeenVersion
from underlay.values import replace

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


def _path(store: Store) -> Path:
    return store.paths.refs / f"{ref_key(REF.canonical)}.json"


def _recall(store: Store) -> RefRecord:
    record = refs.recall(store, REF)
    assert record is not None
    return record


def test_a_ref_that_was_never_asked_for_means_nothing(store: Store) -> None:
    assert refs.recall(store, REF) is None


def test_a_ref_means_what_was_remembered_last(store: Store) -> None:
    refs.remember(store, REF, "one", validator="a", now=NOW)
    refs.remember(store, REF, "two", validator=None, now=NOW + timedelta(seconds=1))
    record = _recall(store)
    assert (1, REF.canonical, NOW + timedelta(seconds=1)) == (record.layout, record.ref, record.checked_at)
    assert (SeenVersion(id="one", validators=("a",)), SeenVersion(id="two")) == record.versions
    assert "two" == record.newest.id
    assert 0o644 == _path(store).stat().st_mode & 0o7777


def test_refs_do_not_share_their_memory(store: Store) -> None:
    other = parse_ref("https://images.example/other.raw")
    refs.remember(store, REF, "one", validator="a", now=NOW)
    assert refs.recall(store, other) is None


def test_a_version_that_returns_is_the_newest_again(store: Store) -> None:
    for version in ("one", "two", "one"):
        refs.remember(store, REF, version, validator=f"of {version}", now=NOW)
    assert ["two", "one"] == [seen.id for seen in _recall(store).versions]


def test_a_validator_means_the_version_that_it_was_seen_with(store: Store) -> None:
    refs.remember(store, REF, "one", validator="a", now=NOW)
    refs.remember(store, REF, "two", validator="b", now=NOW)
    refs.remember(store, REF, "two", validator="c", now=NOW)
    record = _recall(store)
    meant = {validator: seen.id for validator in "abc" if (seen := record.meant_by(validator))}
    assert {"a": "one", "b": "two", "c": "two"} == meant
    assert record.meant_by("d") is None
    assert record.meant_by(None) is None


def test_a_validator_that_moves_to_another_version_leaves_the_old_one(store: Store) -> None:
    refs.remember(store, REF, "one", validator="a", now=NOW)
    refs.remember(store, REF, "one", validator="b", now=NOW)
    refs.remember(store, REF, "two", validator="a", now=NOW)
    assert (SeenVersion(id="one", validators=("b",)), SeenVersion(id="two", validators=("a",))) == _recall(store).versions


def test_the_memory_of_a_ref_is_bounded_and_forgets_the_oldest(store: Store) -> None:
    assert (16, 8) == (MAX_VERSIONS, MAX_VALIDATORS)
    for number in range(40):
        refs.remember(store, REF, f"version {number}", validator=None, now=NOW)
    assert [f"version {number}" for number in range(24, 40)] == [seen.id for seen in _recall(store).versions]
    for number in range(20):
        refs.remember(store, REF, "version 39", validator=str(number), now=NOW)
    record = _recall(store)
    assert tuple(str(number) for number in range(12, 20)) == record.newest.validators
    assert 16 == len(record.versions)


def test_a_validator_that_is_seen_again_is_remembered_longest(store: Store) -> None:
    for validator in ("a", "b", "a"):
        refs.remember(store, REF, "one", validator=validator, now=NOW)
    assert ("b", "a") == _recall(store).newest.validators


def test_a_source_that_did_not_answer_is_remembered_until_it_does(store: Store) -> None:
    refs.note_unavailable(store, REF, now=NOW)
    assert refs.recall(store, REF) is None
    refs.remember(store, REF, "one", validator="a", now=NOW)
    later = NOW + timedelta(seconds=5)
    refs.note_unavailable(store, REF, now=later)
    record = _recall(store)
    assert (NOW, later, "one") == (record.checked_at, record.unavailable_at, record.newest.id)
    refs.remember(store, REF, "one", validator="a", now=later)
    assert _recall(store).unavailable_at is None


def _changed(**changes: object) -> Callable[[dict[str, object]], bytes]:
    return lambda record: json.dumps(record | changes).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: b"",
        lambda record: b"garbage",
        lambda record: json.dumps(record).encode()[:-1],
        lambda record: b"\xff" + json.dumps(record).encode(),
        lambda record: json.dumps([record]).encode(),
        _changed(layout=2),
        _changed(ref="https://images.example/other.raw"),
        _changed(versions=[]),
        _changed(versions="one"),
        _changed(checked_at="yesterday"),
        _changed(checked_at="2026-03-04T05:06:07"),  # of no time zone, so comparable with nothing
        _changed(unavailable_at="2026-03-04T05:06:07"),
    ],
)
def test_a_record_that_is_not_one_of_ours_is_ignored_and_replaced(
    store: Store, change: Callable[[dict[str, object]], bytes]
) -> None:
    refs.remember(store, REF, "one", validator="a", now=NOW)
    path = _path(store)
    path.write_bytes(change(json.loads(path.read_bytes())))
    assert refs.recall(store, REF) is None
    refs.remember(store, REF, "two", validator="b", now=NOW)
    assert (SeenVersion(id="two", validators=("b",)),) == _recall(store).versions


def test_a_record_with_words_of_a_later_version_is_read(store: Store) -> None:
    refs.remember(store, REF, "one", validator="a", now=NOW)
    before = _recall(store)
    path = _path(store)
    path.write_bytes(_changed(later="word")(json.loads(path.read_bytes())))
    assert before == _recall(store)


def test_a_record_is_replaced_and_never_written_into(store: Store) -> None:
    refs.remember(store, REF, "one", validator="a", now=NOW)
    path = _path(store)
    with path.open("rb") as reader:
        refs.remember(store, REF, "two", validator="b", now=NOW)
        assert "one" == msgspec.json.decode(reader.read(), type=RefRecord).newest.id
    assert [path.name] == os.listdir(path.parent)


def test_a_ref_is_kept_under_the_hash_of_its_canonical_spelling(store: Store) -> None:
    secret = parse_ref("https://user:secret@images.example/debian.raw?X-Amz-Signature=abc")
    refs.remember(store, secret, "one", validator="a", now=NOW)
    assert _path(store).exists()
    assert refs.recall(store, replace(REF, location="anything")) is not None
    assert b"secret" not in _path(store).read_bytes()
    assert b"Signature" not in _path(store).read_bytes()


def recall_and_remember(root: str) -> None:
    store = Store(root=Path(root), kind=CacheKind.BASE)
    record = refs.recall(store, REF)
    tell(record.newest.id if record else "nothing")
    try:
        refs.remember(store, REF, "two", validator="b", now=NOW)
    except UnderlayError as error:
        tell(type(error).__name__)


@pytest.mark.component("root")
def test_another_user_knows_what_a_ref_means_and_does_not_change_it(open_directory: Path) -> None:
    os.chown(open_directory, 0, 4321)
    store = laid_out(open_directory)
    refs.remember(store, REF, "one", validator="a", now=NOW)
    with start(recall_and_remember, open_directory, user=NOBODY, groups=[4321]) as member:
        assert ["one", "CacheNotWritable"] == [member.hear(), member.hear()]
    assert "one" == _recall(store).newest.id


@pytest.mark.component("root")
def test_a_record_that_may_not_be_read_is_an_error(open_directory: Path) -> None:
    store = laid_out(open_directory)
    refs.remember(store, REF, "one", validator="a", now=NOW)
    _path(store).chmod(0o600)
    with start(say_how_recall_fails, open_directory, user=NOBODY) as stranger:
        assert CacheNotWritable.__name__ == stranger.hear()


def say_how_recall_fails(root: str) -> None:
    try:
        refs.recall(Store(root=Path(root), kind=CacheKind.BASE), REF)
    except UnderlayError as error:
        tell(type(error).__name__)


@pytest.mark.component("root", "tmpfs")
def test_a_full_file_system_keeps_the_old_memory(mounted: Callable[..., Path]) -> None:
    root = mounted("tmpfs", MIB)
    store = laid_out(root)
    refs.remember(store, REF, "one", validator="a", now=NOW)
    with pytest.raises(OSError, match="No space left"):
        (root / "ballast").write_bytes(bytes(2 * MIB))
    with pytest.raises(InsufficientSpace):
        refs.remember(store, REF, "two" * 9999, validator="b", now=NOW)
    assert "one" == _recall(store).newest.id
    assert [_path(store).name] == os.listdir(store.paths.refs)
