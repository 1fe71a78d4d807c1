"""What no honest registry does, from a web server that speaks as one: lies, floods, redirects and challenges of every kind."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from corpus import noise
from machine import Machine
from underlay.errors import (
    BodyTooLong,
    BodyTruncated,
    DigestMismatch,
    ImageNotFound,
    NotAuthorized,
    SourceRefused,
    SourceUnavailable,
)
from underlay.model import ImageRef
from underlay.refs import parse_ref
from underlay.sources.oci.source import OciSource
from underlay.stream import filled
from underlay.testing.httpserver import Served, Server, redirect, serving
from underlay.web import Web

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TAG = "/v2/some/disk/manifests/1"
DISK = noise(100_000)
AMD64 = {"os": "linux", "architecture": "amd64"}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as running:
        yield running


def source_of(server: Server, *files: Path, platform: str | None = "linux/amd64") -> OciSource:
    return OciSource(web=Web(), plain_http=frozenset({host(server)}), auth_files=files, platform=platform)


def host(server: Server) -> str:
    return server.base.removeprefix("http://")


def ref(server: Server, reference: str = ":1") -> ImageRef:
    return parse_ref(f"oci://{host(server)}/some/disk{reference}")


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(content: bytes = DISK, **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/x-qemu-disk", "digest": digest(content), "size": len(content), **more}


def encoded(*layers: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": list(layers), **more}).encode()


def manifest(content: bytes, *, kind: str = MANIFEST, named: str | None = None, **served: Any) -> Served:
    headers = {"Content-Type": kind, "Docker-Content-Digest": named or digest(content)}
    return Served(content, headers=headers, **served)


def serve(server: Server, content: bytes, **served: Any) -> str:
    """Serve a manifest by tag and by digest; the digest."""
    server.serve(TAG, manifest(content, **served))
    server.serve(f"/v2/some/disk/manifests/{digest(content)}", manifest(content, **served))
    return digest(content)


def disk_layer(content: bytes) -> bytes:
    """A layer with a disk."""
    entry = tarfile.TarInfo("disk/disk.img")
    entry.size = len(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def blob(server: Server, content: bytes = DISK, **served: Any) -> str:
    """Serve a blob; its path."""
    path = f"/v2/some/disk/blobs/{digest(content)}"
    server.serve(path, Served(served.pop("body", content), **served))
    return path


def read(server: Server, source: OciSource | None = None, *, reference: str = ":1", offset: int = 0) -> bytes:
    source = source or source_of(server)
    with source.open(source.describe(ref(server, reference)), offset=offset) as stream:
        return b"".join(map(bytes, filled(stream)))


# ------------------------------------------------------------------------------------------------------------------- manifests


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(server: Server) -> None:
    asked = digest(b"something else")
    server.serve(f"/v2/some/disk/manifests/{asked}", manifest(encoded(layer()), named=asked))

    with pytest.raises(DigestMismatch) as refused:
        source_of(server).describe(ref(server, f"@{asked}"))
    assert (asked, digest(encoded(layer()))) == (refused.value.expected, refused.value.actual)


def test_a_registry_that_names_another_digest_than_the_manifest_has_is_refused(server: Server) -> None:
    server.serve(TAG, manifest(encoded(layer()), named=digest(b"another")))

    with pytest.raises(DigestMismatch):
        source_of(server).describe(ref(server))


def test_a_registry_that_names_no_digest_is_no_worse(server: Server) -> None:
    serve(server, encoded(layer()))
    server.serve(TAG, Served(encoded(layer()), headers={"Content-Type": MANIFEST}))
    blob(server)
    source = source_of(server)
    version = source.describe(ref(server))
    assert version.validator is not None

    assert DISK == read(server)
    assert version == source.describe(ref(server), known=[version.validator])


def test_a_digest_of_sha512_is_checked(server: Server) -> None:
    content = encoded(layer(digest=f"sha512:{hashlib.sha512(DISK).hexdigest()}"))
    named = f"sha512:{hashlib.sha512(content).hexdigest()}"
    server.serve(f"/v2/some/disk/manifests/{named}", manifest(content, named=named))

    version = source_of(server).describe(ref(server, f"@{named}"))

    assert (f"oci://{host(server)}/some/disk@{named}", "sha512") == (version.id, version.digests[0].algorithm)


@pytest.mark.parametrize("size", [(4 << 20) + 1, 64 << 20])
def test_an_enormous_manifest_is_given_up(server: Server, size: int) -> None:
    server.serve(TAG, manifest(encoded(layer()).ljust(size)))

    with pytest.raises(SourceRefused, match="more than 4194304 bytes"):
        source_of(server).describe(ref(server))
    assert server.sent(TAG) < 32 << 20


@pytest.mark.parametrize(
    ("content", "kind", "why"),
    [
        (b"", MANIFEST, "cannot be read"),
        (b"[]", MANIFEST, "cannot be read"),
        (b"[" * 100_000, MANIFEST, "cannot be read"),
        (b'{"schemaVersion": 2', MANIFEST, "cannot be read"),
        (encoded(layer(size=-1)), MANIFEST, "cannot be read"),
        (encoded(layer(size="1")), MANIFEST, "cannot be read"),
        (encoded(layer(digest="sha256:1")), MANIFEST, "is no digest"),
        (encoded(layer(digest="../../x")), MANIFEST, "is no digest"),
        (encoded(layer(digest="md5:" + 32 * "0")), MANIFEST, "of another kind than sha256 and sha512"),
        (encoded(layer(digest="SHA256:" + 64 * "0")), MANIFEST, "of another kind than sha256 and sha512"),
        (encoded(schemaVersion=1), MANIFEST, "of a kind that Underlay does not read"),
        (encoded(mediaType="text/html"), "text/html", "does not read: text/html"),
        (b'{"schemaVersion": 2, "layers": []}', "text/plain", "does not read: text/plain"),
        (b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws", "prettyjws"),
        (encoded(layer(), mediaType=INDEX), MANIFEST, "served as something else than it calls itself"),
        (encoded(layer(), manifests=[]), MANIFEST, "is an index as well"),
    ],
)
def test_what_is_no_manifest_is_refused(server: Server, content: bytes, kind: str, why: str) -> None:
    serve(server, content, kind=kind)

    with pytest.raises(SourceRefused, match=why):
        source_of(server).describe(ref(server))


def test_what_a_manifest_does_not_say_of_itself_is_taken_from_how_it_is_served(server: Server) -> None:
    serve(server, json.dumps({"schemaVersion": 2, "layers": [layer()]}).encode(), kind=f"{MANIFEST}; charset=utf-8")
    blob(server)

    assert DISK == read(server)


# --------------------------------------------------------------------------------------------------------------------- indexes


def index_of(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}).encode()


def entry(content: bytes, *, kind: str = MANIFEST, platform: Mapping[str, Any] | None = AMD64, **more: Any) -> dict[str, Any]:
    platforms = {} if platform is None else {"platform": platform}
    return {"mediaType": kind, "digest": digest(content), "size": len(content), **platforms, **more}


def serve_index(server: Server, *entries: dict[str, Any]) -> None:
    serve(server, index_of(*entries), kind=INDEX)


@pytest.mark.parametrize(
    ("platform", "offered"),
    [
        ("linux/amd64", {"os": "linux", "architecture": "x86_64"}),
        ("linux/amd64", {"architecture": "amd64"}),
        ("linux/amd64", {"os": "linux", "architecture": "amd64", "variant": "v2"}),
        ("linux/arm64", {"os": "linux", "architecture": "arm64", "variant": "v8"}),
        ("linux/arm64/v8", {"os": "linux", "architecture": "arm64"}),
        ("linux/arm64", {"os": "linux", "architecture": "aarch64"}),
        ("linux/arm/v7", {"os": "linux", "architecture": "arm", "variant": "v7"}),
        ("linux/riscv64", None),
    ],
)
def test_a_platform_is_known_by_its_names(server: Server, platform: str, offered: dict[str, str] | None) -> None:
    content = encoded(layer())
    serve(server, content)
    others = (
        []
        if offered is None
        else [entry(b"windows", platform={"os": "windows", "architecture": "amd64"}), entry(b"none", platform=None)]
    )
    serve_index(server, *others, entry(content, platform=offered))

    version = source_of(server, platform=platform).describe(ref(server))

    assert f"oci://{host(server)}/some/disk@{digest(content)}" == version.id


@pytest.mark.parametrize(
    ("platform", "offered"),
    [
        ("linux/arm/v6", {"os": "linux", "architecture": "arm", "variant": "v7"}),
        ("linux/arm64", {"os": "linux", "architecture": "arm"}),
        ("linux/amd64", {"os": "windows", "architecture": "amd64"}),
        ("linux/amd64", {"os": "unknown", "architecture": "unknown"}),
        ("linux/amd64", {}),
    ],
)
def test_another_platform_will_not_do(server: Server, platform: str, offered: dict[str, str]) -> None:
    serve_index(server, entry(encoded(layer()), platform=offered))

    with pytest.raises(ImageNotFound, match=f"has nothing for {platform}"):
        source_of(server, platform=platform).describe(ref(server))


def test_a_plain_variant_comes_before_the_others(server: Server) -> None:
    plain, newer = encoded(layer()), encoded(layer(), annotations={})
    serve(server, newer)
    serve(server, plain)
    serve_index(server, entry(newer, platform={**AMD64, "variant": "v3"}), entry(plain))

    version = source_of(server).describe(ref(server))

    assert version.id is not None
    assert version.id.endswith(digest(plain))


def test_without_a_configured_platform_it_is_this_hosts(server: Server) -> None:
    serve_index(server)

    with pytest.raises(ImageNotFound, match=r"has nothing for linux/[a-z0-9/]+; there is nothing"):
        source_of(server, platform=None).describe(ref(server))


def test_an_index_in_an_index_is_followed_but_not_for_ever(server: Server) -> None:
    content = encoded(layer())
    serve(server, content)
    serve(server, index_of(entry(content)), kind=INDEX)
    serve_index(server, entry(index_of(entry(content)), kind=INDEX))
    assert source_of(server).describe(ref(server)).size == len(DISK)

    outer = index_of(entry(content))
    for _ in range(3):
        serve(server, outer, kind=INDEX)
        outer = index_of(entry(outer, kind=INDEX))
    serve(server, outer, kind=INDEX)
    with pytest.raises(SourceRefused, match="index of indexes of indexes"):
        source_of(server).describe(ref(server))


@pytest.mark.parametrize("size", [0, 1, 1 << 40])
def test_a_manifest_of_another_size_than_its_index_says_is_refused(server: Server, size: int) -> None:
    content = encoded(layer())
    serve(server, content)
    serve_index(server, {**entry(content), "size": size})

    with pytest.raises(SourceRefused, match="another size than its index says"):
        source_of(server).describe(ref(server))


def test_a_long_list_of_manifests_is_told_in_part_and_without_what_does_not_print(server: Server) -> None:
    entries = [entry(bytes([number]), annotations={"disktype": "qemu\x1b[31m" + 100 * "x"}) for number in range(20)]
    serve_index(server, *entries)

    with pytest.raises(SourceRefused, match=r"several manifests for linux/amd64; .* disktype=qemu\\x1b\[31mx.* and 12 more$"):
        source_of(server).describe(ref(server))


# ----------------------------------------------------------------------------------------------------------------------- blobs


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_blob_may_lie_elsewhere_and_the_login_stays_here(server: Server, tmp_path: Path, status: int) -> None:
    login = write_login(tmp_path, server)
    with serving({"/stored": Served(DISK)}) as storage:
        serve(server, encoded(layer()), credentials="user:open sesame")
        path = blob(server)
        server.serve(path, redirect(storage.url("/stored?signature=s3cret"), status=status))

        assert DISK[500:] == read(server, source_of(server, login), offset=500)

        [request] = storage.requests
        assert "authorization" not in request.headers
        assert "bytes=500-" == request.headers["range"]


def test_who_blobs_are_redirected_to_is_not_told_who_we_are(server: Server, tmp_path: Path) -> None:
    login = write_login(tmp_path, server)
    with serving(
        {"/stored": Served(b"who are you?", status=401, headers={"WWW-Authenticate": 'Basic realm="mine"'})}
    ) as storage:
        serve(server, encoded(layer()))
        server.serve(blob(server), redirect(storage.url("/stored")))

        with pytest.raises(NotAuthorized):
            read(server, source_of(server, login))
        assert all("authorization" not in request.headers for request in storage.requests)


def test_a_manifest_by_a_redirect_is_asked_for_without_the_login_too(server: Server, tmp_path: Path) -> None:
    login = write_login(tmp_path, server)
    content = encoded(layer())
    with serving(
        {"/m": Served(b"", status=401, headers={"WWW-Authenticate": f'Bearer realm="{server.url("/token")}"'})}
    ) as other:
        server.serve(TAG, redirect(other.url("/m")))
        with pytest.raises(NotAuthorized):
            source_of(server, login).describe(ref(server))
        assert 0 == server.count("GET", "/token")

        other.serve("/m", manifest(content))
        assert len(DISK) == source_of(server, login).describe(ref(server)).size


def test_a_layers_urls_are_never_followed(server: Server) -> None:
    with serving({"/foreign": Served(DISK)}) as foreign:
        serve(server, encoded(layer(urls=[foreign.url("/foreign")])))

        with pytest.raises(ImageNotFound, match="does not have the blob"):
            read(server)
        assert () == foreign.requests


def test_a_blob_that_ends_early_is_truncated(server: Server) -> None:
    serve(server, encoded(layer()))
    blob(server, cut_after=1000)

    with pytest.raises(BodyTruncated):
        read(server)


TAR = "application/vnd.oci.image.layer.v1.tar"
IMAGE = {"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(b"{}"), "size": 2}}


def test_a_containerdisk_that_ends_early_is_truncated(server: Server) -> None:
    serve(server, encoded(layer(mediaType=TAR), **IMAGE))
    blob(server, cut_after=300)

    with pytest.raises(BodyTruncated):
        read(server)


def test_what_a_broken_stream_of_a_containerdisk_brought_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    disk = bytes(4096) + noise(8 << 20)
    good = disk_layer(disk)
    bad = good[: 1 << 20] + bytes(1 << 20) + good[2 << 20 :]
    serve(server, encoded(layer(good, mediaType=TAR), **IMAGE))
    server.serve(blob(server, good), [Served(bad, cut_after=6 << 20), Served(good)])
    machine = Machine.make(tmp_path, extra=f'[sources.oci]\nplain_http = ["{host(server)}"]')

    image = machine.host().ensure(str(ref(server)))

    assert disk == image.path.read_bytes()
    assert 2 == server.bodies(f"/v2/some/disk/blobs/{digest(good)}")


def test_a_broken_transfer_of_an_artifact_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    disk = bytes(4096) + noise(8 << 20)
    serve(server, encoded(layer(disk)))
    path = blob(server, disk)
    server.serve(path, [Served(disk, cut_after=6 << 20), Served(disk)])
    machine = Machine.make(tmp_path, extra=f'[sources.oci]\nplain_http = ["{host(server)}"]')

    image = machine.host().ensure(str(ref(server)))

    assert disk == image.path.read_bytes()
    assert server.sent(path) < 9 << 20


def test_a_layer_of_more_bytes_than_its_manifest_says_is_given_up(server: Server) -> None:
    content = bytes(100_000)
    serve(server, encoded({**layer(content, mediaType=TAR), "size": 1000}, **IMAGE))
    blob(server, content)

    with pytest.raises(BodyTooLong, match="more bytes arrive than the 1000 of its layer"):
        read(server)


def test_a_layer_that_would_be_read_without_end_is_refused_before_it_is_asked_for(server: Server) -> None:
    small, enormous = layer(mediaType=TAR), {**layer(b"enormous", mediaType=TAR), "size": (1 << 40) + 1}
    serve(server, encoded(enormous, small, **IMAGE))

    with pytest.raises(SourceRefused, match="a layer of 1099511627777 bytes is over the limit of 1099511627776 bytes"):
        source_of(server).describe(ref(server))


def test_a_large_layer_is_described(server: Server) -> None:
    serve(server, encoded({**layer(mediaType=TAR), "size": 1 << 40}, **IMAGE))

    assert source_of(server).describe(ref(server)).id is not None


def test_a_container_image_without_layers_is_refused(server: Server) -> None:
    serve(server, encoded(**IMAGE))

    with pytest.raises(SourceRefused, match="a container image without a layer"):
        source_of(server).describe(ref(server))


# -------------------------------------------------------------------------------------------------------------- who may have it


def write_login(directory: Path, server: Server, user: str = "user") -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps({"auths": {host(server): {"username": user, "password": "open sesame"}}}))
    return file


def challenge(text: str, status: int = 401) -> Served:
    return Served(b"", status=status, headers={"WWW-Authenticate": text})


@pytest.mark.parametrize(
    ("realm", "why"),
    [
        ("", "is no http or https address"),
        ("ftp://host/token", "is no http or https address"),
        ("file:///etc/passwd", "is no http or https address"),
        ("//host/token", "is no http or https address"),
        ("http://user:password@host/token", "is no http or https address"),
        ("http://[::1/token", "is no http or https address"),
        ("http://host:x/token", "is no http or https address"),
    ],
)
def test_a_token_server_that_is_none_is_refused(server: Server, realm: str, why: str) -> None:
    server.serve(TAG, challenge(f'Bearer realm="{realm}",service="s"'))

    with pytest.raises(SourceRefused, match=why) as refused:
        source_of(server).describe(ref(server))
    assert "password" not in str(refused.value)


def test_a_token_is_preferred_and_a_login_goes_to_its_server_only(server: Server, tmp_path: Path) -> None:
    with serving({"/token": Served(b'{"token": "t0ken"}', credentials="user:open sesame")}) as tokens:
        server.serve(TAG, [challenge(f'Basic realm="r", Bearer realm="{tokens.url("/token")}"'), manifest(encoded(layer()))])

        source_of(server, write_login(tmp_path, server)).describe(ref(server))

        assert [None, "Bearer t0ken"] == [request.headers.get("authorization") for request in server.requests]


@pytest.mark.parametrize("text", ["", "Negotiate", "Digest realm=r, Negotiate abc=="])
def test_a_way_that_is_not_known_is_told(server: Server, text: str) -> None:
    server.serve(TAG, challenge(text))

    with pytest.raises(NotAuthorized, match="wants authentication of a kind that Underlay does not know"):
        source_of(server).describe(ref(server))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_token_server_that_cannot_serve_now_is_worth_another_try(server: Server, status: int) -> None:
    server.serve(TAG, challenge(f'Bearer realm="{server.url("/token")}"'))
    server.serve("/token", Served(b"", status=status))

    with pytest.raises(SourceUnavailable, match="the token server of"):
        source_of(server).describe(ref(server))


def test_an_enormous_token_is_given_up(server: Server) -> None:
    server.serve(TAG, challenge(f'Bearer realm="{server.url("/token")}"'))
    server.serve("/token", Served(b'{"token": "' + b"a" * (1 << 20) + b'"}'))

    with pytest.raises(SourceRefused, match="has more than"):
        source_of(server).describe(ref(server))


def test_a_login_that_an_absent_program_keeps_is_told(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"credHelpers": {host(server): "of-a-test"}}))
    server.serve(TAG, challenge("Basic realm=r"))

    with pytest.raises(
        NotAuthorized, match="kept by docker-credential-of-a-test cannot be used: the program is not installed"
    ) as told:
        source_of(server, file).describe(ref(server))
    assert f"log in to {host(server)} again, or mend what keeps the login; looked in {file}" == told.value.hint


def test_logins_are_not_looked_for_unless_a_registry_asks(server: Server, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no JSON")
    serve(server, encoded(layer()))
    blob(server)

    assert DISK == read(server, source_of(server, tmp_path / "config.json"))


def test_a_login_that_ended_with_a_403_is_replaced_within_one_request(server: Server) -> None:
    wanted = challenge(f'Bearer realm="{server.url("/token")}"')
    server.serve("/token", [Served(b'{"token": "first"}'), Served(b'{"token": "second"}')])
    content = encoded(layer())
    server.serve(TAG, [wanted, manifest(content), Served(b"", status=403), wanted, manifest(content, token="second")])
    source = source_of(server)
    source.describe(ref(server))

    version = source.describe(ref(server))

    assert len(DISK) == version.size
    assert 2 == server.count("GET", "/token")


@pytest.mark.parametrize("status", [401, 403])
def test_a_login_that_ends_before_the_blob_is_asked_for_is_replaced_too(server: Server, status: int) -> None:
    wanted = challenge(f'Bearer realm="{server.url("/token")}"')
    server.serve("/token", [Served(b'{"token": "first"}'), Served(b'{"token": "second"}')])
    serve(server, encoded(layer()))
    server.serve(TAG, [wanted, manifest(encoded(layer()), token="first")])
    server.serve(blob(server), [Served(b"", status=status), wanted, Served(DISK, token="second"), Served(DISK, token="second")])

    assert DISK == read(server)
    assert 2 == server.count("GET", "/token")


def test_who_may_not_pull_is_told_so_after_one_more_try(server: Server, tmp_path: Path) -> None:
    file = write_login(tmp_path, server)
    wanted, refused = challenge("Basic realm=r"), Served(b"", status=403)
    server.serve(TAG, [wanted, manifest(encoded(layer())), refused, wanted, refused])
    source = source_of(server, file)
    source.describe(ref(server))

    with pytest.raises(NotAuthorized, match=rf"answers 403 Forbidden to the login of {host(server)} in {file}"):
        source.describe(ref(server))
    assert 5 == len(server.requests)


def test_a_token_that_ends_in_the_middle_of_a_body_is_worth_another_try(server: Server) -> None:
    serve(server, encoded(layer()))
    path = blob(server)
    web = Web(parallel=2, range_size=20_000)
    source = OciSource(web=web, plain_http=frozenset({host(server)}))
    version = source.describe(ref(server))
    server.serve(path, [Served(DISK), Served(DISK), challenge("Basic realm=r")])

    with pytest.raises(SourceUnavailable, match="stopped in the middle"), source.open(version) as stream:
        list(filled(stream))


# --------------------------------------------------------------------------------------------------------------- other answers


@pytest.mark.parametrize(
    ("status", "code", "error", "told"),
    [
        (404, "NAME_UNKNOWN", ImageNotFound, "answers 404 NAME_UNKNOWN"),
        (404, "MANIFEST_UNKNOWN", ImageNotFound, "answers 404 MANIFEST_UNKNOWN"),
        (403, "DENIED", NotAuthorized, "answers 403 DENIED, and there is no login for"),
        (429, "TOOMANYREQUESTS", SourceUnavailable, "answers 429 TOOMANYREQUESTS"),
        (503, "UNAVAILABLE", SourceUnavailable, "answers 503 UNAVAILABLE"),
        (500, "UNKNOWN", SourceUnavailable, "answers 500"),
        (418, "UNKNOWN", SourceRefused, "answers 418"),
    ],
)
def test_a_refusal_is_told_by_its_code(server: Server, status: int, code: str, error: type[Exception], told: str) -> None:
    body = json.dumps({"errors": [{"code": code, "message": "x" * 1000}]}).encode()
    server.serve(TAG, Served(body, status=status, headers={"Retry-After": "30"}))

    with pytest.raises(error, match=told) as refused:
        source_of(server).describe(ref(server))
    assert (status in (429, 503)) == (getattr(refused.value, "hint", None) == "try again after 30 s")
    assert (30.0 if error is SourceUnavailable else None) == getattr(refused.value, "retry_after", None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"errors": []}', b'{"errors": [1]}', b"x" * 100_000, b"[" * 10_000])
def test_a_refusal_without_a_code_is_told_by_its_status(server: Server, body: bytes) -> None:
    server.serve(TAG, Served(body, status=404))

    with pytest.raises(ImageNotFound, match="answers 404 Not Found"):
        source_of(server).describe(ref(server))


def test_a_title_of_any_kind_is_part_of_the_id_and_cannot_be_taken_for_a_digest(server: Server) -> None:
    titles = {"org.opencontainers.image.title": "sha256:x@y/z"}
    named = serve(server, encoded(layer(annotations=titles), layer(b"other")))
    blob(server)

    version = source_of(server).describe(ref(server, ":1#sha256:x@y/z"))

    assert f"oci://{host(server)}/some/disk@{named}#sha256%3Ax%40y%2Fz" == version.id
    assert DISK == read(server, reference=":1#sha256:x@y/z")
