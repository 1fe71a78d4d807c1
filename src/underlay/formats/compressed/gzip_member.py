"""One gzip member (RFC 1952): the header read here, the rest by isal.

isal (1.9) misreads a header with optional fields that comes in several pieces, and goes on with a part of it as if that were
compressed data. So the header is put together first, and isal gets what follows: the data, their checksum and their length.
"""

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from underlay.errors import UnsafeImage

if TYPE_CHECKING:
    from isal.igzip_lib import IgzipDecompressor

_FIXED_BYTES = 10  # magic, method, flags, time, extra flags, operating system
_HEADER_CRC, _EXTRA, _NAME, _COMMENT, _RESERVED = 0x02, 0x04, 0x08, 0x10, 0xE0
_HEADER_LIMIT = 128 << 10  # an extra field of 64 KiB, a path and more comment than anybody has written


@dataclass(slots=True)
class GzipMember:
    """Reads one member, as `bz2.BZ2Decompressor` reads its stream.

    Attributes:
        what: how messages call the image.
    """

    what: str
    _header: bytearray = field(default_factory=bytearray)
    _inflating: "IgzipDecompressor | None" = None

    @property
    def eof(self) -> bool:
        """Whether the member's end has been read."""
        return self._inflating is not None and self._inflating.eof

    @property
    def unused_data(self) -> bytes:
        """What was given after the end."""
        return self._inflating.unused_data if self._inflating is not None else b""

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        """Take the next bytes, and give at most ``max_length``.

        Raises:
            UnsafeImage: the header is broken.
            IsalError: anything else is.
        """
        if self._inflating is None:
            self._header += data
            end = _header_end(self._header, self.what)
            if end is None:
                return b""
            data = bytes(self._header[end:])
            self._header.clear()
            self._inflating = _new()
        return self._inflating.decompress(data, max_length)


def _new() -> "IgzipDecompressor":
    from isal import igzip_lib

    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)


def _header_end(header: bytearray, what: str) -> int | None:
    """Where the compressed data begin; None as long as the header is not whole."""
    if len(header) < _FIXED_BYTES:
        return None
    flags, end = header[3], _FIXED_BYTES
    if flags & _RESERVED:
        raise _refused(what, "its gzip header has flags that are not known")
    if flags & _EXTRA:
        end += 2 + int.from_bytes(header[end : end + 2], "little")
    for text in (_NAME, _COMMENT):
        if flags & text:
            end = (header.find(b"\0", end) + 1) or len(header) + 1
    checked = end
    if flags & _HEADER_CRC:
        end += 2
    if end > len(header):
        if len(header) > _HEADER_LIMIT:
            raise _refused(what, f"its gzip header is longer than {_HEADER_LIMIT} bytes")
        return None
    if flags & _HEADER_CRC and zlib.crc32(header[:checked]) & 0xFFFF != int.from_bytes(header[checked:end], "little"):
        raise _refused(what, "its gzip header and the header's checksum disagree")
    return end


def _refused(what: str, why: str) -> UnsafeImage:
    return UnsafeImage(what, rule="corrupt-compression", why=why)
