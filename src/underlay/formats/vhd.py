"""VHD, which QEMU calls vpc: a footer at the end, and a copy of it at the beginning unless the disk is a fixed one.

Numbers follow Microsoft's "Virtual Hard Disk Image Format Specification" 1.0.
"""

import struct

from underlay.errors import UnsafeImage

COOKIE = b"conectix"
FOOTER_BYTES = 512

_CURRENT_SIZE, _DISK_TYPE = struct.Struct(">48xQ"), struct.Struct(">60xI")
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4


def check_header(beginning: bytes, *, what: str) -> int:
    """Refuse every VHD that begins with its footer's copy but a dynamic one; its size in bytes as the footer says it.

    QEMU rounds that size to a disk geometry, so only a tool can tell what a guest will see.

    Raises:
        UnsafeImage
    """
    if len(beginning) < FOOTER_BYTES:
        raise UnsafeImage(what, rule="cut-short", why="the VHD footer's copy is cut short")
    (disk_type,) = _DISK_TYPE.unpack_from(beginning)
    if disk_type == _DIFFERENCING:
        raise UnsafeImage(what, rule="backing-file", why="it is a differencing disk, which names a parent")
    if disk_type != _DYNAMIC:
        raise UnsafeImage(what, rule="vhd-header", why=f"a VHD of type {disk_type} does not begin with its footer")
    (size,) = _CURRENT_SIZE.unpack_from(beginning)
    return int(size)


def is_fixed_footer(tail: bytes) -> bool:
    """Whether a file's last `FOOTER_BYTES` are those of a fixed VHD."""
    return len(tail) >= FOOTER_BYTES and tail.startswith(COOKIE) and _DISK_TYPE.unpack_from(tail) == (_FIXED,)
