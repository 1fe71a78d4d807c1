"""One step of a move in a process that can be killed: a pickle has what it needs, and it says what it is at."""

import pickle
import sys
import threading
from pathlib import Path
from typing import Any

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host


def main() -> None:
    told: dict[str, Any] = pickle.loads(Path(sys.argv[1]).read_bytes())
    driver = LibvirtDriver(None, host=Host.open(parse_config(told["config"], origin=Path("/underlay.toml"))))
    driver.init_host(told["host"])
    say("ready")
    if told["step"] == "pre_live_migration":
        driver.pre_live_migration(None, told["instance"], told["info"], [], None, told["data"])
    else:
        block = bool(told["data"].block_migration)
        driver.live_migration(
            None, told["instance"], told["dest"], moved, print, block_migration=block, migrate_data=told["data"]
        )
    say("done")
    threading.Event().wait()


def moved(*_: object) -> None:
    say("moved")
    threading.Event().wait()


def say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
