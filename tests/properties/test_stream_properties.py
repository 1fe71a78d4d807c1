"""The stream's consumers against plain definitions of what they compute."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, strategies as st

from underlay.model import Digest
from underlay.stream import (
    BLOCK_BYTES,
    BUFFER_BYTES,
    Digests,
    ServedAndStored,
    ServedDigest,
    SparseWriter,
    filled,
    served_digest,
    stored_digest,
)

SHORT = BLOCK_BYTES // 2


@dataclass
class Dribble:
    """A stream that answers with as many bytes as it likes."""

    content: bytes
    lengths: Sequence[int]
    position: int = 0
    asked: int = 0
    sizes: list[int] = field(default_factory=list)

    def readinto(self, buffer: memoryview, /) -> int:
        length = self.lengths[self.asked % len(self.lengths)]
        self.asked += 1
        piece = self.content[self.position : self.position + min(length, len(buffer))]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)


# Runs of one byte value, so that a few draws make megabytes with and without zero blocks.
runs = st.lists(
    st.tuples(
        st.sampled_from([b"\0", b"\0", b"x", b"\xff"]),
        st.sampled_from([1, 511, 4096, SHORT, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES, BUFFER_BYTES]),
    ),
    max_size=6,
)
contents = runs.map(lambda parts: b"".join(byte * length for byte, length in parts))
lengths = st.lists(st.sampled_from([1000, 4096, BLOCK_BYTES, BUFFER_BYTES - 1, 3 * BUFFER_BYTES]), min_size=1, max_size=4)


def stored_by_definition(content: bytes) -> str:
    data, edges = b"", list[int]()
    for offset in range(0, len(content), BLOCK_BYTES):
        block = content[offset : offset + BLOCK_BYTES]
        if any(block):
            edges = edges[:-1] if edges[-1:] == [offset] else [*edges, offset]
            edges.append(offset + len(block))
            data += block
    places = b"".join(edge.to_bytes(8, "little") for edge in edges)
    return "sha256:" + hashlib.sha256(hashlib.sha256(data).digest() + hashlib.sha256(places).digest()).hexdigest()


def feed_all(content: bytes, sizes: Sequence[int], *consumers: ServedAndStored | ServedDigest | SparseWriter) -> None:
    for piece in filled(Dribble(content, sizes)):
        for consumer in consumers:
            consumer.feed(piece)


@given(contents, lengths)
def test_buffers_are_full_but_for_the_last(content: bytes, sizes: Sequence[int]) -> None:
    pieces = [bytes(piece) for piece in filled(Dribble(content, sizes))]

    assert content == b"".join(pieces)
    assert all(len(piece) == BUFFER_BYTES for piece in pieces[:-1])
    assert all(pieces)


@given(contents, lengths)
def test_the_written_file_and_its_stored_digest_follow_their_definition(content: bytes, sizes: Sequence[int]) -> None:
    with tempfile.TemporaryFile() as file:
        writer, digests = SparseWriter(file.fileno()), ServedAndStored()
        feed_all(content, sizes, writer, digests)
        writer.finish()
        stored = digests.stored()
        assert hashlib.sha256(content).hexdigest() == digests.served.result().hex

        file.seek(0)
        assert content == file.read()
        assert stored_by_definition(content) == stored == stored_digest(file.fileno())
        blocks = sum(any(content[offset : offset + BLOCK_BYTES]) for offset in range(0, len(content), BLOCK_BYTES))
        assert os.fstat(file.fileno()).st_blocks * 512 <= blocks * BLOCK_BYTES


@given(contents)
def test_the_stored_digest_does_not_see_holes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        full = Path(directory, "full")
        full.write_bytes(content)
        fd = os.open(full, os.O_RDONLY)
        try:
            assert stored_by_definition(content) == stored_digest(fd)
        finally:
            os.close(fd)


@given(contents, lengths, st.lists(st.sampled_from(["md5", "sha1", "sha512"]), unique=True, max_size=3))
def test_digests_are_of_the_bytes_as_served(content: bytes, sizes: Sequence[int], others: Sequence[str]) -> None:
    algorithms = [*others, "sha256"]
    digests = Digests(algorithms)
    feed_all(content, sizes, *digests.consumers)

    assert [Digest(name, hashlib.new(name, content).hexdigest()) for name in algorithms] == [*digests.served()]
    assert stored_by_definition(content) == digests.stored()


@given(contents, st.sampled_from(["md5", "sha256", "sha512"]))
def test_the_served_digest_of_a_file_is_of_all_its_bytes(content: bytes, algorithm: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()

        assert hashlib.new(algorithm, content).hexdigest() == served_digest(file.fileno(), algorithm).hex
