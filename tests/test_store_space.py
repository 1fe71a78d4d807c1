"""Room for an ingest: claimed before its first byte, against the claims of all who live on the same file system."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from children import NOBODY, Child, start, tell, told
from storing import MIB, laid_out
from underlay import locks
from underlay.errors import InsufficientSpace, LockTimeout
from underlay.filesystems import free_bytes
from underlay.model import ImageRef
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.store import Store, space, staging as stagings
from underlay.store.staging import Staging
from underlay.testing.fakes import Recorder

pytestmark = pytest.mark.component("root", "tmpfs")

LONG = 60.0
Mounted = Callable[..., Path]


@pytest.fixture
def disk(mounted: Mounted) -> Path:
    return mounted("tmpfs", 16 * MIB)


@pytest.fixture
def store(disk: Path) -> Store:
    return laid_out(disk / "cache", lock_timeout=LONG)


@pytest.fixture
def neighbour(disk: Path) -> Store:
    return laid_out(disk / "another", kind=CacheKind.MASTERS, lock_timeout=LONG)


def _ref(number: int) -> ImageRef:
    return parse_ref(f"https://images.example/{number}.raw")


@contextmanager
def _ingest(store: Store, number: int = 0) -> Iterator[Staging]:
    """An ingest that lives."""
    with stagings.turn(store, _ref(number), Recorder()) as staging:
        stagings.begin(staging)
        yield staging


def _write(staging: Staging, size: int) -> None:
    staging.download.write_bytes(os.urandom(size))


# ------------------------------------------------------------------------------------------------------------------ claims


def test_what_fits_is_reserved(store: Store) -> None:
    with _ingest(store) as staging:
        space.reserve(store, staging, need=8 * MIB, neighbours=[])
        assert 8 * MIB == stagings.outstanding(staging)


def test_what_does_not_fit_is_refused_with_the_numbers(store: Store) -> None:
    with _ingest(store) as staging:
        free = free_bytes(store.root)
        with pytest.raises(InsufficientSpace, match=str(store.root)) as caught:
            space.reserve(store, staging, need=20 * MIB, neighbours=[])
        assert 0 == stagings.outstanding(staging)
    assert (20 * MIB, {str(store.root): 0}) == (caught.value.needed, caught.value.reclaimable)
    assert free - MIB < caught.value.free <= free


def test_the_last_byte_can_be_reserved_and_not_one_more(store: Store) -> None:
    with _ingest(store) as staging:
        space.reserve(store, staging, need=0, neighbours=[])  # makes the files that a reservation takes
        free = free_bytes(store.root)
        space.reserve(store, staging, need=free, neighbours=[])
        with pytest.raises(InsufficientSpace):
            space.reserve(store, staging, need=free + 1, neighbours=[])


def test_the_claims_of_others_are_not_free(store: Store) -> None:
    with _ingest(store, 1) as one, _ingest(store, 2) as two:
        space.reserve(store, one, need=10 * MIB, neighbours=[])
        with pytest.raises(InsufficientSpace) as caught:
            space.reserve(store, two, need=8 * MIB, neighbours=[])
        space.reserve(store, two, need=4 * MIB, neighbours=[])
    assert 8 * MIB == caught.value.needed
    assert 5 * MIB < caught.value.free < 6 * MIB


def test_the_claims_in_other_caches_of_the_file_system_count_whoever_asks(store: Store, neighbour: Store) -> None:
    with _ingest(store, 1) as one, _ingest(neighbour, 2) as two:
        space.reserve(store, one, need=10 * MIB, neighbours=[neighbour])
        with pytest.raises(InsufficientSpace):
            space.reserve(neighbour, two, need=8 * MIB, neighbours=[store])
        stagings.drop_reservation(one)
        space.reserve(neighbour, two, need=8 * MIB, neighbours=[store])


def test_the_claims_on_another_file_system_do_not_count(store: Store, mounted: Mounted) -> None:
    other = laid_out(mounted("tmpfs", 16 * MIB))
    with _ingest(store, 1) as one, _ingest(other, 2) as two:
        space.reserve(store, one, need=10 * MIB, neighbours=[other])
        space.reserve(other, two, need=10 * MIB, neighbours=[store])


def test_a_claim_counts_less_what_is_written_of_it(store: Store) -> None:
    with _ingest(store, 1) as one, _ingest(store, 2) as two:
        space.reserve(store, one, need=8 * MIB, neighbours=[])
        _write(one, 6 * MIB)  # 2 MiB are still claimed, 6 MiB are no longer free
        space.reserve(store, two, need=7 * MIB, neighbours=[])
        with pytest.raises(InsufficientSpace):
            space.reserve(store, two, need=9 * MIB, neighbours=[])


def test_ones_own_claim_can_grow_and_does_not_count_against_oneself(store: Store) -> None:
    with _ingest(store) as staging:
        space.reserve(store, staging, need=10 * MIB, neighbours=[])
        _write(staging, 5 * MIB)
        space.reserve(store, staging, need=14 * MIB, neighbours=[])
        assert 9 * MIB == stagings.outstanding(staging)
        with pytest.raises(InsufficientSpace) as caught:
            space.reserve(store, staging, need=25 * MIB, neighbours=[])
        assert 20 * MIB == caught.value.needed
        assert 9 * MIB == stagings.outstanding(staging)


# -------------------------------------------------------------------------------------------------------------------- the dead


def test_the_claim_of_a_dead_ingest_does_not_count(store: Store) -> None:
    with _ingest(store, 1) as dead:
        space.reserve(store, dead, need=14 * MIB, neighbours=[])
    with _ingest(store, 2) as staging:
        space.reserve(store, staging, need=14 * MIB, neighbours=[])
        assert dead.directory.exists()  # there was room, so nobody swept


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_dead_are_swept_when_room_is_short(store: Store, neighbour: Store, elsewhere: bool) -> None:  # noqa: FBT001
    with _ingest(neighbour if elsewhere else store, 1) as dead:
        _write(dead, 10 * MIB)
    with _ingest(store, 2) as staging:
        space.reserve(store, staging, need=10 * MIB, neighbours=[neighbour])
        assert not dead.directory.exists()


def test_the_living_are_not_swept_however_short_room_is(store: Store) -> None:
    with _ingest(store, 1) as living, _ingest(store, 2) as staging:
        _write(living, 10 * MIB)
        with pytest.raises(InsufficientSpace):
            space.reserve(store, staging, need=10 * MIB, neighbours=[])
        assert 10 * MIB == living.download.stat().st_size


def reserve_and_live(root: str, number: str, need: str, *neighbours: str) -> None:
    store = Store(root=Path(root), kind=CacheKind.BASE, lock_timeout=LONG)
    others = [Store(root=Path(other), kind=CacheKind.BASE, lock_timeout=LONG) for other in neighbours]
    with _ingest(store, int(number)) as staging:
        tell("begun")
        told()
        try:
            space.reserve(store, staging, need=int(need), neighbours=others)
        except InsufficientSpace:
            tell("refused")
        else:
            tell("reserved")
        told()


def _reserved(child: Child) -> str:
    assert "begun" == child.hear()
    child.say()
    return child.hear()


def test_a_killed_ingest_makes_room_at_once(store: Store) -> None:
    with start(reserve_and_live, store.root, 1, 14 * MIB) as other, _ingest(store, 2) as staging:
        assert "reserved" == _reserved(other)
        with pytest.raises(InsufficientSpace):
            space.reserve(store, staging, need=14 * MIB, neighbours=[])
        other.kill()
        space.reserve(store, staging, need=14 * MIB, neighbours=[])


def test_what_dead_ingests_occupy_can_be_told(store: Store, neighbour: Store) -> None:
    for cache, number in ((store, 1), (neighbour, 2)):
        with _ingest(cache, number) as dead:
            _write(dead, 2 * MIB)
    with _ingest(store, 3) as living:
        _write(living, MIB)
        assert 4 * MIB == space.reclaimable_bytes([store, neighbour])


# ----------------------------------------------------------------------------------------------------------------- many at once


def test_many_threads_never_reserve_more_than_there_is(store: Store, neighbour: Store) -> None:
    caches = (store, neighbour)
    together = threading.Barrier(12, timeout=LONG)
    answered = threading.Barrier(12, timeout=LONG)

    def attempt(number: int) -> bool:
        cache = caches[number % 2]
        with _ingest(cache, number) as staging:
            together.wait()
            try:
                space.reserve(cache, staging, need=2 * MIB, neighbours=[caches[(number + 1) % 2]])
            except InsufficientSpace:
                return False
            else:
                return True
            finally:
                answered.wait()

    with ThreadPoolExecutor(12) as pool:
        assert 7 == list(pool.map(attempt, range(12))).count(True)  # of 16 MiB, the last two are not whole


def test_many_processes_never_reserve_more_than_there_is(store: Store, neighbour: Store) -> None:
    roots = (store.root, neighbour.root)
    with ExitStack() as stack:
        children = [
            stack.enter_context(start(reserve_and_live, roots[number % 2], number, 4 * MIB, roots[(number + 1) % 2]))
            for number in range(5)
        ]
        for child in children:
            assert "begun" == child.hear()
        for child in children:
            child.say()
        assert 3 == [child.hear() for child in children].count("reserved")


@pytest.mark.parametrize("locked", ["cache", "another"])
def test_a_check_waits_for_those_who_know_only_one_of_the_caches(
    disk: Path, store: Store, neighbour: Store, locked: str
) -> None:
    # The lock of the first cache alone would not keep them apart.
    impatient = Store(root=store.root, kind=CacheKind.BASE, lock_timeout=0.1)
    with _ingest(store) as staging, locks.exclusive(disk / locked / ".underlay/locks/.space", timeout=LONG):
        with pytest.raises(LockTimeout):
            space.reserve(impatient, staging, need=MIB, neighbours=[neighbour])
        assert 0 == stagings.outstanding(staging)


def test_a_neighbour_that_is_the_same_directory_by_another_name_is_no_neighbour(disk: Path, store: Store) -> None:
    (disk / "alias").symlink_to(store.root)
    alias = Store(root=disk / "alias", kind=CacheKind.BASE, lock_timeout=0.5)
    with _ingest(store, 1) as staging, _ingest(store, 2) as other:
        space.reserve(store, other, need=4 * MIB, neighbours=[alias])
        space.reserve(store, staging, need=8 * MIB, neighbours=[alias])


def test_a_neighbour_that_is_not_laid_out_or_not_there_is_left_aside(disk: Path, store: Store) -> None:
    (disk / "empty").mkdir()
    neighbours = [Store(root=disk / name, kind=CacheKind.BASE) for name in ("empty", "missing")]
    with _ingest(store) as staging:
        space.reserve(store, staging, need=8 * MIB, neighbours=neighbours)
    assert [] == os.listdir(disk / "empty")


def reserve_own(own: str, others: str) -> None:
    store = Store(root=Path(own), kind=CacheKind.BASE)
    with _ingest(store) as staging:
        space.reserve(store, staging, need=MIB, neighbours=[Store(root=Path(others), kind=CacheKind.BASE)])
    tell("reserved")


def test_a_neighbour_that_is_another_users_is_left_aside(open_directory: Path) -> None:
    own, others = open_directory / "own", laid_out(open_directory / "others")
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    laid_out(own)
    with start(reserve_own, own, others.root, user=NOBODY) as other:
        assert "reserved" == other.hear()


@pytest.mark.component("ramfs")
def test_a_file_system_that_does_not_say_how_large_it_is_has_room(mounted: Mounted) -> None:
    store = laid_out(mounted("ramfs"))
    with _ingest(store) as staging:
        space.reserve(store, staging, need=MIB, neighbours=[])


@pytest.mark.component("btrfs")
def test_the_claims_in_another_subvolume_count(mounted: Mounted) -> None:
    root = mounted("btrfs", 256 * MIB)
    for name in ("one", "two"):
        subprocess.run(["btrfs", "-q", "subvolume", "create", root / name], check=True)
    one, two = laid_out(root / "one"), laid_out(root / "two")
    need = free_bytes(root) * 2 // 3
    with _ingest(one, 1) as first, _ingest(two, 2) as second:
        space.reserve(one, first, need=need, neighbours=[two])
        with pytest.raises(InsufficientSpace):
            space.reserve(two, second, need=need, neighbours=[one])
