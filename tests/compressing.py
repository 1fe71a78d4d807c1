"""Compressed streams for tests: made by the libraries, member by member, and read back by our own decompressor."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import zstandard

from underlay.formats.compressed import OUTPUT_BYTES, Decompressor


def _zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


COMPRESS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {"gzip": lambda content: gzip.compress(content, mtime=0), "xz": lzma.compress, "zstd": _zstd, "bzip2": bz2.compress}
)
"""One member that holds the content, by the compression's name."""


def pieces_of(served: bytes, step: int = 1 << 20) -> Iterable[bytes]:
    """A stream in pieces of one length."""
    return (served[start : start + step] for start in range(0, len(served), step))


def decompressed(compression: str, pieces: Iterable[bytes]) -> bytes:
    """What the pieces of a stream decompress to."""
    decompressor = Decompressor("image", compression)
    found = [bytes(output) for piece in pieces for output in decompressor.feed(memoryview(piece))]
    assert all(len(output) == OUTPUT_BYTES for output in found)
    return b"".join([*found, *map(bytes, decompressor.finish())])
