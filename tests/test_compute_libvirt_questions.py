"""What is asked of something that hangs, in whole or in part."""

import threading
from collections.abc import Iterator

import pytest

from underlay.compute.libvirt.questions import Questions

_SOON = 0.05  # seconds


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """Set, it answers everybody who waits for it."""
    answers = threading.Event()
    yield answers
    answers.set()


def hang(questions: Questions, hanging: threading.Event, *, about: str | None) -> str:
    with pytest.raises(TimeoutError) as caught:
        questions.ask(lambda _: hanging.wait(), seconds=_SOON, about=about)
    return str(caught.value)


def test_one_part_that_hangs_takes_its_own_share_only(hanging: threading.Event) -> None:
    questions = Questions(most=3, most_about=2)
    assert ["does not answer for 0.05 s"] * 2 == [hang(questions, hanging, about="one") for _ in range(2)]
    assert "has not answered 2 questions about one yet" == hang(questions, hanging, about="one")
    assert 42 == questions.ask(lambda _: 42, seconds=5, about="other")
    assert 42 == questions.ask(lambda _: 42, seconds=5)


def test_what_hangs_as_a_whole_is_not_asked_for_ever(hanging: threading.Event) -> None:
    questions = Questions(most=2, most_about=2)
    assert ["does not answer for 0.05 s"] * 2 == [hang(questions, hanging, about=None) for _ in range(2)]
    assert "has not answered 2 questions yet" == hang(questions, hanging, about=None)


def test_who_answers_late_is_asked_again(hanging: threading.Event) -> None:
    questions = Questions(most=1, most_about=1)
    hang(questions, hanging, about="one")
    hanging.set()
    _until_answered(questions)


def _until_answered(questions: Questions) -> None:
    for _ in range(100):
        try:
            assert 42 == questions.ask(lambda _: 42, seconds=5, about="one")
        except TimeoutError:
            threading.Event().wait(_SOON)
        else:
            return
    pytest.fail("it is never asked again")
