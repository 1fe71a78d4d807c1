"""The only door to subprocesses: an argument list, a built environment, limits, a time-out; no shell, no inherited input."""

import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

from underlay.errors import ToolFailed, ToolMissing, ToolTimedOut

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for, whatever the caller's own path."""

PLAIN_ENVIRONMENT: Mapping[str, str] = MappingProxyType({"PATH": SEARCH_PATH, "LC_ALL": "C"})
"""What a program is given, unless it needs more."""

_Stream = BinaryIO | int
_STREAMS = ("input", "output", "errors")
_PACKAGES = {
    "qemu-img": "qemu-utils",
    "gpgv": "gpgv",
    "mkfs.ext2": "e2fsprogs",
    "mkfs.ext3": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.vfat": "dosfstools",
    "mkfs.ntfs": "ntfs-3g",
    "mkswap": "util-linux",
    "ip": "iproute2",
    "shred": "coreutils",
    "dmsetup": "dmsetup",
    "cryptsetup": "cryptsetup-bin",
    **dict.fromkeys(("lvs", "vgs", "lvcreate", "lvchange", "lvextend", "lvrename", "lvremove"), "lvm2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a tool may use up.

    Attributes:
        seconds: wall time, after which it is killed.
        memory: bytes of address space. cpu_seconds: of processor time. None: no limit.
        dies_with_caller: the kernel kills it when we are killed, so that it does not go on writing what nobody claims.
        is_left_to_end: nobody kills it, because what it leaves half done would harm others. It has a session of its own, which
            a terminal's signals do not reach; what interrupts us is raised when it has ended; and after its time it goes on.
    """

    seconds: float
    memory: int | None = None
    cpu_seconds: int | None = None
    dies_with_caller: bool = False
    is_left_to_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended.

    Attributes:
        status: what it returned; negative: the signal that killed it.
        output, errors: what it printed.
    """

    status: int
    output: bytes
    errors: bytes


def run(argv: Sequence[str | os.PathLike[str]], *, limits: Limits) -> bytes:
    """Run a program to its end and return its standard output.

    Raises:
        ToolMissing, ToolFailed (with the last line that it printed), ToolTimedOut
    """
    ended = run_to_end(argv, limits=limits)
    if ended.status != 0:
        raise failed(os.fspath(argv[0]), ended)
    return ended.output


def run_to_end(
    argv: Sequence[str | os.PathLike[str]],
    *,
    limits: Limits,
    content: bytes = b"",
    environment: Mapping[str, str] = PLAIN_ENVIRONMENT,
) -> Ended:
    """Run a program to its end, whatever status it returns: for one whose failures are answers.

    Its environment holds a PATH and ``LC_ALL=C`` only, unless another is given. It stays in our process group, so that
    what ends us from a terminal ends it as well, unless it is left to end.
    After a time-out nobody waits for its pipes, whoever else has them open.

    Args:
        content: of its standard input.
        environment: all of it; the program is looked for in its PATH.

    Raises:
        ToolMissing, ToolFailed (it cannot be started), ToolTimedOut
    """
    program = os.fspath(argv[0])
    command = [os.fspath(part) for part in argv]
    if limits.is_left_to_end:
        return _run_undisturbed(command, limits, content=content, environment=environment)
    command = _bound_to_us(command, environment) if limits.dies_with_caller else command
    with _started(command, environment, has_input=bool(content)) as process:
        try:
            _limit(process.pid, limits)
            output, errors = process.communicate(content or None, timeout=limits.seconds)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise ToolTimedOut(f"{program} was killed after {limits.seconds:g} s") from error
        except BaseException:
            process.kill()
            raise
    return Ended(status=process.returncode, output=output, errors=errors)


def _run_undisturbed(argv: Sequence[str], limits: Limits, *, content: bytes, environment: Mapping[str, str]) -> Ended:
    with ExitStack() as stack:
        # Not pipes, whose other end goes with us: a program that writes into such a one is killed for it.
        given, output, errors = (stack.enter_context(open(os.memfd_create(name), "w+b")) for name in _STREAMS)
        given.write(content)
        given.seek(0)
        # Who interrupts us between its start and our waiting is heard when we wait. It inherits that, and gets no such signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        process = _popen(argv, environment, stdin=given, stdout=output, stderr=errors, start_new_session=True)
        _limit(process.pid, limits)
        _wait_undisturbed(process, argv[0], limits.seconds, before)
        return Ended(status=process.returncode, output=_all_of(output), errors=_all_of(errors))


def _wait_undisturbed(process: "subprocess.Popen[bytes]", program: str, seconds: float, signals: set[Any]) -> None:
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        process.wait(seconds)
    except subprocess.TimeoutExpired as error:
        threading.Thread(target=process.wait, name=f"the end of {program}", daemon=True).start()
        raise ToolTimedOut(f"{program} has not ended after {seconds:g} s, and goes on") from error
    except BaseException:
        process.wait()  # who interrupts us once more leaves it alone
        raise


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)  # the program's own position as well: they share it
    return file.read()


def failed(program: str, ended: Ended) -> ToolFailed:
    """The error that a program's end is, with the last line that it printed."""
    said = _last_line(ended.errors) or _last_line(ended.output) or "it printed nothing"
    return ToolFailed(f"{program} failed ({_ending(ended.status)}): {said}")


def _bound_to_us(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command, started by util-linux's setpriv, which asks the kernel (prctl(2), PR_SET_PDEATHSIG) and becomes it."""
    found = [shutil.which("setpriv", path=SEARCH_PATH), shutil.which(argv[0], path=environment.get("PATH", SEARCH_PATH))]
    return [str(found[0]), "--pdeathsig", "KILL", "--", *argv] if all(found) else list(argv)


def _started(argv: Sequence[str], environment: Mapping[str, str], *, has_input: bool) -> "subprocess.Popen[bytes]":
    given = subprocess.PIPE if has_input else subprocess.DEVNULL
    return _popen(argv, environment, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=False)


def _popen(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: _Stream,
    stdout: _Stream,
    stderr: _Stream,
    start_new_session: bool,
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=start_new_session
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ToolMissing(f"{argv[0]} is not installed", hint=_hint(argv[0])) from error
    except OSError as error:
        raise ToolFailed(f"{argv[0]} cannot be started: {os.strerror(error.errno) if error.errno else error}") from error


def _hint(program: str) -> str | None:
    package = _PACKAGES.get(program)
    return f"install it: apt-get install {package}" if package else None


def _limit(pid: int, limits: Limits) -> None:
    # Set on the running child, not between fork and exec, where only async-signal-safe calls are allowed to a threaded
    # process. What it allocated in its first microseconds counts against the limit all the same.
    with suppress(ProcessLookupError):
        _lower(pid, resource.RLIMIT_AS, limits.memory)
        _lower(pid, resource.RLIMIT_CPU, limits.cpu_seconds)


def _lower(pid: int, kind: int, limit: int | None) -> None:
    if limit is None:
        return
    _, ceiling = resource.prlimit(pid, kind)
    # A lower limit that we run under ourselves stands: only root may raise one. The hard limit lies above the other, because
    # at that one the kernel kills without a word, at the other with a signal that names the processor time.
    hard = limit + 1 if ceiling == resource.RLIM_INFINITY else min(limit + 1, ceiling)
    resource.prlimit(pid, kind, (min(limit, hard), hard))


def _ending(status: int) -> str:
    return f"status {status}" if status > 0 else f"signal {-status}, {signal.strsignal(-status)}"


def _last_line(printed: bytes) -> str:
    lines = printed.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
