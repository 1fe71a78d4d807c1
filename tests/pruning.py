"""A host of Nova's for tests of pruning: base files of any age, disks on them, and instances in a file."""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from hashlib import sha1
from pathlib import Path
from typing import Any

from machine import Machine

DAY = 86400.0
GLANCE = "70a599e0-31e7-49b7-b260-868f441e862b"
ORIGINAL = sha1(GLANCE.encode()).hexdigest()
OTHER = sha1(b"another").hexdigest()


def nova_host(root: Path, *, extra: str = "", options: str = "") -> Machine:
    """A host whose cache lies where Nova has its own, with a name that nobody else has."""
    machine = Machine.make(root, base="instances/_base", options=options, extra=extra)
    machine.config.write_text('host = "node1"\n' + machine.config.read_text())
    return machine


def old_file(machine: Machine, name: str, *, age: float = 10 * DAY, size: int = 1 << 20) -> Path:
    """A file of the cache that was last used so long ago (seconds)."""
    path = machine.base / name
    path.write_bytes(os.urandom(size))
    at = time.time() - age
    os.utime(path, (at, at))
    return path


def overlay(machine: Machine, base: Path, *, instance: str = "web-1", name: str = "disk") -> Path:
    """A disk of an instance on a base file."""
    disk = machine.instances / instance / name
    disk.parent.mkdir(exist_ok=True)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", os.fspath(base), "-F", "raw", os.fspath(disk)]
    subprocess.run(argv, check=True)
    return disk


def instance_file(machine: Machine, *records: Mapping[str, Any]) -> Path:
    """An instance file with these records, each with a uuid and a name."""
    path = machine.root / "instances.json"
    path.write_text(
        json.dumps([{"uuid": f"u-{number}", "name": f"n-{number}", **record} for number, record in enumerate(records)])
    )
    return path


def verdicts(answer: Any) -> dict[str, tuple[str, list[str]]]:
    """Of each file in an answer: what becomes of it, and the codes of the reasons."""
    return {one["name"]: (one["action"], [reason["code"] for reason in one["reasons"]]) for one in answer["plan"]}
