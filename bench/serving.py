"""A web server in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(served: Path, *, rate: int | None = None) -> Iterator[str]:
    """Serve one directory from a process of its own, ``rate`` bytes a second at most; its URL."""
    argv = [sys.executable, "-m", "bench.serve", os.fspath(served), *([] if rate is None else [str(rate)])]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()  # leaving closes its input, which ends it
