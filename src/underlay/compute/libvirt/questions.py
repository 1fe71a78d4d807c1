"""Questions to something that may never answer: none is begun too late, and only so many are left without an answer.

One hung part of it, such as a guest's QEMU, takes no more than its own share of them: the others are asked all the same.
"""

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
        most: that may be left, of those about nothing in particular. most_about: of those about one part.
    """

    def __init__(self, *, most: int, most_about: int) -> None:
        self._most = most
        self._most_about = most_about
        self._lock = threading.Lock()
        self._left: list[tuple[threading.Event, str | None]] = []

    def ask(self, question: Callable[[Deadline], _Answer], *, seconds: float, about: str | None = None) -> _Answer:
        """What a question answers.

        Args:
            about: the part that may hang by itself; None: nothing in particular.
            question: called with the time that it has, in another thread. Before it changes anything it is to confirm that, as
                nobody would know.

        Raises:
            TimeoutError: no answer in time, or too many without one; it says which. RuntimeError: there is no thread left.
            What the question raises.
        """
        most = self._most if about is None else self._most_about
        if self._unanswered(about) >= most:
            raise TimeoutError(f"has not answered {most} questions{'' if about is None else f' about {about}'} yet")
        ended, deadline = threading.Event(), Deadline(time.monotonic() + seconds)
        try:
            return within(seconds, lambda: _asked(question, deadline, ended))
        except TimeoutError as error:
            with self._lock:
                self._left.append((ended, about))
            raise TimeoutError(f"does not answer for {seconds:g} s") from error

    def _unanswered(self, about: str | None) -> int:
        with self._lock:
            self._left = [(ended, one) for ended, one in self._left if not ended.is_set()]
            return sum(one == about for _, one in self._left)


def _asked(question: Callable[[Deadline], _Answer], deadline: Deadline, ended: threading.Event) -> _Answer:
    try:
        return question(deadline)
    finally:
        ended.set()
