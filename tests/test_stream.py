"""One pass over the bytes: the stored digest's definition, holes, and files that read back slowly."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from underlay.model import Digest
from underlay.stream import (
    BLOCK_BYTES,
    BUFFER_BYTES,
    Digests,
    SparseWriter,
    filled,
    served_digest,
    stored_digest,
)

ZERO = bytes(BLOCK_BYTES)
ONE = b"\1" * BLOCK_BYTES


@dataclass
class Stream:
    content: bytes

    def readinto(self, buffer: memoryview, /) -> int:
        piece, self.content = self.content[: len(buffer)], self.content[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def written(path: Path, content: bytes) -> str:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        writer, digests = SparseWriter(fd), Digests(["sha512", "sha256"])
        for piece in filled(Stream(content)):
            for consumer in (writer, *digests.consumers):
                consumer.feed(piece)
        writer.finish()
        assert [Digest(name, hashlib.new(name, content).hexdigest()) for name in ("sha512", "sha256")] == [*digests.served()]
        return digests.stored()
    finally:
        os.close(fd)


def digest_of(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return stored_digest(fd)
    finally:
        os.close(fd)


def by_definition(*runs: tuple[int, bytes]) -> str:
    data = hashlib.sha256(b"".join(run for _, run in runs)).digest()
    places = b"".join(edge.to_bytes(8, "little") for start, run in runs for edge in (start, start + len(run)))
    return "sha256:" + hashlib.sha256(data + hashlib.sha256(places).digest()).hexdigest()


@pytest.mark.parametrize(
    ("content", "runs"),
    [
        (b"", []),
        (ZERO * 3, []),
        (b"x", [(0, b"x")]),
        (ONE, [(0, ONE)]),
        (ZERO + ONE + ZERO, [(BLOCK_BYTES, ONE)]),
        (ONE + ZERO * 20 + ONE + b"end", [(0, ONE), (21 * BLOCK_BYTES, ONE + b"end")]),
        (ZERO[:-1] + b"\1", [(0, ZERO[:-1] + b"\1")]),
        (ONE + bytes(5), [(0, ONE)]),
        (bytes(16) + b"\1" + bytes(100), [(0, bytes(16) + b"\1" + bytes(100))]),
    ],
    ids=range(9),
)
def test_the_stored_digest_is_over_runs_of_blocks_that_are_not_zero_and_over_where_they_are(
    content: bytes, runs: list[tuple[int, bytes]], tmp_path: Path
) -> None:
    assert by_definition(*runs) == written(tmp_path / "file", content) == digest_of(tmp_path / "file")
    assert content == (tmp_path / "file").read_bytes()


def test_zeros_become_holes(tmp_path: Path) -> None:
    written(tmp_path / "file", ONE + ZERO * 100 + ONE)

    status = (tmp_path / "file").stat()
    assert 102 * BLOCK_BYTES == status.st_size
    assert 2 * BLOCK_BYTES == status.st_blocks * 512


def test_zeros_that_are_written_out_do_not_change_the_stored_digest(tmp_path: Path) -> None:
    content = ONE + ZERO * 20 + ONE[:1000]
    (tmp_path / "full").write_bytes(content)
    fd = os.open(tmp_path / "full", os.O_RDWR)
    os.posix_fallocate(fd, 0, len(content))
    os.close(fd)

    assert written(tmp_path / "sparse", content) == digest_of(tmp_path / "full")


def test_data_that_begins_and_ends_within_blocks_counts_each_block_once(tmp_path: Path) -> None:
    """Extents of 4 KiB file system blocks, several in one block of ours."""
    with (tmp_path / "file").open("wb") as file:
        for offset in (4096, 20_480, BLOCK_BYTES - 4096, 5 * BLOCK_BYTES + 8192):
            file.seek(offset)
            file.write(b"\7" * 100)
        file.truncate(7 * BLOCK_BYTES + 11)
    content = (tmp_path / "file").read_bytes()

    assert written(tmp_path / "copy", content) == digest_of(tmp_path / "file")


def test_what_was_moved_has_another_stored_digest(tmp_path: Path) -> None:
    assert written(tmp_path / "a", ONE + ZERO) != written(tmp_path / "b", ZERO + ONE)


def test_the_buffer_is_reused_and_full_but_for_the_last() -> None:
    pieces = filled(Stream(b"a" * BUFFER_BYTES + b"b"))

    first = next(pieces)
    assert (BUFFER_BYTES, b"a") == (len(first), bytes(first[:1]))
    assert b"b" == bytes(next(pieces))
    assert b"b" == bytes(first[:1])
    assert [] == list(pieces)


def test_an_empty_stream_has_no_buffers() -> None:
    assert [] == list(filled(Stream(b"")))


def test_digests_come_in_the_order_they_were_asked_for() -> None:
    digests = Digests(["sha512", "md5", "sha256"])
    for consumer in digests.consumers:
        consumer.feed(memoryview(b"abc"))
        consumer.feed(memoryview(b"def"))

    expected = tuple(Digest(name, hashlib.new(name, b"abcdef").hexdigest()) for name in ("sha512", "md5", "sha256"))
    assert expected == digests.served()


def test_the_served_digest_counts_holes_as_zeros(tmp_path: Path) -> None:
    written(tmp_path / "file", ONE + ZERO * 30 + b"end")

    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        found = served_digest(fd, "sha1")
    finally:
        os.close(fd)

    assert Digest("sha1", hashlib.sha1(ONE + ZERO * 30 + b"end").hexdigest()) == found


def test_what_was_fed_so_far_is_the_size(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        writer = SparseWriter(fd)
        writer.feed(memoryview(ZERO))
        writer.feed(memoryview(b"end"))

        assert BLOCK_BYTES + 3 == writer.size
    finally:
        os.close(fd)
