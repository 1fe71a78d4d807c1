"""A micro virtual machine for what the host's kernel has not: a device mapper, for LVM and for encryption.

It is a kernel that runs as a process (User Mode Linux, Debian's user-mode-linux), so it needs no hardware for virtual machines
and runs programs nearly as fast as the host does. Its root is the host's, so the same Python and the same lvm2 are there.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KERNEL = "linux.uml"
_INIT = Path(__file__).with_name("microvm_init")
_MEMORY = "768M"
_VOLUMES, _SCRATCH = 1 << 30, 1 << 30  # bytes of the devices, which are sparse files


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a command.

    Attributes:
        status: None: the machine never got to its end. output: of the command. console: what the kernel said.
    """

    status: int | None
    output: str
    console: str


def run_inside(command: Sequence[str], job: Path, *, variables: Mapping[str, str], limit: float) -> Done:
    """Run a command in a machine of its own.

    Args:
        job: an empty directory, which the command sees as ``/run/job``. limit: seconds, after which the machine is killed.
    """
    _prepare(command, job, variables)
    with (job / "console").open("wb") as console:
        machine = subprocess.Popen(
            _argv(job), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            machine.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(machine)
    status = _text(job / "status")
    return Done(int(status) if status else None, _text(job / "output"), _text(job / "console"))


def _prepare(command: Sequence[str], job: Path, variables: Mapping[str, str]) -> None:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines = [*exports, f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(command)}"]
    (job / "command").write_text("\n".join(lines) + "\n")
    for name, size in (("volumes", _VOLUMES), ("scratch", _SCRATCH)):
        with (job / name).open("wb") as file:
            file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", job / "scratch"], check=True, capture_output=True)


def _argv(job: Path) -> list[str]:
    disks = [f"ubda={job}/volumes", f"ubdb={job}/scratch"]
    root = ["root=none", "rootfstype=hostfs", "hostfs=/", "rootflags=/", "ro"]
    consoles = ["con0=null,fd:1", "con=null", "ssl=null", "quiet"]
    return [KERNEL, f"mem={_MEMORY}", *disks, *root, *consoles, f"init={_INIT}", f"JOB={job}"]


def _end(machine: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it: each of its processes is one of the host's, in a session of their own."""
    if machine.poll() is None:
        os.killpg(machine.pid, signal.SIGKILL)
        machine.wait()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
