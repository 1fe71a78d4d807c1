"""What volumes are called, and what their tags say.

A disk is called as Nova calls it, ``INSTANCE_disk``. LVM's names have letters, digits and ``._+-`` (lvm(8), "Valid names"), and
its tags have ``/=!:#&`` besides. A disk's record is in tags of its volume, which no guest reaches.
"""

import hashlib
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex

import msgspec

from underlay.attributes import decode_disk_record, encode_record
from underlay.errors import BackendUnavailable, InvalidName
from underlay.files import open_regular
from underlay.model import BaseImage, DiskRecord
from underlay.stream import stored_digest

GOING = "underlay.going"
"""On a disk that is being removed, and is none any more."""
WHOLE = "underlay.whole"
"""On what is whole and about to take a disk's place: from then on it is the disk."""
COPY = "underlay.copy"
"""On what is made from what a guest wrote, and is cleared like a disk."""
ENCRYPTED = "underlay.encrypted"
"""On a disk that is encrypted."""
BASE = "underlay.base"
"""On an image's own volume, of which disks are snapshots."""
MAKING = "underlay.making"
"""On an image's own volume that is not whole."""

_RECORD = re.compile(r"underlay\.record\.(\d+)\.([A-Za-z0-9_=-]+)", re.ASCII)
_PIECE = 960  # characters; a tag has 1024 at most
_LONGEST = 127  # characters of a device-mapper name: DM_NAME_LEN of linux/dm-ioctl.h
_RESERVED = re.compile(
    r"^(snapshot|pvmove)|_(cdata|cmeta|corig|cpool|cvol|wcorig|iorig|imeta|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|vorigin)"
)
_DEVICES, _MAPPER = Path("/dev"), Path("/dev/mapper")


def volume_name(group: str, instance: str, name: str) -> str:
    """The volume of a disk.

    An underscore becomes two, as Nova has it for the disk's name, so the one that is alone is where the two meet: what a disk
    is called never begins with one.

    Raises:
        InvalidName: no volume can be called so.
    """
    volume = f"{instance.replace('_', '__')}_{name.replace('_', '__')}"
    if name.startswith("_") or _RESERVED.search(volume):
        raise InvalidName(f"no volume can be called {volume}: LVM keeps such names for itself", hint="choose another name")
    temporary = temporary_name(volume)
    # Device mapper has a hyphen twice, and calls what lies below a snapshot by its name with -real or -cow.
    longest = max(len(f"{group}-{temporary}-real".replace("-", "--")), len(mapping(temporary)))
    if longest > _LONGEST:
        hint = f"use a name that is {longest - _LONGEST} characters shorter"
        raise InvalidName(f"no volume can be called {volume}: with its group's the name is too long", hint=hint)
    return volume


def temporary_name(volume: str) -> str:
    """A name of its own under which something is made for a disk; no disk has one like it, with several underscores alone."""
    return f"{_temporary(volume)}{token_hex(4)}"


def is_temporary(name: str, volume: str) -> bool:
    """Whether a name is one of these, for a disk. Who gives a disk another name, to keep it, gives it no such."""
    return name.startswith(_temporary(volume))


def _temporary(volume: str) -> str:
    return f"underlay_new_{volume}_"


def base_name(image: BaseImage, *, size: int | None) -> str:
    """The volume of an image: one for each content, and for each size where a snapshot has its origin's.

    Args:
        size: bytes of the volume, where they matter.

    Raises:
        OSError
    """
    if image.record is not None:
        content: tuple[object, ...] = (image.record.version_id, image.record.stored, image.size)
    else:
        content = (_digest(image.path), image.size)
    digest = hashlib.sha256(msgspec.json.encode((content, size))).hexdigest()
    return f"underlay_base_{digest[:32]}"


def _digest(path: Path) -> str:
    # Nothing else tells an image without a record from one that takes its place: each use touches its times.
    fd = open_regular(path)
    try:
        return stored_digest(fd)
    finally:
        os.close(fd)


def device(group: str, volume: str) -> Path:
    """The device of a volume, by which the disk is called."""
    return _DEVICES / group / volume


def volume_of(path: Path, *, group: str) -> str:
    """The volume of the disk that is called so.

    Raises:
        BackendUnavailable: it is in another group.
    """
    if path.parent.name != group:
        hint = f"have volume_group under [disks.lvm] be {path.parent.name}, as when the disk was made"
        raise BackendUnavailable(f"{path} is not in the volume group {group}", hint=hint)
    return path.name


def mapping(volume: str) -> str:
    """What an encrypted volume's opened side is called in ``/dev/mapper``, as Nova calls it."""
    return f"{volume}-dmcrypt"


def mapped(volume: str) -> Path:
    """The device of an encrypted volume's opened side."""
    return _MAPPER / mapping(volume)


def made_for(volume: str) -> str:
    """The tag of everything that is made for a disk."""
    return f"underlay.for.{volume}"


def unfinished(size: int) -> str:
    """The tag of a disk that is not whole as long as it has exactly so many bytes."""
    return f"underlay.unfinished.{size}"


def record_tags(record: DiskRecord) -> list[str]:
    """The tags that hold a disk's record, in base64, which has no character that a tag has not.

    Raises:
        StorageFailed: it is too large.
    """
    text = urlsafe_b64encode(encode_record(record)).decode()
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return [f"underlay.record.{number}.{piece}" for number, piece in enumerate(pieces)]


def record_in(tags: Iterable[str]) -> DiskRecord | None:
    """The record that tags hold; None when they hold none that can be read."""
    pieces = sorted((int(found[1]), found[2]) for tag in tags if (found := _RECORD.fullmatch(tag)))
    try:
        return decode_disk_record(urlsafe_b64decode("".join(piece for _, piece in pieces))) if pieces else None
    except (NotBase64, ValueError):
        return None
