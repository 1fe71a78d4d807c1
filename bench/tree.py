"""A host of any size: Nova's instances with an overlay each and a cache full of base files, or a cache of masters."""

import hashlib
import json
import os
import struct
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # qcow2 version 3, QEMU's docs/interop/qcow2
_NAME_AT = _HEADER.size + 8  # behind the end of the header's extensions
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Tree:
    """Where it is, and the records of its instances."""

    root: Path
    records: Path

    @property
    def instances(self) -> Path:
        """The instances path."""
        return self.root / "instances"

    @property
    def cache(self) -> Path:
        """The base cache."""
        return self.instances / "_base"

    @property
    def configuration(self) -> Path:
        """Underlay's, for this host."""
        return self.root / "underlay.toml"

    def disks(self) -> list[Path]:
        """Every instance's disk."""
        return sorted(self.instances.glob("*-*/disk"))


def build(root: Path, *, instances: int, files: int) -> Tree:
    """Write the host: ten instances an image, the other files an hour old and needed by nobody."""
    tree = Tree(root, root / "instances.json")
    tree.cache.mkdir(parents=True)
    used = max(1, instances // 10)
    names = [hashlib.sha1(str(number).encode(), usedforsecurity=False).hexdigest() for number in range(files)]
    moment = time.time() - _HOUR
    for name in names:
        _write_file(tree.cache / name, moment)
    records = []
    for number in range(instances):
        uuid = f"{number:08x}-0000-4000-8000-000000000000"
        disk = tree.instances / uuid / "disk"
        disk.parent.mkdir()
        _write_overlay(disk, tree.cache / names[number % used])
        (disk.parent / "disk.info").write_text(json.dumps({str(disk): "qcow2"}), encoding="utf-8")
        image = str(number % used)
        records.append({"uuid": uuid, "name": f"instance-{number:08x}", "host": "bench", "image_ref": image})
    tree.records.write_text(json.dumps(records), encoding="utf-8")
    tree.configuration.write_text(
        f'host = "bench"\n[instances]\npath = "{tree.instances}"\ninventory = "file:{tree.records}"\n'
        f'[caches.base]\nkind = "base"\npath = "{tree.cache}"\n',
        encoding="utf-8",
    )
    return tree


def build_masters(root: Path, *, files: int, marked: bool) -> Path:
    """Write a cache of masters that nobody has: as Ironic leaves one, or with a marker each, as our deliveries leave it."""
    used = root / ".underlay" / "used"
    used.mkdir(parents=True)
    moment = time.time() - _HOUR
    for number in range(files):
        stem = uuid.uuid5(uuid.NAMESPACE_URL, f"http://images/{number}")
        name = f"{stem}.converted" if number % 2 else str(stem)
        _write_file(root / name, moment)
        if marked:
            (used / name).touch()
    return root


def _write_file(path: Path, moment: float) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    os.ftruncate(fd, 512)
    os.close(fd)
    os.utime(path, (moment, moment))


def _write_overlay(disk: Path, base: Path) -> None:
    name = os.fsencode(base)
    header = _HEADER.pack(
        b"QFI\xfb", 3, _NAME_AT, len(name), 16, 1 << 30, 0, 2, 3 << 16, 1 << 16, 1, 0, 0, 0, 0, 0, 4, _HEADER.size
    )  # fmt: skip
    disk.write_bytes(header.ljust(_NAME_AT, b"\0") + name)
    os.truncate(disk, 4 << 16)
