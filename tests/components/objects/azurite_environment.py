"""Azurite, Microsoft's own emulator of Azure's storage. ``python azurite_environment.py`` installs it and says where it is."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "3.35.0"
VARIABLE = "UNDERLAY_AZURITE"
INSTALL_LIMIT = 900.0  # seconds


def program() -> Path:
    """Its program for blobs. It is installed unless it is there: one process installs it, the others wait."""
    place = _place()
    place.parent.mkdir(parents=True, exist_ok=True)
    made = place / "node_modules" / ".bin" / "azurite-blob"
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "whole").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            argv = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"azurite@{VERSION}"]
            subprocess.run(argv, cwd=place, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
            (place / "whole").touch()
    return made


def _place() -> Path:
    if named := os.environ.get(VARIABLE):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "underlay-tests" / f"azurite-{VERSION}"


def _main() -> None:
    try:
        sys.stdout.write(f"{program()}\n")
    except subprocess.CalledProcessError as error:
        sys.exit(f"azurite {VERSION} could not be installed: {error.stderr[-400:]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"azurite {VERSION} could not be installed: {error}")


if __name__ == "__main__":
    _main()
