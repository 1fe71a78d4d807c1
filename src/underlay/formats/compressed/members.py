"""How one member of each compression is read: by which library, within how much memory, and what may stand between two.

The libraries are imported when the first byte of their compression is to be read: a command that finds its image cached, and
a Python that was built without one of them, do not need them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

from underlay.errors import UnsafeImage
from underlay.formats.compressed import magic, zstd_frame
from underlay.formats.compressed.gzip_member import GzipMember
from underlay.units import format_size

WINDOW_LIMIT = 128 << 20
"""Bytes that a member may refer back by: a zstd window or an xz dictionary. What ``xz -9``, ``zstd --ultra -22`` and
``zstd --long=27`` write is within it; it is also what ``zstd -d`` reads without being told more."""

_XZ_BESIDE = 1 << 20  # what liblzma has beside the dictionary, generously
_XZ_TOO_LARGE = "Memory usage limit exceeded"  # Python gives liblzma's errors no code, only these texts
_XZ_UNSUPPORTED = "Invalid or unsupported options"


class Member(Protocol):
    """What reads one gzip member, xz or bzip2 stream, or zstd frame. The standard library's decompressors have this shape."""

    @property
    def eof(self) -> bool:
        """Whether its end has been read."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What was given after its end."""
        ...

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        """Take the next bytes, and give at most ``max_length``: nothing only when more bytes are wanted, or it has ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How a compression is read.

    Attributes:
        starts: what each member begins with, one of them; all of one length, and none begins with a zero.
        padding: zeros may follow a member, in multiples of so many; 0: none may.
        error: what `start`'s members raise over broken data. start: makes what reads one member; takes the image's name.
    """

    name: str
    starts: tuple[bytes, ...]
    padding: int
    error: type[Exception]
    start: Callable[[str], Member]


def reading(name: str) -> Compression:
    """The compression of this name, as `magic.compression_of` says it."""
    return _COMPRESSIONS[name]()


def refusal(what: str, compression: Compression, error: Exception) -> UnsafeImage:
    """What an error of a compression's library means."""
    match str(error):
        case message if message == _XZ_TOO_LARGE:
            return UnsafeImage(what, rule="compression-window", why=f"its xz dictionary is over {format_size(WINDOW_LIMIT)}")
        case message if message == _XZ_UNSUPPORTED:
            return UnsafeImage(what, rule="unknown-feature", why="its xz filters are not known")
        case message:
            why = f"its {compression.name} data are broken: {message}"
            return UnsafeImage(what, rule="corrupt-compression", why=why)


def _gzip() -> Compression:
    from isal import igzip_lib

    error = cast("type[Exception]", igzip_lib.IsalError)  # isal's own types call it an instance
    # Zeros fill the blocks of a tape or a device, and gzip has always read over them.
    return Compression(name="gzip", starts=(magic.GZIP,), padding=1, error=error, start=GzipMember)


def _xz() -> Compression:
    import lzma

    def start(_: str) -> Member:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=WINDOW_LIMIT + _XZ_BESIDE)

    # "Stream Padding", 2.2 of the format
    return Compression(name="xz", starts=(magic.XZ,), padding=4, error=lzma.LZMAError, start=start)


def _zstd() -> Compression:
    from zstandard import ZstdError

    def start(what: str) -> Member:
        return zstd_frame.ZstdFrame(what, WINDOW_LIMIT)

    return Compression(name="zstd", starts=zstd_frame.MAGICS, padding=0, error=ZstdError, start=start)


def _bzip2() -> Compression:
    import bz2

    # bz2 says OSError of broken data; nothing in memory has another reason to raise it.
    return Compression(name="bzip2", starts=(magic.BZIP2,), padding=0, error=OSError, start=lambda _: bz2.BZ2Decompressor())


_COMPRESSIONS: Mapping[str, Callable[[], Compression]] = MappingProxyType(
    {"gzip": _gzip, "xz": _xz, "zstd": _zstd, "bzip2": _bzip2}
)
