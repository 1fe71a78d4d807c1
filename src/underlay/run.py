"""The only door to subprocesses: an argument list, a built environment, limits, a time-out; no shell, no inherited input."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from underlay.errors import ToolFailed, ToolMissing, ToolTimedOut

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_MISSING_HINTS = {"qemu-img": "install it: apt-get install qemu-utils"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a tool may use up.

    Attributes:
        seconds: wall time, after which it is killed.
        memory: bytes of address space. cpu_seconds: of processor time. None: no limit.
    """

    seconds: float
    memory: int | None = None
    cpu_seconds: int | None = None


def run(argv: Sequence[str | os.PathLike[str]], *, limits: Limits) -> bytes:
    """Run a program to its end and return its standard output.

    Its environment holds a PATH and ``LC_ALL=C`` only; its standard input is empty.

    Raises:
        ToolMissing, ToolFailed (with the last line that it printed), ToolTimedOut
    """
    program = os.fspath(argv[0])
    try:
        process = subprocess.Popen(
            [os.fspath(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
        )
    except FileNotFoundError as error:
        raise ToolMissing(f"{program} is not installed", hint=_MISSING_HINTS.get(program)) from error
    with process:
        _limit(process.pid, limits)
        try:
            output, errors = process.communicate(timeout=limits.seconds)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise ToolTimedOut(f"{program} was killed after {limits.seconds:g} s") from error
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise ToolFailed(f"{program} failed ({_ending(process.returncode)}): {_last_line(errors)}")
    return output


def _limit(pid: int, limits: Limits) -> None:
    # Set on the running child, not between fork and exec, where only async-signal-safe calls are allowed to a threaded
    # process. What it allocated in its first microseconds counts against the limit all the same.
    with contextlib.suppress(ProcessLookupError):
        if limits.memory is not None:
            resource.prlimit(pid, resource.RLIMIT_AS, (limits.memory, limits.memory))
        if limits.cpu_seconds is not None:
            resource.prlimit(pid, resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds))


def _ending(status: int) -> str:
    return f"status {status}" if status > 0 else f"signal {-status}"


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
