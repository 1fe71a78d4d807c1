"""Looks of single probes, for tests: a host's cache as a prune lists it, and what a probe found in words that compare."""

import os
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import Machine
from underlay.config import Config
from underlay.model import InstanceRecord
from underlay.naming import stem_of_version
from underlay.plan import Inventory, Observed
from underlay.prune.observation import inventory_of
from underlay.usage.backing import BackingProbe, Places
from underlay.usage.directories import Stamp

UUID = "7b6d2a0e-9c1f-4d57-8a34-0e5f6c7d8e9f"
OTHER = "0c3e1d2b-5a49-4687-b1c2-d3e4f5a6b7c8"
IMAGE = "fd0cb2f1-8375-44c9-b1f4-3e1f4c4a8ef0"
ORIGINAL = stem_of_version(IMAGE)
IMAGES = frozenset({"original", "resized"})
DAY, MIB = 86400.0, 1 << 20

_CLUSTER_BITS = 12
_BACKING_FORMAT = 0xE2792ACA


def original(image: str) -> str:
    """The name that Nova gives a raw image by its id."""
    return stem_of_version(image)


def put(machine: Machine, name: str, *, age: float = 2 * DAY) -> Path:
    """A file in the cache that was last used so many seconds ago."""
    path = machine.base / name
    path.write_bytes(b"what an image has in it")
    moment = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(moment, moment))
    return path


def overlay(path: Path, backing_file: str | Path, *, backing_format: str = "raw") -> Path:
    """An empty qcow2 on a backing file of any name, there or not (QEMU, docs/interop/qcow2.txt)."""
    cluster, name = 1 << _CLUSTER_BITS, os.fsencode(backing_file)
    extension = struct.pack(">II", _BACKING_FORMAT, len(backing_format)) + backing_format.encode().ljust(8, b"\0") + bytes(8)
    start = 104 + len(extension)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, start, len(name), _CLUSTER_BITS, MIB, 0, 1, 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    refcounts = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0") + struct.pack(">4H", 1, 1, 1, 1).ljust(cluster, b"\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((header + extension + name).ljust(cluster, b"\0") + refcounts + bytes(cluster))
    return path


def assert_opens(disk: Path) -> None:
    """QEMU opens the disk and everything that it stands on."""
    argv: list[str | Path] = ["qemu-img", "info", "-U", "-f", "qcow2", "--backing-chain", disk]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert 0 == ended.returncode, ended.stderr


def config_of(machine: Machine) -> Config:
    return machine.host().config


def inventory(machine: Machine, cache: str = "base") -> Inventory:
    """The files of a cache, as they are now."""
    return inventory_of(config_of(machine), cache)


def backing(
    machine: Machine, *records: InstanceRecord, again: Mapping[str, Stamp] | None = None, extra: Sequence[Path] = ()
) -> Observed:
    """What the disks of a machine are backed by."""
    config = config_of(machine)
    places = Places(config.instances, [*config.extra_roots, *extra], list(config.caches.values()), records)
    return BackingProbe(places, again).observe([inventory(machine)])


def uses(observed: Observed) -> dict[str, set[str]]:
    """How each file is used."""
    found: dict[str, set[str]] = {}
    for use in observed.uses:
        found.setdefault(use.name, set()).add(use.how)
    return found


def users(observed: Observed, name: str) -> set[str]:
    """Who uses a file."""
    return {use.who for use in observed.uses if use.name == name}


def kept(observed: Observed) -> frozenset[str]:
    """Kinds of file that are kept because something could not be told."""
    return frozenset(kind for unknown in observed.unknowns for kind in unknown.keeps)


def problems(observed: Observed) -> list[tuple[str, Path]]:
    """What is wrong, and where."""
    return sorted((problem.code, problem.path) for problem in observed.problems)


def record(**changes: object) -> InstanceRecord:
    """An instance of one image."""
    known: dict[str, object] = {"uuid": UUID, "name": "instance-00000001", "image_ref": IMAGE}
    return InstanceRecord(**(known | changes))  # type: ignore[arg-type]
