"""Decompression against plain definitions: any content, in any members, in any pieces; and any bytes at all."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import cycle

from hypothesis import given, strategies as st

from compressing import COMPRESS, decompressed
from underlay.errors import UnsafeImage
from underlay.formats.compressed import MAGIC_BYTES, OUTPUT_BYTES, compression_of

compressions = st.sampled_from(sorted(COMPRESS))
# Runs of one byte and of noise, so that a few draws make blocks of every kind and more than one piece of output.
runs = st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([1, 2, 500, 3277, OUTPUT_BYTES // 8]))
contents = st.lists(runs, max_size=3).map(lambda parts: b"".join(part * times for part, times in parts)[: 3 * OUTPUT_BYTES])
members = st.lists(contents, min_size=1, max_size=4)
lengths = st.lists(st.sampled_from([1, 2, 3, 10, 100, 4096, 1 << 16, (1 << 16) + 1, 1 << 20]), min_size=1, max_size=5)


def cut(served: bytes, steps: Sequence[int]) -> Iterator[bytes]:
    position = 0
    for step in cycle(steps if max(steps) > 50 else [*steps, 4096]):
        if position >= len(served):
            return
        yield served[position : position + step]
        position += step


@given(compressions, members, lengths)
def test_what_was_compressed_comes_back_whatever_the_members_and_the_pieces(
    compression: str, parts: Sequence[bytes], steps: Sequence[int]
) -> None:
    served = b"".join(map(COMPRESS[compression], parts))

    assert compression == compression_of(served[:MAGIC_BYTES])
    assert b"".join(parts) == decompressed(compression, cut(served, steps))


@given(compressions, contents, st.data())
def test_a_broken_stream_is_refused_or_holds_the_same(compression: str, content: bytes, data: st.DataObject) -> None:
    served = bytearray(COMPRESS[compression](content))
    position = data.draw(st.integers(0, len(served) - 1))
    served[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(UnsafeImage):
        assert content == decompressed(compression, cut(bytes(served), data.draw(lengths)))


@given(compressions, st.binary(max_size=300), lengths)
def test_any_bytes_behind_a_beginning_are_refused_or_read_and_nothing_else(
    compression: str, tail: bytes, steps: Sequence[int]
) -> None:
    for begun in range(3, MAGIC_BYTES):
        with suppress(UnsafeImage):
            decompressed(compression, cut(COMPRESS[compression](b"image")[:begun] + tail, steps))


@given(st.binary(max_size=2 * MAGIC_BYTES))
def test_bytes_that_begin_with_no_magic_number_are_not_compressed(beginning: bytes) -> None:
    magics = (
        b"\x1f\x8b\x08",
        b"\xfd7zXZ\0",
        b"BZh",
        b"\x28\xb5\x2f\xfd",
        *(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60)),
    )
    assert compression_of(beginning) is None or beginning.startswith(magics)
