"""The locks of an image's name: ours and Nova's, together or not at all; and a rival's own means of taking his."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from children import start, tell, told
from storing import laid_out
from underlay import locks
from underlay.errors import LockLost, LockTimeout
from underlay.naming import stem_of_version
from underlay.store import Store
from underlay.store.locking import exclusive, shared, try_exclusive

NAME = stem_of_version("an image")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


@pytest.fixture
def beside_nova(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "_base", nova_locks=tmp_path / "locks")


def ours(store: Store, name: str = NAME) -> Path:
    return store.paths.locks / name


def novas(store: Store, name: str = NAME) -> Path:
    assert store.nova_locks is not None
    return store.nova_locks / f"nova-{name}"


def hold_as_nova(path: str) -> None:
    """What oslo.concurrency's external lock does: a POSIX lock on the whole of a file that it opened for appending."""
    Path(path).parent.mkdir(exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tell("held")
        told()
    tell("let go")


@contextmanager
def nova_holds(store: Store) -> Iterator[None]:
    with start(hold_as_nova, novas(store)) as nova:
        assert "held" == nova.hear()
        yield
        nova.say()
        assert "let go" == nova.hear()


# ------------------------------------------------------------------------------------------------------------------------- ours


def test_sharers_hold_a_name_together_and_keep_out_who_wants_it_alone(store: Store) -> None:
    with shared(store, NAME), shared(store, NAME), try_exclusive(store, NAME) as taken:
        assert None is taken
    with try_exclusive(store, NAME) as taken:
        assert [ours(store)] == [lock.path for lock in taken or ()]


def test_who_holds_a_name_alone_keeps_out_everybody(store: Store) -> None:
    with exclusive(store, NAME):
        with try_exclusive(store, NAME) as taken:
            assert None is taken
        with pytest.raises(LockTimeout), shared(store, NAME):
            pass
        with pytest.raises(LockTimeout), exclusive(store, NAME):
            pass


def test_names_are_locked_each_for_itself_but_an_image_and_its_leftovers_together(store: Store) -> None:
    with exclusive(store, NAME):
        with try_exclusive(store, stem_of_version("another")) as taken:
            assert taken is not None
        for leftover in (f"{NAME}.part", f"{NAME}.converted"):
            with try_exclusive(store, leftover) as taken:
                assert None is taken


def test_lock_files_are_never_removed(store: Store) -> None:
    with try_exclusive(store, NAME):
        inode = ours(store).stat().st_ino
    assert inode == ours(store).stat().st_ino


# ----------------------------------------------------------------------------------------------------------------------- Nova's


def test_beside_a_nova_its_lock_is_taken_after_ours(beside_nova: Store) -> None:
    with try_exclusive(beside_nova, NAME) as taken:
        assert [ours(beside_nova), novas(beside_nova)] == [lock.path for lock in taken or ()]
        assert locks.is_held(novas(beside_nova))
    assert not locks.is_held(novas(beside_nova))


def test_a_leftover_is_locked_as_nova_locks_its_image(beside_nova: Store) -> None:
    with try_exclusive(beside_nova, f"{NAME}.part") as taken:
        assert novas(beside_nova) == (taken or [])[1].path


def test_who_takes_novas_lock_keeps_a_nova_out(beside_nova: Store) -> None:
    with exclusive(beside_nova, NAME), start(try_as_nova, novas(beside_nova)) as nova:
        assert "busy" == nova.hear()
        nova.end()
    with start(try_as_nova, novas(beside_nova)) as nova:
        assert "free" == nova.hear()
        nova.end()


def try_as_nova(path: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("busy")
        else:
            tell("free")


def test_a_name_that_nova_holds_is_not_had_and_ours_is_let_go_again(beside_nova: Store) -> None:
    with nova_holds(beside_nova):
        with try_exclusive(beside_nova, NAME) as taken:
            assert None is taken
            assert locks.is_held(novas(beside_nova))
        with pytest.raises(LockTimeout), exclusive(beside_nova, NAME):
            pass
        with pytest.raises(LockTimeout), shared(beside_nova, NAME):
            pass
        assert not locks.is_held(ours(beside_nova))
    with try_exclusive(beside_nova, NAME) as taken:
        assert taken is not None


def test_novas_lock_is_not_touched_while_ours_is_somebody_elses(beside_nova: Store) -> None:
    with locks.exclusive(ours(beside_nova), timeout=1), try_exclusive(beside_nova, NAME) as taken:
        assert None is taken
        assert not novas(beside_nova).exists()


@pytest.mark.parametrize("which", [ours, novas])
@pytest.mark.parametrize("again", [False, True])
def test_a_lock_file_that_is_replaced_while_it_is_held_is_noticed(beside_nova: Store, which: object, *, again: bool) -> None:
    assert callable(which)
    path = which(beside_nova)
    with try_exclusive(beside_nova, NAME) as taken:
        assert taken is not None
        for lock in taken:
            lock.confirm()
        path.unlink()
        if again:
            path.touch()
        (replaced,) = [lock for lock in taken if lock.path == path]
        with pytest.raises(LockLost):
            replaced.confirm()


# ---------------------------------------------------------------------------------------------------------- a rival's own means


class Rival:
    """A process's own table of locks, as oslo.concurrency has one."""

    def __init__(self, *, busy: int = 0) -> None:
        self.busy = busy
        self.held: list[str] = []
        self.tried: list[str] = []

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        self.tried.append(name)
        if len(self.tried) <= self.busy:
            yield False
            return
        self.held.append(name)
        try:
            yield True
        finally:
            self.held.remove(name)


def with_rival(tmp_path: Path, rival: Rival) -> Store:
    return laid_out(tmp_path / "_base", nova_locks=tmp_path / "locks", rival_lock=rival.take)


@pytest.mark.parametrize("take", [exclusive, shared, try_exclusive])
def test_a_rivals_lock_is_taken_by_its_own_means_and_no_file_of_its_is_opened(tmp_path: Path, take: object) -> None:
    assert callable(take)
    rival = Rival()
    store = with_rival(tmp_path, rival)

    with take(store, f"{NAME}.part") as taken:
        assert [NAME] == rival.held
        assert [ours(store)] == [lock.path for lock in taken]

    assert [] == rival.held
    assert not novas(store).exists()


def test_a_rival_who_is_busy_is_asked_once_by_who_only_tries(tmp_path: Path) -> None:
    rival = Rival(busy=1)
    store = with_rival(tmp_path, rival)

    with try_exclusive(store, NAME) as taken:
        assert None is taken

    assert [NAME] == rival.tried
    assert not locks.is_held(ours(store))


def test_a_rival_who_is_busy_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    rival = Rival(busy=2)
    store = with_rival(tmp_path, rival)

    with exclusive(store, NAME):
        assert [NAME] == rival.held

    assert 3 == len(rival.tried)
    assert [] == rival.held


def test_a_rival_who_stays_busy_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    rival = Rival(busy=10_000)
    store = with_rival(tmp_path, rival)

    with pytest.raises(LockTimeout, match=NAME), exclusive(store, NAME):
        pass

    assert not locks.is_held(ours(store))


def test_a_rival_is_not_asked_while_ours_is_somebody_elses(tmp_path: Path) -> None:
    rival = Rival()
    store = with_rival(tmp_path, rival)

    with locks.exclusive(ours(store), timeout=1), try_exclusive(store, NAME) as taken:
        assert None is taken

    assert [] == rival.tried


def test_an_error_of_the_holder_lets_go_of_everything(tmp_path: Path) -> None:
    rival = Rival()
    store = with_rival(tmp_path, rival)

    with pytest.raises(ZeroDivisionError), exclusive(store, NAME):
        os.path.join("a", str(1 // 0))

    assert [] == rival.held
    assert not locks.is_held(ours(store))
