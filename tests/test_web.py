"""The client of web servers: whom it shows which credentials and certificates, its proxies, its limits, its errors."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from underlay.errors import (
    BodyTruncated,
    ConfigError,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
    UntrustedCertificate,
)
from underlay.testing.connections import Listener, running
from underlay.testing.httpserver import Certificate, Served, redirect, self_signed, serving
from underlay.testing.relay import Fault, relaying
from underlay.web import Credential, Web, open_body

BODY = os.urandom(300_000)
WHAT = "the thing"


def document(web: Web, url: str, *, limit: int = 1 << 20, fresh: bool = False) -> bytes:
    return web.document(WHAT, url, limit=limit, fresh=fresh)


def authority(url: str) -> str:
    return urlsplit(url).netloc


# -------------------------------------------------------------------------------------------------------------- documents


def test_a_document_comes_whole() -> None:
    with serving({"/a": Served(BODY)}) as server:
        assert BODY == document(Web(), server.url("/a"))


@pytest.mark.parametrize("chunked", [True, False])
def test_a_document_over_its_limit_is_refused_and_not_read_to_its_end(*, chunked: bool) -> None:
    with serving({"/a": Served(os.urandom(30 << 20), chunked=chunked)}) as server:
        with pytest.raises(SourceRefused, match="more than 1000 bytes"):
            document(Web(), server.url("/a"), limit=1000)
        assert server.sent("/a") < 20 << 20


def test_caches_on_the_way_are_passed_by_when_that_is_asked_for() -> None:
    with serving({"/a": Served(BODY)}) as server:
        document(Web(), server.url("/a"))
        document(Web(), server.url("/a"), fresh=True)
        plain, fresh = server.requests
    assert "cache-control" not in plain.headers
    assert ("no-cache", "no-cache") == (fresh.headers["cache-control"], fresh.headers["pragma"])


@pytest.mark.parametrize(
    ("served", "error"),
    [
        (Served(status=404), ImageNotFound),
        (Served(status=403), NotAuthorized),
        (Served(status=500), SourceUnavailable),
        (Served(status=418), SourceRefused),
        (Served(BODY, cut_after=1000), BodyTruncated),
        (Served(BODY, encoding="gzip"), SourceRefused),
    ],
)
def test_a_document_that_does_not_come_has_an_error_of_its_own(served: Served, error: type[UnderlayError]) -> None:
    with serving({"/a": served}) as server, pytest.raises(error, match=WHAT):
        document(Web(), server.url("/a"))


def test_an_unreachable_server_is_named_with_the_reason() -> None:
    with serving({}) as server:
        url = server.url("/a")
    with pytest.raises(SourceUnavailable, match=f"{WHAT}: {authority(url)}: Connection refused"):
        document(Web(), url)


@pytest.mark.parametrize(("asked", "expected"), [("7", 7.0), ("0", 0.0), ("soon", None), ("-1", None), ("9" * 12, None)])
def test_when_a_server_wants_to_be_asked_again_is_part_of_the_error(asked: str, expected: float | None) -> None:
    with serving({"/a": Served(status=503, headers={"Retry-After": asked})}) as server:
        with pytest.raises(SourceUnavailable) as caught:
            document(Web(), server.url("/a"))
    assert expected == caught.value.retry_after


# ------------------------------------------------------------------------------------------------------------- credentials


def tux(**fields: str) -> Credential:
    return Credential(origin="of a test", user="tux", password="s3cret", **fields)


@pytest.mark.parametrize("with_port", [True, False])
def test_a_host_is_shown_its_credentials(*, with_port: bool) -> None:
    with serving({"/a": Served(BODY, credentials="tux:s3cret")}) as server:
        host = authority(server.base)
        web = Web(credentials={host if with_port else host.partition(":")[0]: tux()})
        assert BODY == document(web, server.url("/a"))


def test_a_token_is_shown_as_a_bearer() -> None:
    with serving({"/a": Served(BODY, token="t0ken")}) as server:
        web = Web(credentials={authority(server.base): Credential(origin="of a test", token="t0ken")})
        assert BODY == document(web, server.url("/a"))


def test_the_userinfo_of_a_url_comes_before_the_known_credentials() -> None:
    with serving({"/a": Served(BODY, credentials="root:other")}) as server:
        web = Web(credentials={authority(server.base): tux()})
        assert BODY == document(web, server.url("/a", credentials="root:other"))


def test_credentials_never_go_to_another_host_that_a_server_redirects_to() -> None:
    with serving({"/b": Served(BODY)}) as other, serving({"/a": redirect(other.url("/b"))}) as server:
        web = Web(credentials={authority(server.base): tux()})
        assert BODY == document(web, server.url("/a"))
        assert all("authorization" in request.headers for request in server.requests)
        assert [] == [request for request in other.requests if "authorization" in request.headers]


def test_a_redirect_does_not_lead_us_to_show_another_host_its_credentials() -> None:
    """Who is asked for one thing must not make us ask for another in our own name."""
    with serving({"/b": Served(BODY, credentials="tux:s3cret")}) as other:
        with serving({"/a": redirect(other.url("/b"))}) as server:
            with pytest.raises(NotAuthorized):
                document(Web(credentials={authority(other.base): tux()}), server.url("/a"))


@pytest.mark.parametrize("name", ["Authorization", "X-Auth-Token", "Cookie"])
def test_secret_fields_of_a_caller_never_go_to_another_host(name: str) -> None:
    with serving({"/b": Served(BODY)}) as other, serving({"/a": redirect(other.url("/b"))}) as server:
        web = Web()
        with web.answer(WHAT, "GET", server.url("/a"), headers={name: "s3cret", "Accept": "x/y"}) as answer:
            assert BODY == answer.read(1 << 20)
        assert "s3cret" == server.requests[0].headers[name.lower()]
        assert (None, "x/y") == (other.requests[0].headers.get(name.lower()), other.requests[0].headers["accept"])


def test_refused_credentials_are_named_by_where_they_came_from_and_not_told() -> None:
    with serving({"/a": Served(BODY, credentials="tux:other")}) as server:
        with pytest.raises(NotAuthorized, match=r"401 .* to the credentials of a test") as caught:
            document(Web(credentials={authority(server.base): tux()}), server.url("/a"))
        with pytest.raises(NotAuthorized, match="to the credentials in the URL"):
            document(Web(), server.url("/a", credentials="tux:s3cret"))
        with pytest.raises(NotAuthorized, match="no credentials were sent"):
            document(Web(), server.url("/a"))
    assert "s3cret" not in f"{caught.value!r}{caught.value.hint}"


def test_no_credential_is_in_a_repr() -> None:
    web = Web(
        credentials={"host": tux(), "other": Credential(origin="x", token="s3cret")}, proxies={"http": "http://a:s3cret@b:1"}
    )
    assert "s3cret" not in repr(web) + repr(tux()) + repr(Credential(origin="x", token="s3cret"))


# ------------------------------------------------------------------------------------------------------------- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("client"))


def test_a_client_certificate_is_shown(certificate: Certificate, ours: Certificate) -> None:
    with serving({"/a": Served(BODY)}, tls=certificate, clients=ours) as server:
        ca_file = os.fspath(certificate.ca_file)
        web = Web(ca_file=ca_file, client_cert=os.fspath(ours.ca_file), client_key=os.fspath(ours.key_file))
        assert BODY == document(web, server.url("/a"))
        with pytest.raises((SourceUnavailable, UntrustedCertificate)):
            document(Web(ca_file=ca_file), server.url("/a"))


def test_a_client_certificate_that_cannot_be_used_is_a_mistake_in_the_configuration(
    certificate: Certificate, ours: Certificate, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    with serving({"/a": Served(BODY)}, tls=certificate, clients=ours) as server:
        for cert, key in [("absent.pem", ours.key_file), ("empty.pem", ours.key_file)]:
            web = Web(ca_file=os.fspath(certificate.ca_file), client_cert=os.fspath(tmp_path / cert), client_key=os.fspath(key))
            with pytest.raises(ConfigError, match=f"{cert} cannot be used"):
                document(web, server.url("/a"))


# ------------------------------------------------------------------------------------------------------------------ proxies


def test_a_proxy_is_asked_for_the_whole_url() -> None:
    with serving({"http://images.invalid/a": Served(BODY)}) as proxy:
        assert BODY == document(Web(proxies={"http": proxy.base}), "http://images.invalid/a")


def test_a_proxy_is_shown_its_own_credentials_and_nobody_else() -> None:
    with serving({"http://images.invalid/a": Served(BODY)}) as proxy:
        document(Web(proxies={"http": proxy.url("", credentials="tux:s3cret")}), "http://images.invalid/a")
        [request] = proxy.requests
    assert "Basic dHV4OnMzY3JldA==" == request.headers["proxy-authorization"]
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    ("no_proxy", "is_direct"),
    [
        (("127.0.0.1",), True),
        (("*",), True),
        (("0.0.1",), True),
        (("example.org", "27.0.0.1"), False),
        ((), False),
        (("",), False),
    ],
)
def test_hosts_and_domains_can_be_asked_without_a_proxy(no_proxy: tuple[str, ...], *, is_direct: bool) -> None:
    with serving({"/a": Served(b"direct")}) as server, serving({server.url("/a"): Served(b"by proxy")}) as proxy:
        web = Web(proxies={"http": proxy.base}, no_proxy=no_proxy)
        assert (b"direct" if is_direct else b"by proxy") == document(web, server.url("/a"))


def test_a_host_with_its_port_can_be_asked_without_a_proxy() -> None:
    with serving({"/a": Served(b"direct")}) as server, serving({}) as proxy:
        web = Web(proxies={"http": proxy.base}, no_proxy=(authority(server.base),))
        assert b"direct" == document(web, server.url("/a"))


def test_a_proxy_that_is_not_there_is_told() -> None:
    with serving({}) as proxy:
        base = proxy.base
    with pytest.raises(SourceUnavailable) as caught:
        document(Web(proxies={"http": base.replace("//", "//tux:s3cret@")}), "http://images.invalid/a")
    assert "proxy" in caught.value.message
    assert "s3cret" not in caught.value.message


def test_https_goes_through_a_tunnel_of_the_proxy(certificate: Certificate) -> None:
    with serving({"/a": Served(BODY)}, tls=certificate) as server, tunnels() as (proxy, asked):
        # Nobody holds the client any longer than this, so its connection closes and the tunnel ends.
        assert BODY == document(Web(ca_file=os.fspath(certificate.ca_file), proxies={"https": proxy}), server.url("/a"))
        assert [["CONNECT", authority(server.base)]] == [line.split()[:2] for line in asked]


@contextmanager
def tunnels() -> Iterator[tuple[str, list[str]]]:
    """A proxy that makes one tunnel (RFC 9110, 9.3.6); its URL, and what it was asked."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            client, _ = listener.accept()
            with client, client.makefile("rb") as lines:
                asked.append(lines.readline().decode().strip())
                while lines.readline().strip():
                    pass
                host, _, port = asked[0].split()[1].partition(":")
                with socket.create_connection((host, int(port))) as server:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    back = threading.Thread(target=_copy, args=(server, client))
                    back.start()
                    _copy(client, server)
                    back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    thread.join(30)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # either may go away first
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


# ------------------------------------------------------------------------------------------- connections that are kept


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_kept_connection_that_is_reset_is_replaced_by_a_new_one(method: str) -> None:
    """As a balancer does that has forgotten it, which is told when it is used and not before."""
    with serving({"/a": Served(BODY)}) as server, relaying(server.base) as relay:
        web = Web()
        document(web, relay.url("/a"))
        relay.misbehave("/a", Fault(reset=True, times=1), method=method)
        with web.answer(WHAT, method, relay.url("/a")) as answer:
            assert 200 == answer.status
        assert [0, 200] == [request.status for request in relay.ledger.requests][1:]


def test_a_new_connection_that_is_reset_is_not_tried_again() -> None:
    with serving({"/a": Served(BODY)}) as server, relaying(server.base) as relay:
        relay.misbehave("/a", Fault(reset=True))
        with pytest.raises(SourceUnavailable, match="Connection reset by peer"):
            document(Web(), relay.url("/a"))
        assert 1 == len(relay.ledger.requests)


def test_a_server_that_resets_the_new_connection_as_well_is_unavailable() -> None:
    with serving({"/a": Served(BODY)}) as server, relaying(server.base) as relay:
        web = Web()
        document(web, relay.url("/a"))
        relay.misbehave("/a", Fault(reset=True))
        with pytest.raises(SourceUnavailable, match="Connection reset by peer"):
            document(web, relay.url("/a"))
        assert [200, 0, 0] == [request.status for request in relay.ledger.requests]


def test_a_form_is_never_sent_twice() -> None:
    with serving({"/a": Served(BODY, form={})}) as server, relaying(server.base) as relay:
        web = Web()
        with web.submit(WHAT, relay.url("/a"), {"a": "b"}) as answer:
            assert BODY == answer.read(1 << 20)
        relay.misbehave("/a", Fault(reset=True, times=1))
        with pytest.raises(SourceUnavailable), web.submit(WHAT, relay.url("/a"), {"a": "b"}):
            pass
        assert 2 == relay.ledger.count("POST", "/a")


@pytest.mark.parametrize(("kept", "connections"), [(60.0, 1), (0.0, 2)])
def test_a_connection_that_was_idle_for_long_is_not_used_again(
    kept: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("underlay.web.heads._KEPT", kept)
    with counting() as (url, accepted):
        web = Web()
        assert [b"ok", b"ok"] == [document(web, url) for _ in range(2)]
        assert connections == len(accepted)


@contextmanager
def counting() -> Iterator[tuple[str, list[int]]]:
    """The URL of a server that keeps connections open, and the port of each one that it accepted."""
    accepted: list[int] = []

    class Connection(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            accepted.append(self.client_address[1])
            super().setup()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing."""

        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    listener = Listener(Connection)
    with running(listener):
        yield f"http://127.0.0.1:{listener.port}/a", accepted


# -------------------------------------------------------------------------------------------------- what comes by drips

DRIPS = "a little at a time"
IMPATIENT = Web(connect_timeout=0.5, read_timeout=0.5)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_head_that_comes_by_drips_is_given_up(method: str) -> None:
    with serving({"/a": Served(BODY, head_rate=20)}) as server:
        with pytest.raises(SourceUnavailable, match=DRIPS), IMPATIENT.answer(WHAT, method, server.url("/a")):
            pass


def test_a_head_that_comes_by_drips_through_tls_is_given_up(certificate: Certificate) -> None:
    with serving({"/a": Served(BODY, head_rate=20)}, tls=certificate) as server:
        web = Web(read_timeout=0.5, ca_file=os.fspath(certificate.ca_file))
        with pytest.raises(SourceUnavailable, match=DRIPS):
            document(web, server.url("/a"))


def test_a_server_whose_head_drips_is_given_up_behind_a_relay_and_asked_again() -> None:
    with serving({"/a": Served(BODY)}) as server, relaying(server.base) as relay:
        relay.misbehave("/a", Fault(head_rate=20, times=1))
        with pytest.raises(SourceUnavailable, match=DRIPS):
            document(IMPATIENT, relay.url("/a"))
        assert BODY == document(IMPATIENT, relay.url("/a"))


def test_a_slow_head_that_is_there_in_time_is_taken() -> None:
    with serving({"/a": Served(b"content", head_rate=2000)}) as server:
        assert b"content" == document(Web(read_timeout=5), server.url("/a"))


def test_a_connection_is_used_again_with_all_of_its_time_after_a_slow_head() -> None:
    with serving({"/a": Served(b"content", head_rate=800)}) as server:
        web = Web(read_timeout=1.5)  # each head takes a third of a second, and all of them two
        assert [b"content"] * 6 == [document(web, server.url("/a")) for _ in range(6)]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 1000, id="chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 1000, id="trailer"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, id="continue"),
    ],
)
def test_what_frames_a_body_is_not_waited_for_without_end(answer: bytes) -> None:
    with dripping(answer) as url, pytest.raises(SourceUnavailable, match=DRIPS):
        document(IMPATIENT, url)


def test_a_proxy_whose_answer_to_connect_drips_is_given_up() -> None:
    with dripping(b"HTTP/1.1 200 " + b"x" * 1000) as proxy, pytest.raises(SourceUnavailable):
        document(Web(connect_timeout=0.5, proxies={"https": proxy}), "https://images.invalid/a")


@pytest.mark.parametrize("limit", [0, 1024])
def test_a_document_that_comes_by_drips_is_given_up_whatever_the_lowest_speed_of_a_body(limit: int) -> None:
    with serving({"/a": Served(BODY, rate=200)}) as server:
        web = Web(low_speed_limit=limit, low_speed_time=0.5)
        with pytest.raises(SourceUnavailable, match="bytes"):
            document(web, server.url("/a"))


@contextmanager
def dripping(answer: bytes) -> Iterator[str]:
    """The URL of a server that takes one request and sends its answer at a few bytes a second, for five seconds at most."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):
                client.recv(65536)
                for byte in answer[:100]:
                    client.sendall(bytes([byte]))
                    time.sleep(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(30)


# ------------------------------------------------------------------------------------------------------------------- bodies


def body(url: str, *, offset: int = 0, size: int | None = None, validator: str | None = None) -> bytes:
    with open_body(Web(read_timeout=2.0), WHAT, url, offset=offset, size=size, validator=validator) as stream:
        whole, buffer = bytearray(), memoryview(bytearray(70_001))
        while length := stream.readinto(buffer):
            whole += buffer[:length]
    return bytes(whole)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("offset", [0, 1, 1000, len(BODY) - 1, len(BODY)])
def test_a_body_begins_where_it_is_asked_to(offset: int, *, ranges: bool) -> None:
    with serving({"/a": Served(BODY, etag='"1"', ranges=ranges)}) as server:
        assert BODY[offset:] == body(server.url("/a"), offset=offset, size=len(BODY), validator='etag:"1"')


def test_a_body_that_has_become_shorter_is_a_change() -> None:
    for ranges in (True, False):
        with serving({"/a": Served(BODY[:1000], ranges=ranges)}) as server, pytest.raises(SourceChanged):
            body(server.url("/a"), offset=2000, size=len(BODY))


def test_a_part_of_a_whole_of_another_length_is_a_change() -> None:
    with serving({"/a": Served(BODY)}) as server, pytest.raises(SourceChanged, match="another length"):
        body(server.url("/a"), offset=1000, size=len(BODY) + 1)


def test_a_changed_version_is_a_change_at_any_offset() -> None:
    with serving({"/a": Served(BODY, etag='"2"')}) as server:
        for offset in (0, 1000):
            with pytest.raises(SourceChanged, match="changed after it was described"):
                body(server.url("/a"), offset=offset, validator='etag:"1"')
