"""The real services beside us: for each a virtual environment of its own, made once, and a process in it that does what it is
asked. None of them ever runs in the tests' own environment.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

_PROJECT = Path(__file__).resolve().parents[2]
# What Underlay itself needs: its code is put on the path of the process, so that the environment serves any checkout.
OUR_REQUIREMENTS = tuple(tomllib.loads((_PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])
INSTALL_LIMIT = 900.0  # seconds
PATIENCE = 120.0

_SOURCES = _PROJECT / "src"


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with one release of a service.

    Attributes:
        package: its name in the package index. variable: of the process environment, which may say where it is instead.
        extras: of the package, in brackets. beside: what is installed with it.
    """

    package: str
    version: str
    variable: str
    extras: str = ""
    beside: Sequence[str] = OUR_REQUIREMENTS

    @property
    def place(self) -> Path:
        """Where it is, or is to be."""
        if named := os.environ.get(self.variable):
            return Path(named)
        version = f"py{sys.version_info.major}.{sys.version_info.minor}"
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(caches) / "underlay-tests" / f"{self.package}-{self.version}-{version}"

    def python(self) -> Path:
        """Its Python. It is made unless it is there: one process makes it, the others wait."""
        place = self.place
        place.parent.mkdir(parents=True, exist_ok=True)
        with (place.parent / f"{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._is_whole():
                self._make()
        return place / "bin/python"

    def say_where(self) -> None:
        """Make it, and print where its Python is; or end this program with the reason why it cannot be made."""
        try:
            sys.stdout.write(f"{self.python()}\n")
        except subprocess.CalledProcessError as error:
            sys.exit(f"{self.package} {self.version} could not be installed: {error.stderr[-400:]}")
        except (OSError, subprocess.TimeoutExpired) as error:
            sys.exit(f"{self.package} {self.version} could not be installed: {error}")

    @property
    def _requirements(self) -> tuple[str, ...]:
        return (f"{self.package}{self.extras}=={self.version}", *self.beside)

    @property
    def _stamp(self) -> Path:
        return self.place / "underlay-requirements"

    def _is_whole(self) -> bool:
        try:
            made_for = self._stamp.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        # The Python that it was made by may be gone.
        return made_for == "\n".join(self._requirements) and (self.place / "bin/python").exists()

    def _make(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        python = os.fspath(self.place / "bin/python")
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--prefer-binary",
            "--retries",
            "2",
        ]
        for command in ([sys.executable, "-m", "venv", os.fspath(self.place)], [*install, *self._requirements]):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
        self._stamp.write_text("\n".join(self._requirements), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Runner:
    """A process that has a service loaded. What it is asked and what it answers: see its program.

    Attributes:
        patience: seconds that an answer may take.
    """

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    patience: float = PATIENCE

    def ask(self, **request: Any) -> Any:
        """The answer to one request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self._line())
        if "failed" in answer:
            raise AssertionError(answer["failed"])
        return answer

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        heard, deadline = b"", time.monotonic() + self.patience
        while not heard.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 1 << 20) if ready else b""
            if not piece:
                self.errors.seek(0)
                raise AssertionError(f"the service's process said nothing more: {self.errors.read().decode()[-4000:]}")
            heard += piece
        return heard


@contextmanager
def running(
    environment: Environment,
    program: Path,
    *,
    arguments: Sequence[str] = (),
    variables: Mapping[str, str] = MappingProxyType({}),
    patience: float = PATIENCE,
) -> Iterator[Runner]:
    """A process of an environment that runs a program of ours, ended afterwards.

    Args:
        arguments: of the program. variables: of the process environment, beside those that are there.
        patience: seconds that an answer may take.
    """
    process_environment = {
        **os.environ,
        "PYTHONPATH": os.fspath(_SOURCES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        **variables,
    }
    argv = [os.fspath(environment.python()), "-u", os.fspath(program), *arguments]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=process_environment
        ) as process:
            try:
                yield Runner(process, errors, patience)
            finally:
                process.kill()
