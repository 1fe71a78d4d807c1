"""Pins and leases: held durably, renewed, dropped, and never lost or believed when they cannot be read."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from children import start, tell
from storing import laid_out, published
from underlay import locks
from underlay.errors import InvalidName, LeaseNotFound, LockLost, LockTimeout, NotCached
from underlay.model import BaseImage, Lease
from underlay.naming import CacheKind
from underlay.store import Store, images, leases

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache", lock_timeout=20.0)


@pytest.fixture
def image(store: Store) -> BaseImage:
    return published(store, b"content")


def take(store: Store, image: BaseImage, *, holder: str = "me", expires: datetime | None = None) -> Lease:
    with images.held(store, image.name) as hold:
        return leases.take(hold, holder=holder, ref=image.ref, now=NOW, expires=expires)


def all_of(store: Store) -> list[Lease]:
    found, problems = leases.leases(store)
    assert [] == problems
    return found


def test_a_lease_is_there_for_everybody_with_all_that_it_says(store: Store, image: BaseImage) -> None:
    lease = take(store, image, expires=NOW + HOUR)

    assert [lease] == all_of(Store(root=store.root, kind=CacheKind.BASE))
    assert ("me", (image.name,), (image.ref,), NOW, NOW + HOUR) == (
        lease.holder, lease.names, lease.refs, lease.made_at, lease.expires,
    )  # fmt: skip


def test_a_lease_ends_at_its_moment_and_a_pin_never(store: Store, image: BaseImage) -> None:
    lease, pin = take(store, image, expires=NOW + HOUR), take(store, image)

    assert lease.holds_at(NOW + HOUR - timedelta(microseconds=1))
    assert not lease.holds_at(NOW + HOUR)
    assert pin.holds_at(datetime.max.replace(tzinfo=UTC))


def test_the_same_holders_lease_is_renewed_and_never_made_shorter(store: Store, image: BaseImage) -> None:
    first = take(store, image, expires=NOW + 2 * HOUR)

    assert first.expires == take(store, image, expires=NOW + HOUR).expires
    assert NOW + 3 * HOUR == take(store, image, expires=NOW + 3 * HOUR).expires
    assert [NOW + 3 * HOUR] == [lease.expires for lease in all_of(store)]


def test_a_pin_and_a_lease_of_one_holder_and_those_of_others_stand_beside_each_other(store: Store, image: BaseImage) -> None:
    other = published(store, b"other", version="2")

    ids = {
        take(store, image).id,
        take(store, image, expires=NOW + HOUR).id,
        take(store, image, holder="you").id,
        take(store, other).id,
    }

    assert 4 == len(ids) == len(all_of(store))


@pytest.mark.parametrize("holder", ["", "  ", "a\nb", "a\0b", "x" * 257, "\x1b[31m"])
def test_a_name_that_nobody_can_read_is_refused(store: Store, image: BaseImage, holder: str) -> None:
    with pytest.raises(InvalidName):
        take(store, image, holder=holder)

    assert [] == os.listdir(store.paths.leases)


@pytest.mark.parametrize("holder", ["x" * 256, "../../etc/passwd", "a/b", "ein Gerät", "日本"])
def test_any_readable_name_may_hold(store: Store, image: BaseImage, holder: str) -> None:
    lease = take(store, image, holder=holder)

    assert [holder] == [one.holder for one in all_of(store)]
    leases.drop(store, lease.id)
    assert [] == all_of(store)


def test_what_is_dropped_is_gone_and_cannot_be_dropped_again(store: Store, image: BaseImage) -> None:
    lease = take(store, image)

    leases.drop(store, lease.id)

    assert [] == all_of(store)
    with pytest.raises(LeaseNotFound, match=lease.id):
        leases.drop(store, lease.id)


@pytest.mark.parametrize("lease_id", ["../format", "..", "", "a/b", ".hidden"])
def test_an_id_that_is_none_leads_nowhere_else(store: Store, lease_id: str) -> None:
    with pytest.raises((InvalidName, LeaseNotFound)):
        leases.drop(store, lease_id)
    assert store.paths.format.exists()


# -------------------------------------------------------------------------------------------------------------- what is not one


def spoilt(lease: bytes) -> Iterator[bytes]:
    good = json.loads(lease)
    yield b""
    yield lease[:-1]
    yield b"\xff\xfe"
    yield b"[" * 100_000
    yield json.dumps(good | {"layout": 99}).encode()
    yield json.dumps(good | {"expires": "2026-05-06T07:08:09"}).encode()  # at which of the world's clocks?
    yield json.dumps(good | {"names": "a"}).encode()
    yield json.dumps({key: value for key, value in good.items() if key != "names"}).encode()


def test_a_record_that_cannot_be_read_is_a_problem_and_keeps_no_other_from_being_read(store: Store, image: BaseImage) -> None:
    good = take(store, image)
    content = store.paths.lease(good.id).read_bytes()

    for number, bad in enumerate(spoilt(content)):
        path = store.paths.leases / f"lease-{number}.json"
        path.write_bytes(bad)
        found, problems = leases.leases(store)
        assert [good] == found, bad[:80]
        assert [("lease-unreadable", path)] == [(problem.code, problem.path) for problem in problems], bad[:80]
        path.unlink()


def test_a_directory_or_a_dangling_link_in_a_records_place_is_a_problem_too(store: Store) -> None:
    (store.paths.leases / "a.json").mkdir()

    assert ["lease-unreadable"] == [problem.code for problem in leases.leases(store)[1]]


def test_a_renewal_mends_a_record_that_cannot_be_read(store: Store, image: BaseImage) -> None:
    lease = take(store, image, expires=NOW + HOUR)
    store.paths.lease(lease.id).write_bytes(b"{")

    assert lease == take(store, image, expires=NOW + HOUR)
    assert [lease] == all_of(store)


def test_temporaries_and_strangers_are_no_leases(store: Store) -> None:
    (store.paths.leases / ".lease-1.json.new").write_bytes(b"{")
    (store.paths.leases / "README").write_bytes(b"{")

    assert [] == all_of(store)


def test_a_cache_that_was_never_used_has_none(tmp_path: Path) -> None:
    assert [] == all_of(Store(root=tmp_path, kind=CacheKind.BASE))


# ------------------------------------------------------------------------------------------------------------ with others about


def test_a_lease_of_an_image_that_is_gone_when_it_is_durable_is_none(store: Store, image: BaseImage) -> None:
    with images.held(store, image.name) as hold:
        image.path.unlink()
        with pytest.raises(NotCached):
            leases.take(hold, holder="me", ref=None, now=NOW, expires=None)

    assert [] == os.listdir(store.paths.leases)


def test_a_lease_under_a_lock_that_somebody_replaced_is_none_but_an_earlier_one_stays(store: Store, image: BaseImage) -> None:
    earlier = take(store, image, expires=NOW + HOUR)
    with images.held(store, image.name) as hold:
        store.paths.image_lock(image.name).unlink()
        for expires in (None, NOW + 2 * HOUR):
            with pytest.raises(LockLost):
                leases.take(hold, holder="me", ref=None, now=NOW, expires=expires)

    assert [earlier.id] == [lease.id for lease in all_of(store)]


def test_one_holder_may_ask_for_one_image_from_many_threads_at_once(store: Store, image: BaseImage) -> None:
    def renew(number: int) -> Lease:
        return take(store, image, holder="fetched", expires=NOW + number * HOUR)

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(renew, range(1, 201)))

    assert 1 == len({lease.id for lease in taken})
    assert [NOW + 200 * HOUR] == [lease.expires for lease in all_of(store)]
    assert [f"{taken[0].id}.json"] == os.listdir(store.paths.leases)


def renew_in_a_child(root: str, name: str) -> None:
    store = Store(root=Path(root), kind=CacheKind.BASE)
    for number in range(100):
        with images.held(store, name) as hold:
            leases.take(hold, holder="fetched", ref=None, now=NOW, expires=NOW + number * HOUR)
    tell("done")


def test_one_holder_may_ask_for_one_image_from_many_processes_at_once(store: Store, image: BaseImage) -> None:
    with start(renew_in_a_child, store.root, image.name) as one, start(renew_in_a_child, store.root, image.name) as two:
        assert ["done", "done"] == [one.hear(), two.hear()]

    assert [NOW + 99 * HOUR] == [lease.expires for lease in all_of(store)]


def test_only_ended_leases_are_swept(store: Store, image: BaseImage) -> None:
    ended = take(store, image, holder="a", expires=NOW)
    kept = [take(store, image, holder="b", expires=NOW + HOUR), take(store, image, holder="c")]

    assert [ended.id] == leases.drop_ended(store, now=NOW)

    assert kept == all_of(store)
    assert [] == leases.drop_ended(store, now=NOW)


def test_a_lease_is_not_swept_while_somebody_renews_it(store: Store, image: BaseImage) -> None:
    """Between its record's being read as ended and its removal, it may be made anew: so both happen under one lock."""
    hasty = Store(root=store.root, kind=CacheKind.BASE, lock_timeout=0.1)
    lease = take(store, image, expires=NOW)

    with locks.exclusive(store.paths.records_lock, timeout=1):
        with pytest.raises(LockTimeout):
            leases.drop_ended(hasty, now=NOW)
        with images.held(hasty, image.name) as hold, pytest.raises(LockTimeout):
            leases.take(hold, holder="me", ref=None, now=NOW, expires=NOW + HOUR)

    assert [lease] == all_of(store)


def test_a_record_has_nothing_that_the_documented_layout_does_not_have(store: Store, image: BaseImage) -> None:
    lease = take(store, image)

    written = msgspec.json.decode(store.paths.lease(lease.id).read_bytes())

    assert {"layout", "holder", "names", "refs", "made_at", "expires"} == written.keys()
    assert 0o664 == store.paths.lease(lease.id).stat().st_mode & 0o777
