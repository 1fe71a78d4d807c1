"""An ingest's own directory: whose turn it is, what a former attempt left, who is alive, and what the dead occupy."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from children import NOBODY, start, tell, told
from storing import MIB, REF, laid_out, stage, staging_of
from underlay import locks
from underlay.errors import CacheNotWritable
from underlay.model import Progress
from underlay.naming import CacheKind, ref_key
from underlay.refs import parse_ref
from underlay.store import Store, staging as stagings
from underlay.store.staging import Journal, Staging
from underlay.telling import PROGRESS_INTERVAL
from underlay.testing.fakes import Recorder
from underlay.values import replace

OTHER = parse_ref("https://images.example/other.raw")
JOURNAL = Journal(
    layout=1,
    ref=REF.canonical,
    version_id=f"{REF.canonical}#1",
    validator="a",
    size=7,
    digests=("sha256:" + 64 * "0",),
    stored="sha256:" + 64 * "1",
    format="qcow2",
    label="qcow2",
    virtual_size=MIB,
)
LONG = 60.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


def _left(store: Store, content: bytes = b"content", *, journal: Journal | None = JOURNAL) -> Staging:
    """What an ingest left that did not end well: its download, and beside it whatever it had."""
    stage(store, content)
    staging = staging_of(store)
    staging.converted.write_bytes(b"half of the raw for")
    if journal is not None:
        stagings.keep(staging, journal)
    return staging


def hold_a_turn(root: str) -> None:
    store = Store(root=Path(root), kind=CacheKind.BASE)
    with stagings.turn(store, REF, Recorder()) as staging:
        stagings.begin(staging)
        tell("turn")
        if told() == "progress":
            stagings.write_progress(staging, Progress(ref=REF.canonical, stage="fetch", done=5, total=10))
            tell("written")
            told()


# ------------------------------------------------------------------------------------------------------------------- turns


def test_who_comes_alone_has_the_turn_at_once_and_hears_nothing(store: Store) -> None:
    recorder = Recorder()
    with stagings.turn(store, REF, recorder) as staging:
        assert locks.is_held(store.paths.ingest_lock(ref_key(REF.canonical)))
        assert not staging.directory.exists()
    assert () == recorder.steps
    assert not locks.is_held(store.paths.ingest_lock(ref_key(REF.canonical)))


def test_one_at_a_time_has_the_turn(store: Store) -> None:
    inside: list[int] = []

    def work(number: int) -> int:
        with stagings.turn(store, REF, Recorder()):
            inside.append(number)
            together = len(inside)
            time.sleep(0.01)
            inside.remove(number)
        return together

    with ThreadPoolExecutor(4) as pool:
        assert [1] * 8 == list(pool.map(work, range(8)))


def test_another_ref_is_not_waited_for(store: Store) -> None:
    recorder = Recorder()
    with stagings.turn(store, REF, Recorder()), stagings.turn(store, OTHER, recorder):
        pass
    assert () == recorder.steps


def test_a_turn_ends_with_an_exception_too(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), stagings.turn(store, REF, Recorder()):
        raise ZeroDivisionError
    with stagings.turn(store, REF, Recorder()):
        pass


def test_who_waits_hears_how_far_the_other_has_come(store: Store) -> None:
    recorder = Recorder()
    entered = threading.Event()

    def wait() -> None:
        with stagings.turn(store, REF, recorder):
            entered.set()

    with start(hold_a_turn, store.root) as other, ThreadPoolExecutor(1) as pool:
        assert "turn" == other.hear()
        waiter = pool.submit(wait)
        assert Progress(ref=REF.canonical, stage="wait", done=0, total=None) == recorder.wait_for_progress("wait")
        other.say("progress")
        assert "written" == other.hear()
        assert Progress(ref=REF.canonical, stage="fetch", done=5, total=10) == recorder.wait_for_progress("fetch")
        assert not entered.is_set()
        other.say("end")
        waiter.result(LONG)


def test_who_waits_hears_several_times_a_second_and_no_more(store: Store) -> None:
    recorder = Recorder()

    def wait() -> None:
        with stagings.turn(store, REF, recorder):
            pass

    with ThreadPoolExecutor(1) as pool, stagings.turn(store, REF, Recorder()):
        waiter = pool.submit(wait)
        recorder.wait_for_progress("wait")
        began = time.monotonic()
        time.sleep(1)
        heard, took = len(recorder.steps), time.monotonic() - began
        assert not waiter.done()
    assert 2 <= heard <= 2 + took / PROGRESS_INTERVAL


def test_the_turn_of_one_who_was_killed_is_taken_over_with_what_was_left(store: Store) -> None:
    with start(hold_a_turn, store.root) as other:
        assert "turn" == other.hear()
        (staging_of(store).directory / "download").write_bytes(b"half of it")
        other.kill()
        recorder = Recorder()
        with stagings.turn(store, REF, recorder) as staging:
            assert ["download"] == os.listdir(staging.directory)
        assert () == recorder.steps


def test_what_was_left_is_looked_at_only_when_nobody_works_on_it(store: Store) -> None:
    with stagings.left(store, REF) as nothing:
        assert nothing is None
    _left(store)
    with stagings.left(store, REF) as staging:
        assert staging_of(store) == staging
        with stagings.left(store, REF) as second:
            assert second is None
    with stagings.turn(store, REF, Recorder()), stagings.left(store, REF) as busy:
        assert busy is None


# ------------------------------------------------------------------------------------------------------ what was left


def test_a_new_ingest_begins_with_an_empty_directory_of_its_own(store: Store) -> None:
    staging = staging_of(store)
    assert stagings.begin(staging) is None
    assert [] == os.listdir(staging.directory)
    assert 0o700 == staging.directory.stat().st_mode & 0o7777


def test_a_verified_download_is_used_again_and_its_half_conversion_is_not(store: Store) -> None:
    staging = _left(store)
    assert JOURNAL == stagings.kept(staging) == stagings.begin(staging)
    assert b"content" == staging.download.read_bytes()
    assert not staging.converted.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda staging: staging.journal.unlink(),
        lambda staging: staging.download.unlink(),
        lambda staging: os.truncate(staging.download, 6),
        lambda staging: os.truncate(staging.download, 8),
        lambda staging: staging.journal.write_bytes(b""),
        lambda staging: staging.journal.write_bytes(staging.journal.read_bytes()[:-1]),
        lambda staging: stagings.keep(staging, replace(JOURNAL, layout=2)),
    ],
)
def test_whatever_else_was_left_is_removed(store: Store, spoil: Callable[[Staging], object]) -> None:
    staging = _left(store)
    spoil(staging)
    assert stagings.kept(staging) is None
    assert stagings.begin(staging) is None
    assert [] == os.listdir(staging.directory)


def test_a_download_of_no_use_is_thrown_away_for_a_new_one(store: Store) -> None:
    staging = _left(store)
    stagings.restart(staging)
    assert [] == os.listdir(staging.directory)
    stagings.discard(staging)
    stagings.discard(staging)
    assert not staging.directory.exists()
    stagings.restart(staging)
    assert [] == os.listdir(staging.directory)


def test_progress_that_cannot_be_read_says_nothing(store: Store) -> None:
    staging = staging_of(store)
    assert stagings.read_progress(staging) is None
    stagings.begin(staging)
    staging.progress.write_bytes(b'{"ref"')
    assert stagings.read_progress(staging) is None


def wait_as_another_user(root: str) -> None:
    store = Store(root=Path(root), kind=CacheKind.BASE)
    staging = staging_of(store)
    tell(str(stagings.read_progress(staging)))
    with stagings.turn(store, REF, Recorder()):
        tell("turn")
    with stagings.left(store, REF) as left:
        tell(str(left))
    try:
        stagings.begin(staging)
    except CacheNotWritable:
        tell("refused")


@pytest.mark.component("root")
def test_a_member_of_the_group_waits_for_the_turn_and_may_not_look(open_directory: Path) -> None:
    os.chown(open_directory, 0, 4321)
    store = laid_out(open_directory)
    with ExitStack() as turn:
        staging = turn.enter_context(stagings.turn(store, REF, Recorder()))
        stagings.begin(staging)
        stagings.write_progress(staging, Progress(ref=REF.canonical, stage="fetch", done=5, total=10))
        with start(wait_as_another_user, open_directory, user=NOBODY, groups=[4321]) as member:
            assert "None" == member.hear()
            turn.close()
            assert ["turn", "None", "refused"] == [member.hear(), member.hear(), member.hear()]


# ------------------------------------------------------------------------------------------------------- the living, the dead


def test_an_ingest_lives_as_long_as_its_lock_is_held(store: Store) -> None:
    _left(store)
    assert [(staging_of(store), False)] == stagings.ingests(store)
    with stagings.turn(store, REF, Recorder()):
        assert [(staging_of(store), True)] == stagings.ingests(store)
    assert [(staging_of(store), False)] == stagings.ingests(store)


def test_only_the_dead_are_swept(store: Store) -> None:
    dead = _left(store, bytes(MIB))
    with stagings.turn(store, OTHER, Recorder()) as living:
        stage(store, bytes(MIB), ref=OTHER)
        occupied = stagings.allocated(dead)
        assert occupied >= MIB
        assert occupied == stagings.sweep_dead(store)
        assert not dead.directory.exists()
        assert living.download.exists()
    assert 0 < stagings.sweep_dead(store)
    assert [] == stagings.ingests(store)


def test_a_cache_that_is_not_laid_out_has_no_ingests(tmp_path: Path) -> None:
    assert [] == stagings.ingests(Store(root=tmp_path, kind=CacheKind.BASE))


# ---------------------------------------------------------------------------------------------------------------- reservations


def test_a_claim_is_what_was_reserved_less_what_is_occupied(store: Store) -> None:
    staging = staging_of(store)
    assert 0 == stagings.outstanding(staging)
    stage(store, bytes(MIB))
    staging.converted.write_bytes(bytes(MIB))
    stagings.write_progress(staging, Progress(ref=REF.canonical, stage="fetch", done=5, total=10))
    assert 2 * MIB == stagings.allocated(staging)
    stagings.write_reservation(staging, 5 * MIB)
    assert 3 * MIB == stagings.outstanding(staging)
    stagings.write_reservation(staging, MIB)
    assert 0 == stagings.outstanding(staging)
    for _ in range(2):
        stagings.drop_reservation(staging)
    assert 0 == stagings.outstanding(staging)


def test_a_hole_in_a_download_is_not_occupied(store: Store) -> None:
    staging = staging_of(store)
    stagings.begin(staging)
    with staging.download.open("wb") as file:
        file.truncate(100 * MIB)
    stagings.write_reservation(staging, 5 * MIB)
    assert 5 * MIB == stagings.outstanding(staging)
