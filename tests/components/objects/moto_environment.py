"""A real server of S3's API beside us. ``python moto_environment.py`` makes its environment and says where it is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(_HERE.parent))  # it is also run as a program

from environment import Environment, running  # noqa: E402

MOTO = Environment(package="moto", version="5.2.5", variable="UNDERLAY_MOTO_VENV", extras="[s3,server]", beside=())


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a server, which is ended afterwards."""
    with running(MOTO, _HERE / "moto_runner.py") as runner:
        yield runner.ask()["url"]


if __name__ == "__main__":
    MOTO.say_where()
