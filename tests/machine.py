"""A host of its own for a test: configuration, directories, images; and the command line, run in a process as users run it."""

import importlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import underlay
from underlay.cli import main
from underlay.contracts import Observer
from underlay.host import Host
from underlay.testing.bootimage import write_qcow2, write_raw

PATIENCE = 60.0  # seconds; only a broken test waits for so long
NOBODY = 65534
MIB, GIB = 1 << 20, 1 << 30
MESSAGE = "from a disk of a test"

_IMPORTED_LATER = (
    "oslo_utils.imageutils.format_inspector", "encodings.idna", "encodings.ascii", "ctypes", "random", "signal", "ssl", "lzma",
)  # fmt: skip
_RUN_AS = "import sys; sys.path.insert(0, sys.argv[1]); import machine; machine.become(int(sys.argv[2]), sys.argv[3:])"


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its answer for programs: exactly one line."""
        assert self.out.endswith("\n")
        assert 1 == self.out.count("\n"), self.out
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str | None]:
        """Its failure for programs."""
        answer = self.json
        assert {"error"} == answer.keys(), answer
        assert {"code", "message", "hint"} == answer["error"].keys()
        return dict(answer["error"])


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything below one directory."""

    root: Path
    base: Path
    instances: Path
    config: Path

    @classmethod
    def make(cls, root: Path, *, base: str = "base", extra: str = "", options: str = "", disks: str = "") -> "Machine":
        """Lay it out.

        Args:
            base: where the base cache is, below ``root``. options: further keys of that cache. disks: of the table of disks.
            extra: further tables.
        """
        machine = cls(root, root / base, root / "instances", root / "underlay.toml")
        for directory in (machine.instances, machine.base):
            directory.mkdir()
        machine.config.write_text(
            f'[instances]\npath = "{machine.instances}"\n'
            f'[caches.base]\nkind = "base"\npath = "{machine.base}"\n{options or "force_raw_images = false"}\n'
            f'[sources.file]\nallowed_paths = ["{root}"]\n'
            f"[disks]\n{disks}\n{extra}\n"
        )
        return machine

    def host(self, observer: Observer | None = None) -> Host:
        return Host.open(self.config, observer=observer)

    def raw_image(self, name: str = "image.raw", *, size: int = 16 * MIB, payload: int = MIB, message: str = MESSAGE) -> str:
        """A raw image that boots; its ref."""
        write_raw(self.root / name, size=size, message=message, payload=payload)
        return f"file://{self.root / name}"

    def qcow2_image(self, name: str = "image.qcow2", *, size: int = 16 * MIB, payload: int = MIB) -> str:
        """A qcow2 image that boots; its ref."""
        write_qcow2(self.root / name, size=size, message=MESSAGE, payload=payload)
        return f"file://{self.root / name}"

    def argv(self, *arguments: str | Path, user: int | None = None) -> list[str]:
        """The command, as ``user`` when given."""
        command = ["--config", os.fspath(self.config), *(os.fspath(one) for one in arguments)]
        return command_line(command, user=user)

    def run(self, *arguments: str | Path, user: int | None = None, env: Mapping[str, str] | None = None) -> Ended:
        """Run a command to its end."""
        return run(self.argv(*arguments, user=user), env=env)

    def call(self, *arguments: str | Path) -> Ended:
        """As `run`, in this process, which costs less than starting Python."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(["--config", os.fspath(self.config), *(os.fspath(one) for one in arguments)])
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out.getvalue(), err.getvalue())

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start a command; the caller ends it."""
        return subprocess.Popen(
            self.argv(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def command_line(arguments: Sequence[str], *, user: int | None = None) -> list[str]:
    """``underlay`` with these arguments. Another user may not be able to read our code, so it becomes one after its imports."""
    if user is None:
        return [sys.executable, "-m", "underlay", *arguments]
    return [sys.executable, "-B", "-c", _RUN_AS, os.fspath(Path(__file__).parent), str(user), *arguments]


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Ended:
    """Run a program to its end; ``env`` is the whole of its environment when given."""
    nothing, limit = subprocess.DEVNULL, PATIENCE
    ended = subprocess.run(argv, stdin=nothing, capture_output=True, text=True, timeout=limit, check=False, env=env)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def on_terminal(argv: Sequence[str], *, columns: int = 80) -> tuple[int, str]:
    """Run a program to its end on a terminal of its own; its status, and all that the terminal was sent."""
    terminal, its_end = os.openpty()
    termios.tcsetwinsize(its_end, (24, columns))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        argv, stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True, env=env | {"TERM": "xterm-256color"}
    ) as process:
        os.close(its_end)
        seen = bytearray()
        with suppress(OSError):  # EIO is how a terminal ends
            while piece := os.read(terminal, 4096):
                seen += piece
        os.close(terminal)
        return process.wait(PATIENCE), seen.decode()


def plain(text: str) -> str:
    """What a terminal was sent, without the sequences that colour it and move its cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


def import_everything() -> None:
    """Import all that there is: another user may not be allowed to read the checkout or the Python."""
    for module in pkgutil.walk_packages(underlay.__path__, "underlay."):
        if module.name != "underlay.__main__":
            importlib.import_module(module.name)
    for name in _IMPORTED_LATER:
        importlib.import_module(name)


def become(user: int, arguments: Sequence[str]) -> None:
    """In a child: run the command as another user without further groups."""
    import_everything()
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    main(arguments)


def qemu_img_json(*arguments: str | Path) -> Any:
    """What ``qemu-img … --output json`` says."""
    answer = subprocess.run(["qemu-img", *arguments, "--output", "json"], capture_output=True, check=True)
    return json.loads(answer.stdout)


def tree(*roots: Path) -> dict[str, tuple[object, ...]]:
    """Everything below the roots with all that a change would show in: kind, mode, owner, size, times, attributes, content."""
    found: dict[str, tuple[object, ...]] = {}
    for root in roots:
        for path in (root, *sorted(root.rglob("*"))):
            status = path.lstat()
            attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in _attribute_names(path)}
            content = path.read_bytes() if path.is_file() and not path.is_symlink() and status.st_size < 8 * MIB else None
            found[os.fspath(path)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_nlink, status.st_ino,
                status.st_mtime_ns, status.st_ctime_ns, attributes, content, os.readlink(path) if path.is_symlink() else None,
            )  # fmt: skip
    return found


def _attribute_names(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))
