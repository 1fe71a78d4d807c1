"""The real ORAS client for Python. ``python oras_environment.py`` makes its environment and says where it is."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(_HERE.parent))  # it may be run as a program

from environment import Environment  # noqa: E402

ORAS = Environment(package="oras", version="0.2.43", variable="UNDERLAY_ORAS_VENV")
_PATIENCE = 60.0  # seconds


def oras(action: str, target: str, directory: Path, arguments: Sequence[str] = ()) -> list[str]:
    """Push files from a directory, or pull them into it; the lines that the client prints.

    Args:
        arguments: of a push: each file as ``NAME`` or ``NAME:MEDIA-TYPE``.
    """
    argv = [os.fspath(ORAS.python()), os.fspath(_HERE / "oras_runner.py"), action, target, *arguments]
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    return done.stdout.splitlines()


if __name__ == "__main__":
    ORAS.say_where()
