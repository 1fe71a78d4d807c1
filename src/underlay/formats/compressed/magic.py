"""Which compression a stream is of, by its first bytes.

More than the magic number must be right, so that no disk, partition table or boot sector is taken for compressed: gzip's
method and reserved flags, xz's stream flags, the first block of bzip2, the reserved bit of a zstd frame.
"""

from underlay.formats.compressed import zstd_frame

MAGIC_BYTES = 17
"""How much of a stream's beginning tells its compression: the longest is pzstd's, 12 bytes to skip before a frame's first 5."""

GZIP = b"\x1f\x8b\x08"  # RFC 1952, 2.3.1; deflate is the only method that there is
XZ = b"\xfd7zXZ\0"  # The .xz File Format, 2.1.1.1
BZIP2 = b"BZh"

_GZIP_RESERVED = 0xE0
_XZ_RESERVED = 0xF0  # of the second byte of flags, whose other bits say which check it has; the first byte is zero
_BZIP2_LEVELS = b"123456789"
_BZIP2_FIRST = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")  # a block, or the end of a stream of nothing


def compression_of(beginning: bytes) -> str | None:
    """Which compression a stream is of: ``gzip``, ``xz``, ``zstd`` or ``bzip2``; None when it is of none of them.

    Args:
        beginning: `MAGIC_BYTES` of the stream, or all of a shorter one.
    """
    if _is_gzip(beginning):
        return "gzip"
    if _is_xz(beginning):
        return "xz"
    if _is_bzip2(beginning):
        return "bzip2"
    return "zstd" if _is_zstd(beginning) else None


def _is_gzip(beginning: bytes) -> bool:
    flags = beginning[3:4]
    return beginning.startswith(GZIP) and flags != b"" and not flags[0] & _GZIP_RESERVED


def _is_xz(beginning: bytes) -> bool:
    flags = beginning[len(XZ) : len(XZ) + 2]
    return beginning.startswith(XZ) and len(flags) == 2 and flags[0] == 0 and not flags[1] & _XZ_RESERVED


def _is_bzip2(beginning: bytes) -> bool:
    level = beginning[3:4]
    return beginning.startswith(BZIP2) and level != b"" and level in _BZIP2_LEVELS and beginning.startswith(_BZIP2_FIRST, 4)


def _is_zstd(beginning: bytes) -> bool:
    """A skippable frame counts only when zstd's own follows it at once, as pzstd writes them: LZ4 has skippable frames too, and
    a longer one hides what it is in front of.
    """
    skipped = zstd_frame.skippable_length(beginning) or 0
    return zstd_frame.begins(beginning[skipped:])
