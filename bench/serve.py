"""``python -m bench.serve DIRECTORY``: serve it on loopback from a process of its own until standard input ends."""

import sys
from pathlib import Path

from underlay.testing.httpserver import serving

with serving(Path(sys.argv[1])) as server:
    print(server.base, flush=True)
    sys.stdin.read()
