"""Where a volume may be: nowhere that is Underlay's own, the host's own, or another instance's.

What a path or a name leads to comes from outside, and whoever writes there destroys what somebody else has.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from underlay import instances
from underlay.compute.arguments import Instance
from underlay.compute.errors import InstanceNotFound, VolumeAttachFailed
from underlay.compute.libvirt import attacheddisks, domain as domains, localdisks, snapshots
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.livemigration import marks
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.volume import LOCAL, RBD, Volume

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OWN = re.compile(rf"(?:{_UUID}_|underlay_|underlay\.)", re.ASCII)  # a disk of an instance, or what is made for one
_DEVICES = Path("/dev")


def check_place(site: Site, path: str, volume: Volume) -> None:
    """Refuse a path that leads to what is Underlay's own.

    Raises:
        VolumeAttachFailed
    """
    real = Path(os.path.realpath(path))
    own = (site.host.config.instances, snapshots.directory(site), *(store.root for store in site.host.config.caches.values()))
    for directory in own:
        if real.is_relative_to(os.path.realpath(directory)):
            raise failed(volume, f"{path} lies below {directory}, where Underlay's own files are")


def leads_to_own(site: Site, volume: Volume) -> bool:
    """Whether what is called a volume is a disk or an image of Underlay's, which is not detached or put away as one."""
    try:
        if volume.kind == LOCAL:
            check_place(site, volume.source, volume)
    except VolumeAttachFailed:
        return True
    return False


def check_image(site: Site, volume: Volume) -> None:
    """Refuse an image in Ceph that is a disk of an instance.

    Raises:
        VolumeAttachFailed
    """
    options = site.host.config.disks.get(RBD, {})
    pool, _, image = volume.source.partition("/")
    if pool in (options.get("pool"), options.get("snapshot_pool")) and is_own(image):
        raise failed(volume, f"{volume.source} is a disk of an instance, or what Underlay makes one from")


def check_device(site: Site, volume: Volume) -> None:
    """Refuse a block device that the host itself uses, or that is a disk of an instance.

    Linux gives a device for one's own (``O_EXCL``) only while nothing of it, or of its partitions, is mounted, swapped to, or a
    part of a volume group, an array or another device; see open(2). QEMU takes none for its own.

    Raises:
        VolumeAttachFailed
    """
    try:
        os.close(os.open(volume.source, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise failed(volume, f"{volume.source} is in use by the host: it is mounted, or a part of something") from error
        raise failed(volume, f"{volume.source} cannot be opened: {error.strerror}") from error
    group = site.host.config.disks.get("lvm", {}).get("volume_group")
    if group is not None and _is_in_group(volume, _DEVICES / group):
        raise failed(volume, f"{volume.source} is a disk of an instance, or what Underlay makes one from")


def is_own(name: str) -> bool:
    """Whether a volume of LVM's, or an image in Ceph, is called as Underlay's are."""
    return _OWN.match(name) is not None


def refuse_others(site: Site, instance: Instance, volume: Volume) -> None:
    """Refuse a volume that another instance of this host has, running or not, or is to come with: both would write to it.

    Unless both are told that others have it: then it is up to what is in them, as a file system for clusters.

    Raises:
        VolumeAttachFailed
    """
    expected = _expected(site)  # looked at first: who comes meanwhile is found as one that has come
    present = domains.uuids(site.connection)
    for uuid, volumes in expected.items():
        if uuid not in (instance.uuid, *present):
            _refuse_expected(uuid, volumes, volume)
    for uuid in present:
        if uuid == instance.uuid:
            continue
        disks = DomainDisks(Domain(site.connection, uuid))
        try:
            found = attacheddisks.reading(volume, (*disks.lasting(), *disks.live()))
        except InstanceNotFound:  # gone meanwhile
            continue
        if found is not None and not (volume.shared and found.shared):
            raise failed(volume, f"the instance {uuid} has it, as {found.device}")


def _expected(site: Site) -> Mapping[str, tuple[Volume, ...]]:
    """With which volumes guests are to come here, by the instances' UUIDs."""
    directories = marks.marked(site.host.config.instances, marks.ARRIVING, site.name)
    found = {directory.uuid: marks.read(directory, marks.ARRIVING, site.name) for directory in directories}
    return {uuid: mark.volumes for uuid, mark in found.items() if mark is not None}


def _refuse_expected(uuid: str, expected: Iterable[Volume], volume: Volume) -> None:
    for other in expected:
        is_same = other.kind == volume.kind and attacheddisks.is_same(volume, other.source)
        if is_same and not (volume.shared and other.shared):
            raise failed(volume, f"the instance {uuid} is to come here with it")


def refuse_open(volume: Volume) -> None:
    """Refuse a file that a QEMU of this host, or of another one on the same storage, has open.

    Raises:
        OperationFailed
    """
    if volume.kind == LOCAL and Path(volume.source).is_file():
        with localdisks.translated():
            instances.refuse_open(Path(os.path.realpath(volume.source)))


def failed(volume: Volume, reason: str) -> VolumeAttachFailed:
    """That a volume cannot be attached."""
    return VolumeAttachFailed(volume_id=volume.name, reason=reason)


def _is_in_group(volume: Volume, group: Path) -> bool:
    try:
        with os.scandir(group) as entries:
            own = [entry.path for entry in entries if is_own(entry.name)]
    except FileNotFoundError:  # no volume of it is active
        return False
    real = os.path.realpath(volume.source)
    return any(os.path.realpath(path) == real for path in own)
