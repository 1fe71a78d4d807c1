"""The relay that tests put in front of a real server: what passes through unchanged, and each fault on the wire."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from underlay.testing.httpserver import Served, Server, redirect, serving
from underlay.testing.relay import Fault, Relay, relaying

BODY = os.urandom(300_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


def connect(relay: Relay, *, timeout: float = 10) -> HTTPConnection:
    address = urlsplit(relay.base)
    assert address.hostname is not None
    return HTTPConnection(address.hostname, address.port, timeout=timeout)


def ask(relay: Relay, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
    with closing(connect(relay)) as connection:
        return ask_again(connection, path, method=method, body=body, **headers)


def ask_again(
    connection: HTTPConnection, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> Reply:
    connection.request(method, path, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with connection.getresponse() as response:
        fields = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Reply(status=response.status, headers=fields, body=response.read(), whole=True)
        except IncompleteRead as error:
            return Reply(status=response.status, headers=fields, body=error.partial, whole=False)


@pytest.fixture
def server() -> Iterator[Server]:
    contents = {"/a.img": Served(BODY, etag='"1"'), "/chunks": Served(BODY, chunked=True), "/b.img": Served(b"other")}
    with serving(contents) as running:
        yield running


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    with relaying(server.base) as running:
        yield running


# ----------------------------------------------------------------------------------------------------- what passes through


def test_an_answer_passes_with_its_fields(server: Server, relay: Relay) -> None:
    reply = ask(relay, "/a.img?version=2")
    assert (200, BODY, True) == (reply.status, reply.body, reply.whole)
    assert ('"1"', "bytes", str(len(BODY))) == tuple(
        reply.headers[name] for name in ("etag", "accept-ranges", "content-length")
    )
    assert ["/a.img?version=2"] == [request.path for request in server.requests]
    assert (1, 1, len(BODY)) == (
        relay.ledger.count("GET", "/a.img"),
        relay.ledger.bodies("/a.img"),
        relay.ledger.sent("/a.img"),
    )


def test_a_head_passes_with_its_length_and_no_body(relay: Relay) -> None:
    with closing(connect(relay)) as connection:
        first = ask_again(connection, "/a.img", method="HEAD")
        assert (200, b"", str(len(BODY))) == (first.status, first.body, first.headers["content-length"])
        assert BODY == ask_again(connection, "/a.img").body


def test_a_range_and_a_condition_pass(relay: Relay) -> None:
    part = ask(relay, "/a.img", Range="bytes=100-199", If_Range='"1"')
    assert (206, BODY[100:200], f"bytes 100-199/{len(BODY)}") == (part.status, part.body, part.headers["content-range"])
    unchanged = ask(relay, "/a.img", If_None_Match='"1"')
    assert (304, b"", '"1"') == (unchanged.status, unchanged.body, unchanged.headers["etag"])


def test_chunks_pass_as_chunks(relay: Relay) -> None:
    with closing(connect(relay)) as connection:
        reply = ask_again(connection, "/chunks")
        assert ("chunked", BODY) == (reply.headers["transfer-encoding"], reply.body)
        assert b"other" == ask_again(connection, "/b.img").body


def test_the_servers_own_refusal_passes(relay: Relay) -> None:
    assert 404 == ask(relay, "/none").status


@pytest.mark.parametrize("path", ["/a.img", "/chunks"])
def test_a_body_that_the_server_breaks_off_is_broken_off(server: Server, relay: Relay, path: str) -> None:
    server.serve(path, Served(BODY, cut_after=1000, chunked=path == "/chunks"))
    reply = ask(relay, path)
    assert (BODY[: len(reply.body)], False) == (reply.body, reply.whole)


def test_a_redirect_to_the_server_leads_to_the_relay_and_one_elsewhere_stays(server: Server, relay: Relay) -> None:
    server.serve("/inside", redirect(server.url("/a.img")))
    server.serve("/outside", redirect("http://127.0.0.1:9/a.img"))
    assert relay.url("/a.img") == ask(relay, "/inside").headers["location"]
    assert "http://127.0.0.1:9/a.img" == ask(relay, "/outside").headers["location"]


def test_the_host_field_and_what_authorises_pass_as_the_client_sent_them(server: Server, relay: Relay) -> None:
    ask(relay, "/a.img", Authorization="Bearer abc", Host="images.example")
    (request,) = server.requests
    assert ("Bearer abc", "images.example") == (request.headers["authorization"], request.headers["host"])


class Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        if "Content-Length" in self.headers:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        else:
            body = b"".join(iter(self.rfile.readline, b"0\r\n")) + self.rfile.readline()
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def echo() -> Iterator[Relay]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        with relaying(f"http://127.0.0.1:{listener.server_address[1]}") as relay:
            yield relay
        listener.shutdown()
        thread.join()


def test_what_a_client_sends_passes(echo: Relay) -> None:
    body = BODY * 4
    reply = ask(echo, "/tokens", method="POST", body=body)
    assert (201, body) == (reply.status, reply.body)


def test_what_a_client_sends_in_chunks_passes_in_chunks(echo: Relay) -> None:
    with closing(connect(echo)) as connection:
        connection.request("POST", "/tokens", body=iter([b"first\n", b"second\n"]), encode_chunked=True)
        assert b"6\r\nfirst\n\r\n7\r\nsecond\n\r\n\r\n" == connection.getresponse().read()


def test_a_server_that_does_not_answer_is_told_as_a_bad_gateway() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with relaying(f"http://127.0.0.1:{nobody.getsockname()[1]}") as relay:
            assert 502 == ask(relay, "/a.img").status


# -------------------------------------------------------------------------------------------------------------- the faults


@pytest.mark.parametrize("path", ["/a.img", "/chunks"])
def test_a_body_is_cut_after_so_many_bytes(relay: Relay, path: str) -> None:
    relay.misbehave("*", Fault(cut_after=1000))
    reply = ask(relay, path)
    assert (BODY[:1000], False) == (reply.body, reply.whole)
    assert 1000 == relay.ledger.sent(path)
    assert b"other" == ask(relay, "/b.img").body  # it is shorter than that


def test_a_cut_counts_from_where_the_answer_begins(relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(cut_after=1000))
    assert BODY[5000:6000] == ask(relay, "/a.img", Range="bytes=5000-").body


@pytest.mark.parametrize("after", [0, 1000])
def test_a_stalled_body_gives_nothing_more(relay: Relay, after: int) -> None:
    relay.misbehave("/a.img", Fault(stall_after=after))
    with closing(connect(relay, timeout=0.3)) as connection:
        connection.request("GET", "/a.img")
        response = connection.getresponse()
        assert BODY[:after] == response.read(after)
        with pytest.raises(TimeoutError):
            response.read(1)


def test_a_silent_relay_takes_the_request_and_asks_nobody(server: Server, relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(silent=True), method="HEAD")
    with closing(connect(relay, timeout=0.3)) as connection:
        connection.request("HEAD", "/a.img")
        with pytest.raises(TimeoutError):
            connection.getresponse()
    assert (1, 0) == (relay.ledger.count("HEAD", "/a.img"), server.count("HEAD", "/a.img"))


def test_a_relay_that_resets_takes_the_request_and_asks_nobody(server: Server, relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(reset=True, times=1))
    with pytest.raises(ConnectionResetError):
        ask(relay, "/a.img")
    assert 0 == server.count("GET", "/a.img")
    assert 1 == relay.ledger.count("GET", "/a.img")
    assert BODY == ask(relay, "/a.img").body


def test_a_rate_is_kept(relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(rate=600_000))
    started = time.monotonic()
    assert BODY == ask(relay, "/a.img").body
    assert 0.4 < time.monotonic() - started < 5


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_another_status_is_answered_and_the_server_is_not_asked(server: Server, relay: Relay, status: int) -> None:
    relay.misbehave("/a.img", Fault(status=status, headers={"Retry-After": "1"}))
    reply = ask(relay, "/a.img")
    assert (status, b"", "1") == (reply.status, reply.body, reply.headers["retry-after"])
    assert 0 == server.count("GET", "/a.img")


def test_a_fault_of_so_many_times_is_over_then(relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(status=503, times=2))
    assert [503, 503, 200] == [ask(relay, "/a.img").status for _ in range(3)]


def test_a_status_for_a_request_with_a_body_leaves_nothing_for_the_next_one_to_stumble_over(echo: Relay) -> None:
    echo.misbehave("*", Fault(status=503, times=1))
    with closing(connect(echo)) as connection:
        assert 503 == ask_again(connection, "/tokens", method="POST", body=b"GET /evil HTTP/1.1\r\n\r\n").status
        assert 201 == ask_again(connection, "/tokens", method="POST", body=b"x").status


def test_without_ranges_the_whole_body_comes(relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(ranges=False))
    reply = ask(relay, "/a.img", Range="bytes=5000-")
    assert (200, BODY, "none") == (reply.status, reply.body, reply.headers["accept-ranges"])


def test_more_than_there_is_may_be_announced(relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(length=len(BODY) + 10))
    assert str(len(BODY) + 10) == ask(relay, "/a.img", method="HEAD").headers["content-length"]
    reply = ask(relay, "/a.img")
    assert (BODY, False) == (reply.body, reply.whole)


@pytest.mark.parametrize("path", ["/a.img", "/chunks"])
def test_less_than_there_is_may_be_announced_and_no_more_is_sent(relay: Relay, path: str) -> None:
    relay.misbehave(path, Fault(length=1000))
    with closing(connect(relay)) as connection:
        reply = ask_again(connection, path)
        assert (BODY[:1000], "1000", True) == (reply.body, reply.headers["content-length"], reply.whole)
        assert b"other" == ask_again(connection, "/b.img").body


def test_fields_are_replaced_and_left_out(relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(headers={"ETag": None, "Content-Type": "text/html"}))
    reply = ask(relay, "/a.img")
    assert ("text/html", BODY) == (reply.headers["content-type"], reply.body)
    assert "etag" not in reply.headers


def test_a_fault_is_of_a_method_and_a_path_and_the_newest_wins(relay: Relay) -> None:
    relay.misbehave("/*.img", Fault(status=403))
    relay.misbehave("/a.img", Fault(status=503), method="HEAD")
    asked = [ask(relay, path, method=method).status for method in ("HEAD", "GET") for path in ("/a.img", "/b.img", "/chunks")]
    assert [503, 403, 200, 403, 403, 200] == asked
    relay.behave()
    assert 200 == ask(relay, "/a.img?x=/b").status


# ------------------------------------------------------------------------------------------------------- away and back again


def test_a_relay_that_went_away_refuses_and_comes_back_at_the_same_address(relay: Relay) -> None:
    before = relay.base
    with closing(connect(relay)) as connection:
        assert 200 == ask_again(connection, "/a.img").status
        relay.go_away()
        assert b"" == connection.sock.recv(1)  # it is closed
    for _ in range(20):
        with pytest.raises(ConnectionRefusedError):
            ask(relay, "/a.img")
    relay.go_away()
    relay.come_back()
    assert (before, BODY) == (relay.base, ask(relay, "/a.img").body)
    assert 2 == relay.ledger.bodies("/a.img")


def test_going_away_breaks_off_what_is_under_way(relay: Relay) -> None:
    relay.misbehave("/a.img", Fault(stall_after=1000))
    with closing(connect(relay)) as connection:
        connection.request("GET", "/a.img")
        response = connection.getresponse()
        assert BODY[:1000] == response.read(1000)
        relay.go_away()
        with pytest.raises((IncompleteRead, ConnectionResetError)):
            response.read()


def test_a_relay_that_ends_while_it_is_away_and_one_that_stalls_leave_no_thread(server: Server) -> None:
    before = threading.active_count()
    with relaying(server.base) as relay:
        relay.misbehave("/a.img", Fault(silent=True))
        waiting = connect(relay)
        waiting.request("GET", "/a.img")
        relay.ledger.changed.acquire()
        relay.ledger.changed.wait_for(lambda: relay.ledger.count("GET", "/a.img"), timeout=60)
        relay.ledger.changed.release()
    waiting.close()
    with relaying(server.base) as relay:
        relay.go_away()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert before >= threading.active_count()


def test_a_head_can_come_a_byte_at_a_time(relay: Relay) -> None:
    relay.misbehave("/b.img", Fault(head_rate=1000))
    began = time.monotonic()
    assert b"other" == ask(relay, "/b.img").body
    assert time.monotonic() - began > 0.05
