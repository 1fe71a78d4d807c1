"""One zstd frame (RFC 8878): its header and the bounds of its blocks read here, the blocks by the zstandard library.

That library has no decompressor that is fed and gives a bounded answer: a block of four bytes may stand for 128 KiB, so a
megabyte of them would come back as 32 GiB at once. But no block stands for more (3.1.1.2), so a frame that is given to it block
by block never gives more than is wanted. Knowing the bounds also tells a frame that is cut short from one that is whole.
"""

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from underlay.errors import UnsafeImage
from underlay.units import format_size

if TYPE_CHECKING:
    from zstandard import ZstdDecompressionObj

_MAGIC = b"\x28\xb5\x2f\xfd"  # 3.1.1
_SKIPPABLE_MAGICS = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))  # 3.1.2
MAGICS = (_MAGIC, *_SKIPPABLE_MAGICS)

_SINGLE_SEGMENT, _RESERVED, _CHECKSUM = 0x20, 0x08, 0x04  # bits of the frame header's descriptor
_CHECKSUM_BYTES = 4
_BLOCK_HEADER_BYTES = 3
_BLOCK_BYTES = 128 << 10  # at most, compressed or not
_RLE = 1  # the type of a block that is one byte, repeated
_SKIPPABLE = struct.Struct("<4xI")  # magic, length of what follows


def begins(beginning: bytes) -> bool:
    """Whether a frame that holds data begins here, as far as its magic number and its reserved bit tell."""
    return beginning.startswith(_MAGIC) and len(beginning) > len(_MAGIC) and not beginning[len(_MAGIC)] & _RESERVED


def skippable_length(beginning: bytes | bytearray) -> int | None:
    """Bytes of the skippable frame that begins here; None when none does, or its length is not here yet."""
    if len(beginning) < _SKIPPABLE.size or not beginning.startswith(_SKIPPABLE_MAGICS):
        return None
    return _SKIPPABLE.size + int(_SKIPPABLE.unpack_from(beginning)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What the header of a frame says.

    Attributes:
        length: bytes of the header. window: bytes that must be held for the data to refer back to.
        has_checksum: a checksum follows the last block. dictionary: the number of the one that is needed; 0: none.
    """

    length: int
    window: int
    has_checksum: bool
    dictionary: int


@dataclass(slots=True)
class ZstdFrame:
    """Reads one frame, skippable ones too, as `bz2.BZ2Decompressor` reads its stream.

    Attributes:
        what: how messages call the image. window_limit: bytes.
        eof: the frame's end has been read. unused_data: what was given after it.
    """

    what: str
    window_limit: int
    eof: bool = False
    unused_data: bytes = b""
    _held: bytearray = field(default_factory=bytearray)
    _skipping: int = 0  # bytes of a skippable frame that are to come
    _has_checksum: bool = False
    _blocks: "ZstdDecompressionObj | None" = None

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        """Take the next bytes, and give at most ``max_length``, which is not below 128 KiB.

        Raises:
            UnsafeImage: the frame is broken, or wants a dictionary or too large a window.
            ZstdError: what is in its blocks is broken.
        """
        self._held += data
        if self._blocks is None and not self._begin():
            return b""
        output = b""
        while not output and (end := self._whole_blocks(max_length // _BLOCK_BYTES)):
            output = self._decompress_held(end)
        return output

    def _begin(self) -> bool:
        """Read the header; whether blocks are to be read."""
        if not self._skipping:
            self._skipping = skippable_length(self._held) or 0
        if self._skipping:
            self._skip()
            return False
        header = _parse_header(self._held)
        if header is None:
            return False
        self._check(header)
        self._has_checksum = header.has_checksum
        self._blocks = _new(self.window_limit)
        self._decompress_held(header.length)
        return True

    def _skip(self) -> None:
        skipped = min(self._skipping, len(self._held))
        del self._held[:skipped]
        self._skipping -= skipped
        if not self._skipping:
            self._end()

    def _check(self, header: _Header) -> None:
        if header.window > self.window_limit:
            sizes = f"{format_size(header.window)}, over the limit of {format_size(self.window_limit)}"
            raise UnsafeImage(self.what, rule="compression-window", why=f"its zstd window is {sizes}")
        if header.dictionary:
            raise UnsafeImage(self.what, rule="unknown-feature", why=f"it needs the zstd dictionary {header.dictionary}")

    def _whole_blocks(self, most: int) -> int:
        """Length of the whole blocks that are held, ``most`` of them at most; 0 when there is none."""
        end = 0
        for _ in range(0 if self.eof else most):
            header = int.from_bytes(self._held[end : end + _BLOCK_HEADER_BYTES], "little")
            is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
            if size > _BLOCK_BYTES:
                raise UnsafeImage(self.what, rule="corrupt-compression", why=f"a zstd block of {size} bytes is too long")
            length = _BLOCK_HEADER_BYTES + (1 if kind == _RLE else size)
            length += _CHECKSUM_BYTES if is_last and self._has_checksum else 0
            if end + length > len(self._held):
                break
            end += length
            if is_last:
                break
        return end

    def _decompress_held(self, end: int) -> bytes:
        assert self._blocks is not None
        with memoryview(self._held) as held, held[:end] as blocks:
            output = self._blocks.decompress(blocks)
        del self._held[:end]
        if self._blocks.eof:
            self._end()
        return output

    def _end(self) -> None:
        self.eof, self.unused_data = True, bytes(self._held)
        self._held.clear()


def _new(window_limit: int) -> "ZstdDecompressionObj":
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=window_limit).decompressobj()


def _parse_header(held: bytearray) -> _Header | None:
    """The header of a frame that holds data (3.1.1.1); None as long as it is not whole."""
    if len(held) <= len(_MAGIC) or not held.startswith(_MAGIC):
        return None
    descriptor, position = held[len(_MAGIC)], len(_MAGIC) + 1
    single = bool(descriptor & _SINGLE_SEGMENT)
    window_bytes, dictionary_bytes = 0 if single else 1, (0, 1, 2, 4)[descriptor & 3]
    size_bytes = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    length = position + window_bytes + dictionary_bytes + size_bytes
    if len(held) < length:
        return None
    size = int.from_bytes(held[length - size_bytes : length], "little") + (256 if size_bytes == 2 else 0)
    return _Header(
        length=length,
        window=size if single else _window(held[position]),
        has_checksum=bool(descriptor & _CHECKSUM),
        dictionary=int.from_bytes(held[position + window_bytes : length - size_bytes], "little"),
    )


def _window(byte: int) -> int:
    """What a window descriptor says, in bytes (3.1.1.1.2)."""
    base = 1 << (10 + (byte >> 3))
    return base + base // 8 * (byte & 7)
