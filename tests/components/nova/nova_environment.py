"""The real Nova beside us: a virtual environment of its own, made once, and a process in it that does what it is asked.

Nova never runs in the tests' own environment. ``python nova_environment.py`` makes the environment and says where it is.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

VERSION = "34.0.0"
VARIABLE = "UNDERLAY_NOVA_VENV"
# What Underlay itself needs: its code is put on the path of the process, so that the environment serves any checkout.
REQUIREMENTS = (
    f"nova=={VERSION}",
    "click>=8.1",
    "msgspec>=0.18",
    "oslo.utils[image-inspection]>=9.1",
    "rich>=13",
    "urllib3>=2.2",
)
INSTALL_LIMIT = 900.0  # seconds
PATIENCE = 120.0

_HERE = Path(__file__).resolve().parent
_SOURCES = _HERE.parents[2] / "src"


def place() -> Path:
    """Where the environment is, or is to be."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    version = f"py{sys.version_info.major}.{sys.version_info.minor}"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "underlay-tests" / f"nova-{VERSION}-{version}"


def python() -> Path:
    """The Python of the environment, which is made unless it is there. One process makes it, the others wait."""
    environment = place()
    environment.parent.mkdir(parents=True, exist_ok=True)
    with (environment.parent / f"{environment.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(environment):
            _make(environment)
    return environment / "bin/python"


def _stamp(environment: Path) -> Path:
    return environment / "underlay-requirements"


def _is_whole(environment: Path) -> bool:
    try:
        made_for = _stamp(environment).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return made_for == "\n".join(REQUIREMENTS) and (environment / "bin/python").exists()  # the Python that it was made by


def _make(environment: Path) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    python = os.fspath(environment / "bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary", "--retries", "2"]
    for command in ([sys.executable, "-m", "venv", os.fspath(environment)], [*install, *REQUIREMENTS]):
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    _stamp(environment).write_text("\n".join(REQUIREMENTS), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Nova:
    """A process that has Nova loaded. What it is asked and what it answers: see nova_runner.py."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

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
        heard, deadline = b"", time.monotonic() + PATIENCE
        while not heard.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 1 << 20) if ready else b""
            if not piece:
                self.errors.seek(0)
                raise AssertionError(f"Nova's process said nothing more: {self.errors.read().decode()[-4000:]}")
            heard += piece
        return heard

    def update(
        self,
        instances_path: Path,
        instances: Sequence[Mapping[str, Any]],
        *,
        manager: str = "nova",
        through: str = "update",
        options: Mapping[str, Any] | None = None,
        keep: str | None = None,
    ) -> Any:
        """One pass; ``manager`` says whose, ``through`` which of Nova's ways leads to it.

        Args:
            keep: a name under which the manager lives on, and is used again.
        """
        return self.ask(
            do="pass",
            manager=manager,
            through=through,
            instances_path=os.fspath(instances_path),
            instances=list(instances),
            options=dict(options or {}),
            keep=keep,
        )


@contextmanager
def running(*, eventlet: bool = False) -> Iterator[Nova]:
    """A Nova, ended afterwards; with native threads, or in its older mode with eventlet's."""
    environment = {
        **os.environ,
        "OS_NOVA_DISABLE_EVENTLET_PATCHING": "no" if eventlet else "yes",
        "PYTHONPATH": os.fspath(_SOURCES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    argv = [os.fspath(python()), "-u", os.fspath(_HERE / "nova_runner.py")]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment) as process:
            try:
                yield Nova(process, errors)
            finally:
                process.kill()


def _main() -> None:
    try:
        sys.stdout.write(f"{python()}\n")
    except subprocess.CalledProcessError as error:
        sys.exit(f"nova {VERSION} could not be installed: {error.stderr[-400:]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"nova {VERSION} could not be installed: {error}")


if __name__ == "__main__":
    _main()
