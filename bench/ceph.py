"""Rows about disks in a Ceph of one host, in memory: cloned and imported, against the rbd command; clones by image size."""

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from bench.components import component
from bench.hosts import configuration
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.setting import Setting
from underlay import DiskSpec, Host
from underlay.disks.rbd import RbdBackend
from underlay.model import ImageVersion
from underlay.refs import parse_ref
from underlay.testing.bootimage import write_raw

_MIB = 1 << 20
_DISKS = 5
_SMALL, _LARGE, _DISK = 64 * _MIB, 4096 * _MIB, 8192 * _MIB


def ceph_disks(setting: Setting) -> Things:
    """Each in a process that runs, against a process of the rbd command for each of its steps."""
    with tempfile.TemporaryDirectory(prefix="ul-") as short, component("ceph", "ceph_cluster").ceph(Path(short)) as ceph:
        backend = RbdBackend(ceph_conf=ceph.conf)
        yield from _clones(backend, ceph)
        yield _import(backend, ceph, setting)


def _clones(backend: RbdBackend, ceph: Any) -> Things:
    versions = {size: _image(ceph, size) for size in (_SMALL, _LARGE)}
    numbers = count()

    def clone(size: int) -> Contender:
        def run(_: int) -> object:
            return backend.clone(versions[size], _spec(backend, f"ours-{next(numbers)}", _DISK))

        return Contender(name=f"RbdBackend.clone of {size // _MIB} MiB", run=run, repeat=_DISKS)

    def commands(_: int) -> None:
        name = f"rbd/theirs-{next(numbers)}"
        command("rbd", "-c", ceph.conf, "clone", f"rbd/image-{_SMALL}@snap", name)
        command("rbd", "-c", ceph.conf, "resize", "--no-progress", "--size", f"{_DISK // _MIB}", name)

    yield Row(
        name="rbd, cloned",
        what="with a record, whole or not at all",
        ours=clone(_SMALL),
        peer=Contender(name="rbd clone, rbd resize", run=commands, repeat=_DISKS),
        goal=Goal(wall=1.0, why="no process is started"),
    )
    yield Row(
        name="rbd, a large image cloned",
        what="an image of 64 times the size",
        ours=clone(_LARGE),
        peer=clone(_SMALL),
        goal=Goal(wall=1.2, why="a clone copies nothing"),
    )


def _import(backend: RbdBackend, ceph: Any, setting: Setting) -> Row:
    image = setting.directory / "image.raw"
    write_raw(image, size=128 * _MIB, message="bench", payload=16 * _MIB)
    base = Host.open(configuration(setting.directory, "rbd")).ensure(f"file://{image}")
    numbers = count()

    def ours(_: int) -> object:
        return backend.create(base, _spec(backend, f"imported-{next(numbers)}", None))

    def theirs(_: int) -> None:
        command("rbd", "-c", ceph.conf, "import", "--no-progress", base.path, f"rbd/import-{next(numbers)}")

    return Row(
        name="rbd, imported",
        what="with a record, whole or not at all",
        ours=Contender(name="RbdBackend.create", run=ours),
        peer=Contender(name="rbd import", run=theirs),
        goal=Goal(wall=1.0, why="the same bytes are written"),
    )


def _image(ceph: Any, size: int) -> ImageVersion:
    name = f"image-{size}"
    ceph.rbd("create", "--size", f"{size >> 20}M", f"rbd/{name}")
    ceph.rbd("snap", "create", f"rbd/{name}@snap")
    ceph.rbd("snap", "protect", f"rbd/{name}@snap")
    location = f"rbd://{ceph.fsid}/rbd/{name}/snap"
    return ImageVersion(ref=parse_ref("https://example.org/image"), id=name, disk_format="raw", locations=(location,))


def _spec(backend: RbdBackend, instance: str, size: int | None) -> DiskSpec:
    place = backend.place(instance, "disk")
    assert place is not None
    return DiskSpec(instance=instance, name="disk", path=place, size=size)
