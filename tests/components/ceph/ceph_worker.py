"""Does one thing with a backend in a process of its own, and is killed, or halts a daemon, before one of its steps.

Reads a pickled `Task`. A step is a call to Ceph. Prints how many there were.
"""

import os
import pickle
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from underlay.waiting import within


@dataclass(frozen=True, slots=True)
class Task:
    """What to do.

    Attributes:
        before: the step, counted from 0, before which it happens; None: it does not. halts: the daemon that is halted then;
            None: this process is killed.
    """

    backend: Any
    method: str
    arguments: tuple[Any, ...]
    before: int | None = None
    halts: int | None = None


def main() -> None:
    task: Task = pickle.load(sys.stdin.buffer)
    steps = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal steps
        if event == "call" and frame.f_code is within.__code__:
            if steps == task.before:
                os.kill(task.halts or os.getpid(), signal.SIGSTOP if task.halts else signal.SIGKILL)
            steps += 1

    sys.setprofile(count)
    try:
        getattr(task.backend, task.method)(*task.arguments)
    finally:
        sys.setprofile(None)
        sys.stdout.write(f"{steps}\n")


if __name__ == "__main__":
    from ceph_worker import main as run  # so that a task is of one class, here and where it was pickled

    run()
