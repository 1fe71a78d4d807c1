"""A base cache for tests of removal: files of any age, disks with any backing name, and what became of each file."""

import os
import struct
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from machine import MIB, Machine
from underlay.host import Host
from underlay.model import InstanceRecord
from underlay.naming import stem_of_version
from underlay.plan import Plan, Report

HOUR, DAY = 3600.0, 86400.0
_CLUSTER_BITS = 12
_BACKING_FORMAT = 0xE2792ACA


def original(image: str) -> str:
    """The name that Nova gives a raw image by its id."""
    return stem_of_version(image)


def aged(path: Path, seconds: float) -> Path:
    """The file as it is so long after its last use."""
    moment = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(moment, moment), follow_symlinks=False)
    return path


def put(machine: Machine, name: str, *, age: float = 2 * DAY, content: bytes = b"what an image has in it") -> Path:
    """A file in the cache that was last used so long ago."""
    path = machine.base / name
    path.write_bytes(content)
    return aged(path, age)


def overlay(path: Path, backing: str | Path, *, backing_format: str = "raw", size: int = MIB) -> Path:
    """A qcow2 disk without content on a backing file of any name (QEMU, docs/interop/qcow2.txt)."""
    cluster, name = 1 << _CLUSTER_BITS, os.fsencode(backing)
    extension = struct.pack(">II", _BACKING_FORMAT, len(backing_format)) + backing_format.encode().ljust(8, b"\0") + bytes(8)
    start = 104 + len(extension)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, start, len(name), _CLUSTER_BITS, size, 0, 1, 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    refcounts = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0") + struct.pack(">4H", 1, 1, 1, 1).ljust(cluster, b"\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((header + extension + name).ljust(cluster, b"\0") + refcounts + bytes(cluster))
    return path


def plan(host: Host, *, ahead: float = 0.0, instances: Sequence[InstanceRecord] = ()) -> Plan:
    """A plan as of so many seconds from now."""
    return host.plan_prune(now=datetime.now(UTC) + timedelta(seconds=ahead), instances=instances)


def pruned(host: Host, *, ahead: float = 0.0, instances: Sequence[InstanceRecord] = ()) -> dict[str, str]:
    """What a whole pass does, see `outcome`."""
    return outcome(host.apply(plan(host, ahead=ahead, instances=instances)))


def outcome(report: Report) -> dict[str, str]:
    """What became of each file: ``removed``, or the code of the first reason for which it stays."""
    removed = set(report.removed)
    return {one.file.name: "removed" if one.path in removed else one.reasons[0].code for one in report.verdicts}


def assert_opens(disk: Path) -> None:
    """QEMU opens the disk and everything that it stands on."""
    argv: list[str | Path] = ["qemu-img", "info", "-U", "-f", "qcow2", "--backing-chain", disk]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert 0 == ended.returncode, ended.stderr
