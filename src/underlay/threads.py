"""Work for threads of a pool, done by who asks for it where the machine has no thread left.

A limit on processes counts threads too (``RLIMIT_NPROC``, a control group's ``pids.max``), and who has reached it is to be slow
and not to fail. `concurrent.futures` keeps work for which it could not start a thread, and gives it to one that it has; so
whoever comes first does it, and nobody a second time.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")
_Arguments = TypeVarTuple("_Arguments")


def submit(pool: Executor, work: Callable[[*_Arguments], _Answer], *arguments: *_Arguments) -> Future[_Answer]:
    """What ``work`` will return, or has returned already when there was no thread for it. Its errors are the future's."""
    answer: Future[_Answer] = Future()
    taken = threading.Lock()

    def do() -> None:
        if taken.acquire(blocking=False):
            settle(answer, lambda: work(*arguments))

    try:
        pool.submit(do)
    except RuntimeError:  # "can't start new thread"
        do()
    return answer


def each(work: Callable[[_Item], _Answer], items: Iterable[_Item], *, threads: int) -> list[_Answer]:
    """What ``work`` makes of each, so many at once, in their order.

    Raises:
        what ``work`` raises, by which what has not begun never does
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            return [answer.result() for answer in [submit(pool, work, item) for item in items]]
        finally:
            pool.shutdown(cancel_futures=True)


def settle(answer: Future[_Answer], ask: Callable[[], _Answer]) -> None:
    """Give a future what ``ask`` returns or raises."""
    try:
        answer.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - nothing is swallowed: it is raised in the thread that waits
        answer.set_exception(error)
