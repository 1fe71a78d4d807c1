"""Cases about the bytes of a version: whole, from an offset on, by any buffer, at the same time."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from random import Random

from underlay.contracts import ClonableStream
from underlay.errors import SourceChanged
from underlay.testing.source_suite.case import (
    Case,
    Transfer,
    case,
    described,
    expect,
    expect_equal,
    expect_whole,
    pieces,
    transfer,
)
from underlay.testing.source_suite.stage import Empty, Stage

_CONTENT = Random(3).randbytes(300_007)
_SMALL = Random(4).randbytes(1_009)
_AT_ONCE = 6
_AGAIN = 12  # more than the connections that a source keeps open
_LONG = 1 << 20  # more than the image has


class _Ours(Exception):
    """What somebody who reads a stream raises."""


@case()
def a_version_is_given_whole(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    expect_whole(_CONTENT, transfer(stage, version), "the image")
    expect_whole(_CONTENT, transfer(stage, version), "the image, the second time")


@case(Empty)
def an_image_of_no_bytes_is_given(stage: Stage) -> None:
    version = described(stage, stage.put(b""))
    expect_whole(b"", transfer(stage, version), "the image of no bytes")


@case()
def a_version_is_given_from_any_of_its_bytes_on(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    for offset in (0, 1, 511, 65_536, len(_CONTENT) // 2, len(_CONTENT) - 1):
        expect_whole(_CONTENT[offset:], transfer(stage, version, offset=offset), f"the image from byte {offset} on")


@case()
def at_the_end_there_is_nothing_and_it_is_no_error(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    expect_whole(b"", transfer(stage, version, offset=len(_CONTENT)), "the image from its end on")


@case()
def beyond_the_end_nothing_is_given(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    for offset in (len(_CONTENT) + 1, 10 * len(_CONTENT)):
        found = transfer(stage, version, offset=offset)
        expect_equal(b"", found.content, f"the image from byte {offset} on")
        expect(found.error is None or isinstance(found.error, SourceChanged), f"beyond the end comes {found.error!r}")


@case()
def any_buffer_is_filled(stage: Stage) -> None:
    version = described(stage, stage.put(_SMALL))
    for buffer in (1, 3, 512, len(_SMALL), len(_SMALL) + 1, _LONG):
        expect_whole(_SMALL, transfer(stage, version, buffer=buffer), f"the image by {buffer} bytes")
    version = described(stage, stage.put(_CONTENT))
    for buffer in (4_097, _LONG):
        expect_whole(_CONTENT, transfer(stage, version, buffer=buffer), f"the image by {buffer} bytes")


@case()
def a_stream_that_has_ended_stays_at_its_end(stage: Stage) -> None:
    version = described(stage, stage.put(_SMALL))
    with stage.source.open(version) as stream:
        expect_equal(_SMALL, b"".join(pieces(stream)), "the image")
        expect_equal([0, 0], [stream.readinto(memoryview(bytearray(10))) for _ in range(2)], "reads behind the end")


@case()
def many_may_read_at_once(stage: Stage) -> None:
    first, second = (described(stage, stage.put(content)) for content in (_CONTENT, _SMALL))

    def read(number: int) -> tuple[bytes, Transfer]:
        version, content = (first, _CONTENT) if number % 2 else (second, _SMALL)
        offset = 100 * number
        return content[offset:], transfer(stage, version, offset=offset, buffer=1_000 + number)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for expected, found in pool.map(read, range(2 * _AT_ONCE)):
            expect_whole(expected, found, "the image, read by several at once")


@case()
def two_streams_of_one_thread_do_not_disturb_each_other(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    with stage.source.open(version) as first, stage.source.open(version, offset=1000) as second:
        one, other = pieces(first, buffer=7_000), pieces(second, buffer=11_000)
        begun = next(one), next(other)
        expect_equal(_CONTENT[1000:], begun[1] + b"".join(other), "the image from byte 1000 on")
        expect_equal(_CONTENT, begun[0] + b"".join(one), "the image that another was read beside")


@case()
def a_stream_may_be_left_early_as_often_as_one_likes(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    for number in range(_AGAIN):
        with stage.source.open(version, offset=number) as stream:
            expect_equal(_CONTENT[number : number + 1], next(pieces(stream, buffer=1)), "the first byte")
        with stage.source.open(version):
            """Nothing is read at all."""
    expect_whole(_CONTENT, transfer(stage, version), "the image after others were left early")


@case()
def an_error_of_the_reader_passes_as_it_is(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    try:
        with stage.source.open(version) as stream:
            next(pieces(stream))
            raise _Ours
    except _Ours:
        expect_whole(_CONTENT, transfer(stage, version), "the image after a reader failed")
        return
    raise AssertionError("the error of who reads is swallowed")


@case()
def a_version_can_be_opened_long_after_others_were_described(stage: Stage) -> None:
    refs = [stage.put(content) for content in (_CONTENT, _SMALL)]
    versions = [described(stage, ref) for ref in refs]
    expect_whole(_SMALL, transfer(stage, versions[1]), "the second image")
    expect_whole(_CONTENT, transfer(stage, versions[0]), "the first image")


@case()
def a_stream_that_can_be_cloned_gives_the_version_or_nothing(stage: Stage) -> None:
    version = described(stage, stage.put(_CONTENT))
    for offset in (0, 1):
        with stage.source.open(version, offset=offset) as stream, tempfile.TemporaryFile() as target:
            if not isinstance(stream, ClonableStream):
                return
            if stream.clone_into(target.fileno()):
                expect_equal(_CONTENT, target.read(), "the cloned image")
                expect(offset == 0, "a stream that does not begin at the first byte is cloned whole")
            else:
                expect_equal(b"", target.read(), "what a clone that cannot be leaves in its target")
                expect_equal(_CONTENT[offset:], b"".join(pieces(stream)), "the image that cannot be cloned")


CASES: tuple[Case, ...] = (
    a_version_is_given_whole,
    an_image_of_no_bytes_is_given,
    a_version_is_given_from_any_of_its_bytes_on,
    at_the_end_there_is_nothing_and_it_is_no_error,
    beyond_the_end_nothing_is_given,
    any_buffer_is_filled,
    a_stream_that_has_ended_stays_at_its_end,
    many_may_read_at_once,
    two_streams_of_one_thread_do_not_disturb_each_other,
    a_stream_may_be_left_early_as_often_as_one_likes,
    an_error_of_the_reader_passes_as_it_is,
    a_version_can_be_opened_long_after_others_were_described,
    a_stream_that_can_be_cloned_gives_the_version_or_nothing,
)
