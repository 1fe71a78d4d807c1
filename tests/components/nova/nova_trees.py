"""Instances directories as Nova hosts have them: what Hypothesis draws, and the builder that writes it with real files.

A `Tree` says what there is without saying where, so that the same tree can be written twice: once for Nova, once for us.
"""

import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

BASE_BYTES = 1 << 16
IMAGES = tuple(f"{number:08x}-85c9-4d44-b1f4-3e1f4c4a8ef0" for number in range(1, 5))
VFAT, EXT4 = "0706d66", "40d1d2c"  # md5 of the file system's name, 7 digits


def fingerprint(image: str) -> str:
    """The name of an image's original."""
    return hashlib.sha1(image.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Disk:
    """A qcow2 file with this backing file: the name of a cache file, or of a file beside it; None for none.

    Attributes:
        form: how the backing file is written down.
    """

    backing: str | None
    form: str = "absolute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Attributes:
    instances: as an instance file has them. files: of the cache, with their ages in seconds.
    overlays: files of the cache that are overlays. directories: of instances, with their disks by name.
    """

    instances: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, float] = field(default_factory=dict)
    overlays: Mapping[str, Disk] = field(default_factory=dict)
    directories: Mapping[str, Mapping[str, Disk]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def needed(self) -> set[str]:
        """The files of the cache that a disk reads from, over whole chains."""
        found: set[str] = set()
        waiting = [(disk, disks) for disks in self.directories.values() for disk in disks.values()]
        while waiting:
            disk, beside = waiting.pop()
            name = disk.backing
            if name is None:
                continue
            if name in beside:
                waiting.append((beside[name], beside))
            elif name not in found:
                found.add(name)
                if name in self.overlays:
                    waiting.append((self.overlays[name], {}))
        return found


def write_overlay(path: Path, backing: str | None, *, backing_format: str = "raw", size: int = 1 << 20) -> Path:
    """A qcow2 image of version 2 that has no data yet (QEMU's docs/interop/qcow2.txt)."""
    named = os.fsencode(backing or "")
    extensions = struct.pack(">II8s", 0xE2792ACA, len(backing_format), backing_format.encode().ljust(8, b"\0"))
    extensions = (extensions if named else b"") + bytes(8)
    offset = 72 + len(extensions) if named else 0
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, offset, len(named), 16, size, 0, 1, 0x30000, 0x10000, 1, 0, 0)
    with path.open("wb") as file:
        file.write(header + extensions + named)
        file.seek(0x10000)
        file.write(struct.pack(">Q", 0x20000))
        file.seek(0x20000)
        file.write(struct.pack(">4H", 1, 1, 1, 1))
        file.truncate(0x40000)
    return path


def build(tree: Tree, root: Path) -> Path:
    """Write the tree; returns the instances path."""
    base = root / "_base"
    base.mkdir(parents=True)
    (root / "alias").symlink_to(base)
    for name in tree.files:
        disk = tree.overlays.get(name)
        if disk is None:
            with (base / name).open("wb") as file:
                file.truncate(BASE_BYTES)
        else:
            write_overlay(base / name, _written(disk, base, base), backing_format=_format(tree, disk, {}))
    for directory, disks in tree.directories.items():
        (root / directory).mkdir()
        for name, disk in disks.items():
            where = root / directory if disk.backing in disks else base
            written = _written(disk, where, root / directory)
            write_overlay(root / directory / name, written, backing_format=_format(tree, disk, disks))
    now = time.time()
    for name, age in tree.files.items():
        os.utime(base / name, (now - age, now - age))
    return root


def _format(tree: Tree, disk: Disk, beside: Mapping[str, Disk]) -> str:
    return "qcow2" if disk.backing in beside or disk.backing in tree.overlays else "raw"


def _written(disk: Disk, where: Path, beside: Path) -> str | None:
    if disk.backing is None:
        return None
    path = where / disk.backing
    if disk.form == "relative":
        return os.path.relpath(path, beside)
    if disk.form == "alias":
        return os.fspath(where.parent / "alias" / disk.backing if where.name == "_base" else path)
    if disk.form == "protocol":
        return f"file:{path}"
    if disk.form == "json":
        return "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": os.fspath(path)}})
    return os.fspath(path)


def cache_names(root: Path) -> set[str]:
    """The names in the cache but our private directory."""
    return set(os.listdir(root / "_base")) - {".underlay"}


def mtimes(root: Path) -> dict[str, float]:
    """When each file of the cache was last modified."""
    return {name: (root / "_base" / name).stat().st_mtime for name in cache_names(root)}


# --------------------------------------------------------------------------------------------------------- what is drawn

AGES = st.sampled_from([90000.0, 4000.0, 900000.0, 80000.0, 90000.0, 3500.0, 1800.0, 120.0, 5.0, -5000.0])
SWAPS, EPHEMERALS = (512, 1024), (1, 2)
STATES = (
    ("active", None),
    ("active", "resize_prep"),
    ("active", "resize_migrating"),
    ("active", "resize_migrated"),
    ("active", "resize_finish"),
    ("active", "resize_confirming"),
    ("resized", None),
    ("resized", "resize_reverting"),
    ("soft-delete", None),
    ("stopped", None),
)
OPTIONS: Sequence[Mapping[str, Any]] = (
    {},
    {},
    {},
    {"image_cache.remove_unused_base_images": False},
    {
        "image_cache.remove_unused_original_minimum_age_seconds": 2000,
        "image_cache.remove_unused_resized_minimum_age_seconds": 60,
    },
)


def names_of(image: str) -> list[str]:
    """The names that belong to one image, ours and Nova's, and some that only look so."""
    name = fingerprint(image)
    suffixes = ("", "_sm", "_20", "_10737418240", "_5", ".part", ".converted", "_resized", ".qcow2", "_20.part")
    return [*(name + suffix for suffix in suffixes), name.upper()]


OTHER_NAMES = (
    *(f"swap_{size}" for size in SWAPS),
    *(f"ephemeral_{size}_{suffix}" for size in EPHEMERALS for suffix in (VFAT, EXT4)),
    "swap_abc",
    "ephemeral_1_0706d66.part",
    "00000001",
    "z" * 40,
)


@st.composite
def trees(draw: st.DrawFn, *, dangerous: bool) -> Tree:
    """A tree in which Nova endangers nothing, or one in which it may."""
    names = [name for image in IMAGES for name in names_of(image)]
    files = draw(st.dictionaries(st.sampled_from([*names, *OTHER_NAMES]), AGES, min_size=3, max_size=14))
    if not dangerous:
        files = _one_resized_copy(files)
    instances = [
        draw(_instances(number, dangerous=dangerous)) for number in range(1, draw(st.sampled_from([2, 1, 3, 4, 0])) + 1)
    ]
    overlays = draw(_overlays(files)) if dangerous else {}
    directories = {}
    for instance in instances:
        for directory in draw(_directories_of(instance, dangerous=dangerous)):
            directories[directory] = draw(_disks(instance, files, dangerous=dangerous))
    if dangerous and draw(st.booleans()):
        unknown = draw(st.sampled_from(["instance-000000ff", "ffffffff-85c9-4d44-b1f4-3e1f4c4a8ef0", "moved-by-hand"]))
        directories[unknown] = draw(_disks({}, files, dangerous=True))
    options = draw(st.sampled_from(OPTIONS))
    return Tree(instances=instances, files=files, overlays=overlays, directories=directories, options=options)


def _one_resized_copy(files: dict[str, float]) -> dict[str, float]:
    """Of several resized copies of a used image, Nova overlooks some (nova.md, weak point 17)."""
    return {name: age for name, age in files.items() if not (name.endswith("_20") and f"{name[:40]}_10737418240" in files)}


@st.composite
def _instances(draw: st.DrawFn, number: int, *, dangerous: bool) -> dict[str, Any]:
    vm_state, task_state = draw(st.sampled_from(STATES))
    most = 2 if dangerous else 1
    return {
        "uuid": f"{number:08x}-0000-4000-8000-000000000000",
        "name": f"instance-{number:08x}",
        "host": draw(st.sampled_from(["here", "there"])),
        "image_ref": draw(st.sampled_from(["", *IMAGES])),
        "kernel_id": draw(st.sampled_from([None, IMAGES[0]])),
        "ramdisk_id": draw(st.sampled_from([None, IMAGES[1]])),
        "vm_state": vm_state,
        "task_state": task_state,
        "os_type": draw(st.sampled_from([None, "linux", "windows"])),
        "swap_mib": draw(st.lists(st.sampled_from(SWAPS), max_size=1)),
        "ephemerals": draw(
            st.lists(
                st.fixed_dictionaries(
                    {"size_gib": st.sampled_from(EPHEMERALS), "guest_format": st.sampled_from([None, "ext4", "vfat"])}
                ),
                max_size=most,
            )
        ),
    }


@st.composite
def _overlays(draw: st.DrawFn, files: Mapping[str, float]) -> dict[str, Disk]:
    """Resized copies that read from another file of the cache; a chain never comes back to itself."""
    found = {}
    for name in sorted(files):
        others = [other for other in sorted(files) if other < name]
        if name.endswith(("_20", "_10737418240", "_5")) and others and draw(st.booleans()):
            found[name] = Disk(draw(st.sampled_from(others)), draw(st.sampled_from(["absolute", "relative"])))
    return found


@st.composite
def _directories_of(draw: st.DrawFn, instance: Mapping[str, Any], *, dangerous: bool) -> list[str]:
    name = instance[draw(st.sampled_from(["uuid", "name"]))]
    resizing = instance["vm_state"] == "resized" or instance["task_state"] in (
        "resize_prep",
        "resize_migrating",
        "resize_migrated",
        "resize_finish",
    )
    least = 0 if draw(st.integers(0, 3)) == 3 else 1
    possible = [name, f"{name}_resize"] if resizing or dangerous else [name]
    return draw(st.lists(st.sampled_from(possible), unique=True, min_size=least))


@st.composite
def _disks(draw: st.DrawFn, instance: Mapping[str, Any], files: Mapping[str, float], *, dangerous: bool) -> dict[str, Disk]:
    """Disks whose backing files are there."""
    bases = sorted(name for name in files if dangerous or not name.startswith(("swap", "ephemeral")))
    forms = st.sampled_from(["absolute", "relative", "alias", "protocol", *(["json"] if dangerous else [])])
    disks = {}
    if bases and draw(st.integers(0, 3)) > 0:
        disks["disk"] = Disk(draw(st.sampled_from(bases)), draw(forms))
    elif draw(st.booleans()):
        disks["disk"] = Disk(None)
    swaps = [f"swap_{size}" for size in instance.get("swap_mib", ())]
    for size in swaps:
        if size in files:
            disks["disk.swap"] = Disk(size, draw(forms))
    if dangerous:
        for name in ("disk.eph0", "disk.eph1", "disk.local", "disk.rescue", "disk.swap"):
            if bases and draw(st.integers(0, 3)) == 3:
                disks[name] = Disk(draw(st.sampled_from(bases)), draw(forms))
        if bases and draw(st.integers(0, 3)) == 3:
            disks |= {"disk": Disk("disk.snapshot"), "disk.snapshot": Disk(draw(st.sampled_from(bases)), draw(forms))}
    return disks
