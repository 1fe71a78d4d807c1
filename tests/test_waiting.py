"""How long a foreign library is waited for."""

import time

import pytest

from underlay.waiting import Pulse, within


def test_what_is_in_time_is_the_answer() -> None:
    assert 3 == within(10, lambda: 3)


def test_what_is_late_is_left_to_itself() -> None:
    started = time.monotonic()

    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(5))

    assert time.monotonic() - started < 4


def test_an_error_is_raised_in_the_thread_that_waits() -> None:
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        within(10, fail)


def test_a_time_out_of_the_library_itself_is_passed_on_at_once() -> None:
    def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        within(60, fail)


def test_work_that_gets_on_may_take_longer_than_its_time() -> None:
    pulse = Pulse()

    def work() -> str:
        for _ in range(25):
            time.sleep(0.05)
            pulse.beat()
        return "done"

    assert "done" == within(1.0, work, pulse=pulse)  # a machine that is busy may well sleep a while longer


def test_work_that_gets_on_no_more_is_late() -> None:
    pulse = Pulse()

    def work() -> None:
        pulse.beat()
        time.sleep(5)

    with pytest.raises(TimeoutError):
        within(0.1, work, pulse=pulse)
