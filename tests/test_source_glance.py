"""The Glance source where Glance misbehaves: what no real one can be made to do. The real one answers in components/glance."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storing import MIB, laid_out
from underlay.cache import Cache
from underlay.contracts import ByteStream
from underlay.errors import (
    BodyTruncated,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from underlay.policy.retry import Retries
from underlay.refs import parse_ref
from underlay.registry import open_source
from underlay.sources.glance import GlanceSource
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Served, Server, serving
from underlay.web import Web

pytestmark = [
    pytest.mark.component("openstacksdk"),
    # The library warns of what it does itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
]

IMAGE = "70a599e0-31e7-49b7-b260-868f441e862b"
REF = parse_ref(IMAGE)
SHOWN, DATA = f"/v2/images/{IMAGE}", f"/v2/images/{IMAGE}/file"
CONTENT = os.urandom(3 * MIB + 12345)


def image(content: bytes = CONTENT, **changes: Any) -> Served:
    shown = {
        "id": IMAGE,
        "status": "active",
        "size": len(content),
        "disk_format": "raw",
        "container_format": "bare",
        "min_disk": 0,
        "os_hash_algo": "sha256",
        "os_hash_value": hashlib.sha256(content).hexdigest(),
        "checksum": hashlib.md5(content).hexdigest(),
    }
    return Served(json.dumps(shown | changes).encode())


@pytest.fixture
def glance() -> Iterator[Server]:
    with serving({SHOWN: image(), DATA: Served(CONTENT)}) as server:
        yield server


@pytest.fixture(autouse=True)
def clouds_yaml(glance: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"auth_type": "none", "auth": {"endpoint": glance.base}}
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": {"here": here}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(tmp_path / "clouds.yaml"))


def source(**options: Any) -> GlanceSource:
    return GlanceSource(cloud="here", **{"web": Web(read_timeout=1.0)} | options)


def contents(stream: ByteStream) -> bytes:
    buffer, found = memoryview(bytearray(64 << 10)), b""
    while length := stream.readinto(buffer):
        found += buffer[:length]
    return found


def fetched(asked: GlanceSource, *, offset: int = 0) -> bytes:
    with asked.open(asked.describe(REF), offset=offset) as stream:
        return contents(stream)


# ----------------------------------------------------------------------------------------------------------------- transfers


def test_a_transfer_that_is_cut_says_so_and_goes_on_from_any_byte(glance: Server) -> None:
    glance.serve(DATA, [Served(CONTENT, cut_after=MIB), Served(CONTENT)])
    with pytest.raises(BodyTruncated):
        fetched(source())
    assert CONTENT[MIB:] == fetched(source(), offset=MIB)


def test_a_glance_that_serves_no_ranges_is_read_from_the_beginning(glance: Server) -> None:
    glance.serve(DATA, Served(CONTENT, ranges=False))
    assert CONTENT[1000:] == fetched(source(), offset=1000)


def test_a_transfer_that_stalls_is_worth_another_try(glance: Server) -> None:
    glance.serve(DATA, Served(CONTENT, stall_after=MIB))
    with pytest.raises(SourceUnavailable):
        fetched(source(web=Web(read_timeout=0.3)))


def test_a_body_of_another_length_than_glance_said_is_not_that_image(glance: Server) -> None:
    glance.serve(DATA, Served(CONTENT + b"more"))
    with pytest.raises(SourceChanged):
        fetched(source(), offset=1000)


def test_a_token_that_is_refused_is_renewed_once(glance: Server) -> None:
    refused = Served(b"who?", status=401)
    glance.serve(SHOWN, [refused, image()])
    glance.serve(DATA, [refused, Served(CONTENT)])
    assert CONTENT == fetched(source())
    assert (2, 2) == (glance.count("GET", SHOWN), glance.count("GET", DATA))

    glance.serve(DATA, refused)
    with pytest.raises(NotAuthorized, match="without its data"):
        fetched(source())
    glance.serve(SHOWN, refused)
    with pytest.raises(NotAuthorized, match="does not let the cloud 'here' read it"):
        source().describe(REF)


def test_a_transfer_in_ranges_whose_token_ends_goes_on_with_another(glance: Server, tmp_path: Path) -> None:
    refused = Served(b"who?", status=401)
    glance.serve(DATA, [Served(CONTENT), Served(CONTENT), refused, refused, Served(CONTENT)])
    web = Web(parallel=2, range_size=MIB // 2)
    with pytest.raises(SourceUnavailable, match="the token ended during the transfer"):
        fetched(source(web=web))

    glance.serve(DATA, [Served(CONTENT), Served(CONTENT), refused, Served(CONTENT)])
    cache, retries = (
        Cache(name="base", store=laid_out(tmp_path / "base")),
        Retries(attempts=3, first_wait=0.01, longest_wait=0.05),
    )
    made = cache.ensure(REF, source(web=web), Recorder(), retries=retries)
    assert CONTENT == made.image.path.read_bytes()


def test_an_image_of_unknown_size_is_read_to_its_end(glance: Server) -> None:
    glance.serve(SHOWN, image(size=None))
    assert source().describe(REF).size is None
    assert CONTENT == fetched(source())


def test_no_token_follows_a_redirect_to_another_server(glance: Server) -> None:
    with serving({"/elsewhere": Served(CONTENT)}) as other:
        glance.serve(DATA, Served(status=302, headers={"Location": other.url("/elsewhere")}))
        assert CONTENT == fetched(source())
        [request] = other.requests
        assert "x-auth-token" not in request.headers
    assert all("x-auth-token" in request.headers for request in glance.requests)


# --------------------------------------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize("status", ["saving", "importing", "uploading"])
def test_an_image_on_its_way_into_glance_is_worth_another_try(glance: Server, status: str) -> None:
    glance.serve(SHOWN, image(status=status))
    with pytest.raises(SourceUnavailable, match=f"it is {status}"):
        source().describe(REF)


@pytest.mark.parametrize("status", ["queued", "killed", "deleted", "pending_delete"])
def test_an_image_without_data_is_not_found(glance: Server, status: str) -> None:
    glance.serve(SHOWN, image(status=status))
    with pytest.raises(ImageNotFound, match=f"it is {status}"):
        source().describe(REF)


def test_a_compressed_image_is_taken_as_it_is(glance: Server) -> None:
    glance.serve(SHOWN, image(container_format="compressed"))
    assert CONTENT == fetched(source())


def test_a_digest_by_an_algorithm_that_we_do_not_know_is_no_proof(glance: Server) -> None:
    glance.serve(SHOWN, image(os_hash_algo="sha3_256"))
    with pytest.raises(SourceRefused, match="sha3_256"):
        source().describe(REF)
    [digest] = source(allow_md5=True).describe(REF).digests
    assert f"md5:{hashlib.md5(CONTENT).hexdigest()}" == str(digest)


@pytest.mark.parametrize(
    "answer",
    [
        Served(b""),
        Served(b"<html>a login page</html>"),
        Served(b"[]"),
        Served(b"{}"),
        Served(b'{"id": 7, "status": "active"}'),
        Served(b"[" * 100_000),
        Served(b'{"id": "\xff"}'),
        Served(b" " * (5 << 20)),
        image(size=-1),
        image(size="10"),
        image(size=1 << 70),
        image(min_disk=-1),
        image(locations=[{}]),
        image(id="00000000-0000-4000-8000-000000000000"),
    ],
)
def test_what_is_no_description_of_the_image_is_refused(glance: Server, answer: Served) -> None:
    glance.serve(SHOWN, answer)
    with pytest.raises(SourceRefused):
        source().describe(REF)


@pytest.mark.parametrize(("status", "error"), [(500, SourceUnavailable), (503, SourceUnavailable), (400, SourceRefused)])
def test_a_glance_that_fails_is_told(glance: Server, status: int, error: type[SourceError]) -> None:
    glance.serve(SHOWN, Served(b"", status=status))
    with pytest.raises(error, match=str(status)):
        source().describe(REF)


def test_what_a_store_needs_as_a_password_is_never_shown(glance: Server) -> None:
    place = "swift+https://user:store-secret@host/container/object"
    glance.serve(SHOWN, image(direct_url=place, locations=[{"url": place, "metadata": {}}]))
    version = source(direct_locations=(Path("/"),)).describe(REF)
    assert "store-secret" not in f"{version!r} {version.properties} {version.found_at}"


# --------------------------------------------------------------------------------------------------------------- endpoints


def test_an_endpoint_that_fails_is_passed_over_in_the_middle_too(glance: Server) -> None:
    with serving({SHOWN: image(), DATA: Served(b"", status=503)}) as first:
        both = source(endpoints=(first.base, glance.base))
        assert CONTENT == fetched(both)
        assert (1, 0, 1, 1) == (
            first.count("GET", SHOWN),
            glance.count("GET", SHOWN),
            first.count("GET", DATA),
            glance.count("GET", DATA),
        )


@pytest.mark.parametrize("suffix", ["", "/", "/v2", "/v2/", "/v2.9", "/v1"])
def test_an_endpoint_may_name_a_version_or_not(glance: Server, suffix: str) -> None:
    assert CONTENT == fetched(source(endpoints=(glance.base + suffix,)))


def test_an_endpoint_may_lie_below_a_path() -> None:
    with serving({f"/image{SHOWN}": image(), f"/image{DATA}": Served(CONTENT)}) as server:
        assert CONTENT == fetched(source(endpoints=(f"{server.base}/image",)))


@pytest.mark.parametrize("name", ["127.0.0.1:{port}", "127.0.0.1"])
def test_a_ref_names_an_endpoint_by_its_host_with_its_port_or_without(glance: Server, name: str) -> None:
    ref = parse_ref(f"glance://{name.format(port=glance.base.rpartition(':')[2])}/{IMAGE}")
    assert IMAGE == source().describe(ref).id == source().fixed_id(ref)


@pytest.mark.parametrize("name", ["127.0.0.1:1", "localhost", "127.0.0.1.example.org"])
def test_an_endpoint_that_is_not_configured_is_refused(glance: Server, name: str) -> None:
    with pytest.raises(SourceRefused, match="our token does not go there"):
        source().describe(parse_ref(f"glance://{name}/{IMAGE}"))
    assert () == glance.requests


# -------------------------------------------------------------------------------------------------------------- the rest


def test_the_version_is_the_uuid_and_nothing_is_asked_for_it() -> None:
    opened = open_source("glance", {})
    assert (IMAGE, IMAGE) == (opened.fixed_id(REF), opened.version_id(REF, 64 * "0"))


def test_without_the_library_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['openstack'] = None\n"
        "from underlay.sources.glance import GlanceSource; from underlay.refs import parse_ref\n"
        "from underlay.errors import ExtraMissing\n"
        f"try: GlanceSource().describe(parse_ref('{IMAGE}'))\n"
        "except ExtraMissing as error: print(error.hint)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'underlay[glance]'\n" == ended.stdout
