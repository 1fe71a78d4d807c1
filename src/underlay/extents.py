"""Where a file's bytes lie on its file system: which are its own, and which it shares by reflinks or snapshots.

FIEMAP (Linux, Documentation/filesystems/fiemap.rst). File systems that do not have it share nothing either.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h, _IOWR('f', 11, struct fiemap)
_REQUEST = struct.Struct("=QQIIII")  # start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_SYNC = 0x1
_LAST, _UNKNOWN, _DELAYED, _INLINE, _SHARED = 0x1, 0x2, 0x4, 0x200, 0x2000
_ROOM = 256
_NOT_TOLD = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EBADR})


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a file's bytes on its file system.

    Attributes:
        physical: where it lies, or None when that says nothing (inline, not written yet). shared: others have it too.
    """

    physical: int | None
    length: int
    shared: bool


def extents(fd: int) -> Iterator[Extent] | None:
    """The file's extents, or None where the file system does not tell them."""
    try:
        _ask(fd, 0, 0)
    except OSError as error:
        if error.errno in _NOT_TOLD:
            return None
        raise
    return _all(fd)


def own_bytes(fd: int) -> int:
    """Bytes that the file system would have more without the file: what it shares is others' as well."""
    allocated = os.fstat(fd).st_blocks * 512
    found = extents(fd)
    shared = sum(extent.length for extent in found if extent.shared) if found is not None else 0
    return max(0, allocated - shared)


def _all(fd: int) -> Iterator[Extent]:
    start = 0
    while True:
        extents_here = _ask(fd, start, _ROOM)
        for logical, physical, length, flags in extents_here:
            known = not flags & (_UNKNOWN | _DELAYED | _INLINE)
            yield Extent(physical if known else None, length, bool(flags & _SHARED))
            if flags & _LAST:
                return
            start = logical + length
        if not extents_here:
            return


def _ask(fd: int, start: int, room: int) -> list[tuple[int, int, int, int]]:
    request = bytearray(_REQUEST.size + room * _EXTENT.size)
    _REQUEST.pack_into(request, 0, start, (1 << 64) - 1 - start, _SYNC if start == 0 and room else 0, 0, room, 0)
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
    mapped = _REQUEST.unpack_from(request)[3] if room else 0
    return [_EXTENT.unpack_from(request, _REQUEST.size + index * _EXTENT.size) for index in range(mapped)]
