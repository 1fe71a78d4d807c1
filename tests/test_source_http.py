"""Images from web servers: what describes them, where requests go and with which credentials, and what each fault is called."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from underlay.cache import Cache
from underlay.contracts import ByteStream
from underlay.errors import (
    BodyTooLong,
    BodyTruncated,
    ConfigError,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
    UntrustedCertificate,
)
from underlay.files import read_attribute
from underlay.model import ImageVersion
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Certificate, Served, Server, redirect, self_signed, serving
from underlay.testing.relay import Fault, relaying
from underlay.values import replace
from underlay.web import Web

BODY = os.urandom(300_000)
LONG_AGO = datetime(2024, 5, 17, 12, 30, 45, tzinfo=UTC)


def describe(url: str, source: HttpSource | None = None) -> ImageVersion:
    return (source or HttpSource()).describe(parse_ref(url))


def contents(stream: ByteStream) -> bytes:
    buffer, found = memoryview(bytearray(100_000)), b""
    while length := stream.readinto(buffer):
        found += buffer[:length]
    return found


def fetched(url: str, source: HttpSource | None = None, *, offset: int = 0) -> bytes:
    source = source or HttpSource()
    with source.open(describe(url, source), offset=offset) as stream:
        return contents(stream)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(root=tmp_path / "base", kind=CacheKind.BASE)
    made.root.mkdir()
    return made


def ensured(store: Store, url: str, source: HttpSource | None = None, observer: Recorder | None = None) -> bytes:
    cache = Cache(name="base", store=store)
    return cache.ensure(parse_ref(url), source or HttpSource(), observer or Recorder()).image.path.read_bytes()


def left(store: Store) -> list[str]:
    """What an ingest may leave and must not: images, and anything in ``tmp``."""
    return [path.name for path in store.root.iterdir() if path.name != ".underlay"] + os.listdir(store.paths.tmp)


# ----------------------------------------------------------------------------------------------------------- one small request


def test_a_head_describes_and_asks_for_no_encoding() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"')}) as server:
        version = describe(server.url("/a.img"))
        (request,) = server.requests
    assert (len(BODY), 'etag:"1"', None) == (version.size, version.validator, version.id)
    assert ("HEAD", "identity") == (request.method, request.headers["accept-encoding"])


@pytest.mark.parametrize("status", [405, 403, 501, 400])
def test_where_head_is_refused_a_get_of_one_byte_describes(status: int) -> None:
    with serving({"/a.img": Served(BODY, etag='"1"', head_status=status)}) as server:
        version = describe(server.url("/a.img"))
        assert (len(BODY), 'etag:"1"') == (version.size, version.validator)
        server.wait_until_sent("/a.img", 1)
        assert 1 == server.sent("/a.img")
        assert BODY == fetched(server.url("/a.img"))


def test_where_head_is_refused_and_ranges_are_not_known_the_rest_of_the_body_is_not_read() -> None:
    with serving({"/a.img": Served(BODY * 100, etag='"1"', head_status=405, ranges=False)}) as server:
        assert len(BODY) * 100 == describe(server.url("/a.img")).size


def test_an_empty_body_where_head_is_refused_is_empty() -> None:
    with serving({"/a.img": Served(b"", etag='"1"', head_status=405)}) as server:
        assert 0 == describe(server.url("/a.img")).size


def test_a_head_without_a_length_leaves_the_size_open() -> None:
    with serving({"/a.img": Served(BODY, chunked=True, last_modified=LONG_AGO)}) as server:
        version = describe(server.url("/a.img"))
        assert version.size is None
        assert BODY == fetched(server.url("/a.img"))


def test_a_head_that_announces_nothing_because_it_sends_nothing_is_not_believed() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"', head_length=0)}) as server:
        assert describe(server.url("/a.img")).size is None
        assert BODY == fetched(server.url("/a.img"))


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 5000, "12, 13", "x"])
def test_a_length_that_is_none_leaves_the_size_open_or_is_refused(length: str) -> None:
    with serving({"/a.img": Served(BODY, headers={"Content-Length": length})}) as server:
        with suppress(SourceError):
            assert describe(server.url("/a.img")).size is None


def test_one_source_serves_many_requests() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"')}) as server:
        source = HttpSource()
        for _ in range(3):
            assert BODY == fetched(server.url("/a.img"), source)
    assert 6 == len(server.requests)


# ---------------------------------------------------------------------------------------------------------------- validators


def test_a_strong_etag_is_the_validator_whatever_the_times_are() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"', last_modified=datetime.now(UTC))}) as server:
        assert 'etag:"1"' == describe(server.url("/a.img")).validator


def test_a_weak_etag_alone_is_no_validator() -> None:
    with serving({"/a.img": Served(BODY, etag='W/"1"')}) as server:
        assert describe(server.url("/a.img")).validator is None


def test_nothing_is_no_validator() -> None:
    with serving({"/a.img": Served(BODY)}) as server:
        assert describe(server.url("/a.img")).validator is None


def test_a_date_that_no_calendar_has_is_no_validator() -> None:
    odd = {"Last-Modified": "Tue, 17 May 2022 12:30:45 +999999999999999999999"}
    with serving({"/a.img": Served(BODY, headers=odd)}) as server:
        assert describe(server.url("/a.img")).validator is None


def test_an_old_last_modified_is_a_validator_together_with_the_length_and_a_weak_etag() -> None:
    served = Served(BODY, last_modified=LONG_AGO, etag='W/"1"')
    with serving({"/a": served, "/b": replace(served, etag='W/"2"'), "/c": replace(served, body=BODY[1:])}) as server:
        same, again, other_tag, other_length = (describe(server.url(path)).validator for path in ("/a", "/a", "/b", "/c"))
    assert same is not None
    assert same == again
    assert 3 == len({same, other_tag, other_length})


@pytest.mark.parametrize(("age", "is_trusted"), [(0, False), (1, False), (2, True), (-60, False)])
def test_a_last_modified_within_a_second_of_the_date_is_not_trusted(age: int, *, is_trusted: bool) -> None:
    """A second write in the same second has the same time (RFC 9110, 8.8.2.2)."""
    headers = {"Date": "Fri, 17 May 2024 12:30:45 GMT"}
    with serving({"/a.img": Served(BODY, last_modified=LONG_AGO - timedelta(seconds=age), headers=headers)}) as server:
        assert is_trusted == (describe(server.url("/a.img")).validator is not None)


@pytest.mark.parametrize("date", ["yesterday", ""])
def test_a_last_modified_beside_a_date_that_cannot_be_read_is_not_trusted(date: str) -> None:
    with serving({"/a.img": Served(BODY, last_modified=LONG_AGO, headers={"Date": date})}) as server:
        assert describe(server.url("/a.img")).validator is None


# ----------------------------------------------------------------------------------------- what is known already is asked about


def asked_again(server: Server, *known: str, source: HttpSource | None = None) -> ImageVersion:
    """The description when a version with these validators is here."""
    return (source or HttpSource()).describe(parse_ref(server.url("/a.img")), known=known)


def conditions(server: Server) -> list[tuple[str, str | None, str | None]]:
    """Of each request its method and its conditions."""
    fields = ("if-none-match", "if-modified-since")
    return [(request.method, *(request.headers.get(field) for field in fields)) for request in server.requests]  # type: ignore[misc]


MODIFIED = "modified:Fri, 17 May 2024 12:30:45 GMT;length:None;"
DATE = "Fri, 17 May 2024 12:30:45 GMT"


def test_a_known_etag_is_asked_about_and_a_304_means_the_version_that_had_it() -> None:
    with serving({"/a.img": Served(BODY, etag='"2"')}) as server:
        version = asked_again(server, 'etag:"1"', 'etag:"2"', MODIFIED)
        assert [("HEAD", '"1", "2"', None)] == conditions(server)
        assert 304 == server.requests[0].status
    assert ('etag:"2"', None) == (version.validator, version.size)


def test_another_etag_is_described_in_the_same_request() -> None:
    with serving({"/a.img": Served(BODY, etag='"3"')}) as server:
        version = asked_again(server, 'etag:"1"', 'etag:"2"')
        assert 1 == len(server.requests)
    assert ('etag:"3"', len(BODY)) == (version.validator, version.size)


def test_a_304_without_an_etag_means_the_version_that_was_asked_about() -> None:
    with serving({"/a.img": Served(status=304)}) as server:
        assert 'etag:"2"' == asked_again(server, 'etag:"1"', 'etag:"2"').validator


@pytest.mark.parametrize("etag", ['"3"', 'W/"1"', ""])
def test_a_304_that_names_an_etag_nobody_asked_about_is_asked_again_without_a_condition(etag: str) -> None:
    answers = [Served(status=304, headers={"ETag": etag}), Served(BODY, etag='"3"')]
    with serving({"/a.img": answers}) as server:
        assert 'etag:"3"' == asked_again(server, 'etag:"1"').validator
        assert [("HEAD", '"1"', None), ("HEAD", None, None)] == conditions(server)


def test_a_settled_date_is_asked_about_and_a_304_that_names_it_is_believed() -> None:
    with serving({"/a.img": Served(BODY, last_modified=LONG_AGO, chunked=True)}) as server:
        validator = describe(server.url("/a.img")).validator
        assert MODIFIED == validator
        assert MODIFIED == asked_again(server, MODIFIED).validator
        assert ("HEAD", None, DATE) == conditions(server)[-1]
        assert 304 == server.requests[-1].status


@pytest.mark.parametrize("named", [None, "Fri, 17 May 2024 12:30:44 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "yesterday"])
def test_a_304_that_does_not_name_the_date_is_asked_again_without_a_condition(named: str | None) -> None:
    older = Served(BODY, last_modified=LONG_AGO - timedelta(days=1))
    answers = [Served(status=304, headers={} if named is None else {"Last-Modified": named}), older]
    with serving({"/a.img": answers}) as server:
        version = asked_again(server, MODIFIED)
        assert [("HEAD", None, DATE), ("HEAD", None, None)] == conditions(server)
    assert (len(BODY), True) == (version.size, version.validator not in (None, MODIFIED))


def test_a_304_to_a_request_without_a_condition_is_an_error() -> None:
    with serving({"/a.img": Served(status=304)}) as server:
        with pytest.raises(SourceRefused, match="304"):
            asked_again(server)
        with pytest.raises(SourceRefused, match="304"):
            asked_again(server, MODIFIED)
        assert 3 == len(server.requests)


def test_validators_of_another_kind_are_not_asked_about() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"')}) as server:
        asked_again(server, "stat:1:2:3", "automatic")
        assert [("HEAD", None, None)] == conditions(server)


def test_where_head_is_refused_the_get_carries_the_condition() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"', head_status=405)}) as server:
        assert 'etag:"1"' == asked_again(server, 'etag:"1"').validator
        assert [("HEAD", '"1"', None), ("GET", '"1"', None)] == conditions(server)
        assert 0 == server.sent("/a.img")


def test_the_condition_goes_along_a_redirect() -> None:
    with serving({"/a.img": redirect("/b.img"), "/b.img": Served(BODY, etag='"1"')}) as server:
        assert 'etag:"1"' == asked_again(server, 'etag:"1"').validator
        assert [("HEAD", '"1"', None)] * 2 == conditions(server)


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("no-store", True),
        ("max-age=60, NO-STORE", True),
        ("private,no-store", True),
        ("no-cache", False),
        ("max-age=0, must-revalidate", False),
        ("x-no-store, no-stores", False),
        ("", False),
    ],
)
def test_whether_a_copy_may_be_kept_is_heard(header: str, *, answer: bool) -> None:
    kept = {"Cache-Control": header}
    with serving({"/a.img": Served(BODY, etag='"1"', headers=kept)}) as server:
        assert answer == describe(server.url("/a.img")).no_store
        assert answer == asked_again(server, 'etag:"1"').no_store
        server.serve("/a.img", Served(BODY, etag='"1"', headers=kept, head_status=405))
        assert answer == describe(server.url("/a.img")).no_store


def test_a_server_whose_kept_connection_was_reset_between_two_descriptions_is_asked_on_a_new_one() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"')}) as server, relaying(server.base) as relay:
        source = HttpSource()
        version = describe(relay.url("/a.img"), source)
        relay.misbehave("/a.img", Fault(reset=True, times=1))
        assert version == describe(relay.url("/a.img"), source)
        assert [200, 0, 200] == [request.status for request in relay.ledger.requests]


# ---------------------------------------------------------------------------------------------------- from the HEAD to the GET


def test_a_changed_etag_between_head_and_get_is_a_change() -> None:
    changed = Served(BODY, etag='"1"', for_get=Served(BODY[::-1], etag='"2"'))
    with serving({"/a.img": changed}) as server, pytest.raises(SourceChanged, match="changed after it was described"):
        fetched(server.url("/a.img"))


def test_a_changed_last_modified_between_head_and_get_is_a_change() -> None:
    later = Served(BODY, last_modified=LONG_AGO + timedelta(days=1))
    with serving({"/a.img": Served(BODY, last_modified=LONG_AGO, for_get=later)}) as server, pytest.raises(SourceChanged):
        fetched(server.url("/a.img"))


def test_a_head_that_leaves_the_length_out_is_no_change() -> None:
    head = Served(BODY, last_modified=LONG_AGO, chunked=True, for_get=Served(BODY, last_modified=LONG_AGO))
    with serving({"/a.img": head}) as server:
        assert BODY == fetched(server.url("/a.img"))


def test_a_get_that_leaves_the_etag_out_is_no_change() -> None:
    head = Served(BODY, etag='"1"', last_modified=LONG_AGO, for_get=Served(BODY, last_modified=LONG_AGO))
    with serving({"/a.img": head}) as server:
        assert BODY == fetched(server.url("/a.img"))


def test_bytes_are_served_from_an_offset_on() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"')}) as server:
        assert BODY[1234:] == fetched(server.url("/a.img"), offset=1234)
        assert "bytes=1234-" == server.requests[-1].headers["range"]


def test_where_the_server_knows_no_ranges_what_comes_before_the_offset_is_dropped() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"', ranges=False)}) as server:
        assert BODY[1234:] == fetched(server.url("/a.img"), offset=1234)


def test_another_offset_than_the_asked_one_is_a_change() -> None:
    other = {"Content-Range": f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"}
    with serving({"/a.img": Served(BODY, etag='"1"', headers=other)}) as server, pytest.raises(SourceChanged):
        fetched(server.url("/a.img"), offset=1234)


def test_a_changed_etag_at_an_offset_is_a_change() -> None:
    changed = Served(BODY, etag='"1"', for_get=Served(BODY, etag='"2"'))
    with serving({"/a.img": changed}) as server, pytest.raises(SourceChanged, match="changed after it was described"):
        fetched(server.url("/a.img"), offset=1234)


def test_a_part_that_nobody_asked_for_is_not_taken_for_the_whole() -> None:
    part = Served(BODY[:1000], status=206, headers={"Content-Range": f"bytes 0-999/{len(BODY)}"})
    with serving({"/a.img": Served(BODY, chunked=True, for_get=part)}) as server, pytest.raises(SourceChanged):
        fetched(server.url("/a.img"))


# ------------------------------------------------------------------------------------------------------------------ bad bodies


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_ends_early_is_truncated(*, chunked: bool) -> None:
    with serving({"/a.img": Served(BODY, cut_after=1000, chunked=chunked)}) as server, pytest.raises(BodyTruncated):
        fetched(server.url("/a.img"))


def test_a_content_encoding_that_was_not_asked_for_is_refused() -> None:
    with serving({"/a.img": Served(BODY, encoding="gzip")}) as server, pytest.raises(SourceRefused, match="gzip"):
        fetched(server.url("/a.img"))


def test_a_content_encoding_that_is_none_is_accepted() -> None:
    with serving({"/a.img": Served(BODY, encoding="Identity")}) as server:
        assert BODY == fetched(server.url("/a.img"))


@pytest.mark.parametrize(
    ("served", "error"),
    [
        (Served(BODY, cut_after=1000), BodyTruncated),
        (Served(BODY, cut_after=1000, chunked=True), BodyTruncated),
        (Served(BODY, head_length=len(BODY) + 1), BodyTruncated),
        (Served(BODY, head_length=1000), BodyTooLong),
        (Served(BODY, encoding="gzip"), SourceRefused),
        (Served(BODY, etag='"1"', for_get=Served(BODY, etag='"2"')), SourceChanged),
        (Served(BODY, for_get=Served(status=404)), ImageNotFound),
        (Served(BODY, for_get=Served(status=503)), SourceUnavailable),
        (Served(BODY, for_get=redirect("/b.img")), SourceRefused),
    ],
    ids=["cut", "chunk-cut", "head-says-more", "head-says-less", "encoded", "changed", "gone", "unavailable", "loop"],
)
def test_after_a_fault_nothing_is_left(store: Store, served: Served, error: type[UnderlayError]) -> None:
    with serving({"/a.img": served, "/b.img": redirect("/b.img")}) as server:
        with pytest.raises(error) as caught:
            ensured(store, server.url("/a.img"))
        assert server.url("/a.img") in caught.value.message
        assert "\n" not in caught.value.message
        assert [] == left(store)
        server.serve("/a.img", Served(BODY))
        assert BODY == ensured(store, server.url("/a.img"))


# ---------------------------------------------------------------------------------------------------------------- bad answers


@pytest.mark.parametrize(
    ("status", "error", "transient"),
    [
        (404, ImageNotFound, False),
        (410, ImageNotFound, False),
        (401, NotAuthorized, False),
        (403, NotAuthorized, False),
        (500, SourceUnavailable, True),
        (503, SourceUnavailable, True),
        (429, SourceUnavailable, True),
        (204, ImageNotFound, False),
        (418, SourceRefused, False),
    ],
)
def test_a_status_has_an_error_of_its_own(status: int, error: type[SourceError], *, transient: bool) -> None:
    with serving({"/a.img": Served(b"no\n", status=status)}) as server:
        with pytest.raises(error) as caught:
            describe(server.url("/a.img"))
        assert f"{server.url('/a.img')}: the server answers {status}" in caught.value.message
        assert transient == caught.value.transient
        assert error is type(caught.value)


def test_a_refused_connection_is_unavailable() -> None:
    with serving({}) as server:
        url = server.url("/a.img")
    with pytest.raises(SourceUnavailable) as caught:
        describe(url)
    assert f"{url}: Connection refused" == caught.value.message


def test_a_host_without_an_address_is_unavailable() -> None:
    with pytest.raises(SourceUnavailable, match="cannot be resolved"):
        describe("http://no-such-host.invalid/a.img")


def test_a_server_that_never_answers_is_unavailable() -> None:
    with mute_server() as port, pytest.raises(SourceUnavailable, match="silent"):
        describe(f"http://127.0.0.1:{port}/a.img", HttpSource(web=Web(read_timeout=0.2)))


def test_a_body_that_stalls_is_unavailable() -> None:
    with serving({"/a.img": Served(BODY, stall_after=1000)}) as server, pytest.raises(SourceUnavailable, match="silent"):
        fetched(server.url("/a.img"), HttpSource(web=Web(read_timeout=0.2)))


def test_an_answer_that_is_no_http_is_unavailable() -> None:
    with mute_server(says=b"220 mail.example.org ESMTP\r\n") as port, pytest.raises(SourceUnavailable):
        describe(f"http://127.0.0.1:{port}/a.img")


def test_what_a_server_says_cannot_reach_a_terminal_as_control_characters() -> None:
    rude = b"HTTP/1.1 404 \x1b[2J\x9bgone" + b"!" * 1000 + b"\r\nContent-Length: 0\r\n\r\n"
    with mute_server(says=rude) as port, pytest.raises(ImageNotFound) as caught:
        describe(f"http://127.0.0.1:{port}/a.img")
    assert caught.value.message.isprintable()
    assert "404 [2Jgone!" in caught.value.message
    assert len(caught.value.message) < 200


@contextmanager
def mute_server(*, says: bytes = b"") -> Iterator[int]:
    """A port that accepts, reads, says this whatever it is asked, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(says)
                ended.wait(10)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def test_an_abandoned_body_does_not_disturb_the_next_request() -> None:
    """Its rest would be taken for the next answer, if its connection were used again."""
    stalling = Served(BODY, chunked=True, stall_after=1000)
    with serving({"/a.img": stalling, "/b.img": Served(b"b", chunked=True)}) as server:
        source = HttpSource()
        for _ in range(3):
            with source.open(describe(server.url("/a.img"), source)) as stream:
                stream.readinto(memoryview(bytearray(1000)))
            assert b"b" == fetched(server.url("/b.img"), source)


# ------------------------------------------------------------------------------------------------------------------ redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status: int) -> None:
    with serving({"/a.img": redirect("/b.img", status=status), "/b.img": Served(BODY, etag='"1"')}) as server:
        assert 'etag:"1"' == describe(server.url("/a.img")).validator
        assert BODY == fetched(server.url("/a.img"))


def test_relative_and_absolute_redirects_are_followed() -> None:
    with serving({"/x/b.img": redirect("c/d.img"), "/x/c/d.img": Served(BODY)}) as server:
        server.serve("/a.img", redirect(server.url("/x/b.img")))
        assert BODY == fetched(server.url("/a.img"))


def test_the_image_keeps_the_ref_that_was_asked_for() -> None:
    with serving({"/a.img": redirect("/b.img"), "/b.img": Served(BODY)}) as server:
        assert server.url("/a.img") == describe(server.url("/a.img")).ref.canonical


def test_a_redirect_with_blanks_and_bytes_beyond_ascii_leads_where_it_says() -> None:
    location = "/ein Bild für alle.img".encode().decode("latin-1")
    with serving({"/a.img": redirect(location), "/ein%20Bild%20f%C3%BCr%20alle.img": Served(BODY)}) as server:
        assert BODY == fetched(server.url("/a.img"))


def test_redirects_are_bounded() -> None:
    chain = {f"/{step}": redirect(f"/{step + 1}") for step in range(5)}
    with serving({**chain, "/5": Served(BODY), "/again": redirect("/0")}) as server:
        assert len(BODY) == describe(server.url("/0")).size
        with pytest.raises(SourceRefused, match="more than 5 times"):
            describe(server.url("/again"))


def test_a_loop_of_redirects_ends() -> None:
    with serving({"/a": redirect("/b"), "/b": redirect("/a")}) as server:
        with pytest.raises(SourceRefused, match="more than 5 times"):
            describe(server.url("/a"))
        assert 6 == len(server.requests)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/a", "https:///a", "http://[::1", "http://127.0.0.1:port/", "", "data:,x"],
)
def test_a_redirect_to_what_is_no_web_address_is_refused(location: str) -> None:
    with serving({"/a.img": redirect(location)}) as server, pytest.raises(SourceRefused, match="no web address"):
        describe(server.url("/a.img"))


def test_the_bytes_come_from_the_mirror_that_described_them() -> None:
    """A redirector names another mirror each time, and each mirror has an ETag of its own."""
    mirrors = {"/mirror-1/a.img": Served(BODY, etag='"one"'), "/mirror-2/a.img": Served(BODY, etag='"two"')}
    with serving({**mirrors, "/a.img": [redirect("/mirror-1/a.img"), redirect("/mirror-2/a.img")]}) as server:
        assert BODY == fetched(server.url("/a.img"))
        assert (1, 0) == (server.bodies("/mirror-1/a.img"), server.bodies("/mirror-2/a.img"))


def test_a_place_that_only_described_is_left_for_the_one_that_a_get_is_sent_to() -> None:
    """A redirector signs its links for one method."""
    only_head = Served(BODY, etag='"1"', for_get=Served(status=403))
    with serving({"/a.img": redirect("/head"), "/head": only_head}) as server:
        source, ref = HttpSource(), parse_ref(server.url("/a.img"))
        version = source.describe(ref)
        server.serve("/a.img", redirect("/get"))
        server.serve("/get", Served(BODY, etag='"1"'))
        with source.open(version) as stream:
            assert BODY == contents(stream)


@pytest.mark.parametrize("offset", [0, 1234])
@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize("fault", [None, Fault(reset=True), Fault(silent=True), Fault(status=503)])
def test_a_mirror_that_dies_is_left_for_the_one_that_the_server_names_then(
    fault: Fault | None, parallel: int, offset: int
) -> None:
    source = HttpSource(web=Web(read_timeout=0.5, parallel=parallel, range_size=100_000))
    served = Served(BODY, etag='"1"')
    with serving({"/a.img": served}) as living, relaying(living.base) as mirror:
        with serving({"/a.img": redirect(mirror.url("/a.img"))}) as server:
            version = describe(server.url("/a.img"), source)
            assert mirror.url("/a.img") == version.found_at
            mirror.go_away() if fault is None else mirror.misbehave("*", fault)
            server.serve("/a.img", redirect(living.url("/a.img")))
            with source.open(version, offset=offset) as stream:
                assert BODY[offset:] == contents(stream)
            assert 1 == server.count("GET", "/a.img") == living.bodies("/a.img")


def test_a_dead_mirror_that_is_still_named_is_unavailable() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"')}) as living, relaying(living.base) as mirror:
        with serving({"/a.img": redirect(mirror.url("/a.img"))}) as server:
            source = HttpSource()
            version = describe(server.url("/a.img"), source)
            mirror.go_away()
            with pytest.raises(SourceUnavailable, match="Connection refused"), source.open(version):
                pass
            assert 1 == server.count("GET", "/a.img")


def test_what_happens_while_a_body_is_read_does_not_begin_it_anew() -> None:
    with serving({"/a.img": redirect("/b.img"), "/b.img": Served(BODY, etag='"1"')}) as server:
        source = HttpSource()
        version = describe(server.url("/a.img"), source)
        with pytest.raises(SourceUnavailable, match="of another"), source.open(version):
            raise SourceUnavailable("of another")
        assert 0 == server.count("GET", "/a.img")


# ------------------------------------------------------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("tls"))


def trusting(certificate: Certificate) -> HttpSource:
    return HttpSource(web=Web(ca_file=os.fspath(certificate.ca_file)))


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Certificate) -> None:
    with serving({"/a.img": Served(BODY)}, tls=certificate) as server:
        with pytest.raises(UntrustedCertificate, match="certificate is not trusted: self-signed") as caught:
            describe(server.url("/a.img"))
        assert () == server.requests
    assert caught.value.hint is not None
    assert "ca_file" in caught.value.hint


def test_a_certificate_that_the_configuration_vouches_for_is_accepted(certificate: Certificate) -> None:
    with serving({"/a.img": Served(BODY)}, tls=certificate) as server:
        assert BODY == fetched(server.url("/a.img"), trusting(certificate))


def test_a_certificate_of_another_host_is_refused(certificate: Certificate) -> None:
    with serving({"/a.img": Served(BODY)}, tls=certificate) as server, pytest.raises(UntrustedCertificate):
        describe(server.url("/a.img").replace("localhost", "127.1"), trusting(certificate))


def test_certificates_that_cannot_be_used_are_a_mistake_in_the_configuration(certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with serving({"/a.img": Served(BODY)}, tls=certificate) as server:
        for name in ("absent.pem", "empty.pem"):
            with pytest.raises(ConfigError, match=f"{name} cannot be used"):
                describe(server.url("/a.img"), HttpSource(web=Web(ca_file=os.fspath(tmp_path / name))))


def test_a_redirect_from_https_to_http_is_refused_and_never_followed(certificate: Certificate) -> None:
    with serving({"/b.img": Served(BODY)}) as plain:
        with serving({"/a.img": redirect(plain.url("/b.img"))}, tls=certificate) as server:
            with pytest.raises(SourceRefused, match="from https to http"):
                describe(server.url("/a.img"), trusting(certificate))
        assert () == plain.requests


def test_a_redirect_from_http_to_https_is_followed(certificate: Certificate) -> None:
    with serving({"/b.img": Served(BODY)}, tls=certificate) as server:
        with serving({"/a.img": redirect(server.url("/b.img"))}) as plain:
            assert BODY == fetched(plain.url("/a.img"), trusting(certificate))


def test_a_server_that_speaks_no_tls_is_unavailable(certificate: Certificate) -> None:
    with serving({"/a.img": Served(BODY)}) as server, pytest.raises(SourceUnavailable):
        describe(server.url("/a.img").replace("http:", "https:"), trusting(certificate))


# ---------------------------------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize("credentials", ["tux:s3cret", "tux:", "t u@x:pa:ss/w@rd?#", "tüx:pässwörd€"])
def test_userinfo_is_sent_as_basic_authentication(credentials: str) -> None:
    with serving({"/a.img": Served(BODY, credentials=credentials)}) as server:
        assert BODY == fetched(server.url("/a.img", credentials=credentials))


def test_without_userinfo_nothing_is_sent() -> None:
    with serving({"/a.img": Served(BODY, credentials="tux:s3cret")}) as server:
        with pytest.raises(NotAuthorized, match="401"):
            describe(server.url("/a.img"))
        assert "authorization" not in server.requests[0].headers


def test_userinfo_goes_along_a_redirect_on_its_own_host() -> None:
    guarded = Served(BODY, credentials="tux:s3cret")
    with serving({"/a.img": redirect("/b.img"), "/b.img": guarded}) as server:
        assert BODY == fetched(server.url("/a.img", credentials="tux:s3cret"))


def test_userinfo_never_goes_to_another_host() -> None:
    with serving({"/b.img": Served(BODY)}) as other, serving({"/a.img": redirect(other.url("/b.img"))}) as server:
        assert BODY == fetched(server.url("/a.img", credentials="tux:s3cret"))
        assert all("authorization" in request.headers for request in server.requests)
        assert [] == [request for request in other.requests if "authorization" in request.headers]
        assert 2 == len(other.requests)


def test_userinfo_that_a_redirect_brings_is_not_used() -> None:
    with serving({"/b.img": Served(BODY)}) as server:
        server.serve("/a.img", redirect(server.url("/b.img", credentials="evil:s3cret")))
        assert BODY == fetched(server.url("/a.img"))
        assert [] == [request for request in server.requests if "authorization" in request.headers]


def everything(store: Store) -> bytes:
    """All names, contents and records below a cache."""
    found = []
    for path in store.root.rglob("*"):
        found += [os.fsencode(path), read_attribute(path) or b""]
        if path.is_file():
            found.append(path.read_bytes())
    return b"\n".join(found)


SECRETS = {"user": "tuxedo", "password": "s3cretword", "signature": "5ign4ture"}


def secret_url(server: Server, path: str) -> str:
    url = server.url(path, credentials=f"{SECRETS['user']}:{SECRETS['password']}")
    return f"{url}?part=2&X-Amz-Signature={SECRETS['signature']}&X-Amz-Expires=60"


def test_secrets_are_sent_and_never_told_nor_stored(store: Store) -> None:
    observer = Recorder()
    with serving({"/a.img": Served(BODY, etag='"1"', credentials=f"{SECRETS['user']}:{SECRETS['password']}")}) as server:
        cache, ref = Cache(name="base", store=store), parse_ref(secret_url(server, "/a.img"))
        source = HttpSource(revalidate_after=0)
        answers = [cache.ensure(ref, source, observer) for _ in range(2)]
        assert all(SECRETS["signature"] in request.path for request in server.requests)
    answers.append(cache.ensure(ref, source, observer))
    assert ["fetched", "revalidated", "source-unavailable"] == [answer.reason.code for answer in answers]
    assert ref.canonical == f"{server.url('/a.img')}?part=2" == answers[0].image.ref
    told = repr([answers, observer.events, observer.steps, ref, source]).encode()
    for secret in SECRETS.values():
        assert secret.encode() not in everything(store) + told


@pytest.mark.parametrize(
    "served",
    [
        *(Served(status=status) for status in (404, 401, 403, 500, 302)),
        Served(BODY, head_status=405, cut_after=0),
        Served(BODY, head_length=10),
        Served(BODY, encoding="br"),
        Served(BODY, etag='"1"', for_get=Served(BODY, etag='"2"')),
        redirect("/b?X-Amz-Signature=5ign4ture"),
        redirect("http://tuxedo:s3cretword@127.0.0.1:1/?sig=5ign4ture"),
        redirect("https://tuxedo:s3cretword@[::1/?sig=5ign4ture"),
        redirect("ftp://tuxedo:s3cretword@127.0.0.1/?sig=5ign4ture"),
    ],
)
def test_no_error_tells_a_secret(store: Store, served: Served) -> None:
    observer = Recorder()
    with serving({"/a.img": served, "/b": redirect("/b?X-Amz-Signature=5ign4ture")}) as server:
        with pytest.raises(UnderlayError) as caught:
            ensured(store, secret_url(server, "/a.img"), observer=observer)
    told = f"{caught.value!r} {caught.value} {caught.value.hint} {observer.events!r} {observer.steps!r}"
    for secret in SECRETS.values():
        assert secret not in told
        assert secret.encode() not in everything(store)


@pytest.mark.parametrize("how", ["refused", "unresolved", "silent", "no http", "no tls"])
def test_no_broken_connection_tells_a_secret(how: str) -> None:
    with serving({}) as server:
        port = urlsplit(server.base).port
    host = {"unresolved": "no-such-host.invalid:80"}.get(how, f"127.0.0.1:{port}")
    scheme = "https" if how == "no tls" else "http"
    with mute_server(says=b"220 hello\r\n" if how in ("no http", "no tls") else b"") as mute:
        if how in ("silent", "no http", "no tls"):
            host = f"127.0.0.1:{mute}"
        else:
            socket.create_connection(("127.0.0.1", mute)).close()
        with pytest.raises(SourceUnavailable) as caught:
            describe(f"{scheme}://tuxedo:s3cretword@{host}/a.img?sig=5ign4ture", HttpSource(web=Web(read_timeout=0.2)))
    for secret in SECRETS.values():
        assert secret not in f"{caught.value!r} {caught.value}"
