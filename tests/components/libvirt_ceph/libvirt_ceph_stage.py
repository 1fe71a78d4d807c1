"""Guests whose disks are in a real Ceph: a pool, a user with a secret of libvirt's, and images that it has already."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from ceph_cluster import Ceph
from ceph_stage import images, pool_of
from libvirt_daemon import Daemon
from libvirt_stage import Place

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host
from underlay.refs import parse_ref
from underlay.testing.bootimage import SMALLEST, boot_sector
from underlay.testing.fakedriver import FakeFlavor, FakeImage as ImageRecord, FakeInstance
from underlay.testing.fakes import FakeImage, FakeSource

POOL, USER, GIB = "vms", "guests", 1 << 30
CLONED = "what the Ceph has already"
TIMEOUT = 2  # seconds that a Ceph may take to answer
_SECRET = "<secret ephemeral='no' private='yes'><uuid>{uuid}</uuid><usage type='ceph'><name>{name}</name></usage></secret>"

OPTIONS = """
images_type = "rbd"
timeout = "{patience}"
{more}
[disks.rbd]
pool = "{pool}"
user = "{user}"
ceph_conf = "{conf}"
secret_uuid = "{secret}"
connect_timeout = "{timeout}s"
operation_timeout = "{timeout}s"
"""


def virsh(daemon: Daemon, *arguments: str) -> str:
    """As an operator does."""
    argv = ["virsh", "--quiet", "--connect", daemon.uri, *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def define_secret(daemon: Daemon, key: str) -> str:
    """Have libvirt keep a key of Ceph's; the UUID of the secret."""
    uuid = str(uuid4())
    with tempfile.TemporaryDirectory() as directory:
        definition, value = Path(directory, "secret.xml"), Path(directory, "key")
        definition.write_text(_SECRET.format(uuid=uuid, name=f"client.{USER} {uuid}"))
        value.write_text(key)
        virsh(daemon, "secret-define", "--file", os.fspath(definition))
        virsh(daemon, "secret-set-value", uuid, "--file", os.fspath(value))
    return uuid


@dataclass(slots=True)
class Guests:
    """The user of Ceph's as whom guests open their disks.

    Attributes:
        secret: the UUID of libvirt's secret with the key.
    """

    ceph: Ceph
    daemon: Daemon
    secret: str


@dataclass(slots=True)
class CephPlace:
    """A directory of instances whose disks are in the Ceph, and a driver for them."""

    place: Place
    guests: Guests
    source: FakeSource = field(default_factory=FakeSource)

    @property
    def ceph(self) -> Ceph:
        return self.guests.ceph

    def text(self, more: str = "", *, instances: str = "", **changed: Any) -> str:
        """The configuration."""
        chosen = {"pool": POOL, "user": USER, "conf": self.ceph.conf, "secret": self.guests.secret}
        chosen |= {"timeout": TIMEOUT, "patience": "30s"}
        return self.place.config(instances=instances, more=OPTIONS.format(**{**chosen, "more": more, **changed}))

    def host(self, more: str = "", **changed: Any) -> Host:
        config = parse_config(self.text(more, **changed), origin=self.place.root / "underlay.toml")
        return Host.open(config, sources={"fake": self.source})

    def driver(self, more: str = "", **changed: Any) -> LibvirtDriver:
        driver = LibvirtDriver(None, host=self.host(more, **changed))
        driver.init_host(self.place.name)
        return driver

    def in_ceph(self) -> ImageRecord:
        """An image that boots and that the Ceph has already, as Glance keeps its own."""
        name = str(uuid4())
        with pool_of(self.ceph, "images") as (rbd, pool):
            rbd.RBD().create(pool, name, SMALLEST)
            with rbd.Image(pool, name) as image:
                image.write(boot_sector(CLONED, size=SMALLEST, stays=True), 0)
                image.create_snap("snap")
                image.protect_snap("snap")
        ref = parse_ref(f"fake:{name}").canonical
        location = f"rbd://{self.ceph.fsid}/images/{name}/snap"
        self.source.put(ref, FakeImage(b"it is never read", id=name, disk_format="raw", locations=(location,)))
        return ImageRecord(id=ref, size=SMALLEST, disk_format="raw")

    def instance(self, image: ImageRecord, **more: Any) -> FakeInstance:
        return self.place.instance(image, **{"flavor": FakeFlavor(memory_mb=32, root_gb=1), **more})

    def left(self, instance: FakeInstance, pool: str = POOL) -> list[str]:
        """What the Ceph has of an instance."""
        return sorted(name for name in images(self.ceph, pool) if instance.uuid in name)

    def traces(self, instance: FakeInstance) -> list[str]:
        return [*self.place.traces(instance), *self.left(instance)]

    @contextmanager
    def opened(self, name: str, pool: str = POOL, *, read_only: bool = True) -> Iterator[Any]:
        with pool_of(self.ceph, pool) as (rbd, ioctx), rbd.Image(ioctx, name, read_only=read_only) as image:
            yield image

    def snapshots(self, name: str, pool: str = POOL) -> list[str]:
        with self.opened(name, pool) as image:
            return [one["name"] for one in image.list_snaps()]

    def watchers(self, name: str, pool: str = POOL) -> int:
        """How many have an image open, beside who looks."""
        with self.opened(name, pool) as image:
            return len(list(image.watchers_list()))

    def read(self, name: str, offset: int = 0, length: int = 512, pool: str = POOL) -> bytes:
        with self.opened(name, pool) as image:
            content: bytes = image.read(offset, length)
            return content

    def write(self, name: str, content: bytes, offset: int, pool: str = POOL) -> None:
        with self.opened(name, pool, read_only=False) as image:
            image.write(content, offset)

    def size(self, name: str, pool: str = POOL) -> int:
        with self.opened(name, pool) as image:
            size: int = image.size()
            return size

    def volume(self, size: int, content: bytes = b"", **data: Any) -> dict[str, Any]:
        """A volume as Cinder makes one in the pool ``other``, and how it says that it is reached."""
        serial = str(uuid4())
        name = f"volume-{serial}"
        with pool_of(self.ceph, "other") as (rbd, pool):
            rbd.RBD().create(pool, name, size)
            with rbd.Image(pool, name) as image:
                image.write(content, 0)
        told = {
            "name": f"other/{name}",
            "hosts": ["127.0.0.1"],
            "ports": [str(self.ceph.port)],
            "cluster_name": "ceph",
            "auth_enabled": True,
            "auth_username": USER,
            "secret_type": "ceph",
            "secret_uuid": self.guests.secret,
            "volume_id": serial,
            "discard": True,
            "access_mode": "rw",
            "encrypted": False,
            **data,
        }
        return {"driver_volume_type": "rbd", "data": told, "serial": serial}


def image_of(volume: Mapping[str, Any]) -> str:
    """What a volume's image is called in its pool."""
    name: str = volume["data"]["name"]
    return name.partition("/")[2]
