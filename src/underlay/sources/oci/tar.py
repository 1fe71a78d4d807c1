"""A tar archive as it streams by: its entries in order, and the bytes of each. Nothing is ever written to a path from it.

POSIX.1-2001 (pax) and ustar, with GNU's long names and large numbers. Sparse entries are refused: their bytes are not those of
the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from underlay.contracts import ByteStream
from underlay.errors import SourceRefused
from underlay.values import replace

BLOCK = 512
MOST_BESIDE = 2 << 30
"""Bytes of other entries that are read past: a few kilobytes of a compressed archive can stand for them."""
_LONGEST_EXTENSION = 64 << 10  # bytes of all that comes before one entry's own header; a path has 4 KiB at most
_MOST_HEADERS = 32 << 20  # bytes of the archive's headers; each costs far more time than as many bytes of a file
_SCRATCH = 1 << 20

# Bytes of the header's fields (POSIX.1-2001, pax, "ustar Interchange Format").
_NAME, _SIZE, _CHECKSUM, _KIND, _MAGIC, _PREFIX = (
    slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157), slice(257, 263), slice(345, 500),
)  # fmt: skip
_FILES = frozenset({b"0", b"\0", b"7"})
_KINDS: Mapping[bytes, str] = {
    b"1": "a hard link", b"2": "a symlink", b"3": "a device", b"4": "a device", b"5": "a directory", b"6": "a FIFO",
}  # fmt: skip
_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK, _SPARSE = b"x", b"g", b"L", b"K", b"S"
_EXTENSIONS = frozenset({_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK})
_FILE = "a file"
_SPARSE_WORDS = "GNU.sparse."


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        kind: in words: a file, a directory, a symlink …
        size: bytes that follow its header.
    """

    name: str
    kind: str
    size: int

    @property
    def is_file(self) -> bool:
        """Whether it is a file with bytes of its own."""
        return self.kind == _FILE

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == _KINDS[b"5"]


@dataclass(slots=True)
class TarReader:
    """Reads an archive once, from its beginning to its end.

    Attributes:
        what: how messages call the archive.
    """

    what: str
    stream: ByteStream
    _left: int = 0
    _padding: int = 0
    _beside: int = 0
    _headers: int = 0
    _scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(_SCRATCH)))

    def next(self) -> Entry | None:
        """The next entry, past what is left of the one before it; None at the archive's end.

        Raises:
            SourceRefused: it is no tar archive, it is damaged or cut off, or it has an entry that is not read here. As its
            stream.
        """
        told: dict[str, str] = {}
        extension = 0
        while (header := self._header()) is not None:
            kind, size = header[_KIND], self._number(header[_SIZE])
            if kind in _EXTENSIONS:
                extension += BLOCK + size
                self._check_extension(extension, size)
            if kind in (_PAX, _PAX_FOR_ALL):
                told |= self._pax(size, for_all=kind == _PAX_FOR_ALL)
            elif kind == _LONG_NAME:
                told["path"] = _text(self._content(size).partition(b"\0")[0])
            elif kind == _LONG_LINK:
                self._content(size)
            else:
                return self._begin(_entry(header, kind, size), told)
        if told:
            raise self._wrong("it ends after a header that belongs to an entry")
        return None

    def readinto(self, buffer: memoryview, /) -> int:
        """Some of what is left of the entry; 0 at its end.

        Raises:
            as `next`
        """
        if not self._left:
            return 0
        length = self.stream.readinto(buffer[: self._left])
        if not length:
            raise self._wrong("it is cut off in the middle of an entry")
        self._left -= length
        return length

    def _begin(self, entry: Entry, told: Mapping[str, str]) -> Entry:
        if entry.kind == "a sparse file" or any(word.startswith(_SPARSE_WORDS) for word in told):
            raise self._wrong("it has a sparse entry", hint="make the archive without --sparse")
        entry = replace(entry, name=told.get("path", entry.name))
        if "size" in told:
            entry = replace(entry, size=self._decimal(told["size"]))
        if entry.kind in _KINDS.values():
            entry = replace(entry, size=0)  # a header is all that they have
        self._left, self._padding = entry.size, -entry.size % BLOCK
        return entry

    def _check_extension(self, of_entry: int, size: int) -> None:
        """Make sure, before it is read, that a header is not too much for its entry or for the archive."""
        if of_entry > _LONGEST_EXTENSION:
            raise self._wrong(f"an entry has more than {_LONGEST_EXTENSION >> 10} KiB of headers")
        self._count_headers(size)

    def _count_headers(self, size: int) -> None:
        self._headers += size
        if self._headers > _MOST_HEADERS:
            raise self._wrong(f"it has more than {_MOST_HEADERS >> 20} MiB of headers")

    def _header(self) -> bytes | None:
        self._skip()
        self._count_headers(BLOCK)
        block = self._exactly(BLOCK, may_end=True)
        # Two blocks of zeros end an archive. One is enough for us, and so is the end of the stream: a digest tells what is cut.
        if not block or not any(block):
            return None
        # The checksum field itself counts as blanks; some wrote it with signed bytes.
        counted = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
        beyond = sum(counted) - self._number(block[_CHECKSUM])
        if beyond and beyond != 256 * sum(byte > 127 for byte in counted):
            raise self._wrong("it is no tar archive, or it is damaged")
        return block

    def _skip(self) -> None:
        left = self._left + self._padding
        self._beside += left
        if self._beside > MOST_BESIDE:
            raise self._wrong(f"it holds more than {MOST_BESIDE >> 30} GiB beside what is wanted")
        while left:
            length = self.stream.readinto(self._scratch[:left])
            if not length:
                raise self._wrong("it is cut off in the middle of an entry")
            left -= length
        self._left = self._padding = 0

    def _content(self, size: int) -> bytes:
        self._padding = -size % BLOCK
        return self._exactly(size)

    def _exactly(self, size: int, *, may_end: bool = False) -> bytes:
        content = bytearray(size)
        done, view = 0, memoryview(content)
        while done < size and (length := self.stream.readinto(view[done:])):
            done += length
        if done < size and not (may_end and not done):
            raise self._wrong("it is cut off in the middle of a header")
        return bytes(content[:done])

    def _pax(self, size: int, *, for_all: bool) -> dict[str, str]:
        """What a pax header tells of the entry after it: lines of ``LENGTH KEYWORD=VALUE``, the whole's length."""
        content, told, start = self._content(size).rstrip(b"\0"), {}, 0
        while start < len(content):
            digits, blank, _ = content[start : start + 21].partition(b" ")
            length = self._decimal(_text(digits)) if blank else 0
            line, start = content[start : start + length], start + length
            keyword, equals, value = line[len(digits) + 1 : -1].partition(b"=")
            if not equals or line[-1:] != b"\n" or len(line) != length:
                raise self._wrong("it has a damaged pax header")
            told[_text(keyword)] = _text(value)
        wanted = {word: value for word, value in told.items() if word in ("path", "size") or word.startswith(_SPARSE_WORDS)}
        if for_all and wanted:
            raise self._wrong("it has a name or a size for all of its entries")
        return wanted

    def _number(self, field: bytes) -> int:
        if field[0] in (0x80, 0xFF):  # GNU: a binary number, the first bit set apart
            if field[0] == 0xFF:
                raise self._wrong("it has a negative number")
            return int.from_bytes(field[1:])
        digits = field.strip(b" \0").decode("latin-1")
        if not digits:
            return 0
        if not all(digit in "01234567" for digit in digits):
            raise self._wrong("it is no tar archive, or it is damaged")
        return int(digits, 8)

    def _decimal(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise self._wrong("it has a damaged pax header")
        return int(text)

    def _wrong(self, why: str, *, hint: str | None = None) -> SourceRefused:
        return SourceRefused(f"{self.what}: {why}", hint=hint)


def _entry(header: bytes, kind: bytes, size: int) -> Entry:
    name = header[_NAME].partition(b"\0")[0]
    # GNU uses the prefix's place for other things, and says so in the magic.
    prefix = header[_PREFIX].partition(b"\0")[0] if header[_MAGIC] == b"ustar\0" else b""
    path = _text(prefix + b"/" + name if prefix else name)
    if kind == _SPARSE:
        return Entry(path, "a sparse file", size)
    # Before POSIX a directory was a file whose name ends with a slash.
    if kind in _FILES and not path.endswith("/"):
        return Entry(path, _FILE, size)
    return Entry(path, _KINDS[b"5"] if kind in _FILES else _KINDS.get(kind, "an entry of an unknown kind"), size)


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")
