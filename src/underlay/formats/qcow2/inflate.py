"""Compressed clusters: deflate without a header (zlib) or zstd, each a stream of its own that makes one whole cluster."""

from collections.abc import Callable
from typing import cast

from deflate import DeflateError, deflate_decompress
from isal import igzip_lib, isal_zlib
from zstandard import ZstdDecompressor, ZstdError

from underlay.errors import UnsafeImage
from underlay.formats.qcow2.header import ZSTD

_WINDOW_BITS = 15  # QEMU writes with 12, and reads what others write with more; negative: without a header
_ZSTD_WINDOW = 128 << 20  # what libzstd, and so QEMU, reads without being told more


_ISAL_ERROR = cast("type[Exception]", igzip_lib.IsalError)  # isal's own types call it an instance


def inflate(data: memoryview, cluster_bytes: int, *, compression: int, what: str) -> bytes | bytearray:
    """The cluster that the data begin with; as QEMU has it, what follows and what would be more is nobody's.

    Args:
        compression: the header's.

    Raises:
        UnsafeImage: the data are broken, or make less than a cluster.
    """
    inflated = _READERS[compression](data, cluster_bytes)
    if inflated is None or len(inflated) != cluster_bytes:
        raise UnsafeImage(what, rule="corrupt", why="the data of a compressed cluster are broken or cut short")
    return inflated


def _zlib(data: memoryview, cluster_bytes: int) -> bytes | bytearray | None:
    # All at once and into what a cluster takes: measured, libdeflate needs three quarters of the processor time that isal does.
    try:
        return deflate_decompress(data, cluster_bytes)
    except DeflateError:
        return _zlib_in_part(data, cluster_bytes)


def _zlib_in_part(data: memoryview, cluster_bytes: int) -> bytes | None:
    """As `_zlib`, of data that would make more than a cluster, if they are not broken."""
    try:
        return isal_zlib.decompressobj(-_WINDOW_BITS).decompress(data, cluster_bytes)
    except _ISAL_ERROR:
        return None


def _zstd(data: memoryview, cluster_bytes: int) -> bytes | None:
    # Not by decompress(), which allocates what the frame claims to hold.
    try:
        with ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(data, read_across_frames=True) as reader:
            return reader.read(cluster_bytes)
    except (ZstdError, MemoryError):
        return None


_READERS: tuple[Callable[[memoryview, int], bytes | bytearray | None], ...] = (_zlib, _zstd)
assert len(_READERS) == ZSTD + 1
