"""Records in the extended attribute ``user.underlay``: the JSON codec, and nothing else.

A record that cannot be read makes its file *unrecorded*, never an error: the attribute is data from a file system that others
may write to.
"""

from typing import TypeVar

import msgspec

from underlay.errors import InvalidDigest, StorageFailed
from underlay.model import LAYOUT, Digest, DiskRecord, ImageRecord

_Record = TypeVar("_Record", ImageRecord, DiskRecord)

MAX_BYTES = 3 << 10
"""ext4 keeps at most 4 KiB of attributes for an inode."""


class _Identity(msgspec.Struct, gc=False):
    layout: int
    ref: str
    version_id: str


def encode_record(record: ImageRecord | DiskRecord) -> bytes:
    """The attribute's value.

    Raises:
        StorageFailed: it would be larger than `MAX_BYTES`.
    """
    value = msgspec.json.encode(record)
    if len(value) > MAX_BYTES:
        raise StorageFailed(f"the record of {len(value)} bytes does not fit an attribute", hint="use a shorter ref or path")
    return value


def decode_image_record(value: bytes | None) -> ImageRecord | None:
    """What an image says of itself; None when there is no record, or none of this layout."""
    record = _decode(value, ImageRecord)
    return record if record is not None and all(map(_is_digest, record.digests)) else None


def decode_identity(value: bytes | None) -> tuple[str, str] | None:
    """The ref and the version id that an image says it has, at the least cost; None as for `decode_image_record`."""
    if value is None:
        return None
    try:
        found = msgspec.json.decode(value, type=_Identity)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        return None
    return (found.ref, found.version_id) if found.layout == LAYOUT else None


def decode_disk_record(value: bytes | None) -> DiskRecord | None:
    """What a disk says of itself; None when there is no record, or none of this layout."""
    return _decode(value, DiskRecord)


def _is_digest(text: str) -> bool:
    try:
        Digest.parse(text)
    except InvalidDigest:
        return False
    return True


def _decode(value: bytes | None, kind: type[_Record]) -> _Record | None:
    if value is None:
        return None
    try:
        record = msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        return None
    return record if record.layout == LAYOUT else None
