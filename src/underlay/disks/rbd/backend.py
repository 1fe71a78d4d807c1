"""Ceph disks: an image in a pool, cloned from an image that the Ceph has already, or imported from a base image."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from underlay import filedisk, qemuimg
from underlay.contracts import BackendTraits
from underlay.disks.rbd import claims, content, looking, making, snapshots
from underlay.disks.rbd.claims import Maker
from underlay.disks.rbd.cluster import Access, Cluster, connected, spoken
from underlay.disks.rbd.looking import Found
from underlay.disks.rbd.places import Location, device, image_name, image_of, parse_location
from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskUnrecorded,
    FormatMismatch,
    Unsupported,
)
from underlay.files import translated
from underlay.model import LAYOUT, Attachment, BaseImage, DiskRecord, DiskSpec, Extraction, ImageVersion, InstanceDisk

_RAW = frozenset({"raw", "iso"})  # what Glance calls a format that is raw to a hypervisor


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
        name="rbd",
        needs_raw=True,
        overlays=False,
        disk_format="raw",
        on_host_filesystem=False,
        shared_storage=True,
        clones=True,
        snapshots=True,
    )
    _at_work_on: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def place(self, instance: str, name: str) -> Path | None:
        """``/dev/rbd/POOL/INSTANCE_NAME``: the device that the image would be, were it mapped."""
        return device(self.pool, image_name(instance, name))

    # --------------------------------------------------------------------------------------------------------------- making

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Import the base: its holes and its zeros are left out."""
        self._refuse_key(want)
        if base.format != "raw":
            raise FormatMismatch(f"{base.path} is {base.format}, and a disk in a Ceph is made of raw images only")
        size = filedisk.size_for(base, want)
        record = filedisk.record_of(base, want, self.traits)
        with self._connected() as (cluster, pool):
            if found := self._existing(cluster, pool, want):
                return self._made_from(found, base, want)
            try:
                self._import(cluster, pool, base, size=size, record=record, image=image_of(want.path))
            except DiskExists:
                return self._made_from(self._look(cluster, pool, want), base, want)  # another host was first
            return looking.disk_of(self._look(cluster, pool, want), want)

    def _import(self, cluster: Cluster, pool: Any, base: BaseImage, *, size: int, record: DiskRecord, image: str) -> None:
        options = {} if self.data_pool is None else {"data_pool": self.data_pool}
        with making.making(cluster, pool, image, maker=self._maker) as temporary:
            of = spoken(pool, image)
            cluster.ask(lambda: cluster.library.rbd.RBD().create(pool, temporary, size, **options), of=of)
            with cluster.image(pool, temporary, read_only=False) as opened:
                with translated(base.path):
                    content.write_file(cluster, opened, base.path, size=base.size, of=of)
                making.set_record(cluster, opened, record, of=of)

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        """Clone the snapshot that a location names, in no more time for a large image than for a small one."""
        self._refuse_key(want)
        _check_clonable(version)
        with self._connected() as (cluster, pool):
            location, parent, virtual_size = self._parent(cluster, version)
            size = filedisk.size_of(want, virtual_size=virtual_size, min_disk=version.min_disk, ref=str(version.ref))
            if found := self._existing(cluster, pool, want):
                return _cloned_from(found, version, want, size=size)
            try:
                self._clone(cluster, pool, version, want, size=size, location=location, parent=parent)
            except DiskExists:
                return _cloned_from(self._look(cluster, pool, want), version, want, size=size)
            return looking.disk_of(self._look(cluster, pool, want), want)

    def _clone(
        self,
        cluster: Cluster,
        pool: Any,
        version: ImageVersion,
        want: DiskSpec,
        *,
        size: int,
        location: Location,
        parent: Any,
    ) -> None:
        image, source = image_of(want.path), (parent, location.image, location.snapshot)
        of = spoken(pool, image)
        with making.making(cluster, pool, image, maker=self._maker) as temporary:
            snapshots.clone(cluster, pool, temporary, parent=source, data_pool=self.data_pool)
            with cluster.image(pool, temporary, read_only=False) as opened:
                if cluster.ask(opened.size, of=of) != size:
                    cluster.ask(lambda: opened.resize(size), of=of)
                making.set_record(cluster, opened, _record_of_clone(version, want, location), of=of)

    def _parent(self, cluster: Cluster, version: ImageVersion) -> tuple[Location, Any, int]:
        """The first snapshot among an image's locations that can be read here, its pool and its size."""
        reasons, fsid = [], cluster.fsid()
        for location in map(parse_location, version.locations):
            if location is None:
                reasons.append("a location is no rbd://FSID/POOL/IMAGE/SNAPSHOT")  # and may hold a password
            elif location.fsid != fsid:
                reasons.append(f"{location.spoken} is in another Ceph, {location.fsid}, and this one is {fsid}")
            else:
                try:
                    return location, *self._readable(cluster, location)
                except (BackendUnavailable, DiskNotFound) as error:
                    if cluster.is_stuck:
                        raise
                    reasons.append(error.message)
        why = "; ".join(dict.fromkeys(reasons)) or "its source names no location of it"
        raise Unsupported(self.traits.name, f"clone {version.ref}: {why}", hint="it is fetched and imported instead")

    def _readable(self, cluster: Cluster, location: Location) -> tuple[Any, int]:
        pool = cluster.pool(location.pool)
        with cluster.image(pool, location.image, snapshot=location.snapshot) as opened:
            return pool, cluster.ask(opened.size, of=f"image {location.spoken}")

    def _existing(self, cluster: Cluster, pool: Any, want: DiskSpec) -> Found | None:
        """What has the disk's place, after what dead makers left has gone; None: nothing.

        Raises:
            DiskExists: what is no disk of ours.
        """
        image = image_of(want.path)
        claims.take_away_left(cluster, pool, image, maker=self._maker)
        found = looking.find(cluster, pool, image)
        if found is not None and found.claim is not None:
            making.finish_removal(cluster, pool, image, found, maker=self._maker)
            return None
        if found is not None and not looking.is_disk(found, want):
            raise DiskExists(f"{spoken(pool, image)} exists and is no disk of ours", hint="rename or remove it")
        return found

    def _made_from(self, found: Found, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        disk = looking.disk_of(found, want)
        filedisk.check_wanted(disk, found.record, base, want, self.traits)
        return disk

    def _refuse_key(self, want: DiskSpec) -> None:
        if want.key is not None:
            raise Unsupported(self.traits.name, "encrypt a disk")

    # -------------------------------------------------------------------------------------------------------------- looking

    def exists(self, want: DiskSpec) -> bool:
        """Whether the pool has an image of the disk's name."""
        with self._connected() as (cluster, pool):
            return looking.find(cluster, pool, image_of(want.path)) is not None

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The image, as it says of itself."""
        with self._connected() as (cluster, pool):
            return looking.disk_of(self._look(cluster, pool, want), want)

    def is_open(self, disk: InstanceDisk) -> bool | None:
        """Whether anybody watches the image, as who may write to it does; a machine that died is still seen for 30 seconds."""
        with self._connected() as (cluster, pool):
            return bool(self._look(cluster, pool, _spec(disk)).watchers)

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """A network disk, with the monitors' addresses."""
        _check_recorded(disk)
        with self._connected() as (cluster, _):
            servers = _addresses(cluster.command(prefix="mon dump"))
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

    def _look(self, cluster: Cluster, pool: Any, want: DiskSpec) -> Found:
        image = image_of(want.path)
        found = looking.look(cluster, pool, image)
        if found.claim is not None:
            raise DiskNotFound(f"{spoken(pool, image)} is being removed", hint="remove it again when who did was killed")
        if found.record is not None and not looking.is_disk(found, want):
            raise DiskExists(f"{spoken(pool, image)} is another disk: {found.record.name} of {found.record.instance}")
        return found

    # ------------------------------------------------------------------------------------------------------------- changing

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow the image."""
        size = filedisk.whole_sectors(size)
        with self._connected() as (cluster, pool):
            found, image = self._look(cluster, pool, _spec(disk)), image_of(disk.path)
            _check_recorded(looking.disk_of(found, _spec(disk)))
            if size < found.size:
                raise filedisk.shrink_refused(looking.disk_of(found, _spec(disk)), size)
            if size > found.size:
                with claims.changing(cluster, pool, image, maker=self._maker):
                    with cluster.image(pool, image, read_only=False) as opened:
                        cluster.ask(lambda: opened.resize(size), of=spoken(pool, image))
            return looking.disk_of(self._look(cluster, pool, _spec(disk)), _spec(disk))

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the image; what it was cloned from stays."""
        with self._connected() as (cluster, pool):
            making.remove_disk(cluster, pool, image_of(disk.path), maker=self._maker)

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Read the image, and what it reads from, into a file."""
        raw = target if want.format == "raw" else target.with_name(f"{target.name}.raw")
        with self._connected() as (cluster, pool):
            image = image_of(disk.path)
            _check_recorded(looking.disk_of(self._look(cluster, pool, _spec(disk)), _spec(disk)))
            with cluster.image(pool, image) as opened, translated(target.parent):
                content.read_into(cluster, opened, raw, of=spoken(pool, image))
        if raw != target:
            with translated(target.parent):
                qemuimg.convert(qemuimg.node(raw, format="raw"), target, format=want.format, compressed=want.compressed)
                raw.unlink()

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """Copy what the image reads from its parent into it."""
        with self._connected() as (cluster, pool):
            found = self._look(cluster, pool, _spec(disk))
            _check_recorded(looking.disk_of(found, _spec(disk)))
            if found.parent is not None:
                with claims.changing(cluster, pool, image_of(disk.path), maker=self._maker):
                    snapshots.flatten(cluster, pool, image_of(disk.path))
            return looking.disk_of(self._look(cluster, pool, _spec(disk)), _spec(disk))

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """Files are no base of an image."""
        raise Unsupported(self.traits.name, "put a disk on another base image")

    # ------------------------------------------------------------------------------------------------------------ snapshots

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """Make an image of what the disk is now: cloned, flattened, and with a protected snapshot to clone from."""
        with self._connected() as (cluster, pool):
            target = cluster.pool(self.snapshot_pool) if self.snapshot_pool else pool
            found, image = self._look(cluster, pool, _spec(disk)), image_of(disk.path)
            _check_recorded(looking.disk_of(found, _spec(disk)))
            with claims.changing(cluster, pool, image, maker=self._maker):
                claims.take_away_left(cluster, target, name, maker=self._maker)
                _check_free(cluster, target, name)
                with self._held(cluster, pool, image, found) as held:
                    self._lasting(cluster, target, name, of=(pool, image, held))
            return snapshots.location_of(cluster, target, name).url

    def _lasting(self, cluster: Cluster, pool: Any, name: str, *, of: tuple[Any, str, str]) -> None:
        with making.making(cluster, pool, name, maker=self._maker) as temporary:
            snapshots.clone(cluster, pool, temporary, parent=of, data_pool=self.data_pool)
            snapshots.flatten(cluster, pool, temporary)
            snapshots.make_lasting(cluster, pool, temporary)

    @contextmanager
    def _held(self, cluster: Cluster, pool: Any, image: str, found: Found) -> Iterator[str]:
        """A snapshot of a disk for as long as the block lasts."""
        with suppress(DiskInUse):  # another host makes a snapshot of the disk
            snapshots.take_away_our_snapshots(cluster, pool, image, found)
        held = snapshots.name_of_ours()
        snapshots.make_snapshot(cluster, pool, image, held)  # crash: a snapshot that the next one, or the removal, takes away
        try:
            yield held
        finally:
            snapshots.remove_snapshot(cluster, pool, image, held)

    def discard_snapshot(self, location: str) -> None:
        """Remove the image, unless disks read from it."""
        at = parse_location(location)
        if at is None:
            raise Unsupported(self.traits.name, f"find an image at {location.partition(':')[0]}:…")
        with self._connected() as (cluster, _):
            if at.fsid != cluster.fsid():
                raise Unsupported(self.traits.name, f"remove what another Ceph has: {at.fsid}")
            pool = cluster.pool(at.pool)
            found = looking.find(cluster, pool, at.image)
            if found is None:
                claims.remove_image(cluster, pool, at.image)
                return
            if not found.is_snapshot:
                raise Unsupported(self.traits.name, f"remove image {at.spoken}: it is no snapshot that it made")
            if at.snapshot in found.snapshots:
                if needed_by := snapshots.children(cluster, pool, at.image, at.snapshot):
                    what = f"image {at.spoken} is read by {', '.join(needed_by[:3])}"
                    raise DiskInUse(what, hint="flatten or remove what was made from it")
                snapshots.remove_snapshot(cluster, pool, at.image, at.snapshot)  # crash: an image without it
            snapshots.refuse_needed(cluster, pool, at.image)
            claims.remove_image(cluster, pool, at.image)

    # ----------------------------------------------------------------------------------------------------------- connecting

    @property
    def _maker(self) -> Maker:
        return Maker(self.host, self._at_work_on)

    @contextmanager
    def _connected(self) -> Iterator[tuple[Cluster, Any]]:
        access = Access(
            user=self.user,
            conf=self.ceph_conf,
            connect_timeout=self.connect_timeout,
            operation_timeout=self.operation_timeout,
        )
        with connected(access) as cluster:
            yield cluster, cluster.pool(self.pool)


def _spec(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)


def _check_clonable(version: ImageVersion) -> None:
    """Refuse what no location can make good.

    Raises:
        Unsupported
    """
    if version.signature is not None:
        # Only who reads all bytes can verify it, and who clones reads none.
        raise Unsupported("rbd", f"clone {version.ref}: its signature has to be verified")
    if version.disk_format not in _RAW:
        raise Unsupported("rbd", f"clone {version.ref}: its format is {version.disk_format or 'not known'}, not raw")


def _record_of_clone(version: ImageVersion, want: DiskSpec, location: Location) -> DiskRecord:
    return DiskRecord(
        layout=LAYOUT,
        instance=want.instance,
        name=want.name,
        backend="rbd",
        format="raw",
        base=None,
        cache=None,
        version_id=version.id,
        parent=f"rbd:{location.spoken}",
    )


def _cloned_from(found: Found, version: ImageVersion, want: DiskSpec, *, size: int) -> InstanceDisk:
    """The disk that is there, if it is the wanted one.

    Raises:
        DiskExists
    """
    is_same_version = found.record is not None and version.id is not None and found.record.version_id == version.id
    if is_same_version and found.size == size:
        return looking.disk_of(found, want)
    made_from = (found.record.version_id if found.record else None) or "what is not recorded"
    raise DiskExists(
        f"the disk {want.path} exists: {found.size} bytes from {made_from}, wanted {size} bytes from {version.id}",
        hint="remove it, or choose another name",
    )


def _check_recorded(disk: InstanceDisk) -> None:
    if disk.format is None:
        raise DiskUnrecorded(f"nothing says that {disk.path} is a disk", hint="only a disk that Underlay made is touched")


def _check_free(cluster: Cluster, pool: Any, name: str) -> None:
    if looking.find(cluster, pool, name) is not None:
        raise DiskExists(f"{spoken(pool, name)} is there", hint="remove it, or choose another name")


def _addresses(dump: Any) -> tuple[tuple[str, int], ...]:
    """The monitors' addresses, of the older protocol where they have both, which every client speaks."""
    return tuple(_address(monitor["public_addrs"]["addrvec"]) for monitor in dump["mons"])


def _address(addresses: Sequence[Any]) -> tuple[str, int]:
    chosen = min(addresses, key=lambda one: one["type"] != "v1")["addr"]
    host, _, port = chosen.rpartition(":")
    return host.strip("[]"), int(port)
