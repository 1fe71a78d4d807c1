"""The ``[disks]`` tables: each backend's options as they are written, and the arguments that they are to its adapter."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from underlay.config import values
from underlay.formats.qcow2 import CLUSTER_SIZES

_CACHE_MODES = frozenset({"none", "writethrough", "writeback", "directsync", "unsafe"})
_LEAST_PREALLOCATED = 16 << 10  # bytes of a cluster that has subclusters
_ATTACHED_AS = frozenset({"file", "block", "network"})


class FlatTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raw files."""

    preallocation: Literal["none", "falloc", "full"] | None = None


class Qcow2Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Overlays."""

    preallocation: Literal["none", "metadata", "falloc", "full"] | None = None
    cluster_size: str | int = "64KiB"


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


def backend_arguments(table: DisksTable) -> dict[str, Mapping[str, Any]]:
    """For each backend, the arguments of its adapter.

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
    }


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
