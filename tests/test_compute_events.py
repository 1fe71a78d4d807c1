"""One listener of a driver: who hears, what is no event, and a listener that fails."""

import logging
import threading
from typing import Any

import pytest

from underlay.compute import ComputeDriver, Event, LifecycleEvent
from underlay.compute.events import EVENT_LIFECYCLE_STARTED

EVENT = LifecycleEvent("uuid", EVENT_LIFECYCLE_STARTED)


def test_the_last_listener_hears_in_the_thread_that_tells() -> None:
    driver, first, last = ComputeDriver(None), list[Any](), list[Any]()
    driver.register_event_listener(first.append)
    driver.register_event_listener(lambda event: last.append((event, threading.current_thread())))
    driver.emit_event(EVENT)
    assert ([], [(EVENT, threading.current_thread())]) == (first, last)


def test_without_a_listener_anything_is_dropped_even_what_is_no_event(caplog: pytest.LogCaptureFixture) -> None:
    driver, heard = ComputeDriver(None), list[Any]()
    with caplog.at_level(logging.DEBUG, "underlay.compute"):
        driver.emit_event("no event")  # type: ignore[arg-type]
        driver.register_event_listener(heard.append)
        driver.register_event_listener(None)
        driver.emit_event(EVENT)
    assert [] == heard
    assert ["DEBUG", "DEBUG"] == [record.levelname for record in caplog.records]


def test_what_is_no_event_is_refused_where_somebody_listens() -> None:
    driver, heard = ComputeDriver(None), list[Any]()
    driver.register_event_listener(heard.append)
    with pytest.raises(ValueError, match="is no event"):
        driver.emit_event("started")  # type: ignore[arg-type]
    assert [] == heard
    driver.emit_event(Event())
    assert 1 == len(heard)


def test_a_listener_that_fails_is_logged_without_a_traceback_and_heard_again(caplog: pytest.LogCaptureFixture) -> None:
    driver = ComputeDriver(None)
    heard: list[Event] = []

    def fail(event: Event) -> None:
        heard.append(event)
        raise KeyError("no such instance")

    driver.register_event_listener(fail)
    driver.emit_event(EVENT)
    driver.emit_event(EVENT)
    assert [EVENT, EVENT] == heard
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert 2 == len(errors)
    assert errors[0].exc_info is None
    assert "no such instance" in errors[0].getMessage()


def test_the_end_of_the_program_is_not_held_up_by_a_listener() -> None:
    def leave(event: Event) -> None:
        raise SystemExit(3)

    driver = ComputeDriver(None)
    driver.register_event_listener(leave)
    with pytest.raises(SystemExit):
        driver.emit_event(EVENT)


def test_each_driver_has_a_listener_of_its_own() -> None:
    one, other, heard = ComputeDriver(None), ComputeDriver(None), list[Any]()
    one.register_event_listener(heard.append)
    other.emit_event(EVENT)
    assert [] == heard
