"""A transfer that breaks goes on from the byte that it got to, here or in the next process, and never mixes two versions."""

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storing import MIB, laid_out, staging_of
from underlay.cache import Cache, Ensured
from underlay.claim import Claim
from underlay.content import Content
from underlay.errors import BodyTruncated, DigestMismatch, SourceChanged, SourceUnavailable, UnderlayError
from underlay.extents import own_bytes
from underlay.intake import Intake
from underlay.model import Digest, ImageVersion
from underlay.onepass import following
from underlay.order import Order
from underlay.pipeline import BUFFER_BYTES, Buffer, Pipeline
from underlay.policy.form import Want
from underlay.policy.retry import Retries
from underlay.refs import parse_ref
from underlay.sources.file import FileSource
from underlay.sources.http import HttpSource
from underlay.store import Store, refs, staging as stagings
from underlay.store.staging import Partial
from underlay.stream import SparseWriter
from underlay.telling import Meter
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Request, Served, Server, serving
from underlay.values import replace
from underlay.web import Web

BODY = os.urandom(3 * MIB) + bytes(MIB) + os.urandom(2 * MIB + 12345)
OTHER = os.urandom(len(BODY))
PATH = "/a.img"
QUICK = Retries(attempts=3, first_wait=0.01, longest_wait=0.05)
ONCE = replace(QUICK, attempts=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "base")


def fetch(
    store: Store,
    server: Server,
    *,
    checksum: Digest | None = None,
    retries: Retries = QUICK,
    observer: Recorder | None = None,
    web: Web | None = None,
    revalidate_after: float = 300.0,
) -> Ensured:
    cache = Cache(name="base", store=store)
    source = HttpSource(web=web or Web(read_timeout=1.0), revalidate_after=revalidate_after)
    observer, want = observer or Recorder(), Want(checksum=checksum)
    return cache.ensure(parse_ref(server.url(PATH)), source, observer, want=want, retries=retries)


def gets(server: Server) -> list[Request]:
    return [request for request in server.requests if request.method == "GET"]


def ranges(server: Server) -> list[str | None]:
    return [request.headers.get("range") for request in gets(server)]


def sha256(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


def leftovers(store: Store) -> list[str]:
    return [path.name for path in store.paths.tmp.rglob("*") if path.is_file()]


def staged_bytes(store: Store, server: Server) -> int:
    return staging_of(store, parse_ref(server.url(PATH))).download.stat().st_size


# ------------------------------------------------------------------------------------------------------------ within a process


@pytest.mark.parametrize("after", [1, 1000, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * MIB + 5, len(BODY) - 1])
def test_a_body_that_is_cut_off_goes_on_from_the_very_byte(store: Store, after: int) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=after), whole]}) as server:
        assert BODY == fetch(store, server).image.path.read_bytes()
        assert [None, f"bytes={after}-"] == ranges(server)
        assert '"1"' == gets(server)[-1].headers["if-range"]
        assert len(BODY) == server.sent(PATH)


def test_as_long_as_each_attempt_gets_further_there_is_another(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    cut = [replace(whole, cut_after=400_000)] * 8
    observer = Recorder()
    with serving({PATH: [whole, *cut, whole]}) as server:
        assert BODY == fetch(store, server, observer=observer).image.path.read_bytes()
        assert 9 == len(gets(server))
        assert len(BODY) == server.sent(PATH)
    assert 8 == observer.codes.count("retrying")
    told = [event for event in observer.events if event.code == "retrying"][-1]
    assert 8 * 400_000 == told.fields["size"]
    assert "the body ended before its announced length; tried again in" in told.detail


def test_attempts_that_get_no_further_end(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=1000), replace(whole, cut_after=0)]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server)
        assert [None, "bytes=1000-", "bytes=1000-"] == ranges(server)


def test_an_unavailable_server_is_asked_again_and_the_pauses_are_told(store: Store) -> None:
    observer = Recorder()
    with serving({PATH: [Served(status=503), Served(status=502), Served(BODY, etag='"1"')]}) as server:
        assert BODY == fetch(store, server, observer=observer).image.path.read_bytes()
    assert ["retrying", "retrying"] == [code for code in observer.codes if code == "retrying"]


def test_an_image_that_is_not_there_is_not_asked_for_again(store: Store) -> None:
    with serving({}) as server:
        with pytest.raises(UnderlayError, match="404"):
            fetch(store, server)
        assert 1 == len(server.requests)


def test_a_server_that_asks_for_a_pause_gets_it(store: Store) -> None:
    busy = Served(status=429, headers={"Retry-After": "1"})
    with serving({PATH: [busy, Served(BODY, etag='"1"')]}) as server:
        began = time.monotonic()
        fetch(store, server, retries=replace(QUICK, longest_wait=2.0))
        assert time.monotonic() - began >= 1.0


def test_a_server_that_asks_for_a_longer_pause_than_we_make_is_not_asked_again(store: Store) -> None:
    with serving({PATH: Served(status=503, headers={"Retry-After": "3600"})}) as server:
        with pytest.raises(SourceUnavailable):
            fetch(store, server)
        assert 1 == len(server.requests)


def test_a_body_that_stalls_is_given_up_and_gone_on_from(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    stalled = replace(whole, stall_after=1_000_000)
    with serving({PATH: [whole, stalled, whole]}) as server:
        assert BODY == fetch(store, server, web=Web(read_timeout=1.0)).image.path.read_bytes()
        assert [None, "bytes=1000000-"] == ranges(server)


def test_a_body_that_drips_is_given_up_and_gone_on_from(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, rate=400.0), whole]}) as server:
        web = Web(read_timeout=5.0, low_speed_limit=10_000, low_speed_time=0.3)
        assert BODY == fetch(store, server, web=web).image.path.read_bytes()
        assert 2 == len(gets(server))


def test_what_goes_on_is_one_version_by_its_date_where_there_is_no_etag(store: Store) -> None:
    whole = Served(BODY, last_modified=LONG_AGO)
    with serving({PATH: [whole, replace(whole, cut_after=1_000_000), whole]}) as server:
        assert BODY == fetch(store, server).image.path.read_bytes()
        assert "Wed, 01 Jan 2020 00:00:00 GMT" == gets(server)[-1].headers["if-range"]
        assert len(BODY) == server.sent(PATH)


@pytest.mark.parametrize(
    "described",
    [Served(BODY, etag='"1"'), Served(BODY, etag='"1"', last_modified=LONG_AGO), Served(BODY, last_modified=LONG_AGO)],
)
def test_a_validator_is_remembered_only_of_an_answer_that_brought_bytes_with_it(store: Store, described: Served) -> None:
    with serving({PATH: replace(described, for_get=Served(OTHER))}) as server:
        assert OTHER == fetch(store, server).image.path.read_bytes()
        record = refs.recall(store, parse_ref(server.url(PATH)))
        assert record is not None
        assert () == record.newest.validators
        server.serve(PATH, described)  # the very version that was described, and that never came
        assert BODY == fetch(store, server, revalidate_after=0).image.path.read_bytes()
        record = refs.recall(store, parse_ref(server.url(PATH)))
        assert record is not None
        assert 1 == len(record.newest.validators)
        assert "revalidated" == fetch(store, server, revalidate_after=0).reason.code


def test_bytes_that_no_validator_came_with_are_not_gone_on_with_by_it(store: Store) -> None:
    other_beginning = Served(BODY, etag='"1"', for_get=Served(OTHER, cut_after=5 * MIB))
    with serving({PATH: [other_beginning, other_beginning, Served(BODY, etag='"1"')]}) as server:
        assert BODY == fetch(store, server).image.path.read_bytes()
        assert [None, None] == ranges(server)


def test_a_digest_that_is_asked_for_does_not_make_a_validator_mean_its_bytes(store: Store) -> None:
    checksum = Digest("sha256", hashlib.sha256(OTHER).hexdigest())
    with serving({PATH: Served(BODY, etag='"1"', for_get=Served(OTHER))}) as server:
        fetch(store, server, checksum=checksum)
        record = refs.recall(store, parse_ref(server.url(PATH)))
        assert record is not None
        assert () == record.newest.validators


def test_what_goes_on_is_one_version_by_its_digest_where_there_is_no_validator(store: Store) -> None:
    whole = Served(BODY)
    with serving({PATH: [whole, replace(whole, cut_after=1_000_000), whole]}) as server:
        assert BODY == fetch(store, server, checksum=sha256(BODY)).image.path.read_bytes()
        assert [None, "bytes=1000000-"] == ranges(server)
        assert "if-range" not in gets(server)[-1].headers


def test_what_nothing_binds_to_one_version_begins_anew(store: Store) -> None:
    whole = Served(BODY)
    with serving({PATH: [whole, replace(whole, cut_after=1_000_000), whole]}) as server:
        assert BODY == fetch(store, server).image.path.read_bytes()
        assert [None, None] == ranges(server)


def test_where_the_server_knows_no_ranges_the_rest_comes_behind_what_is_here(store: Store) -> None:
    whole = Served(BODY, etag='"1"', ranges=False)
    with serving({PATH: [whole, replace(whole, cut_after=1_000_000), whole]}) as server:
        assert BODY == fetch(store, server).image.path.read_bytes()
        assert len(BODY) + 1_000_000 == server.sent(PATH)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_version_that_is_replaced_meanwhile_is_fetched_from_its_beginning(store: Store, *, knows_ranges: bool) -> None:
    old, new = (Served(body, etag=f'"{body[:1].hex()}"', ranges=knows_ranges) for body in (BODY, b"\1" + OTHER))
    with serving({PATH: [old, replace(old, cut_after=1_000_000), new]}) as server:
        ensured = fetch(store, server)
        assert b"\1" + OTHER == ensured.image.path.read_bytes()
    assert [] == leftovers(store)


def test_a_version_that_is_replaced_again_and_again_is_given_up(store: Store) -> None:
    versions = [Served(os.urandom(MIB), etag=f'"{number}"') for number in range(40)]
    with serving({PATH: versions}) as server, pytest.raises(SourceChanged):
        fetch(store, server)


def test_a_body_that_turns_out_to_be_shorter_than_what_is_here_is_another_version(store: Store) -> None:
    whole, short = Served(BODY, etag='"1"'), Served(OTHER[:500_000], etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=1_000_000), short]}) as server:
        assert OTHER[:500_000] == fetch(store, server).image.path.read_bytes()


def test_everything_that_came_before_the_end_is_not_asked_for_again(store: Store) -> None:
    """The server went silent exactly behind the last byte of a body whose end nobody announced."""
    whole = Served(BODY, etag='"1"', chunked=True)
    with serving({PATH: [whole, replace(whole, stall_after=len(BODY)), Served(BODY, etag='"1"')]}) as server:
        assert BODY == fetch(store, server, web=Web(read_timeout=1.0)).image.path.read_bytes()
        assert [None, f"bytes={len(BODY)}-"] == ranges(server)
        assert 416 == gets(server)[-1].status


# ------------------------------------------------------------------------------------------------------------ across processes


def test_what_broke_off_is_gone_on_from_by_the_next_fetch(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    observer = Recorder()
    with serving({PATH: [whole, replace(whole, cut_after=2_000_000), whole]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server, retries=ONCE)
        kept = staged_bytes(store, server) // 65536 * 65536
        assert 2_000_000 - 65536 <= kept <= 2_000_000
        assert BODY == fetch(store, server, retries=ONCE, observer=observer).image.path.read_bytes()
        assert [None, f"bytes={kept}-"] == ranges(server)
    assert kept == observer.wait_for_event("resumed").fields["size"]
    assert [] == leftovers(store)


def test_what_comes_to_nothing_claims_nothing(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=2_000_000)]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server, retries=ONCE)
    assert ["download", "partial.json", "progress.json"] == sorted(leftovers(store))


@pytest.mark.parametrize(
    ("then", "checksum"),
    [
        (Served(OTHER, etag='"2"'), None),
        (Served(OTHER), sha256(OTHER)),
        (Served(OTHER, last_modified=LONG_AGO), None),
    ],
)
def test_what_broke_off_of_another_version_is_dropped(store: Store, then: Served, checksum: Digest | None) -> None:
    first = Served(BODY, etag='"1"')
    with serving({PATH: [first, replace(first, cut_after=2_000_000), then]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server, retries=ONCE)
        assert OTHER == fetch(store, server, checksum=checksum).image.path.read_bytes()
        assert [None, None] == ranges(server)


def test_bytes_that_lead_to_a_wrong_digest_are_fetched_whole_once(store: Store) -> None:
    """A digest binds both attempts to one version; what came first may have been of another all the same."""
    with serving({PATH: [Served(OTHER), Served(OTHER, cut_after=2_000_000), Served(BODY)]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server, retries=ONCE, checksum=sha256(BODY))
        assert BODY == fetch(store, server, checksum=sha256(BODY)).image.path.read_bytes()
        assert None is ranges(server)[-1]


def test_a_wrong_digest_of_what_was_fetched_whole_is_not_fetched_again(store: Store) -> None:
    with serving({PATH: Served(OTHER)}) as server:
        with pytest.raises(DigestMismatch):
            fetch(store, server, checksum=sha256(BODY))
        assert 1 == len(gets(server))
    assert [] == leftovers(store)


@pytest.mark.parametrize("change", [{"boot": "another"}, {"layout": 99}, {"ref": "https://example.org/other"}])
def test_what_cannot_be_trusted_is_fetched_again(store: Store, change: dict[str, object]) -> None:
    """Bytes that were not made durable may be missing after the machine was started anew."""
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=2_000_000), whole]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server, retries=ONCE)
        staging = staging_of(store, parse_ref(server.url(PATH)))
        left = stagings.partial(staging)
        assert left is not None
        stagings.write_partial(staging, replace(left, **change))  # type: ignore[arg-type]
        assert BODY == fetch(store, server).image.path.read_bytes()
        assert [None, None] == ranges(server)


def test_a_download_that_says_nothing_of_itself_is_fetched_again(store: Store) -> None:
    with serving({PATH: Served(BODY, etag='"1"')}) as server:
        staging = staging_of(store, parse_ref(server.url(PATH)))
        stagings.begin(staging)
        staging.download.write_bytes(OTHER[:1_000_000])
        assert BODY == fetch(store, server).image.path.read_bytes()


def test_a_hit_leaves_what_broke_off_of_a_newer_version(store: Store) -> None:
    old, new = Served(BODY, etag='"1"'), Served(OTHER, etag='"2"')
    with serving({PATH: old}) as server:
        fetch(store, server)
        server.serve(PATH, [new, replace(new, cut_after=2_000_000), new])
        source, ref = HttpSource(revalidate_after=0.0), parse_ref(server.url(PATH))
        cache = Cache(name="base", store=store)
        assert "source-unavailable" != cache.ensure(ref, HttpSource(), Recorder()).reason.code
        with pytest.raises(BodyTruncated):
            cache.ensure(ref, source, Recorder())
        assert "hit" == cache.ensure(ref, HttpSource(), Recorder()).reason.code
        assert OTHER == cache.ensure(ref, source, Recorder()).image.path.read_bytes()
        assert str(ranges(server)[-1]).startswith("bytes=1")


_CHILD = """
import sys
from pathlib import Path
from underlay.cache import Cache
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store
from underlay.testing.fakes import Recorder

store = Store(root=Path(sys.argv[1]), kind=CacheKind.BASE)
Cache(name="base", store=store).ensure(parse_ref(sys.argv[2]), HttpSource(), Recorder())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_dies_is_gone_on_from_behind_what_it_wrote(store: Store, how: signal.Signals) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, stall_after=4_000_000), whole]}) as server:
        argv = [sys.executable, "-B", "-c", _CHILD, os.fspath(store.root), server.url(PATH)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as child:
            server.wait_until_sent(PATH, 4_000_000)
            _wait_for_size(staging_of(store, parse_ref(server.url(PATH))).download, 3 * MIB)
            child.send_signal(how)
            assert 0 != child.wait(30)
        server.resume()
        assert BODY == fetch(store, server).image.path.read_bytes()
        assert int(str(ranges(server)[-1]).removeprefix("bytes=").removesuffix("-")) >= 3 * MIB


def _wait_for_size(path: Path, size: int) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --------------------------------------------------------------------------------------------------------------- many at once


def test_ranges_at_once_are_one_body(store: Store) -> None:
    with serving({PATH: Served(BODY, etag='"1"')}) as server:
        web = Web(parallel=4, range_size=300_001)
        assert BODY == fetch(store, server, web=web).image.path.read_bytes()
        asked = [one for one in ranges(server) if one is not None]
        assert -(-len(BODY) // 300_001) == len(set(asked))
        assert len(asked) == len(gets(server))
        assert {'"1"'} == {request.headers["if-range"] for request in gets(server)}
        assert len(asked) > len(set(asked)) or len(BODY) == server.sent(PATH)  # where the machine is busy, some straggle


def test_ranges_at_once_need_a_server_that_has_them(store: Store) -> None:
    with serving({PATH: Served(BODY, etag='"1"', ranges=False)}) as server:
        assert BODY == fetch(store, server, web=Web(parallel=4, range_size=300_001)).image.path.read_bytes()


def test_ranges_at_once_are_never_of_two_versions(store: Store) -> None:
    old, new = Served(BODY, etag='"1"'), Served(b"\1" + OTHER, etag='"2"')
    with serving({PATH: [old, *[old] * 5, new]}) as server:
        ensured = fetch(store, server, web=Web(parallel=4, range_size=300_001))
        assert b"\1" + OTHER == ensured.image.path.read_bytes()


def test_a_straggler_is_asked_for_once_more(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    stalled = replace(whole, stall_after=1000)
    with serving({PATH: [whole, whole, whole, whole, whole, stalled, whole]}) as server:
        web = Web(parallel=2, range_size=300_001, read_timeout=20.0)
        began = time.monotonic()
        assert BODY == fetch(store, server, web=web).image.path.read_bytes()
        assert time.monotonic() - began < 10
        asked = ranges(server)
        assert 1 <= len(asked) - len(set(asked))


def test_a_range_that_breaks_is_gone_on_from(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, whole, whole, replace(whole, cut_after=1000), whole]}) as server:
        assert BODY == fetch(store, server, web=Web(parallel=3, range_size=300_001)).image.path.read_bytes()


def test_ranges_that_never_come_whole_get_further_all_the_same(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, *[replace(whole, cut_after=400_000)] * 60]}) as server:
        assert BODY == fetch(store, server, web=Web(parallel=3, range_size=1 << 20)).image.path.read_bytes()


def test_ranges_need_something_that_binds_them_to_one_version(store: Store) -> None:
    with serving({PATH: Served(BODY)}) as server:
        assert BODY == fetch(store, server, web=Web(parallel=4, range_size=300_001)).image.path.read_bytes()
        assert [None] == ranges(server)


def test_where_ranges_are_refused_the_whole_is_asked_for(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, Served(status=403), whole]}) as server:
        assert BODY == fetch(store, server, web=Web(parallel=4, range_size=300_001)).image.path.read_bytes()
        assert [None] == ranges(server)[1:]


@pytest.mark.parametrize("parallel", [2, 4, 8])
def test_the_ranges_under_way_take_bounded_memory(parallel: int) -> None:
    body = os.urandom(40 * MIB)
    with serving({PATH: Served(body, etag='"1"')}) as server:
        source = HttpSource(web=Web(parallel=parallel, range_size=64 * MIB))
        version, buffer = source.describe(parse_ref(server.url(PATH))), memoryview(bytearray(1000))
        tracemalloc.start()
        try:
            with source.open(version) as stream:
                assert 1000 == stream.readinto(buffer)
                time.sleep(0.5)  # all that may be asked for ahead has come
                _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= 16 * MIB


# ------------------------------------------------------------------------------------------------------- never two versions


@pytest.mark.parametrize(
    "then",
    [
        Served(OTHER),
        Served(OTHER, ranges=False),
        Served(OTHER, etag='W/"1"'),
        Served(OTHER, etag='W/"1"', ranges=False),
        Served(OTHER, last_modified=LONG_AGO),
        Served(OTHER, last_modified=LONG_AGO, ranges=False),
        Served(OTHER, headers={"Content-Range": f"bytes 1000000-{len(OTHER) - 1}/{len(OTHER)}"}, status=206),
    ],
)
def test_an_answer_that_does_not_say_its_version_is_never_put_behind_another(store: Store, then: Served) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=1_000_000), then]}) as server:
        try:
            found = fetch(store, server).image.path.read_bytes()
        except UnderlayError:
            return
    assert OTHER == found


def test_what_was_left_compressed_is_not_gone_on_from_decompressed(store: Store) -> None:
    content = os.urandom(4 * MIB)
    whole = Served(gzip.compress(content), etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=3 * MIB), whole]}) as server:
        cache, ref = Cache(name="base", store=replace(store, force_raw=False)), parse_ref(server.url(PATH))
        with pytest.raises(BodyTruncated):
            cache.ensure(ref, HttpSource(), Recorder(), want=Want(raw=False))
        assert "partial.json" in leftovers(store)
        assert content == cache.ensure(ref, HttpSource(), Recorder()).image.path.read_bytes()


def test_what_was_left_of_a_longer_version_is_dropped_when_only_a_digest_tells(store: Store) -> None:
    short = OTHER[: 1 * MIB]
    with serving({PATH: [Served(BODY), Served(BODY, cut_after=3 * MIB), Served(short)]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server, retries=ONCE, checksum=sha256(short))
        assert short == fetch(store, server, checksum=sha256(short)).image.path.read_bytes()


def test_an_interrupt_as_a_buffer_is_passed_on_does_not_pass_it_on_twice(store: Store) -> None:
    class Interrupting(Pipeline):
        def pass_on(self, buffer: Buffer) -> None:
            super().pass_on(buffer)
            raise KeyboardInterrupt

    order = Order(store=store, source=HttpSource(), version=ImageVersion(ref=parse_ref("https://host/a"), validator="x"))
    seen = bytearray()

    class Collecting:
        def feed(self, chunk: memoryview, /) -> None:
            seen.extend(chunk)

    stagings.begin(staging := staging_of(store, order.version.ref))
    claim = Claim(order, staging, Recorder())
    with (
        ThreadPoolExecutor(1) as pool,
        tempfile.TemporaryFile() as file,
        following(order, staging, claim, Recorder()) as follower,
    ):
        pipeline = Interrupting([Collecting()])
        content = Content(order, claim, SparseWriter(file.fileno()), follower)
        pipeline.start(pool)
        intake = Intake(order, file.fileno(), pipeline, content, Meter("x", None, staging, Recorder()))
        with pytest.raises(KeyboardInterrupt):
            intake.take(io.BytesIO(BODY))
        intake.finish()
    assert BODY[: len(seen)] == seen


def test_a_server_that_gives_a_byte_at_a_time_is_given_up(store: Store) -> None:
    whole = Served(BODY, etag='"1"')
    with serving({PATH: [whole, replace(whole, cut_after=1)]}) as server:
        with pytest.raises(BodyTruncated):
            fetch(store, server)
        assert 3 == len(gets(server))


def test_what_nothing_binds_is_not_tried_more_often_than_is_configured(store: Store) -> None:
    with serving({PATH: [Served(BODY), Served(status=503)]}) as server:
        with pytest.raises(SourceUnavailable):
            fetch(store, server)
        assert 3 == len(gets(server))


def test_the_memory_of_a_partial_holds_no_secret(store: Store) -> None:
    whole = Served(BODY, etag='"1"', credentials="tux:s3cret")
    with serving({PATH: [whole, replace(whole, cut_after=2_000_000), whole]}) as server:
        cache, ref = Cache(name="base", store=store), parse_ref(server.url(PATH, credentials="tux:s3cret"))
        with pytest.raises(BodyTruncated):
            cache.ensure(ref, HttpSource(), Recorder())
    staging = staging_of(store, ref)
    left = stagings.partial(staging)
    assert isinstance(left, Partial)
    assert "s3cret" not in staging.partial.read_text()


# ---------------------------------------------------------------------------------------------------------- files of this host


@pytest.mark.component("root", "xfs", "btrfs")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("size", [1, 65536, 3 * MIB + 12345])
def test_a_file_of_the_same_file_system_is_shared_and_verified(mounted: Callable[..., Path], kind: str, size: int) -> None:
    place = mounted(kind)
    store, file, observer = laid_out(place / "base"), place / "image", Recorder()
    file.write_bytes(os.urandom(size))
    cache, source, ref = Cache(name="base", store=store), FileSource(allowed_paths=(place,)), parse_ref(f"file://{file}")
    with pytest.raises(DigestMismatch):
        cache.ensure(ref, source, Recorder(), want=Want(checksum=sha256(b"other")))
    image = cache.ensure(ref, source, observer, want=Want(checksum=sha256(file.read_bytes()))).image
    assert size == observer.wait_for_event("shared").fields["size"]
    assert file.read_bytes() == image.path.read_bytes()
    assert file.stat().st_ino != image.path.stat().st_ino
    assert 1 == image.path.stat().st_nlink
    with image.path.open("rb") as opened:
        own = own_bytes(opened.fileno())
    assert own <= 32 << 10  # the last block and the attribute are its own
    before = image.path.read_bytes()
    file.write_bytes(b"changed in its place")
    assert before == image.path.read_bytes()
    assert [] == leftovers(store)


@pytest.mark.component("root", "xfs")
def test_of_a_compressed_file_what_it_holds_is_kept_and_nothing_is_shared(mounted: Callable[..., Path]) -> None:
    place = mounted("xfs")
    store, file, observer = laid_out(place / "base"), place / "image.gz", Recorder()
    file.write_bytes(gzip.compress(BODY))
    cache, source = Cache(name="base", store=store), FileSource(allowed_paths=(place,))
    assert BODY == cache.ensure(parse_ref(f"file://{file}"), source, observer).image.path.read_bytes()
    assert "shared" not in observer.codes


@pytest.mark.component("root", "xfs", "ext4")
def test_a_file_of_another_file_system_is_copied(mounted: Callable[..., Path]) -> None:
    place = mounted("xfs")
    store, file, observer = laid_out(mounted("ext4") / "base"), place / "image", Recorder()
    file.write_bytes(BODY)
    cache, source = Cache(name="base", store=store), FileSource(allowed_paths=(place,))
    assert BODY == cache.ensure(parse_ref(f"file://{file}"), source, observer).image.path.read_bytes()
    assert "shared" not in observer.codes
