"""When what broke is tried again, and after which pause."""

import pytest
from hypothesis import given, strategies as st

from underlay.errors import BodyTruncated, ImageNotFound, SourceUnavailable
from underlay.policy.retry import LEAST_PROGRESS, NO_RETRIES, Retries, Tries

BROKEN = BodyTruncated("it broke")
THRICE = Retries(attempts=3, first_wait=1.0, longest_wait=30.0)


def pauses(retries: Retries, *reached: int, chance: float = 1.0) -> list[float | None]:
    tries = Tries(retries)
    return [tries.pause(BROKEN, reached=one * LEAST_PROGRESS, chance=chance) for one in reached]


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ((0, 0, 0), [1.0, 2.0, None]),
        ((5, 5, 5), [1.0, 2.0, None]),
        ((5, 9, 13, 14), [1.0, 1.0, 1.0, 1.0]),
        ((5, 5, 6, 6, 6), [1.0, 2.0, 1.0, 2.0, None]),
        ((5, 3, 4), [1.0, 2.0, None]),
    ],
)
def test_only_attempts_in_a_row_that_get_no_further_count(reached: tuple[int, ...], expected: list[float | None]) -> None:
    assert expected == pauses(THRICE, *reached)


def test_a_few_bytes_more_are_no_progress() -> None:
    tries = Tries(THRICE)
    assert [1.0, 2.0, None] == [tries.pause(BROKEN, reached=one, chance=1.0) for one in (1, 2, LEAST_PROGRESS - 1)]


def test_pauses_double_up_to_the_longest() -> None:
    retries = Retries(attempts=99, first_wait=1.0, longest_wait=5.0)
    assert [1.0, 2.0, 4.0, 5.0, 5.0] == pauses(retries, *[0] * 5)


def test_without_retries_the_first_failure_is_the_last() -> None:
    assert [None] == pauses(NO_RETRIES, 0)


def test_what_trying_again_cannot_mend_is_not_tried_again() -> None:
    assert None is Tries(THRICE).pause(ImageNotFound("no"), reached=0, chance=1.0)


@pytest.mark.parametrize(("asked", "expected"), [(0.0, 1.0), (0.2, 1.0), (7.0, 7.0), (30.0, 30.0), (31.0, None)])
def test_a_source_that_asks_for_a_pause_gets_it_unless_it_is_too_long(asked: float, expected: float | None) -> None:
    busy = SourceUnavailable("busy", retry_after=asked)
    assert expected == Tries(THRICE).pause(busy, reached=0, chance=1.0)


@given(st.lists(st.integers(0, 5), max_size=60), st.floats(0, 1), st.integers(1, 6))
def test_pauses_are_bounded_and_attempts_end(reached: list[int], chance: float, attempts: int) -> None:
    retries = Retries(attempts=attempts, first_wait=0.5, longest_wait=8.0)
    tries, in_a_row, best = Tries(retries), 0, 0
    for one in reached:
        in_a_row, best = (1, one) if one > best else (in_a_row + 1, best)
        pause = tries.pause(BROKEN, reached=one * LEAST_PROGRESS, chance=chance)
        assert (pause is None) == (in_a_row >= attempts)
        assert pause is None or 0.25 <= pause <= 8.0
