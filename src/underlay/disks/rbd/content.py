"""The bytes of an image, to and from files of this host. Zeros are left out on the way."""

import os
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from underlay.disks.rbd.cluster import CallFailed
from underlay.disks.rbd.named import ImageName
from underlay.files import create, data_extents, open_regular, write_sparse
from underlay.stream import BLOCK_BYTES, filled_runs
from underlay.waiting import Pulse

_PIECE = 4 << 20
_AT_ONCE = 16  # writes on their way: 64 MiB at most
_WINDOW = 1 << 30
_MODE = 0o640


def write_file(of: ImageName, image: Any, source: Path, *, size: int) -> None:
    """Write the first ``size`` bytes of a raw file into a new image; on return they are durable.

    Raises:
        OSError: of the file. BackendUnavailable, InsufficientSpace, StorageFailed
    """
    pulse = Pulse()
    fd = open_regular(source)
    try:
        of.ask(lambda: _write(image, fd, size, pulse), pulse=pulse)
    finally:
        if not of.cluster.is_stuck:  # else the call may still read from it
            os.close(fd)


def _write(image: Any, fd: int, size: int, pulse: Pulse) -> None:
    on_their_way: deque[Any] = deque()
    for offset, piece in pieces(fd, size, pulse):
        if len(on_their_way) == _AT_ONCE:
            _settle(on_their_way.popleft())
            pulse.beat()
        on_their_way.append(image.aio_write(piece, offset, _heard))
    while on_their_way:
        _settle(on_their_way.popleft())
        pulse.beat()
    image.flush()


def _heard(_completion: Any) -> None:
    """librbd wants somebody to call when a write is done."""


def _settle(completion: Any) -> None:
    completion.wait_for_complete_and_cb()
    if (status := completion.get_return_value()) < 0:
        raise CallFailed(-status)


def pieces(fd: int, size: int, pulse: Pulse) -> Iterator[tuple[int, bytes]]:
    """The file's data, each piece within one object of an image, without blocks that are all zero."""
    done = 0
    for start, end in data_extents(fd, size):
        position = max(done, start // BLOCK_BYTES * BLOCK_BYTES)
        while position < end:
            length = min(_PIECE - position % _PIECE, size - position)
            read = os.pread(fd, length, position)
            pulse.beat()  # zeros that are allocated are read as well, and none of them is written
            for first, last in filled_runs(memoryview(read)):
                yield position + first, read[first:last]
            done = position = position + len(read)


def read_into(of: ImageName, image: Any, target: Path) -> None:
    """Write all that an image's guest sees into a new raw file. Durability is the caller's.

    Raises:
        OSError: of the file. BackendUnavailable, StorageFailed
    """
    pulse = Pulse()
    fd = create(target, _MODE)
    try:
        extents, size = of.ask(lambda: _extents(image, pulse), pulse=pulse)
        os.ftruncate(fd, size)
        for start, length in extents:
            for position in range(start, start + length, _PIECE):
                wanted = min(_PIECE, start + length - position)
                read = of.ask(partial(image.read, position, wanted))
                write_sparse(fd, memoryview(read), position)
    finally:
        os.close(fd)


def _extents(image: Any, pulse: Pulse) -> tuple[list[tuple[int, int]], int]:
    """Where there is something, in the image or in what it reads from; and its size."""
    found: list[tuple[int, int]] = []

    def hear(offset: int, length: int, exists: bool) -> None:  # noqa: FBT001 - librbd calls it so
        if exists:
            found.append((offset, length))

    size: int = image.size()
    for start in range(0, size, _WINDOW):  # each object is asked, and only those that are there are heard of
        image.diff_iterate(start, min(_WINDOW, size - start), None, hear, include_parent=True, whole_object=False)
        pulse.beat()
    return found, size
