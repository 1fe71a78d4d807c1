"""Questions to something that may never answer: none is begun too late, and only so many are left without an answer."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from underlay.waiting import within

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer is waited for no more, by the monotonic clock."""

    at: float

    def left(self) -> float:
        """Seconds until then."""
        return max(0.0, self.at - time.monotonic())

    def confirm(self) -> None:
        """It is not over.

        Raises:
            TimeoutError
        """
        if not self.left():
            raise TimeoutError("it is too late")


class Questions:
    """Those that are asked of one thing, from any thread.

    Each has a thread of its own, which is left to itself when its answer is late. What has left so many answers nobody, and the
    next question is refused at once, until some of those have ended.

    Args:
        most: that may be left.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._left: list[threading.Event] = []

    def ask(self, question: Callable[[Deadline], _Answer], *, seconds: float) -> _Answer:
        """What a question answers.

        Args:
            question: called with the time that it has, in another thread. Before it changes anything it is to confirm that, as
                nobody would know.

        Raises:
            TimeoutError: no answer in time, or too many without one; it says which. RuntimeError: there is no thread left.
            What the question raises.
        """
        if len(self._unanswered()) >= self._most:
            raise TimeoutError(f"has not answered {self._most} questions yet")
        ended, deadline = threading.Event(), Deadline(time.monotonic() + seconds)
        try:
            return within(seconds, lambda: _asked(question, deadline, ended))
        except TimeoutError as error:
            with self._lock:
                self._left.append(ended)
            raise TimeoutError(f"does not answer for {seconds:g} s") from error

    def _unanswered(self) -> list[threading.Event]:
        with self._lock:
            self._left = [one for one in self._left if not one.is_set()]
            return self._left


def _asked(question: Callable[[Deadline], _Answer], deadline: Deadline, ended: threading.Event) -> _Answer:
    try:
        return question(deadline)
    finally:
        ended.set()
