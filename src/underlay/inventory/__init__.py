"""Where the records of instances come from: one module for each kind of inventory, none of which knows another."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Answer = TypeVar("_Answer")


def within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """What ``ask`` returns, if it does in time.

    A call into a foreign library cannot be ended from outside. It is made in a thread of its own, which is left to itself when
    it is late and does not keep the program from ending.

    Raises:
        TimeoutError: no answer in time. What ``ask`` raises.
    """
    answer: Future[_Answer] = Future()
    threading.Thread(target=_settle, args=(answer, ask), daemon=True).start()
    return answer.result(timeout=seconds)


def _settle(answer: Future[_Answer], ask: Callable[[], _Answer]) -> None:
    try:
        answer.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - nothing is swallowed: it is raised in the thread that waits
        answer.set_exception(error)
