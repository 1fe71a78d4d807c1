"""``python -m bench.serve DIRECTORY [RATE]``: serve it on loopback until standard input ends, RATE bytes a second at most."""

import sys
from pathlib import Path

from underlay.testing.httpserver import Served, serving

directory, *rates = sys.argv[1:]
limited = {f"/{file.name}": Served(file, rate=float(rate)) for rate in rates for file in Path(directory).iterdir()}
with serving(limited or Path(directory)) as server:
    print(server.base, flush=True)
    sys.stdin.read()
