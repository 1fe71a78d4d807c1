"""A real server of S3's API beside us. ``python moto_environment.py`` makes its environment and says where it is."""

import os
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent.parent))  # it is also run as a program

from environment import Environment  # noqa: E402

MOTO = Environment(package="moto", version="5.2.5", variable="UNDERLAY_MOTO_VENV", extras="[s3,server]", beside=())

if __name__ == "__main__":
    MOTO.say_where()
