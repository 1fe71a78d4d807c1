"""The stage on which the shipped conformance suite tries the rbd backend: a pool of a real Ceph."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from uuid import uuid4

from ceph_cluster import Ceph

from underlay.disks.rbd import RbdBackend
from underlay.model import ImageVersion, InstanceDisk
from underlay.refs import parse_ref
from underlay.testing.disk_suite import Full, Trouble

TIMEOUT = 2.0  # seconds, of a connection and of a request


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
    rados = import_module("rados")
    try:
        with rados.ReadOpCtx() as operation:
            pairs, _ = pool.get_omap_vals(operation, "", "", 1000)
            pool.operate_read_op(operation, "underlay.making")
            return [key for key, _ in pairs]
    except rados.ObjectNotFound:
        return []


@dataclass(slots=True)
class RbdStage:
    """A pool, of which the images that disks are cloned from are in another."""

    ceph: Ceph
    directory: Path
    pool: str = "rbd"
    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({})
    granularity: int = 512
    patience: float = 4 * TIMEOUT

    @property
    def backend(self) -> RbdBackend:
        return backend_of(self.ceph, self.pool)

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
