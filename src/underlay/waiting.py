"""Calls into foreign libraries that may never return: how long they are waited for."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from underlay.threads import settle

_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class Pulse:
    """By which long work shows that it gets on.

    Attributes:
        at: when it last did, by the monotonic clock.
    """

    at: float = field(default_factory=time.monotonic)

    def beat(self, *_: object) -> int:
        """It got on. A callback for progress may be this one, whatever it is told; the 0 is what libraries want: to go on."""
        self.at = time.monotonic()
        return 0


def within(seconds: float, ask: Callable[[], _Answer], *, pulse: Pulse | None = None) -> _Answer:
    """What ``ask`` returns, if it does in time.

    A call into a foreign library cannot be ended from outside. It is made in a thread of its own, which is left to itself when
    it is late and does not keep the program from ending.

    Args:
        pulse: of work that takes as long as it takes; then the time is that since it last got on.

    Raises:
        TimeoutError: no answer in time. What ``ask`` raises.
    """
    answer: Future[_Answer] = Future()
    pulse = pulse or Pulse()
    pulse.beat()
    threading.Thread(target=settle, args=(answer, ask), daemon=True).start()
    while True:
        started = pulse.at
        try:
            return answer.result(timeout=max(0.0, started + seconds - time.monotonic()))
        except TimeoutError:
            if answer.done() or pulse.at == started:  # a foreign library has an error of this name as well
                raise
