"""Ceph disks: an image in a pool, cloned from an image that the Ceph has already, or imported from a base image."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from underlay import filedisk, qemuimg
from underlay.contracts import BackendTraits, StorageRoom
from underlay.disks.rbd import cloning, content, keeping, lasting, looking, making, snapshots, worklist
from underlay.disks.rbd.cluster import Access, Cluster, connected
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.places import BACKEND, device, image_name, image_of, parse_location
from underlay.errors import DiskExists, FormatMismatch, Unsupported
from underlay.files import translated
from underlay.model import Attachment, BaseImage, DiskSpec, Extraction, ImageVersion, InstanceDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdBackend:
    """Images in one pool. A connection is made for each call, so nothing is open between calls.

    Attributes:
        pool: of the disks. data_pool: where their data lies, such as in an erasure-coded pool; None: in the same.
        snapshot_pool: where snapshots of disks become images; None: in the same.
        user: who asks, without ``client.``; None: as Ceph's configuration has it, else admin. ceph_conf: that configuration's
            file; None: where Ceph looks for it. secret: the UUID of the hypervisor's secret that has the user's key.
        connect_timeout, operation_timeout: seconds for a connection, and for each request to the Ceph.
        host: this one, as other hosts know it.
        cache_mode, discard: of the hypervisor's driver; None: as it does by itself.
    """

    pool: str = "rbd"
    data_pool: str | None = None
    snapshot_pool: str | None = None
    user: str | None = None
    ceph_conf: Path | None = None
    secret: str | None = None
    connect_timeout: float = 5.0
    operation_timeout: float = 30.0
    host: str = field(default_factory=lambda: os.uname().nodename)
    cache_mode: str | None = None
    discard: str | None = None
    traits: ClassVar[BackendTraits] = BackendTraits(
        name=BACKEND,
        needs_raw=True,
        overlays=False,
        disk_format="raw",
        on_host_filesystem=False,
        shared_storage=True,
        clones=True,
        snapshots=True,
    )

    def place(self, instance: str, name: str) -> Path | None:
        """``/dev/rbd/POOL/INSTANCE_NAME``: the device that the image would be, were it mapped."""
        return device(self.pool, image_name(instance, name))

    def room(self) -> StorageRoom:
        """That of the pool that the disks' data is in, as Ceph reckons it with its copies."""
        with self._connected() as cluster:
            return cluster.room(self.data_pool or self.pool)

    # --------------------------------------------------------------------------------------------------------------- making

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Import the base: its holes and its zeros are left out."""
        self._refuse_key(want)
        if base.format != "raw":
            raise FormatMismatch(f"{base.path} is {base.format}, and a disk in a Ceph is made of raw images only")
        filedisk.size_for(base, want)
        with self._image(want.path) as image:
            found = making.existing(image, want)
            if found is None:
                try:
                    self._import(image, base, want)
                    return looking.disk_of(looking.look(image, want), want)
                except DiskExists:
                    found = looking.look(image, want)  # another host was first
            disk = looking.disk_of(found, want)
            filedisk.check_wanted(disk, found.record, base, want, self.traits)
            return disk

    def _import(self, image: ImageName, base: BaseImage, want: DiskSpec) -> None:
        size, rbd = filedisk.size_for(base, want), image.cluster.library.rbd.RBD()
        options = {} if self.data_pool is None else {"data_pool": self.data_pool}
        with making.making(image, disk=image) as temporary:
            image.ask(lambda: rbd.create(image.pool, temporary.name, size, **options))
            with temporary.opened(read_only=False) as opened, translated(base.path):
                content.write_file(image, opened, base.path, size=base.size)
            making.set_record(temporary, filedisk.record_of(base, want, self.traits))

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        """Clone the snapshot that a location names, in no more time for a large image than for a small one."""
        self._refuse_key(want)
        cloning.refuse_unclonable(version)
        with self._image(want.path) as image:
            return cloning.clone(image, version, want, data_pool=self.data_pool)

    def _refuse_key(self, want: DiskSpec) -> None:
        if want.key is not None:
            raise Unsupported(self.traits.name, "encrypt a disk")

    # -------------------------------------------------------------------------------------------------------------- looking

    def exists(self, want: DiskSpec) -> bool:
        """Whether the pool has an image of the disk's name."""
        with self._image(want.path) as image:
            try:
                return looking.find(image) is not None
            except DiskExists:
                return True

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The image, as it says of itself."""
        with self._image(want.path) as image:
            return looking.disk_of(looking.look(image, want), want)

    def is_open(self, disk: InstanceDisk) -> bool | None:
        """Whether anybody watches the image, as who may write to it does; a machine that died is still seen for 30 seconds."""
        with self._image(disk.path) as image:
            return bool(looking.look(image, _spec(disk)).watchers)

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """A network disk, with the monitors' addresses."""
        with self._image(disk.path) as image:
            looking.look_at_ours(image, _spec(disk))
            servers = _addresses(image.cluster.command(prefix="mon dump"))
        return Attachment(
            type="network",
            source=f"{self.pool}/{image_of(disk.path)}",
            format="raw",
            cache=self.cache_mode,
            discard=self.discard,
            protocol="rbd",
            servers=servers,
            user=self.user,
            secret=self.secret,
        )

    # ------------------------------------------------------------------------------------------------------------- changing

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow the image."""
        size, want = filedisk.whole_sectors(size), _spec(disk)
        with self._image(disk.path) as image:
            found = looking.look_at_ours(image, want)
            if size > found.size:
                with worklist.changing(image):
                    _grow(image, size)
                found = looking.look_at_ours(image, want)
            if size < found.size:  # or another host has grown it meanwhile, to more
                raise filedisk.shrink_refused(looking.disk_of(found, want), size)
            return looking.disk_of(found, want)

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the image; what it was cloned from stays."""
        with self._image(disk.path) as image:
            making.remove_disk(image, _spec(disk))

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Read the image, and what it reads from, into a file."""
        raw = target if want.format == "raw" else target.with_name(f"{target.name}.raw")
        with self._image(disk.path) as image:
            looking.look_at_ours(image, _spec(disk))
            with image.opened() as opened, translated(target.parent):
                content.read_into(image, opened, raw)
        if raw != target:
            with translated(target.parent):
                qemuimg.convert(qemuimg.node(raw, format="raw"), target, format=want.format, compressed=want.compressed)
                raw.unlink()

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """Copy what the image reads from its parent into it."""
        want = _spec(disk)
        with self._image(disk.path) as image:
            found = looking.look_at_ours(image, want)
            if found.parent is not None:
                with worklist.changing(image):
                    snapshots.flatten(image)
                found = looking.look_at_ours(image, want)
            return looking.disk_of(found, want)

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """Files are no base of an image."""
        raise Unsupported(self.traits.name, "put a disk on another base image")

    # ------------------------------------------------------------------------------------------------------------ snapshots

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """Make an image of what the disk is now: cloned, flattened, and with a protected snapshot to clone from."""
        with self._image(disk.path) as image:
            pool = image.cluster.pool(self.snapshot_pool) if self.snapshot_pool else image.pool
            return lasting.keep(image, _spec(disk), ImageName(image.cluster, pool, name), data_pool=self.data_pool).url

    def discard_snapshot(self, location: str) -> None:
        """Remove the image, unless disks read from it."""
        at = parse_location(location)
        if at is None:
            raise Unsupported(self.traits.name, f"find an image at {location.partition(':')[0]}:…")
        with self._connected() as cluster:
            if at.fsid != cluster.fsid():
                raise Unsupported(self.traits.name, f"remove what another Ceph has: {at.fsid}")
            lasting.discard(ImageName(cluster, cluster.pool(at.pool), at.image), at)

    # --------------------------------------------------------------------------------------------------- what a disk was

    def keep(self, disk: InstanceDisk) -> None:
        """By a snapshot of the image, in no more time for a large one than for a small one."""
        with self._image(disk.path) as image:
            keeping.keep(image, _spec(disk))

    def keeps(self, disk: InstanceDisk) -> bool:
        """Whether the image has that snapshot."""
        with self._image(disk.path) as image:
            return keeping.keeps(image, _spec(disk))

    def put_back(self, disk: InstanceDisk) -> InstanceDisk:
        """Roll the image back to the snapshot; the Ceph copies what was written since."""
        with self._image(disk.path) as image:
            keeping.put_back(image, _spec(disk))
            return looking.disk_of(looking.look_at_ours(image, _spec(disk)), _spec(disk))

    def let_go(self, disk: InstanceDisk) -> None:
        """Remove the snapshot."""
        with self._image(disk.path) as image:
            keeping.let_go(image, _spec(disk))

    # ----------------------------------------------------------------------------------------------------------- connecting

    @contextmanager
    def _connected(self) -> Iterator[Cluster]:
        access = Access(
            user=self.user,
            conf=self.ceph_conf,
            connect_timeout=self.connect_timeout,
            operation_timeout=self.operation_timeout,
            host=self.host,
        )
        with connected(access) as cluster:
            yield cluster

    @contextmanager
    def _image(self, path: Path) -> Iterator[ImageName]:
        """The name of the image of the disk that is called so, for as long as the connection lasts."""
        with self._connected() as cluster:
            yield ImageName(cluster, cluster.pool(self.pool), image_of(path))


def _spec(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path, maker=disk.maker)


def _grow(image: ImageName, size: int) -> None:
    """Grow an image, unless another host has made it larger already."""

    def grow() -> None:
        try:
            opened.resize(size, allow_shrink=False)
        except image.cluster.library.rbd.InvalidArgument:
            if opened.size() < size:
                raise

    with image.opened(read_only=False) as opened:
        image.ask(grow)


def _addresses(dump: Any) -> tuple[tuple[str, int], ...]:
    """The monitors' addresses, of the older protocol where they have both, which every client speaks."""
    return tuple(_address(monitor["public_addrs"]["addrvec"]) for monitor in dump["mons"])


def _address(addresses: Sequence[Any]) -> tuple[str, int]:
    chosen = min(addresses, key=lambda one: one["type"] != "v1")["addr"]
    host, _, port = chosen.rpartition(":")
    return host.strip("[]"), int(port)
