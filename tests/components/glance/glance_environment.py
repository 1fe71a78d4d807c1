"""The real Glance and Keystone beside us. ``python glance_environment.py`` makes their environment and says where it is."""

import fcntl
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(_HERE.parent))  # it may be run as a program

from environment import Environment  # noqa: E402

GLANCE = Environment(
    package="glance",
    version="33.0.0",
    variable="UNDERLAY_GLANCE_VENV",
    beside=("keystone==30.0.0", "keystonemiddleware==13.0.1", "openstacksdk==4.22.0", "uwsgi==2.0.31"),
)
_START_LIMIT = 300.0  # seconds


@dataclass(frozen=True, slots=True)
class Cloud:
    """A Keystone and two Glances over one store: one asks Keystone who we are, the other lets everybody do everything.

    Attributes:
        clouds_yaml: with the clouds ``admin``, ``alice``, ``bob`` and ``open`` (without authentication).
        keystone, glance, open_glance: their URLs.
        images: the directory of Glance's file store. database: Glance's, an SQLite file.
        secrets: every password there is.
    """

    clouds_yaml: Path
    keystone: str
    glance: str
    open_glance: str
    images: Path
    database: Path
    secrets: tuple[str, ...]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One at a time changes what Glance has, over all workers: of two writers at once SQLite sends one away."""
        with (self.clouds_yaml.parent / "changes").open("w") as changes:
            fcntl.flock(changes, fcntl.LOCK_EX)
            yield


@contextmanager
def running(directory: Path) -> Iterator[Cloud]:
    """The cloud in a directory, started unless a process of the same test run has started it.

    Each user holds the file ``users`` locked shared, which the kernel gives back whatever becomes of a user. The cloud's own
    process waits for it exclusively, and ends with all it has started as soon as nobody uses it.
    """
    directory.mkdir(exist_ok=True)
    with (directory / "start").open("w") as start, (directory / "users").open("w") as users:
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)  # waits for one that is ending
        state = directory / "state.json"
        if not state.exists():
            _start(directory)
        fcntl.flock(start, fcntl.LOCK_UN)
        told = json.loads(state.read_text(encoding="utf-8"))
        yield Cloud(
            clouds_yaml=directory / "clouds.yaml",
            keystone=told["keystone"],
            glance=told["glance"],
            open_glance=told["open_glance"],
            images=directory / "images",
            database=directory / "glance.db",
            secrets=tuple(told["secrets"]),
        )


def _start(directory: Path) -> None:
    program = [os.fspath(GLANCE.python()), "-u", os.fspath(_HERE / "glance_cloud.py"), os.fspath(directory)]
    reader, writer = os.pipe()
    try:
        with (directory / "log").open("wb") as log:
            # Nobody's child: it may outlive the test process that started it.
            subprocess.run(["setsid", "--fork", *program], stdin=subprocess.DEVNULL, stdout=writer, stderr=log, check=True)
        os.close(writer)
        ready, _, _ = select.select([reader], [], [], _START_LIMIT)
        said = os.read(reader, 64) if ready else b"nothing"
    finally:
        os.close(reader)
    assert said == b"ready\n", (directory / "log").read_text(encoding="utf-8", errors="replace")[-4000:]


if __name__ == "__main__":
    GLANCE.say_where()
