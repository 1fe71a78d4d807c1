"""A disk cloned from an image that the Ceph has already: from which of an image's locations, and why from none."""

from collections.abc import Iterator
from contextlib import contextmanager

from underlay import filedisk
from underlay.disks.rbd import snapshots
from underlay.disks.rbd.cluster import Cluster
from underlay.disks.rbd.looking import Found, disk_of, look
from underlay.disks.rbd.making import existing, making, set_record
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.places import BACKEND, Location, parse_location
from underlay.errors import BackendUnavailable, DiskExists, DiskInUse, DiskNotFound, StorageFailed, Unsupported
from underlay.model import LAYOUT, DiskRecord, DiskSpec, ImageVersion, InstanceDisk

_RAW = frozenset({"raw", "iso"})  # what Glance calls a format that is raw to a hypervisor


class _CannotBeCloned(Exception):
    """Why a location is of no use here; another may be."""


def refuse_unclonable(version: ImageVersion) -> None:
    """Refuse what no location can make good.

    Raises:
        Unsupported
    """
    if version.signature is not None:
        # Only who reads all bytes can verify it, and who clones reads none.
        raise Unsupported(BACKEND, f"clone {version.ref}: its signature has to be verified")
    if version.disk_format not in _RAW:
        raise Unsupported(BACKEND, f"clone {version.ref}: its format is {version.disk_format or 'not known'}, not raw")


def clone(image: ImageName, version: ImageVersion, want: DiskSpec, *, data_pool: str | None) -> InstanceDisk:
    """The disk, cloned from the first location that will do. The caller holds its lock.

    Raises:
        Unsupported: no location will do; the message says why. DiskTooSmall, DiskExists, BackendUnavailable, InsufficientSpace
    """
    reasons, fsid = [], image.cluster.fsid()
    for url in version.locations:
        try:
            parent, location = _parent(image.cluster, url, fsid)
            return _clone(image, parent, location, version, want, data_pool=data_pool)
        except _CannotBeCloned as reason:
            reasons.append(str(reason))
    why = "; ".join(dict.fromkeys(reasons)) or "its source names no location of it"
    raise Unsupported(BACKEND, f"clone {version.ref}: {why}", hint="it is fetched and imported instead")


def _parent(cluster: Cluster, url: str, fsid: str) -> tuple[ImageName, Location]:
    location = parse_location(url)
    if location is None:
        raise _CannotBeCloned("a location is no rbd://FSID/POOL/IMAGE/SNAPSHOT")  # and may hold a password
    if location.fsid != fsid:
        raise _CannotBeCloned(f"{location.spoken} is in another Ceph, {location.fsid}, and this one is {fsid}")
    with _reasons(cluster):
        return ImageName(cluster, cluster.pool(location.pool), location.image), location


def _clone(
    image: ImageName, parent: ImageName, location: Location, version: ImageVersion, want: DiskSpec, *, data_pool: str | None
) -> InstanceDisk:
    size = _size(parent, location, version, want)
    found = existing(image, want)
    if found is None:
        try:
            with making(image, disk=image) as temporary:
                with _reasons(image.cluster):
                    snapshots.clone(parent, location.snapshot, temporary, data_pool=data_pool)
                _grow(temporary, size)
                set_record(temporary, _record_of(version, want, location))
            return disk_of(look(image, want), want)
        except DiskExists:
            found = look(image, want)  # another host was first
    return _checked(found, version, want, size=size)


def _size(parent: ImageName, location: Location, version: ImageVersion, want: DiskSpec) -> int:
    with _reasons(parent.cluster), parent.opened(snapshot=location.snapshot) as opened:
        virtual_size = parent.ask(opened.size)
    return filedisk.size_of(want, virtual_size=virtual_size, min_disk=version.min_disk, ref=str(version.ref))


def _grow(image: ImageName, size: int) -> None:
    with image.opened(read_only=False) as opened:
        if image.ask(opened.size) != size:
            image.ask(lambda: opened.resize(size))


@contextmanager
def _reasons(cluster: Cluster) -> Iterator[None]:
    """What is the matter with a parent, as the reason not to clone from it. A Ceph that does not answer is none."""
    try:
        yield
    except (BackendUnavailable, DiskNotFound, DiskInUse, StorageFailed) as error:
        if cluster.is_silent:
            raise
        raise _CannotBeCloned(error.message) from error


def _record_of(version: ImageVersion, want: DiskSpec, location: Location) -> DiskRecord:
    return DiskRecord(
        layout=LAYOUT,
        instance=want.instance,
        name=want.name,
        backend=BACKEND,
        format="raw",
        base=None,
        cache=None,
        version_id=version.id,
        parent=f"rbd:{location.spoken}",
        maker=want.maker,
    )


def _checked(found: Found, version: ImageVersion, want: DiskSpec, *, size: int) -> InstanceDisk:
    """The disk that is there, if it is the wanted one.

    Raises:
        DiskExists
    """
    filedisk.refuse_another_maker(want, found.record)
    is_same_version = found.record is not None and version.id is not None and found.record.version_id == version.id
    if is_same_version and found.size == size:
        return disk_of(found, want)
    made_from = (found.record.version_id if found.record else None) or "what is not recorded"
    raise DiskExists(
        f"the disk {want.path} exists: {found.size} bytes from {made_from}, wanted {size} bytes from {version.id}",
        hint="remove it, or choose another name",
    )
