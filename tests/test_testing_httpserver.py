"""The server that tests fetch from: each fault is looked at on the wire, with the standard library's client or a socket."""

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPSConnection, IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from underlay.testing.httpserver import Certificate, Served, Server, redirect, self_signed, serving

MIB = 1 << 20
BODY = bytes(range(256)) * 40
MODIFIED = datetime(2024, 5, 17, 12, 30, 45, tzinfo=UTC)
MODIFIED_TEXT = "Fri, 17 May 2024 12:30:45 GMT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


def connect(server: Server, *, trust: Path | None = None, timeout: float = 10) -> HTTPConnection:
    address = urlsplit(server.base)
    assert address.hostname is not None
    if address.scheme == "https":
        context = ssl.create_default_context(cafile=None if trust is None else os.fspath(trust))
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default since Python 3.13
        return HTTPSConnection(address.hostname, address.port, timeout=timeout, context=context)
    return HTTPConnection(address.hostname, address.port, timeout=timeout)


def ask(server: Server, path: str, *, method: str = "GET", trust: Path | None = None, **headers: str) -> Reply:
    with closing(connect(server, trust=trust)) as connection:
        return ask_again(connection, path, method=method, **headers)


def ask_again(connection: HTTPConnection, path: str, *, method: str = "GET", **headers: str) -> Reply:
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with connection.getresponse() as response:
        names = {name.lower(): value for name, value in response.getheaders()}
        return Reply(status=response.status, headers=names, body=response.read())


def raw_exchange(server: Server, request: str) -> bytes:
    """Everything that comes back until the server closes."""
    address = urlsplit(server.base)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request.encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("tls"))


# ------------------------------------------------------------------------------------------------------- what is all right


def test_a_body_arrives_with_its_length_and_no_validators() -> None:
    with serving({"/a.img": Served(BODY)}) as server:
        reply = ask(server, "/a.img")
    assert (200, BODY) == (reply.status, reply.body)
    assert str(len(BODY)) == reply.headers["content-length"]
    assert "etag" not in reply.headers
    assert "last-modified" not in reply.headers


def test_a_head_has_the_same_headers_and_no_body() -> None:
    with serving({"/a.img": Served(BODY, etag='"1"', last_modified=MODIFIED)}) as server:
        answer = raw_exchange(server, "HEAD /a.img HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"" == body
    assert f"Content-Length: {len(BODY)}".encode() in head
    assert b'ETag: "1"' in head
    assert f"Last-Modified: {MODIFIED_TEXT}".encode() in head


@pytest.mark.parametrize("etag", ['"strong"', 'W/"weak"'])
def test_an_etag_is_sent_as_it_is_given(etag: str) -> None:
    with serving({"/a.img": Served(BODY, etag=etag)}) as server:
        assert etag == ask(server, "/a.img").headers["etag"]


def test_one_connection_serves_many_requests() -> None:
    with serving({"/a": Served(b"first"), "/b": Served(b"second")}) as server, closing(connect(server)) as connection:
        assert [b"first", b"", b"second"] == [
            ask_again(connection, "/a").body,
            ask_again(connection, "/a", method="HEAD").body,
            ask_again(connection, "/b").body,
        ]
        local = connection.sock.getsockname()
        ask_again(connection, "/a")
        assert local == connection.sock.getsockname()


def test_a_path_that_was_not_given_is_not_found_on_a_connection_that_stays() -> None:
    with serving({"/a": Served(b"here")}) as server, closing(connect(server)) as connection:
        assert 404 == ask_again(connection, "/b").status
        assert b"here" == ask_again(connection, "/a").body


def test_a_query_does_not_matter_unless_it_was_given() -> None:
    with serving({"/a": Served(b"plain"), "/a?signed=yes": Served(b"signed")}) as server:
        assert b"plain" == ask(server, "/a?other=1").body
        assert b"signed" == ask(server, "/a?signed=yes").body
        assert 2 == server.bodies("/a")
        assert "/a?other=1" == server.requests[0].path


def test_content_is_replaced_and_withdrawn_while_it_is_served() -> None:
    with serving({"/a": Served(b"old", etag='"1"')}) as server:
        assert b"old" == ask(server, "/a").body
        server.serve("/a", Served(b"new", etag='"2"'))
        assert (b"new", '"2"') == ((reply := ask(server, "/a")).body, reply.headers["etag"])
        server.withdraw("/a")
        assert 404 == ask(server, "/a").status


def test_a_sequence_of_answers_is_taken_one_by_one_and_the_last_one_stays() -> None:
    with serving({"/a": [Served(status=503), Served(b"x", status=500), Served(b"well")]}) as server:
        assert [503, 500, 200, 200] == [ask(server, "/a").status for _ in range(4)]


def test_each_server_has_a_port_of_its_own_on_loopback() -> None:
    with serving({"/a": Served(b"one")}) as one, serving({"/a": Served(b"two")}) as two:
        assert (b"one", b"two") == (ask(one, "/a").body, ask(two, "/a").body)
        assert "http://127.0.0.1:" == one.base[:17]
        assert f"{one.base}/a" == one.url("/a")


# ------------------------------------------------------------------------------------------------------ what is remembered


def test_requests_are_remembered_with_their_headers_status_and_bytes() -> None:
    with serving({"/a": Served(BODY)}) as server:
        ask(server, "/a", method="HEAD", X_Seen="yes")
        ask(server, "/a", Range="bytes=10-19")
        ask(server, "/missing")
        head, ranged, missing = server.requests
    assert ("HEAD", "/a", 200, 0, "yes") == (head.method, head.path, head.status, head.sent, head.headers["x-seen"])
    assert ("GET", "/a", 206, 10) == (ranged.method, ranged.path, ranged.status, ranged.sent)
    assert ("GET", "/missing", 404, 0) == (missing.method, missing.path, missing.status, missing.sent)


def test_only_gets_that_were_answered_with_content_count_as_bodies() -> None:
    with serving({"/a": Served(BODY, etag='"1"'), "/b": Served(status=503), "/c": redirect("/a")}) as server:
        ask(server, "/a", method="HEAD")
        ask(server, "/a", If_None_Match='"1"')
        ask(server, "/a", Range="bytes=999999-")
        assert 0 == server.bodies("/a")
        ask(server, "/a")
        ask(server, "/a", Range="bytes=5-")
        ask(server, "/b")
        ask(server, "/c")
        assert (2, 0, 0) == (server.bodies("/a"), server.bodies("/b"), server.bodies("/c"))
        assert (1, 4) == (server.count("HEAD", "/a"), server.count("GET", "/a"))


def test_the_bytes_of_a_body_are_counted_before_they_can_be_received() -> None:
    with serving({"/a": Served(bytes(3 * MIB + 1))}) as server:
        for number in range(1, 6):
            ask(server, "/a")
            assert number * (3 * MIB + 1) == server.sent("/a")


def test_many_clients_at_once_are_all_served_and_counted() -> None:
    with serving({"/a": Served(bytes(100_000))}) as server, ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda _: ask(server, "/a"), range(96)))
        assert {(200, bytes(100_000))} == {(reply.status, reply.body) for reply in replies}
        assert (96, 96 * 100_000) == (server.bodies("/a"), server.sent("/a"))


def test_a_test_can_wait_for_bytes_to_be_sent() -> None:
    with serving({"/a": Served(BODY, stall_after=100)}) as server, closing(connect(server)) as connection:
        connection.request("GET", "/a")
        server.wait_until_sent("/a", 100)
        assert 100 == server.sent("/a")
        with pytest.raises(TimeoutError, match=r"100 bytes of /a were sent in 0\.1 s, not 101"):
            server.wait_until_sent("/a", 101, seconds=0.1)


# ---------------------------------------------------------------------------------------------------------- files, TLS, end


def test_a_large_file_arrives_whole(tmp_path: Path) -> None:
    content = os.urandom(MIB) * 48 + b"end"
    (tmp_path / "a.img").write_bytes(content)
    with serving({"/a.img": Served(tmp_path / "a.img")}) as server:
        reply = ask(server, "/a.img")
        assert hashlib.sha256(content).digest() == hashlib.sha256(reply.body).digest()
        assert content[MIB - 5 : MIB + 5] == ask(server, "/a.img", Range=f"bytes={MIB - 5}-{MIB + 4}").body


def test_a_directory_is_served_with_validators_that_follow_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "a b.img"
    file.write_bytes(b"old")
    with serving(tmp_path) as server:
        before = ask(server, "/sub/a%20b.img")
        file.write_bytes(b"longer")
        after = ask(server, "/sub/a%20b.img")
        assert (b"old", b"longer") == (before.body, after.body)
        assert before.headers["etag"] != after.headers["etag"]
        assert before.headers["etag"].startswith('"')
        assert [404, 404, 404] == [ask(server, path).status for path in ("/", "/sub", "/none")]


def test_nothing_outside_a_directory_is_served(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (site / "link").symlink_to(tmp_path / "secret")
    with serving(site) as server:
        for path in ("/../secret", "/%2e%2e/secret", "/..%2fsecret", "/link", f"/{tmp_path}/secret"):
            assert 404 == ask(server, path).status, path


def test_a_path_can_be_given_beside_a_directorys_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"file")
    with serving(tmp_path) as server:
        server.serve("/a", Served(status=503))
        assert 503 == ask(server, "/a").status
        server.withdraw("/a")
        assert b"file" == ask(server, "/a").body


def test_https_is_trusted_by_who_trusts_its_certificate_and_by_nobody_else(tmp_path: Path, certificate: Certificate) -> None:
    content = os.urandom(MIB) * 4 + b"end"
    (tmp_path / "a.img").write_bytes(content)
    with serving({"/a.img": Served(tmp_path / "a.img")}, tls=certificate) as server:
        assert server.base.startswith("https://localhost:")
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(server, "/a.img")
        assert content == ask(server, "/a.img", trust=certificate.ca_file).body
        assert 1 == len(server.requests)


def test_plain_http_to_an_https_port_disturbs_nobody(certificate: Certificate, capfd: pytest.CaptureFixture[str]) -> None:
    with serving({"/a": Served(b"here")}, tls=certificate) as server:
        port = urlsplit(server.base).port
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(OSError):  # the server may have hung up first
                while connection.recv(1 << 16):
                    pass
        assert b"here" == ask(server, "/a", trust=certificate.ca_file).body
    assert "" == capfd.readouterr().err


def test_after_the_block_nothing_listens_and_no_thread_is_left(certificate: Certificate) -> None:
    before = set(threading.enumerate())
    contents = {"/a": Served(BODY), "/stalls": Served(BODY, stall_after=10), "/slow": Served(BODY, rate=100)}
    for tls, trust in ((None, None), (certificate, certificate.ca_file)):
        with serving(contents, tls=tls) as server:
            idle, stalled, slow = (connect(server, trust=trust) for _ in range(3))
            ask_again(idle, "/a")
            for connection, path in ((stalled, "/stalls"), (slow, "/slow")):
                connection.request("GET", path)
                server.wait_until_sent(path, 10 if path == "/stalls" else 5)
            silent = socket.create_connection(("127.0.0.1", urlsplit(server.base).port))
            started = time.monotonic()
        assert time.monotonic() - started < 30
        assert set() == set(threading.enumerate()) - before  # what a test before this one left may end meanwhile
        with pytest.raises(ConnectionRefusedError):
            ask(server, "/a", trust=trust)
        for client in (idle, stalled, slow, silent):
            client.close()


def test_a_client_that_goes_away_is_no_error_of_the_servers(capfd: pytest.CaptureFixture[str]) -> None:
    with serving({"/a": Served(bytes(64 * MIB))}) as server:
        connection = connect(server)
        connection.request("GET", "/a")
        server.wait_until_sent("/a", MIB)
        connection.close()
        assert 200 == ask(server, "/a", method="HEAD").status
    assert "" == capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------------ ranges


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("0-0", 0, 1), ("10-19", 10, 20), ("10200-", 10200, 10240), ("10200-99999", 10200, 10240), ("-7", 10233, 10240)],
)
def test_a_range_is_served_with_where_it_lies(asked: str, start: int, stop: int) -> None:
    with serving({"/a": Served(BODY, etag='"1"')}) as server:
        reply = ask(server, "/a", Range=f"bytes={asked}")
    assert (206, BODY[start:stop]) == (reply.status, reply.body)
    assert f"bytes {start}-{stop - 1}/10240" == reply.headers["content-range"]
    assert str(stop - start) == reply.headers["content-length"]
    assert '"1"' == reply.headers["etag"]


def test_a_suffix_longer_than_the_body_is_the_whole_body() -> None:
    with serving({"/a": Served(BODY)}) as server:
        reply = ask(server, "/a", Range="bytes=-99999")
    assert (206, BODY) == (reply.status, reply.body)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_behind_the_end_is_416_with_the_size(asked: str) -> None:
    with serving({"/a": Served(BODY)}) as server, closing(connect(server)) as connection:
        reply = ask_again(connection, "/a", Range=asked)
        assert (416, b"", "bytes */10240") == (reply.status, reply.body, reply.headers["content-range"])
        assert BODY == ask_again(connection, "/a").body


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b"])
def test_a_range_that_means_nothing_is_answered_with_all(asked: str) -> None:
    with serving({"/a": Served(BODY)}) as server:
        reply = ask(server, "/a", Range=asked)
    assert (200, BODY) == (reply.status, reply.body)


def test_a_range_is_ignored_where_ranges_are_not_served_and_in_a_head() -> None:
    with serving({"/a": Served(BODY, ranges=False), "/b": Served(BODY)}) as server:
        reply = ask(server, "/a", Range="bytes=1-2")
        assert (200, BODY, "none") == (reply.status, reply.body, reply.headers["accept-ranges"])
        assert 200 == ask(server, "/b", method="HEAD", Range="bytes=1-2").status


@pytest.mark.parametrize(
    ("etag", "condition", "status"),
    [
        ('"1"', '"1"', 206),
        ('"1"', '"2"', 200),
        ('W/"1"', 'W/"1"', 200),
        (None, '"1"', 200),
        ('"1"', MODIFIED_TEXT, 206),
        ('"1"', "Fri, 17 May 2024 12:30:46 GMT", 200),
    ],
)
def test_if_range_holds_for_a_strong_validator_that_is_equal(etag: str | None, condition: str, status: int) -> None:
    with serving({"/a": Served(BODY, etag=etag, last_modified=MODIFIED)}) as server:
        reply = ask(server, "/a", Range="bytes=1-2", If_Range=condition)
    assert (status, BODY[1:3] if status == 206 else BODY) == (reply.status, reply.body)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": '"1"'}, 304),
        ({"If_None_Match": '"0", W/"1"'}, 304),
        ({"If_None_Match": '"2"'}, 200),
        ({"If_Modified_Since": MODIFIED_TEXT}, 304),
        ({"If_Modified_Since": "Fri, 17 May 2024 12:30:44 GMT"}, 200),
        ({"If_None_Match": '"2"', "If_Modified_Since": MODIFIED_TEXT}, 200),
    ],
)
def test_what_a_client_has_already_is_not_sent_again(headers: dict[str, str], status: int) -> None:
    with serving({"/a": Served(BODY, etag='"1"', last_modified=MODIFIED)}) as server, closing(connect(server)) as connection:
        reply = ask_again(connection, "/a", **headers)
        assert (status, b"" if status == 304 else BODY) == (reply.status, reply.body)
        assert '"1"' == reply.headers["etag"]
        assert BODY == ask_again(connection, "/a").body


# ------------------------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 429, 500, 502, 503])
def test_a_status_is_what_is_answered(status: int) -> None:
    with serving({"/a": Served(b"sorry", status=status, etag='"1"', headers={"Retry-After": "7"})}) as server:
        reply = ask(server, "/a", Range="bytes=1-2")
    assert (status, b"sorry", "7") == (reply.status, reply.body, reply.headers["retry-after"])
    assert "etag" not in reply.headers


@pytest.mark.parametrize("kind", ["bytes", "file", "https"])
@pytest.mark.parametrize("cut", [0, 1, 5000, 10239])
def test_a_body_is_cut_where_it_shall_be(tmp_path: Path, certificate: Certificate, kind: str, cut: int) -> None:
    (tmp_path / "a").write_bytes(BODY)
    served = Served(tmp_path / "a" if kind == "file" else BODY, cut_after=cut)
    tls = certificate if kind == "https" else None
    with serving({"/a": served}, tls=tls) as server, closing(connect(server, trust=certificate.ca_file)) as connection:
        connection.request("GET", "/a")
        response = connection.getresponse()
        assert "10240" == response.headers["Content-Length"]
        with pytest.raises((IncompleteRead, ssl.SSLEOFError)) as caught:
            response.read()
        response.close()
        if isinstance(caught.value, IncompleteRead):
            assert BODY[:cut] == caught.value.partial
        assert cut == server.sent("/a")
        assert 1 == server.bodies("/a")


def test_a_cut_counts_from_where_a_range_begins() -> None:
    with serving({"/a": Served(BODY, cut_after=10)}) as server:
        with pytest.raises(IncompleteRead) as caught:
            ask(server, "/a", Range="bytes=100-")
        assert BODY[100:110] == caught.value.partial
        assert BODY[200:205] == ask(server, "/a", Range="bytes=200-204").body


def test_a_cut_at_or_behind_the_end_cuts_nothing() -> None:
    with serving({"/a": Served(BODY, cut_after=len(BODY))}) as server, closing(connect(server)) as connection:
        assert BODY == ask_again(connection, "/a").body
        assert BODY == ask_again(connection, "/a").body


def test_a_head_announces_another_length_than_the_body_has() -> None:
    with serving({"/a": Served(BODY, head_length=100)}) as server:
        assert "100" == ask(server, "/a", method="HEAD").headers["content-length"]
        assert BODY == ask(server, "/a").body


def test_a_header_of_the_tests_replaces_the_servers() -> None:
    with serving({"/a": Served(BODY, headers={"content-length": "many", "X-More": "1"})}) as server:
        head = raw_exchange(server, "HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").lower()
    assert 1 == head.count(b"content-length")
    assert b"content-length: many" in head
    assert b"x-more: 1" in head


def test_a_chunked_body_announces_no_length() -> None:
    content = os.urandom(MIB) * 2 + b"end"
    with serving({"/a": Served(content, chunked=True)}) as server, closing(connect(server)) as connection:
        reply = ask_again(connection, "/a")
        assert content == reply.body
        assert ("chunked", False) == (reply.headers["transfer-encoding"], "content-length" in reply.headers)
        head = ask_again(connection, "/a", method="HEAD")
        assert (b"", False) == (head.body, "content-length" in head.headers)
        assert content[5:10] == ask_again(connection, "/a", Range="bytes=5-9").body


def test_a_chunked_body_that_is_cut_has_no_end() -> None:
    with serving({"/a": Served(BODY, chunked=True, cut_after=100)}) as server, pytest.raises(IncompleteRead) as caught:
        ask(server, "/a")
    assert BODY[:100] == caught.value.partial


def test_an_empty_body_is_a_body_in_every_way_of_sending_it(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    contents = {"/a": Served(b""), "/b": Served(b"", chunked=True), "/c": Served(tmp_path / "empty")}
    with serving(contents) as server:
        assert [(200, b"")] * 3 == [(reply.status, reply.body) for reply in (ask(server, path) for path in contents)]
        assert 416 == ask(server, "/a", Range="bytes=0-0").status


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_head_is_refused_where_a_get_is_not(status: int) -> None:
    with serving({"/a": Served(BODY, head_status=status)}) as server, closing(connect(server)) as connection:
        assert (status, b"") == ((reply := ask_again(connection, "/a", method="HEAD")).status, reply.body)
        assert BODY == ask_again(connection, "/a").body


def test_a_body_changes_between_head_and_get() -> None:
    changed = Served(b"newer", etag='"2"')
    with serving({"/a": Served(b"old", etag='"1"', for_get=changed)}) as server:
        head, body = ask(server, "/a", method="HEAD"), ask(server, "/a")
    assert ('"1"', "3") == (head.headers["etag"], head.headers["content-length"])
    assert ('"2"', b"newer") == (body.headers["etag"], body.body)


def test_a_cache_in_between_is_stale_for_those_who_do_not_ask_past_it() -> None:
    bodies = []
    with serving({"/a": Served(b"old", past_caches=Served(b"newer"))}) as server, closing(connect(server)) as connection:
        for headers in ({}, {"Cache-Control": "no-cache"}, {"Cache-Control": "max-age=5"}):
            connection.request("GET", "/a", headers=headers)
            bodies.append(connection.getresponse().read())
    assert [b"old", b"newer", b"old"] == bodies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b", "https://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "//other/x"])
def test_a_redirect_says_where_to(status: int, location: str) -> None:
    with serving({"/a": redirect(location, status=status)}) as server, closing(connect(server)) as connection:
        for method in ("HEAD", "GET"):
            reply = ask_again(connection, "/a", method=method)
            assert (status, location, b"") == (reply.status, reply.headers["location"], reply.body)


def test_a_redirect_can_lead_to_itself() -> None:
    with serving({"/a": redirect("/a")}) as server:
        assert "/a" == ask(server, ask(server, "/a").headers["location"]).headers["location"]


def test_credentials_are_asked_for_and_taken() -> None:
    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    with serving({"/a": Served(BODY, credentials="ada:pass:wörd")}) as server:
        refused = ask(server, "/a")
        assert 401 == refused.status
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert BODY != refused.body
        assert 401 == ask(server, "/a", Authorization=basic("ada:wrong")).status
        assert 401 == ask(server, "/a", method="HEAD").status
        assert BODY == ask(server, "/a", Authorization=basic("ada:pass:wörd")).body
        assert 1 == server.bodies("/a")


def test_a_url_carries_credentials_quoted() -> None:
    with serving({}) as server:
        url = urlsplit(server.url("/a", credentials="ada:p@ss/word"))
    assert ("ada", "p%40ss%2Fword", "127.0.0.1") == (url.username, url.password, url.hostname)


def test_a_content_encoding_is_named_although_nobody_asked() -> None:
    with serving({"/a": Served(BODY, encoding="gzip")}) as server:
        reply = ask(server, "/a", Accept_Encoding="identity")
    assert ("gzip", BODY) == (reply.headers["content-encoding"], reply.body)


def test_a_rate_is_kept() -> None:
    with serving({"/a": Served(bytes(30_000), rate=100_000)}) as server:
        started = time.monotonic()
        assert bytes(30_000) == ask(server, "/a").body
        # The last piece may be received before its time is over.
        assert time.monotonic() - started >= 0.3 * 19 / 20 - 0.05


@pytest.mark.parametrize("after", [0, 100])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_stall_sends_nothing_until_it_is_over(after: int, *, chunked: bool) -> None:
    with (
        serving({"/a": Served(BODY, stall_after=after, chunked=chunked)}) as server,
        closing(connect(server)) as connection,
    ):
        connection.request("GET", "/a")
        response = connection.getresponse()
        assert BODY[:after] == (response.read(after) if after else b"")
        connection.sock.settimeout(0.2)
        with response, pytest.raises(TimeoutError):
            response.read(1)
        assert after == server.sent("/a")


@pytest.mark.parametrize("after", [0, 100])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_stall_ends_when_the_test_says_so(after: int, *, chunked: bool) -> None:
    with (
        serving({"/a": Served(BODY, stall_after=after, chunked=chunked)}) as server,
        closing(connect(server)) as connection,
    ):
        connection.request("GET", "/a")
        with connection.getresponse() as response:
            assert BODY[:after] == (response.read(after) if after else b"")
            server.resume()
            assert BODY[after:] == response.read()


def test_a_stall_ends_by_itself() -> None:
    with serving({"/a": Served(BODY, stall_after=100, stall=0.2)}) as server:
        started = time.monotonic()
        assert BODY == ask(server, "/a").body
        assert time.monotonic() - started >= 0.2


def test_what_is_posted_must_have_the_fields_of_the_form_and_is_noted() -> None:
    with serving({"/a": Served(b"welcome", form={"who": "tux & co"}), "/b": Served(b"plain")}) as server:
        asked = [("/a", "who=tux+%26+co&why=so"), ("/a", "who=tux"), ("/a", ""), ("/b", "who=tux")]
        statuses = []
        for path, content in asked:
            with closing(connect(server)) as connection:
                connection.request("POST", path, body=content)
                statuses.append(connection.getresponse().status)
        assert [200, 401, 401, 405] == statuses
        assert [content.encode() for _, content in asked] == [request.content for request in server.requests]
