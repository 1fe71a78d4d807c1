"""VHDX: how large the disk is and whether it has a parent, found by following offsets forward through the stream.

Numbers follow Microsoft's [MS-VHDX] 2.0: the region table lies at 192 KiB and says where the metadata region is, whose table
says where each metadata item is.
"""

import struct
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field

from underlay.errors import UnsafeImage

MAGIC = b"vhdxfile"

_TABLE_BYTES = 64 << 10
_REGION_TABLE = 192 << 10
_TABLE_HEADER = struct.Struct("<4sIII")  # signature, checksum, entries, reserved
_REGION = struct.Struct("<16sQII")  # GUID, file offset, length, required
_METADATA_HEADER = struct.Struct("<8sHH")  # signature, reserved, entries
_ITEM = struct.Struct("<16sIIII")  # GUID, offset in the region, length, flags, reserved
_MOST_ENTRIES = 2047
_PARAMETERS = struct.Struct("<II")  # block size, flags
_HAS_PARENT = 1 << 1

_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VIRTUAL_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le

Reading = Generator[tuple[int, int], bytes, int]
"""Asks for ``(offset, length)`` in the order of the file and is sent those bytes; returns the virtual size."""


@dataclass(slots=True)
class Reader:
    """Takes a stream in pieces and gives a `Reading` what it asks for.

    Attributes:
        virtual_size: bytes; None until it is known.
    """

    what: str
    reading: Reading
    virtual_size: int | None = None
    _wanted: tuple[int, int] | None = None
    _received: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, what: str) -> "Reader":
        """A reader of one VHDX, to be fed from its first byte on."""
        reading = _read(what)
        return cls(what, reading, _wanted=next(reading))

    def feed(self, chunk: memoryview, position: int) -> None:
        """Take the bytes that stand at ``position`` of the file.

        Raises:
            UnsafeImage
        """
        while self._wanted is not None:
            offset, length = self._wanted
            start = offset + len(self._received) - position
            self._received += chunk[start : start + length - len(self._received)]
            if len(self._received) < length:
                return
            self._answer(offset + length)

    def _answer(self, end: int) -> None:
        received, self._received = bytes(self._received), bytearray()
        try:
            self._wanted = self.reading.send(received)
        except StopIteration as done:
            self.virtual_size, self._wanted = done.value, None
            return
        if self._wanted[0] < end:  # a stream does not go back, and no writer lays a file out like this
            raise _malformed(self.what, "its structures overlap")


def _read(what: str) -> Reading:
    table = yield _REGION_TABLE, _TABLE_BYTES
    metadata = _metadata_offset(table, what)
    items = _items((yield metadata, _TABLE_BYTES), what)
    if _PARENT_LOCATOR in items:
        raise _differencing(what)
    for item in (_FILE_PARAMETERS, _VIRTUAL_DISK_SIZE):
        if item not in items:
            raise _malformed(what, "its metadata lacks a required item")
    found = {}
    for item in sorted((_FILE_PARAMETERS, _VIRTUAL_DISK_SIZE), key=items.__getitem__):
        found[item] = yield metadata + items[item], _PARAMETERS.size
    if _PARAMETERS.unpack(found[_FILE_PARAMETERS])[1] & _HAS_PARENT:
        raise _differencing(what)
    return int.from_bytes(found[_VIRTUAL_DISK_SIZE], "little")


def _metadata_offset(table: bytes, what: str) -> int:
    signature, _, count, _ = _TABLE_HEADER.unpack_from(table)
    if signature != b"regi" or count > _MOST_ENTRIES:
        raise _malformed(what, "its region table is not one")
    for index in range(count):
        guid, offset, _, _ = _REGION.unpack_from(table, _TABLE_HEADER.size + index * _REGION.size)
        if guid == _METADATA:
            return int(offset)
    raise _malformed(what, "it has no metadata region")


def _items(table: bytes, what: str) -> dict[bytes, int]:
    signature, _, count = _METADATA_HEADER.unpack_from(table)
    if signature != b"metadata" or count > _MOST_ENTRIES:
        raise _malformed(what, "its metadata table is not one")
    entries = (_ITEM.unpack_from(table, _ITEM.size * (1 + index)) for index in range(count))
    return {guid: offset for guid, offset, *_ in entries}


def _malformed(what: str, why: str) -> UnsafeImage:
    return UnsafeImage(what, rule="vhdx-header", why=why)


def _differencing(what: str) -> UnsafeImage:
    return UnsafeImage(what, rule="backing-file", why="it is a differencing disk, which names a parent")
