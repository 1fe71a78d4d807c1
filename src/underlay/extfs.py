"""The ext2, ext3 or ext4 file system that fills a raw disk without partitions: whether it may be grown, and its growing.

What is read here is the superblock alone, by the kernel's Documentation/filesystems/ext4/super.rst; the work is done by e2fsck
and resize2fs, which read what a guest may have written. So they are only run when somebody asked for it, within limits, and
never on a file system that names another device or was not left clean.
"""

import os
import struct
from pathlib import Path

from underlay.errors import Unsupported
from underlay.files import translated
from underlay.run import Limits, failed, run, run_to_end

_OFFSET, _BYTES = 1024, 1024
_MAGIC = 0xEF53
_CLEAN, _ERRORS = 0x1, 0x2  # s_state
_HAS_JOURNAL = 0x4  # s_feature_compat
_RECOVER, _JOURNAL_DEVICE, _IS_64BIT = 0x4, 0x8, 0x80  # s_feature_incompat
_LARGEST_BLOCK = 6  # 2^(10+6) bytes
_CORRECTED = 1  # what e2fsck returns when it found something and put it right (e2fsck(8))
_LIMITS = Limits(seconds=3600, memory=2 << 30, dies_with_caller=True)


def check(fd: int, *, size: int, backend: str, what: str) -> None:
    """Refuse a file system that cannot be grown safely.

    Args:
        fd: of the disk. size: bytes that the file system may have now. backend, what: how the error calls them.

    Raises:
        Unsupported
    """
    if (why := _obstacle(os.pread(fd, _BYTES, _OFFSET), size)) is not None:
        hint = "leave the file system to the guest, which sees a larger disk"
        raise Unsupported(backend, f"grow the file system of {what}: {why}", hint=hint)


def _obstacle(superblock: bytes, size: int) -> str | None:
    if len(superblock) < _BYTES or _field(superblock, "<H", 0x38) != _MAGIC:
        return "it has no ext2, ext3 or ext4 that fills it without partitions"
    compatible, incompatible = _field(superblock, "<I", 0x5C), _field(superblock, "<I", 0x60)
    state, block = _field(superblock, "<H", 0x3A), _field(superblock, "<I", 0x18)
    blocks = _field(superblock, "<I", 0x4) + (_field(superblock, "<I", 0x150) << 32 if incompatible & _IS_64BIT else 0)
    if block > _LARGEST_BLOCK or blocks << (10 + block) > size:
        return "its file system is larger than it is"
    if incompatible & _JOURNAL_DEVICE or (compatible & _HAS_JOURNAL and _field(superblock, "<I", 0xE0) == 0):
        return "its file system has its journal elsewhere"
    if incompatible & _RECOVER or not state & _CLEAN or state & _ERRORS:
        return "its file system was not unmounted cleanly"
    return None


def _field(superblock: bytes, kind: str, offset: int) -> int:
    (value,) = struct.unpack_from(kind, superblock, offset)
    return int(value)


def grow(path: Path) -> None:
    """Grow a file system that passed `check` to the size of its file or device. Durability is the caller's.

    Nothing of it is lost when that is interrupted, but it may have to be checked: the guest does so when it starts.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut
    """
    with translated(path):
        ended = run_to_end(["e2fsck", "-f", "-p", path], limits=_LIMITS)
        if not 0 <= ended.status <= _CORRECTED:
            raise failed("e2fsck", ended)
        run(["resize2fs", path], limits=_LIMITS)
