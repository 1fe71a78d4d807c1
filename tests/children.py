"""Child processes for tests: a function of a test module runs in a process of its own, and the two talk by lines.

``start`` gives a `Child`; in the child, the function says a line by `tell` and waits for one by `told`. What is imported on use
is imported before the child becomes another user, who may not be allowed to read the checkout or the Python.
"""

import importlib
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import machine

PATIENCE = 60.0  # seconds; only a broken test waits for so long
NOBODY = 65534

_TESTS = Path(__file__).parent


@dataclass(slots=True)
class Child:
    """A process that runs one function."""

    process: subprocess.Popen[bytes]
    _heard: bytearray = field(default_factory=bytearray)

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        """The next line that the child tells."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not piece:
                raise AssertionError(f"the child said nothing more; status {self.process.poll()}")
            self._heard += piece
        line, _, rest = self._heard.partition(b"\n")
        self._heard = rest
        return line.decode()

    def say(self, line: str = "go on") -> None:
        """Give the child a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def stopped(self) -> int:
        """The id of the process that strace, as the wrapper, has made a signal stop for good."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split():
                if {"t"} == {_state(int(pid)) for _ in range(20)}:  # for a moment, each system call shows like this
                    return int(pid)
        raise AssertionError("nobody stopped")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def end(self) -> None:
        """Wait until the function has returned."""
        assert self.process.wait(PATIENCE) == 0


@contextmanager
def start(
    function: Callable[..., None],
    *arguments: object,
    user: int | None = None,
    groups: Sequence[int] = (),
    umask: int | None = None,
    wrapper: Sequence[str] = (),
) -> Iterator[Child]:
    """Run ``function(*arguments)`` in a child; paths, numbers and texts are handed over as texts. It is killed at the end.

    Args:
        user: the uid and gid that it becomes. groups: the further groups that it then has.
        wrapper: a command that runs the child, such as strace with its options.
    """
    task = {
        "module": function.__module__,
        "directory": os.path.dirname(inspect.getfile(function)),
        "function": function.__name__,
        "arguments": [str(argument) for argument in arguments],
        "user": user,
        "groups": list(groups),
        "umask": umask,
    }
    argv = [*wrapper, sys.executable, "-B", os.fspath(_TESTS / "children.py"), json.dumps(task)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Child(process)
        finally:
            process.kill()


def _state(pid: int) -> str:
    time.sleep(0.01)
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:  # strace tries out what the kernel can do in children of its own
        return "gone"


def tell(line: str) -> None:
    """In the child: say a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def told() -> str:
    """In the child: wait for a line; the end of the parent ends the child too."""
    line = sys.stdin.readline()
    if not line:
        os.kill(os.getpid(), signal.SIGKILL)
    return line.rstrip("\n")


def _main(task_json: str) -> None:
    task = json.loads(task_json)
    sys.path[:0] = [task["directory"], os.fspath(_TESTS)]
    function = getattr(importlib.import_module(task["module"]), task["function"])
    if task["umask"] is not None:
        os.umask(task["umask"])
    if task["user"] is not None:
        machine.import_everything()
        os.setgroups(task["groups"])
        os.setresgid(task["user"], task["user"], task["user"])
        os.setresuid(task["user"], task["user"], task["user"])
    function(*task["arguments"])


if __name__ == "__main__":
    _main(sys.argv[1])
