"""Which images are read again, in which order, and what their readings say."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from underlay.policy.scrub import Reading, ScrubSubject, judge, plan_scrub

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RIGHT, WRONG, OTHER = (f"sha256:{letter * 64}" for letter in "abc")
IMAGE = ScrubSubject(
    cache="base", root=Path("/base"), name="a.raw", inode=1, size=100, allocated=100, stored=RIGHT, recorded_size=100
)
UNRECORDED = replace(IMAGE, stored=None, recorded_size=None)


def subject(name: str, **changes: object) -> ScrubSubject:
    return replace(IMAGE, name=name, **changes)  # type: ignore[arg-type]


def days(number: float) -> datetime:
    return NOW - timedelta(days=number)


def plan(*subjects: ScrubSubject, older_than: float = 0) -> list[tuple[str, bool, str]]:
    verdicts = plan_scrub(subjects, older_than=older_than, now=NOW)
    return [(one.subject.name, one.scrubs, one.reason.code) for one in verdicts]


def test_what_was_read_longest_ago_comes_first_and_before_it_where_the_last_scrub_stopped() -> None:
    told = plan(
        subject("young", read_at=days(1)),
        subject("published", published_at=days(5)),
        subject("both", published_at=days(9), read_at=days(3)),
        subject("stopped", read_at=days(2), reached=10),
        subject("never"),
    )
    assert [
        ("stopped", True, "stopped"),
        ("never", True, "never-read"),
        ("published", True, "due"),
        ("both", True, "due"),
        ("young", True, "due"),
    ] == told


def test_what_was_looked_at_since_is_left_out_and_comes_last() -> None:
    told = plan(
        subject("young", read_at=days(1)),
        subject("fetched", published_at=days(6)),
        subject("old", published_at=days(20), read_at=days(8)),
        subject("never"),
        subject("stopped", read_at=days(0.1), reached=1),
        older_than=7 * 86400,
    )
    assert [
        ("stopped", True, "stopped"),
        ("never", True, "never-read"),
        ("old", True, "due"),
        ("fetched", False, "read-recently"),
        ("young", False, "read-recently"),
    ] == told


def test_a_time_to_come_is_no_age() -> None:
    [verdict] = plan_scrub([subject("a", read_at=NOW + timedelta(days=1))], older_than=0, now=NOW)
    assert ("read-recently", "read 0 s ago") == (verdict.reason.code, verdict.reason.detail)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=20), st.integers(0, 40))
def test_every_image_has_one_verdict_and_the_order_is_that_of_age(ages: list[tuple[int, bool]], older_than: int) -> None:
    subjects = [subject(f"{number}", read_at=days(age), reached=int(half)) for number, (age, half) in enumerate(ages)]
    verdicts = plan_scrub(subjects, older_than=older_than * 86400, now=NOW)

    assert sorted(one.name for one in subjects) == sorted(one.subject.name for one in verdicts)
    told = [(not one.scrubs, not one.subject.reached, one.subject.read_at or NOW) for one in verdicts]
    assert sorted(told) == told


@pytest.mark.parametrize(
    ("image", "readings", "outcome", "damage"),
    [
        (IMAGE, [Reading(stored=RIGHT)], "sound", None),
        (IMAGE, [Reading(stored=WRONG)], "suspect", None),
        (IMAGE, [Reading(failure="EIO")], "suspect", None),
        (IMAGE, [Reading(stored=WRONG), Reading(stored=RIGHT)], "sound", None),
        (IMAGE, [Reading(failure="EIO"), Reading(stored=RIGHT)], "sound", None),
        (IMAGE, [Reading(stored=WRONG), Reading(stored=WRONG)], "damaged", "content-differs"),
        (IMAGE, [Reading(stored=WRONG), Reading(stored=OTHER)], "unsteady", None),
        (IMAGE, [Reading(stored=WRONG), Reading(failure="EIO")], "unsteady", None),
        (IMAGE, [Reading(failure="EIO"), Reading(stored=WRONG)], "unsteady", None),
        (IMAGE, [Reading(failure="EIO"), Reading(failure="EIO")], "damaged", "unreadable"),
        (UNRECORDED, [Reading(stored=WRONG)], "readable", None),
        (UNRECORDED, [Reading(failure="EIO")], "suspect", None),
        (UNRECORDED, [Reading(failure="EIO"), Reading(stored=WRONG)], "readable", None),
        (UNRECORDED, [Reading(failure="EIO"), Reading(failure="EIO")], "damaged", "unreadable"),
        (IMAGE, [], "suspect", None),
        (UNRECORDED, [], "suspect", None),
    ],
)
def test_two_readings_that_agree_condemn_and_one_never_does(
    image: ScrubSubject, readings: list[Reading], outcome: str, damage: str | None
) -> None:
    found = judge(image, 100, readings)
    assert (outcome, damage) == (found.outcome, found.damage and found.damage.code)


def test_a_size_that_differs_needs_no_reading() -> None:
    found = judge(IMAGE, 99, [])
    assert found.damage is not None
    assert ("size-differs", "it has 99 bytes, its record says 100") == (found.damage.code, found.damage.detail)


def test_a_reading_that_was_wrong_once_is_told_of_a_sound_image() -> None:
    found = judge(IMAGE, 100, [Reading(stored=WRONG), Reading(stored=RIGHT)])
    assert f"as it was published; a first reading was wrong ({WRONG}): memory, cable or controller" == found.detail
