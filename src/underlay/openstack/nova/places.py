"""Where a disk of Nova's is: by its name, or by the path that libvirt has for it; and what Nova calls that. No I/O."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underlay import instances
from underlay.config import Config
from underlay.contracts import BackendTraits, DiskBackend
from underlay.errors import InvalidName
from underlay.model import DiskSpec

_DISK = r"disk(\..+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What Nova's image of a disk says of it.

    Attributes:
        path, source_type, driver_format: as libvirt has them, or as QEMU's tools do.
    """

    path: str
    source_type: str
    driver_format: str
    is_block_dev: bool = False


def spec_of(config: Config, backend: DiskBackend, instance: Any, name: str | None, path: str | None) -> DiskSpec:
    """The disk of an instance by its name, or by the path that libvirt has for it.

    Raises:
        InvalidName: no disk of this backend can be called so, or it is another instance's.
    """
    uuid = str(instance.uuid)
    if not name and not path:
        raise InvalidName("a disk without a name and a path is none", hint="name it: disk, or disk.SUFFIX")
    if name is not None and os.path.isabs(name):
        name, path = None, name
    if not backend.traits.on_host_filesystem:
        return instances.disk_spec(config, uuid, name or _name_of(backend, uuid, path or ""), backend=backend)
    if path is None:
        assert name is not None
        is_found_by_name = re.fullmatch(_DISK, name, re.ASCII)
        path = None if is_found_by_name else os.fspath(config.instances / uuid / name)  # a kernel, a ramdisk
    named = name or os.path.basename(path or "")
    return instances.disk_spec(config, uuid, named, path=None if path is None else Path(path), backend=backend)


def _name_of(backend: DiskBackend, uuid: str, path: str) -> str:
    """The name of a disk in a place of the backend's own, such as ``pool/UUID_disk`` or ``/dev/group/UUID_disk``."""
    called = path.partition(":id=")[0].partition(":conf=")[0].rpartition("/")[2]
    begin, underscore, end = called.partition("_")
    name = end.replace("__", "_")  # as in a volume's name
    place = backend.place(uuid, name) if begin == uuid and underscore and end else None
    if place is None or place.name != called:
        raise InvalidName(f"{path!r} is no disk of {uuid} in the {backend.traits.name} backend", hint="libvirt has its path")
    return name


def shown(spec: DiskSpec, traits: BackendTraits, conf: Any) -> Shown:
    """The disk as Nova shows it."""
    path = os.fspath(spec.path)
    if traits.on_host_filesystem:
        return Shown(path=path, source_type="file", driver_format=_FORMATS.get(traits.name, traits.disk_format))
    if traits.name == "rbd":
        return Shown(path=_rbd_path(spec.path, conf), source_type="block", driver_format="rbd")
    return Shown(path=path, source_type="block", driver_format=traits.disk_format, is_block_dev=True)


_FORMATS = {"ploop": "ploop"}  # to QEMU it is called otherwise


def _rbd_path(place: Path, conf: Any) -> str:
    """A Ceph image as QEMU's tools call it: ``rbd:POOL/IMAGE:id=USER:conf=FILE``."""
    path = f"rbd:{place.parent.name}/{place.name}"
    user, ceph_conf = (None, None) if conf is None else (conf.libvirt.rbd_user, conf.libvirt.images_rbd_ceph_conf)
    return path + (f":id={user}" if user else "") + (f":conf={ceph_conf}" if ceph_conf else "")


def is_file(traits: BackendTraits) -> bool:
    """Whether a disk is one file: a ploop is a directory."""
    return traits.on_host_filesystem and traits.name not in _FORMATS
