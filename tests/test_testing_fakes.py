"""The fakes keep the contracts: what a type checker can tell of it, and what it cannot."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from underlay.contracts import ImageSource, Observer
from underlay.errors import BodyTruncated, ImageNotFound, NotAuthorized, SourceChanged, SourceUnavailable, UnderlayError
from underlay.model import Digest, Event, ImageVersion, Level, Progress
from underlay.refs import parse_ref
from underlay.testing.fakes import FakeImage, FakeSource, Recorder

REF = "fake:debian/12"
CONTENT = bytes(range(256)) * 20


def read_all(
    source: ImageSource, version: ImageVersion, *, offset: int = 0, buffer_size: int = 1000, into: bytearray | None = None
) -> bytes:
    content = bytearray() if into is None else into
    with source.open(version, offset=offset) as stream:
        buffer = memoryview(bytearray(buffer_size))
        while length := stream.readinto(buffer):
            content += buffer[:length]
    return bytes(content)


def event(code: str) -> Event:
    return Event(code=code, level=Level.INFO, detail="it happened")


# -------------------------------------------------------------------------------------------------------------- the source


def test_the_fakes_satisfy_the_contracts() -> None:
    source: ImageSource = FakeSource()
    observer: Observer = Recorder()
    assert frozenset({"fake"}) == source.schemes
    observer.event(event("seen"))


def test_an_image_is_described_and_read() -> None:
    digest = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())
    image = FakeImage(CONTENT, disk_format="raw", digests=(digest,), min_disk=7, properties={"os": "linux"})
    source = FakeSource({REF: image})
    version = source.describe(parse_ref(REF))
    assert (parse_ref(REF), len(CONTENT), "raw", (digest,)) == (
        version.ref,
        version.size,
        version.disk_format,
        version.digests,
    )
    assert (7, {"os": "linux"}, None) == (version.min_disk, version.properties, version.id)
    assert CONTENT == read_all(source, version)
    assert CONTENT[700:] == read_all(source, version, offset=700)
    assert b"" == read_all(source, version, offset=len(CONTENT))


def test_a_file_is_an_images_content(tmp_path: Path) -> None:
    content = os.urandom(3 << 20) + b"end"
    (tmp_path / "a.img").write_bytes(content)
    source = FakeSource({REF: FakeImage(tmp_path / "a.img")})
    version = source.describe(parse_ref(REF))
    assert len(content) == version.size
    assert content == read_all(source, version, buffer_size=1 << 20)
    assert content[-5:] == read_all(source, version, offset=len(content) - 5)


def test_a_description_is_equal_until_the_image_changes() -> None:
    source = FakeSource({REF: FakeImage(CONTENT)})
    first = source.describe(parse_ref(REF))
    assert first == source.describe(parse_ref(REF))
    source.put(REF, FakeImage(CONTENT))
    assert first.validator != source.describe(parse_ref(REF)).validator


def test_another_version_is_never_read_for_the_one_that_was_described() -> None:
    source = FakeSource({REF: FakeImage(b"old")})
    version = source.describe(parse_ref(REF))
    source.put(REF, FakeImage(b"new"))
    with pytest.raises(SourceChanged), source.open(version):
        pass
    assert b"new" == read_all(source, source.describe(parse_ref(REF)))


def test_a_stream_goes_on_with_the_version_that_it_began_with() -> None:
    source = FakeSource({REF: FakeImage(b"old-old")})
    with source.open(source.describe(parse_ref(REF))) as stream:
        buffer = memoryview(bytearray(4))
        assert 4 == stream.readinto(buffer)
        source.put(REF, FakeImage(b"new-new"))
        assert (3, b"old") == (stream.readinto(buffer), bytes(buffer[:3]))


def test_a_source_without_validators_says_none() -> None:
    source = FakeSource({REF: FakeImage(CONTENT, validator=None)})
    assert source.describe(parse_ref(REF)).validator is None


def test_version_ids_are_the_images_own_or_come_from_the_content() -> None:
    ref, sha256 = parse_ref(REF), "ab" * 32
    source = FakeSource({REF: FakeImage(CONTENT)})
    assert source.fixed_id(ref) is None
    assert f"fake:debian/12#sha256:{sha256}" == source.version_id(ref, sha256)
    source.put(REF, FakeImage(CONTENT, id="4711"))
    assert ("4711", "4711") == (source.fixed_id(ref), source.version_id(ref, sha256))
    assert "4711" == source.describe(ref).id
    assert 1 == source.described(REF)  # neither id asked for anything


def test_an_image_that_is_not_there_is_not_found() -> None:
    source = FakeSource({REF: FakeImage(CONTENT)})
    version = source.describe(parse_ref(REF))
    source.withdraw(REF)
    with pytest.raises(ImageNotFound):
        source.describe(parse_ref(REF))
    with pytest.raises(ImageNotFound), source.open(version):
        pass
    assert (2, 1) == (source.described(REF), source.opened(REF))
    assert source.fixed_id(parse_ref(REF)) is None


@pytest.mark.parametrize(("size", "announces", "expected"), [(None, True, 5120), (7, True, 7), (7, False, None)])
def test_a_size_is_announced_as_it_is_told(*, size: int | None, announces: bool, expected: int | None) -> None:
    source = FakeSource({REF: FakeImage(CONTENT, size=size, announces_size=announces)})
    version = source.describe(parse_ref(REF))
    assert expected == version.size
    assert CONTENT == read_all(source, version)


def test_a_failure_at_description_or_opening_is_raised_and_counted() -> None:
    refused = NotAuthorized("no")
    source = FakeSource({REF: FakeImage(CONTENT, describe_error=refused)})
    with pytest.raises(NotAuthorized) as caught:
        source.describe(parse_ref(REF))
    assert refused is caught.value
    source.put(REF, FakeImage(CONTENT, open_error=refused))
    version = source.describe(parse_ref(REF))
    with pytest.raises(NotAuthorized), source.open(version):
        pass
    assert (2, 1, 0) == (source.described(REF), source.opened(REF), source.read(REF))


@pytest.mark.parametrize("after", [0, 1, 999, 1000, 1001, 5119, 5120])
@pytest.mark.parametrize("error", [SourceUnavailable("broke"), BodyTruncated("short")])
def test_a_failure_comes_after_exactly_so_many_bytes(error: UnderlayError, after: int) -> None:
    source = FakeSource({REF: FakeImage(CONTENT, read_error=error, read_error_after=after)})
    received = bytearray()
    with pytest.raises(type(error)):
        read_all(source, source.describe(parse_ref(REF)), into=received)
    assert CONTENT[:after] == received
    assert after == source.read(REF)


def test_a_failure_behind_an_offset_counts_from_the_beginning_of_the_image() -> None:
    source = FakeSource({REF: FakeImage(CONTENT, read_error=SourceUnavailable("broke"), read_error_after=100)})
    version = source.describe(parse_ref(REF))
    buffer = memoryview(bytearray(1000))
    with source.open(version, offset=90) as stream:
        assert 10 == stream.readinto(buffer)
        with pytest.raises(SourceUnavailable):
            stream.readinto(buffer)
    with source.open(version, offset=200) as stream, pytest.raises(SourceUnavailable):
        stream.readinto(buffer)


def test_bytes_come_in_small_pieces_when_told_so() -> None:
    source = FakeSource({REF: FakeImage(CONTENT, piece=300)})
    version = source.describe(parse_ref(REF))
    buffer = memoryview(bytearray(1000))
    with source.open(version) as stream:
        assert 300 == stream.readinto(buffer)
    assert CONTENT == read_all(source, version)


def test_a_delay_slows_descriptions_and_reads() -> None:
    source = FakeSource({REF: FakeImage(b"abcd", delay=0.05, piece=2)})
    started = time.monotonic()
    version = source.describe(parse_ref(REF))
    assert time.monotonic() - started >= 0.05
    assert b"abcd" == read_all(source, version)
    assert time.monotonic() - started >= 0.05 * 4  # the description, two pieces and the end


def test_counts_are_per_ref_and_exact_with_many_threads() -> None:
    source = FakeSource({REF: FakeImage(CONTENT), "fake:other": FakeImage(b"x")})

    def fetch(_: int) -> bytes:
        return read_all(source, source.describe(parse_ref(REF)), buffer_size=100)

    with ThreadPoolExecutor(16) as pool:
        assert [CONTENT] * 64 == list(pool.map(fetch, range(64)))
    assert (64, 64, 64 * len(CONTENT)) == (source.described(REF), source.opened(REF), source.read(REF))
    assert (0, 0, 0) == (source.described("fake:other"), source.opened("fake:other"), source.read("fake:other"))


def test_how_long_a_description_holds_is_settable() -> None:
    assert (0.0, 60.0) == (FakeSource().revalidate_after, FakeSource(revalidate_after=60.0).revalidate_after)


# ------------------------------------------------------------------------------------------------------------ the observer


def test_a_recorder_remembers_events_and_progress_in_order() -> None:
    recorder = Recorder()
    steps = [Progress(ref=REF, stage="fetch", done=done, total=10) for done in (0, 5, 10)]
    for step in steps:
        recorder.progress(step)
    for code in ("staged", "fetching", "staged"):
        recorder.event(event(code))
    assert tuple(steps) == recorder.steps
    assert ("staged", "fetching", "staged") == recorder.codes
    assert event("staged") == recorder.events[0]


def test_a_recorder_loses_nothing_with_many_threads() -> None:
    recorder = Recorder()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: recorder.event(event(str(number))), range(500)))
    assert {str(number) for number in range(500)} == set(recorder.codes)
    assert 500 == len(recorder.events)


def test_a_test_can_wait_for_what_another_thread_tells() -> None:
    recorder = Recorder()
    step = Progress(ref=REF, stage="wait", done=1, total=None)

    def tell() -> None:
        recorder.event(event("staged"))
        recorder.progress(step)

    told = threading.Timer(0.1, tell)
    told.start()
    assert event("staged") == recorder.wait_for_event("staged")
    assert step == recorder.wait_for_progress("wait")
    told.join()


def test_waiting_for_what_never_comes_ends_and_says_what_came() -> None:
    recorder = Recorder()
    recorder.event(event("staged"))
    with pytest.raises(TimeoutError, match=r"no event 'published' in 0\.05 s, but staged"):
        recorder.wait_for_event("published", seconds=0.05)
    with pytest.raises(TimeoutError, match="no progress of stage 'convert'"):
        recorder.wait_for_progress("convert", seconds=0.05)
