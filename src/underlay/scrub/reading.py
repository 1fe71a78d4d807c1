"""One reading of an image for its stored digest: from the medium, read ahead while it is hashed, holes left out.

The file is read with O_DIRECT: what comes is what the medium holds, not what the page cache does, and the pages that guests are
served from stay where they are. Where a file system has no such reading, the pages of the file are dropped before and after; it
is still the medium that is read, but guests have to read it as well. What a drive or a controller keeps in its own memory is
beyond both. Some threads read and this one hashes, so a reading takes as long as the slower of the two.
"""

import errno
import math
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from underlay import midstate
from underlay.errors import StorageFailed
from underlay.files import open_regular, read_full
from underlay.policy.scrub import Reading
from underlay.scrub.pace import Pace
from underlay.store.scrubs import Stopped
from underlay.stream import BLOCK_BYTES, StoredDigest, block_ranges, filled_runs
from underlay.threads import submit

_PIECE = 1 << 20
_READERS = 4  # requests at a time: measured on a disk that others used, two of 2 MiB take 1.4 times as long
_AHEAD = 12  # pieces that are read before they are hashed
_SECTOR = 512

# What the medium's own failures come as: a sector that cannot be read, and a checksum of the drive's or the file system's that
# does not match (Linux, block/blk-core.c, blk_errors; ext4, xfs and btrfs give the last two). Any other error is of the way to
# it, such as a server that does not answer, and says nothing of what is there.
_DAMAGE = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN})


class _BadMedium(Exception):
    """The medium does not give what it holds. Never leaves this module."""


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image that is open for reading.

    Attributes:
        direct: whether it is read past the page cache.
    """

    path: Path
    fd: int
    direct: bool


@contextmanager
def opened(path: Path) -> Iterator[OpenedImage]:
    """Open an image to be read from its medium.

    Raises:
        FileNotFoundError, OSError: as `underlay.files.open_regular`.
    """
    try:
        image = OpenedImage(path, open_regular(path, os.O_RDONLY | os.O_DIRECT), direct=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        image = OpenedImage(path, open_regular(path), direct=False)
    try:
        yield image
    finally:
        os.close(image.fd)


@dataclass(slots=True)
class ImageReader:
    """Reads an image from its beginning, or from where a reading stopped, to its end or until it is told to stop.

    Attributes:
        done: bytes from the beginning on that are in the digest. read: bytes that were really read.
    """

    image: OpenedImage
    pace: Pace
    done: int = 0
    read: int = 0
    _digest: StoredDigest = field(default_factory=StoredDigest)

    def go_on_from(self, stopped: Stopped | None) -> None:
        """Begin where a reading stopped; where that cannot be, begin anew, in a way that can be stopped if any can."""
        content = midstate.resumed(stopped.content) if stopped else midstate.new()
        places = midstate.resumed(stopped.places) if stopped else midstate.new()
        if content is None or places is None:
            return
        self._digest = StoredDigest(content, places, stopped.run if stopped else None)
        self.done = stopped.offset if stopped else 0

    @property
    def can_stop(self) -> bool:
        """Whether a reading that stops here can be gone on with."""
        return isinstance(self._digest.data, midstate.Sha256)

    @property
    def stopped(self) -> Stopped | None:
        """Where it is, for another reading to go on from; None where none can."""
        content, places = self._digest.data, self._digest.places
        if not isinstance(content, midstate.Sha256) or not isinstance(places, midstate.Sha256):
            return None
        return Stopped(offset=self.done, content=content.state(), places=places.state(), run=self._digest.run)

    def finish(self, advance: Callable[[], bool]) -> Reading | None:
        """Read on to the end; None when it was told to stop.

        Args:
            advance: is called after each piece, and says whether to go on.

        Raises:
            OSError, StorageFailed: the file could not be read, and that is not to be blamed on what the medium holds.
        """
        size = os.fstat(self.image.fd).st_size
        if not self.image.direct:
            self._drop_pages()
        try:
            with ThreadPoolExecutor(_READERS, "underlay-scrub") as reading:
                for offset, piece in _telling_damage(self._pieces(reading, size)):
                    for start, end in filled_runs(piece):
                        self._digest.add(offset + start, piece[start:end])
                    self.done = min(size, offset + len(piece))
                    self.read += len(piece)
                    if not advance():
                        return None
        except _BadMedium as error:
            return Reading(failure=f"{error} at byte {self.done} or soon after it")
        finally:
            if not self.image.direct:
                self._drop_pages()
        self.done = size
        return Reading(stored=self._digest.result())

    def _pieces(self, reading: ThreadPoolExecutor, size: int) -> Iterator[tuple[int, memoryview]]:
        """The data of the file, piece by piece, with its offsets; each is valid until the next is asked for."""
        wanted = _ranges(self.image.fd, self.done, size)
        count = _AHEAD if self.pace.rate == math.inf else 1  # nothing is ahead of a pace
        free = [memoryview(mmap.mmap(-1, _PIECE)) for _ in range(count)]  # aligned to pages, as O_DIRECT has to have it
        ahead: deque[tuple[int, memoryview, Future[int]]] = deque()
        while True:
            while free and (next_range := next(wanted, None)) is not None:
                start, end = next_range
                self.pace.spend(end - start)
                buffer = free.pop()
                ahead.append((start, buffer, submit(reading, read_piece, self.image, buffer, start, end)))
            if not ahead:
                return
            offset, buffer, piece = ahead.popleft()
            yield offset, buffer[: piece.result()]
            free.append(buffer)

    def _drop_pages(self) -> None:
        os.posix_fadvise(self.image.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _ranges(fd: int, begin: int, size: int) -> Iterator[tuple[int, int]]:
    for start, end in block_ranges(fd, begin, size):
        for piece in range(start, end, _PIECE):
            yield piece, min(piece + _PIECE, end)


def _telling_damage(pieces: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    """The pieces; what goes wrong between them, in whoever takes them, is none of the medium's failures."""
    while True:
        try:
            piece = next(pieces, None)
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            raise _BadMedium(error.strerror) from error
        if piece is None:
            return
        yield piece


def read_piece(image: OpenedImage, buffer: memoryview, start: int, end: int) -> int:
    """Read a piece; fewer bytes than asked for only at the end of the file.

    Args:
        buffer: aligned to pages, with room for whole blocks.

    Raises:
        OSError
        StorageFailed: the file ends before its size.
    """
    if image.direct:
        length = _read_direct(image.fd, buffer, start, end)
        if length is None:
            length = _read_without_pages(image.fd, buffer[: end - start], start)
    else:
        length = read_full(image.fd, buffer[: end - start], start)
    if start + length < min(end, os.fstat(image.fd).st_size):
        raise StorageFailed(f"{image.path}: reading it ended at byte {start + length}, before its end")
    return length


def _read_direct(fd: int, buffer: memoryview, start: int, end: int) -> int | None:
    """The bytes that came past the page cache; None where the file system has no such reading of this piece."""
    # Nothing but whole sectors can be asked for, so what is no whole number of them was the end, or the file system gives less.
    room, length = -(-(end - start) // BLOCK_BYTES) * BLOCK_BYTES, 0
    while length < room and length % _SECTOR == 0:
        try:
            received = os.preadv(fd, [buffer[length:room]], start + length)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return None
        if received == 0:
            break
        length += received
    length = min(length, end - start)
    return length if start + length >= min(end, os.fstat(fd).st_size) else None


def _read_without_pages(fd: int, buffer: memoryview, start: int) -> int:
    """Read through the page cache, from the medium all the same: the pages are dropped before and after."""
    buffered = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # this very file, whatever has its name by now
    try:
        os.posix_fadvise(buffered, start, len(buffer), os.POSIX_FADV_DONTNEED)
        length = read_full(buffered, buffer, start)
        os.posix_fadvise(buffered, start, len(buffer), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(buffered)
    return length
