"""Does one thing with a backend in a process of its own, and is killed or waits, or halts a daemon, before one of its steps.

Reads a pickled `Task`. A step is a call to Ceph. Prints how many there were.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from underlay.waiting import within


@dataclass(frozen=True, slots=True)
class Task:
    """What to do.

    Attributes:
        before: the step, counted from 0, or the name of the function, before which it happens; None: it does not.
        halts: the daemon that is halted then; None: this process is killed. waits: it stops itself, until it is continued.
    """

    backend: Any
    method: str
    arguments: tuple[Any, ...]
    before: int | str | None = None
    halts: int | None = None
    waits: bool = False


def work(task: Task, meanwhile: Callable[[], object] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Have a task done.

    Args:
        meanwhile: what is done while a task waits that waits.
    """
    argv = [sys.executable, __file__]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            pickle.dump(task, process.stdin)
            process.stdin.flush()
            if meanwhile is not None:
                state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                assert state is not None
                assert state.si_code == os.CLD_STOPPED, "it came to an end before it was to wait"
                meanwhile()
                os.kill(process.pid, signal.SIGCONT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def main() -> None:
    task: Task = pickle.load(sys.stdin.buffer)
    steps, has_acted = 0, False

    def act() -> None:
        nonlocal has_acted
        if has_acted:  # a generator is called at each step of its own
            return
        has_acted = True
        if task.halts is not None:
            os.kill(task.halts, signal.SIGSTOP)
        else:
            os.kill(os.getpid(), signal.SIGSTOP if task.waits else signal.SIGKILL)

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal steps
        if event == "call" and frame.f_code is within.__code__:
            if steps == task.before:
                act()
            steps += 1
        elif event == "call" and frame.f_code.co_name == task.before and "/disks/rbd/" in frame.f_code.co_filename:
            act()

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        getattr(task.backend, task.method)(*task.arguments)
    finally:
        sys.setprofile(None)
        sys.stdout.write(f"{steps}\n")


if __name__ == "__main__":
    from ceph_worker import main as run  # so that a task is of one class, here and where it was pickled

    run()
