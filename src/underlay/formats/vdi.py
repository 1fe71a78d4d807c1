"""VDI: one header that says how large the disk is, how many blocks the file holds, and whether it needs another file.

Numbers follow the header's description in QEMU's block/vdi.c.
"""

import struct
from dataclasses import dataclass

from underlay.errors import UnsafeImage

MAGIC = b"\x7f\x10\xda\xbe"
MAGIC_OFFSET = 0x40

_VERSION_AND_TYPE = struct.Struct("<68xI4xI")
_VERSION = 0x00010001
_DATA_OFFSET = struct.Struct("<344xI")
_SIZES = struct.Struct("<368xQIIII")  # disk size, block size, extra bytes a block, blocks, blocks allocated
_LINKS = slice(0x1A8, 0x1C8)  # UUIDs of the linked and of the parent image
_DYNAMIC, _STATIC = 1, 2
_SECTOR = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A VDI header.

    Attributes:
        virtual_size: bytes. file_size: bytes that the file has at least.
    """

    virtual_size: int
    file_size: int


def check_header(beginning: bytes, *, what: str) -> Header:
    """Refuse a VDI that needs another file: an undo or a differencing one.

    Raises:
        UnsafeImage
    """
    if len(beginning) < _LINKS.stop:
        raise UnsafeImage(what, rule="cut-short", why="the VDI header is cut short")
    version, image_type = _VERSION_AND_TYPE.unpack_from(beginning)
    if version != _VERSION:
        raise UnsafeImage(what, rule="vdi-header", why=f"VDI version {version >> 16}.{version & 0xFFFF} is not supported")
    if image_type not in (_DYNAMIC, _STATIC) or any(beginning[_LINKS]):
        raise UnsafeImage(what, rule="backing-file", why="it is a differencing disk, which names a parent")
    (data_offset,) = _DATA_OFFSET.unpack_from(beginning)
    size, block, extra, _, allocated = _SIZES.unpack_from(beginning)
    return Header(virtual_size=-(-size // _SECTOR) * _SECTOR, file_size=data_offset + allocated * (block + extra))
