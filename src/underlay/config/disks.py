"""The ``[disks]`` tables: each backend's options as they are written, and the arguments that they are to its adapter."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

import msgspec

from underlay.config import values
from underlay.formats.qcow2 import CLUSTER_SIZES

_CACHE_MODES = frozenset({"none", "writethrough", "writeback", "directsync", "unsafe"})
_LEAST_PREALLOCATED = 16 << 10  # bytes of a cluster that has subclusters
_CEPH_NAME = re.compile(r"[A-Za-z0-9_.+-]+", re.ASCII)
_LVM_NAME = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]{0,99}", re.ASCII)  # lvm(8), "Valid names"
_ATTACHED_AS = frozenset({"file", "block", "network"})


class FlatTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raw files."""

    preallocation: Literal["none", "falloc", "full"] | None = None


class Qcow2Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Overlays."""

    preallocation: Literal["none", "metadata", "falloc", "full"] | None = None
    cluster_size: str | int = "64KiB"


class RbdTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Images in a pool of a Ceph."""

    pool: str = "rbd"
    data_pool: str | None = None
    snapshot_pool: str | None = None
    user: str | None = None
    ceph_conf: str | None = None
    secret_uuid: str | None = None
    connect_timeout: str | int = "5s"
    operation_timeout: str | int = "30s"


class LvmTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Volumes of a volume group."""

    volume_group: str | None = None
    type: Literal["thick", "thin", "snapshot"] = "thick"
    thin_pool: str | None = None
    volume_clear: Literal["zero", "shred", "none"] = "zero"
    volume_clear_size: str | int | None = None
    lock_timeout: str | int = "1min"


class DisksTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How disks are made, and what a hypervisor is told of them; a table for each backend that has options of its own."""

    use_cow_images: bool = True
    preallocate_images: Literal["none", "space"] = "none"
    default_ephemeral_format: str | None = None
    virt_mkfs: list[str] = []
    hw_disk_discard: Literal["ignore", "unmap"] | None = None
    disk_cachemodes: list[str] = []
    flat: FlatTable = FlatTable()
    qcow2: Qcow2Table = Qcow2Table()
    lvm: LvmTable = LvmTable()
    rbd: RbdTable = RbdTable()


def backend_arguments(table: DisksTable, *, host: str) -> dict[str, Mapping[str, Any]]:
    """For each backend, the arguments of its adapter.

    Args:
        host: this one's name.

    Raises:
        WrongValue
    """
    modes = _cache_modes(table.disk_cachemodes)
    usual = "falloc" if table.preallocate_images == "space" else "none"
    of_files = {"cache_mode": modes.get("file"), "discard": table.hw_disk_discard}
    return {
        "flat": {"preallocation": table.flat.preallocation or usual, **of_files},
        "qcow2": {
            "preallocation": table.qcow2.preallocation or usual,
            "cluster_bytes": _cluster_bytes(table.qcow2, usual),
            **of_files,
        },
        "lvm": {
            **_lvm(table.lvm),
            "cache_mode": modes.get("block"),
            "discard": table.hw_disk_discard,
        },
        "ploop": of_files,
        "rbd": {
            **_rbd(table.rbd),
            "host": host,
            "cache_mode": modes.get("network"),
            "discard": table.hw_disk_discard,
        },
    }


def _lvm(table: LvmTable) -> Mapping[str, Any]:
    if table.type == "thin" and table.thin_pool is None:
        raise values.WrongValue("disks.lvm.type", "thin disks need a pool", hint="set disks.lvm.thin_pool")
    if table.type == "thick" and table.thin_pool is not None:
        raise values.WrongValue("disks.lvm.thin_pool", "thick disks lie in no pool", hint="leave it out, or set another type")
    return {
        "volume_group": _lvm_name(table.volume_group, "disks.lvm.volume_group"),
        "type": table.type,
        "thin_pool": _lvm_name(table.thin_pool, "disks.lvm.thin_pool"),
        "volume_clear": table.volume_clear,
        "volume_clear_size": values.optional_positive_size(table.volume_clear_size, "disks.lvm.volume_clear_size"),
        "lock_timeout": values.positive(table.lock_timeout, "disks.lvm.lock_timeout"),
    }


def _lvm_name(text: str | None, key: str) -> str | None:
    if text is not None and (not _LVM_NAME.fullmatch(text) or text in (".", "..")):
        raise values.WrongValue(key, f"{text!r} is no name in LVM", hint="use letters, digits and ._+-, at most 100 of them")
    return text


def _rbd(table: RbdTable) -> Mapping[str, Any]:
    return {
        "pool": _ceph_name(table.pool, "disks.rbd.pool"),
        "data_pool": _optional_ceph_name(table.data_pool, "disks.rbd.data_pool"),
        "snapshot_pool": _optional_ceph_name(table.snapshot_pool, "disks.rbd.snapshot_pool"),
        "user": _ceph_user(table.user),
        "ceph_conf": values.optional_path(table.ceph_conf, "disks.rbd.ceph_conf"),
        "secret": _uuid(table.secret_uuid, "disks.rbd.secret_uuid"),
        "connect_timeout": values.positive(table.connect_timeout, "disks.rbd.connect_timeout"),
        "operation_timeout": values.positive(table.operation_timeout, "disks.rbd.operation_timeout"),
    }


def _ceph_name(text: str, key: str) -> str:
    if not _CEPH_NAME.fullmatch(text):
        raise values.WrongValue(key, f"{text!r} is no name in a Ceph", hint="use letters, digits and ._+-")
    return text


def _optional_ceph_name(text: str | None, key: str) -> str | None:
    return None if text is None else _ceph_name(text, key)


def _ceph_user(text: str | None) -> str | None:
    if text is not None and text.startswith("client."):
        raise values.WrongValue("disks.rbd.user", f"{text!r} has its type in it", hint=f"write {text[7:]!r}")
    return _optional_ceph_name(text, "disks.rbd.user")


def _uuid(text: str | None, key: str) -> str | None:
    if text is None:
        return None
    try:
        return str(UUID(text))
    except ValueError as error:
        raise values.WrongValue(key, f"{text!r} is no UUID", hint="virsh secret-list shows them") from error


def _cluster_bytes(table: Qcow2Table, usual: str) -> int:
    size = values.size(table.cluster_size, "disks.qcow2.cluster_size")
    if (table.preallocation or usual) != "none" and size < _LEAST_PREALLOCATED:
        hint = "use a larger cluster_size, or preallocation none"
        raise values.WrongValue("disks.qcow2.cluster_size", f"clusters of {size} bytes cannot be preallocated", hint=hint)
    if size not in CLUSTER_SIZES:
        hint = "use a power of two from 512B to 2MiB"
        raise values.WrongValue("disks.qcow2.cluster_size", f"qcow2 has no clusters of {size} bytes", hint=hint)
    return size


def _cache_modes(lines: Sequence[str]) -> dict[str, str]:
    """Nova's ``disk_cachemodes``: ``TYPE=MODE`` each, the type as which a hypervisor is told of a disk."""
    modes = {}
    for line in lines:
        kind, _, mode = line.partition("=")
        if kind not in _ATTACHED_AS or mode not in _CACHE_MODES:
            hint = f"write TYPE=MODE, of {', '.join(sorted(_ATTACHED_AS))} and {', '.join(sorted(_CACHE_MODES))}"
            raise values.WrongValue("disks.disk_cachemodes", f"{line!r} is no cache mode", hint=hint)
        modes[kind] = mode
    return modes
