"""Images, disks, leases, findings and problems for programs: one JSON object, whose forms docs/reference/json.md fixes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from underlay.model import Attachment, BaseImage, Damage, InstanceDisk, Lease, Problem

if TYPE_CHECKING:
    from underlay.check import Finding
    from underlay.contracts import BackendTraits


def json_text(payload: Mapping[str, Any]) -> str:
    """One JSON object on one line. Bytes of a name that are not UTF-8 are escaped as ``\\xff``: JSON has no place for them."""
    text = json.dumps(payload, ensure_ascii=False)
    return json.dumps(payload) if _is_sound(text) else json.dumps(_sound(payload))


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sound(value: Any) -> Any:
    if isinstance(value, str):
        return value if _is_sound(value) else value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if isinstance(value, Mapping):
        return {_sound(key): _sound(one) for key, one in value.items()}
    return [_sound(one) for one in value] if isinstance(value, list | tuple) else value


def image_json(image: BaseImage, disks: Sequence[InstanceDisk], leases: Sequence[Lease] = ()) -> dict[str, Any]:
    """An image for programs; ``disks`` are those that are made from it, ``leases`` those that keep it, pins among them."""
    record = image.record
    return {
        "name": image.name,
        "path": str(image.path),
        "cache": str(image.cache),
        "recorded": record is not None,
        "ref": record.ref if record else None,
        "version_id": record.version_id if record else None,
        "format": image.format,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "min_disk": record.min_disk if record else 0,
        "allocated": image.allocated,
        "digests": list(record.digests) if record else [],
        "stored_digest": record.stored if record else None,
        "fetched_at": record.fetched_at.isoformat() if record else None,
        "last_used": image.last_used.isoformat(timespec="seconds"),
        "damage": damage_json(image.damage),
        "disks": [str(disk.path) for disk in disks],
        "leases": [lease_json(lease, image.cache) for lease in leases],
    }


def damage_json(damage: Damage | None) -> dict[str, Any] | None:
    """What a scrub has found, for programs; None of an image that is not known to be damaged."""
    if damage is None:
        return None
    return {"code": damage.code, "detail": damage.detail, "found_at": damage.found_at.isoformat(timespec="seconds")}


_TRAITS = (
    "name",
    "disk_format",
    "needs_raw",
    "overlays",
    "on_host_filesystem",
    "shared_storage",
    "resizable",
    "rebases",
    "clones",
    "snapshots",
    "encrypts",
)


def disk_json(disk: InstanceDisk) -> dict[str, Any]:
    """A disk for programs."""
    return {
        "instance": disk.instance,
        "name": disk.name,
        "path": str(disk.path),
        "backend": disk.backend,
        "format": disk.format,
        "size": disk.size,
        "allocated": disk.allocated,
        "base": disk.base,
        "base_path": str(disk.base_path) if disk.base_path else None,
        "parent": disk.parent,
    }


def attachment_json(attachment: Attachment) -> dict[str, Any]:
    """How a hypervisor is to open a disk, for programs."""
    return {
        "type": attachment.type,
        "source": attachment.source,
        "format": attachment.format,
        "cache": attachment.cache,
        "io": attachment.io,
        "discard": attachment.discard,
        "protocol": attachment.protocol,
        "servers": [{"host": host, "port": port} for host, port in attachment.servers],
        "user": attachment.user,
        "secret": attachment.secret,
    }


def backend_json(traits: "BackendTraits") -> dict[str, Any]:
    """A backend for programs."""
    return {name: getattr(traits, name) for name in _TRAITS} | {"preallocations": sorted(traits.preallocations)}


def lease_json(lease: Lease, cache: Path) -> dict[str, Any]:
    """A lease or a pin for programs; a pin expires never."""
    return {
        "id": lease.id,
        "cache": str(cache),
        "holder": lease.holder,
        "names": list(lease.names),
        "refs": list(lease.refs),
        "made_at": lease.made_at.isoformat(timespec="seconds"),
        "expires": lease.expires.isoformat(timespec="seconds") if lease.expires else None,
    }


def problem_json(problem: Problem) -> dict[str, Any]:
    """A problem for programs."""
    return {"code": problem.code, "path": str(problem.path), "detail": problem.detail}


def finding_json(finding: "Finding") -> dict[str, Any]:
    """A finding for programs."""
    return {
        "code": finding.code,
        "level": finding.level.value,
        "path": str(finding.path),
        "detail": finding.detail,
        "hint": finding.hint,
    }
