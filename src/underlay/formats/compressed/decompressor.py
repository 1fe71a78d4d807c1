"""A compressed stream, decompressed while it arrives.

Members, streams or frames may follow each other, as pigz, pixz, pzstd and pbzip2 leave them. Whatever else follows is refused,
and so is everything that the format's own checksums contradict. A few bytes can stand for gigabytes, so nothing is
decompressed further than to the next full piece that is asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from underlay.errors import UnsafeImage
from underlay.formats.compressed.members import Compression, Member, reading, refusal

OUTPUT_BYTES = 1 << 20
"""How long the decompressed pieces are, but for the last one."""

# What a member's end leaves is copied. Of small pieces that is little, however many members there are.
_INPUT_BYTES = 64 << 10
_MEMBERS = 10_000  # that may be however small, in a row
_LEAST_OUTPUT = 1024  # bytes that others must hold, taken together; those of BGZF hold 64 KiB
_STEP_BYTES = 256 << 10  # decompressed at once: little enough to be in the processor's cache when it is copied on


@dataclass(slots=True)
class Decompressor:
    """Decompresses one stream: `feed` it every byte in order, then ask it to `finish`. In one thread at a time.

    Both give pieces of `OUTPUT_BYTES`, and `finish` the last one, which may be shorter. Each is valid until the next is asked
    for, and all must have been taken before the next bytes are fed. Nothing more can be asked after an error.

    Attributes:
        what: how messages call the image.
        compression: as `underlay.formats.compressed.compression_of` says it.
    """

    what: str
    compression: str
    _reading: Compression | None = None
    _member: Member | None = None
    _has_ended: bool = False  # a member has, so the stream may end here
    _between: bytearray = field(default_factory=bytearray)  # too few bytes to tell whether another member begins
    _padding: int = 0
    _owed: int = 0  # bytes that the members so far should have held and did not
    _buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(OUTPUT_BYTES)))
    _length: int = 0  # of what is in the buffer

    def feed(self, piece: memoryview) -> Iterator[memoryview]:
        """Take the next bytes, as many as there are; what they decompress to.

        Raises:
            UnsafeImage: they are broken, want too large a window, or do not belong to the compressed data.
        """
        for start in range(0, len(piece), _INPUT_BYTES):
            yield from self._read(piece[start : start + _INPUT_BYTES])

    def finish(self) -> Iterator[memoryview]:
        """What is left at the stream's end.

        Raises:
            UnsafeImage: as `feed`, and when it ends in the middle.
        """
        if self._member is not None:
            yield from self._expand(self._member, b"")
        if self._member is not None or self._between or not self._has_ended:
            raise UnsafeImage(self.what, rule="cut-short", why=f"it ends in the middle of its {self.compression} data")
        self._check_padding()
        if self._length:
            yield self._buffer[: self._length]

    def _read(self, data: bytes | memoryview) -> Iterator[memoryview]:
        while data:
            member = self._member
            if member is None:
                data = self._begin(data)
            else:
                yield from self._expand(member, data)
                data = member.unused_data if member.eof else b""

    # ------------------------------------------------------------------------------------------------------ between two members

    def _begin(self, data: bytes | memoryview) -> bytes:
        """Begin the member that is next, if it is here; the bytes that are for it."""
        self._between += data
        self._skip_padding()
        if not self._between or not self._begins_member():
            return b""
        self._check_padding()
        self._check_members()
        self._member, self._padding = self._compression().start(self.what), 0
        begun = bytes(self._between)
        self._between.clear()
        return begun

    def _skip_padding(self) -> None:
        if self._has_ended and self._compression().padding:
            zeros = len(self._between) - len(self._between.lstrip(b"\0"))
            del self._between[:zeros]
            self._padding += zeros

    def _begins_member(self) -> bool:
        """Whether a member begins here; False as long as too little is here to tell."""
        starts = self._compression().starts
        if not any(start.startswith(self._between[: len(start)]) for start in starts):
            if self._has_ended:
                raise UnsafeImage(self.what, rule="trailing-bytes", why=f"something else follows its {self.compression} data")
            raise UnsafeImage(self.what, rule="corrupt-compression", why=f"it does not begin as {self.compression} does")
        return len(self._between) >= len(starts[0])

    def _check_members(self) -> None:
        """Each member costs time, and one without content is a few bytes; nothing that is written to be read has so many.

        What one member holds too much is no credit for later ones: a few bytes can stand for gigabytes of it.
        """
        self._owed += _LEAST_OUTPUT
        if self._owed > _MEMBERS * _LEAST_OUTPUT:
            why = f"more than {_MEMBERS} of its members in a row hold next to nothing"
            raise UnsafeImage(self.what, rule="corrupt-compression", why=why)

    def _check_padding(self) -> None:
        if self._padding and self._padding % self._compression().padding:
            why = f"{self._padding} zeros follow its {self.compression} data"
            raise UnsafeImage(self.what, rule="trailing-bytes", why=why)

    # -------------------------------------------------------------------------------------------------------- within a member

    def _expand(self, member: Member, data: bytes | memoryview) -> Iterator[memoryview]:
        while not member.eof and (output := self._decompress(member, data)):
            yield from self._gather(memoryview(output))
            data = b""
        if member.eof:
            self._member, self._has_ended = None, True

    def _decompress(self, member: Member, data: bytes | memoryview) -> bytes:
        with self._translated():
            return member.decompress(data, _STEP_BYTES)

    def _gather(self, output: memoryview) -> Iterator[memoryview]:
        self._owed = max(0, self._owed - len(output))
        while output:
            taken = output[: OUTPUT_BYTES - self._length]
            self._buffer[self._length : self._length + len(taken)] = taken
            self._length += len(taken)
            output = output[len(taken) :]
            if self._length == OUTPUT_BYTES:
                self._length = 0
                yield self._buffer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._compression().error as error:
            raise refusal(self.what, self._compression(), error) from error

    def _compression(self) -> Compression:
        if self._reading is None:
            self._reading = reading(self.compression)
        return self._reading
