"""The stage on which the shipped conformance suite tries the rbd backend: a pool of a real Ceph."""

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from uuid import uuid4

from ceph_cluster import Ceph

from underlay import Host
from underlay.config import parse_config
from underlay.disks.rbd import RbdBackend
from underlay.model import BaseImage, DiskSpec, ImageVersion, InstanceDisk
from underlay.refs import parse_ref
from underlay.testing.disk_suite import Full, Trouble
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace

TIMEOUT = 2.0  # seconds, of a connection and of a request


MIB = 1 << 20
CONTENT = random.Random(1).randbytes(MIB) + bytes(4 * MIB) + random.Random(2).randbytes(MIB)


def backend_of(ceph: Ceph, pool: str = "rbd", **options: Any) -> RbdBackend:
    """The backend of a pool, which gives up soon."""
    return RbdBackend(
        **{"pool": pool, "ceph_conf": ceph.conf, "connect_timeout": TIMEOUT, "operation_timeout": TIMEOUT, **options}
    )


@contextmanager
def pool_of(ceph: Ceph, pool: str) -> Iterator[tuple[Any, Any]]:
    """librbd and a pool, as any other client has it."""
    rados, rbd = import_module("rados"), import_module("rbd")
    with rados.Rados(conffile=str(ceph.conf)) as cluster, cluster.open_ioctx(pool) as opened:
        yield rbd, opened


def images(ceph: Ceph, pool: str) -> frozenset[str]:
    """Every image of a pool, those in the trash, and what is said to be on its way."""
    with pool_of(ceph, pool) as (rbd, opened):
        return frozenset([*rbd.RBD().list(opened), *(one["name"] for one in rbd.RBD().trash_list(opened)), *claims(opened)])


def claims(pool: Any) -> list[str]:
    """The keys of the list of what is on its way."""
    return [key for key, _ in omap(pool, "underlay.making")]


def omap(pool: Any, name: str) -> list[tuple[str, bytes]]:
    """The keys and values of an object; none when it is not there."""
    rados = import_module("rados")
    try:
        with rados.ReadOpCtx() as operation:
            pairs, _ = pool.get_omap_vals(operation, "", "", 1000)
            pool.operate_read_op(operation, name)
            return list(pairs)
    except rados.ObjectNotFound:
        return []


def set_omap(pool: Any, name: str, key: str, value: bytes) -> None:
    """Set a value of an object."""
    with import_module("rados").WriteOpCtx() as operation:
        pool.set_omap(operation, (key,), (value,))
        pool.operate_write_op(operation, name)


@dataclass(slots=True)
class RbdStage:
    """A pool, of which the images that disks are cloned from are in another.

    Attributes:
        clone_format: of the clones that the backend makes: 1, 2 or auto, as Ceph calls its kinds.
    """

    ceph: Ceph
    directory: Path
    pool: str = "rbd"
    clone_format: str = "auto"
    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({})
    granularity: int = 512
    patience: float = 4 * TIMEOUT

    @property
    def backend(self) -> RbdBackend:
        return self.backend_on("node1")

    def backend_on(self, host: str, **options: Any) -> RbdBackend:
        """The backend as another host has it."""
        conf = self.ceph.conf if self.clone_format == "auto" else self._conf()
        return backend_of(self.ceph, self.pool, **{"ceph_conf": conf, "host": host, **options})

    def _conf(self) -> Path:
        conf = self.directory / f"ceph-{self.clone_format}.conf"
        conf.write_text(f"{self.ceph.conf.read_text()}\n[client]\nrbd_default_clone_format = {self.clone_format}\n")
        return conf

    def read(self, disk: InstanceDisk) -> bytes:
        with self._image(disk, read_only=True) as image:
            content: bytes = image.read(0, image.size())
            return content

    def write(self, disk: InstanceDisk, offset: int, content: bytes) -> None:
        with self._image(disk) as image:
            image.write(content, offset)

    def left(self) -> frozenset[str]:
        return images(self.ceph, self.pool)

    @contextmanager
    def opened(self, disk: InstanceDisk) -> Iterator[None]:
        with self._image(disk):
            yield

    @contextmanager
    def trouble(self, trouble: Trouble) -> Iterator[None]:
        with self.ceph.without_room(self.pool) if isinstance(trouble, Full) else self.ceph.halted():
            yield

    def cloneable(self, content: bytes) -> ImageVersion:
        return cloneable(self.ceph, "images", content)

    @contextmanager
    def _image(self, disk: InstanceDisk, *, read_only: bool = False) -> Iterator[Any]:
        with pool_of(self.ceph, self.pool) as (rbd, opened), rbd.Image(opened, disk.path.name, read_only=read_only) as image:
            yield image


def cloneable(ceph: Ceph, pool: str, content: bytes, *, size: int | None = None) -> ImageVersion:
    """An image as Glance's store makes one, and the version by which Glance speaks of it."""
    name = str(uuid4())
    with pool_of(ceph, pool) as (rbd, opened):
        rbd.RBD().create(opened, name, size or len(content))
        with rbd.Image(opened, name) as image:
            image.write(content, 0)
            image.create_snap("snap")
            image.protect_snap("snap")
    locations = ("https://example.org/elsewhere", f"rbd://{ceph.fsid}/{pool}/{name}/snap")
    return ImageVersion(ref=parse_ref(f"glance:{name}"), id=name, disk_format="raw", locations=locations)


def host_of(directory: Path, of: dict[str, FakeImage], more: str = "", observer: Recorder | None = None) -> Host:
    """A host with one cache in a directory."""
    (directory / "cache").mkdir(exist_ok=True)
    (directory / "instances").mkdir(exist_ok=True)
    text = f'[caches.one]\nkind = "base"\npath = "{directory}/cache"\n[instances]\npath = "{directory}/instances"\n{more}'
    return Host.open(parse_config(text, origin=Path("test")), sources={"fake": FakeSource(of)}, observer=observer)


def base_image(directory: Path, content: bytes) -> BaseImage:
    return host_of(directory, {"fake:image": FakeImage(content)}).ensure("fake:image")


def spec_of(stage: RbdStage, *, size: int | None = 8 * MIB) -> DiskSpec:
    """A disk of a new instance."""
    instance = f"vm-{uuid4().hex[:12]}"
    place = stage.backend.place(instance, "disk")
    assert place is not None
    return DiskSpec(instance=instance, name="disk", path=place, size=size)


def spec_at(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)


def nothing(spec: DiskSpec) -> InstanceDisk:
    """A disk that is not there."""
    return InstanceDisk(
        instance=spec.instance,
        name=spec.name,
        path=spec.path,
        backend="rbd",
        format=None,
        size=None,
        allocated=0,
        base=None,
        base_path=None,
    )


def of_disk(stage: RbdStage, spec: DiskSpec) -> set[str]:
    """What there is of an instance."""
    return {name for name in stage.left() if spec.instance in name}


def located(version: ImageVersion, *locations: str) -> ImageVersion:
    """Another image, at these locations."""
    return replace(version, id=str(uuid4()), locations=locations)


def claim(pool: Any, key: str, *, host: str, makes: str = "", value: bytes | None = None, **more: Any) -> None:
    """Say that somebody is at work: on another host, or on this one before it was booted.

    Args:
        value: of the claim as a whole, instead. more: of its fields.
    """
    token = key.partition("/")[2]
    temporary = f".{makes}.{token}" if makes else ""
    said = {"host": host, "token": token, "pool": pool.name, "temporary": temporary, "made_at": time.time(), **more}
    set_omap(pool, "underlay.making", key, value or json.dumps(said).encode())
