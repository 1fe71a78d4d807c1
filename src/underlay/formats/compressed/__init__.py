"""Compressed images: which compression a stream begins with, and what it holds, decompressed while it arrives.

gzip (RFC 1952), xz (The .xz File Format 1.2), zstd (RFC 8878) and bzip2, each as its own tool writes it. `magic` recognises
them, `decompressor` reads a stream of them, `members` says how one member of each is read; `gzip_member` and `zstd_frame` read
what the libraries alone do not read safely.
"""

from underlay.formats.compressed.decompressor import OUTPUT_BYTES, Decompressor
from underlay.formats.compressed.magic import MAGIC_BYTES, compression_of
from underlay.formats.compressed.members import WINDOW_LIMIT

__all__ = ["MAGIC_BYTES", "OUTPUT_BYTES", "WINDOW_LIMIT", "Decompressor", "compression_of"]
