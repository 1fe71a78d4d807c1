"""Images from object stores: how a bucket is asked and as whom, and what each fault of a server is called.

The services themselves are asked in tests/components/objects; here a web server misbehaves as none of them would when asked to.
"""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from underlay.cache import Cache
from underlay.contracts import ByteStream
from underlay.errors import (
    BodyTruncated,
    ConfigError,
    ExtraMissing,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
    UntrustedCertificate,
)
from underlay.naming import CacheKind
from underlay.policy.retry import Retries
from underlay.refs import parse_ref
from underlay.sources.objects.access import Addressing, GcsAccess, Keys, S3Access
from underlay.sources.objects.profiles import read_profile
from underlay.sources.objects.source import ObjectSource
from underlay.sources.objects.stores import open_s3
from underlay.store import Store
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Certificate, Served, Server, serving
from underlay.values import replace
from underlay.web import Web

pytest.importorskip("obstore")

BODY = os.urandom(300_000)
PATH = "/images/disk.raw"
REF = parse_ref("s3://images/disk.raw")
KEYS = Keys(access_key_id="AKIATEST", secret_access_key="geheim", session_token="heimlich")
LONG_AGO = datetime(2024, 5, 17, 12, 30, 45, tzinfo=UTC)
NOWHERE = "http://127.0.0.1:9"  # nobody listens there: no test asks a cloud's metadata service


@pytest.fixture(autouse=True)
def no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own has a say, and nothing outside is asked."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({PATH: Served(BODY, etag='"1"', last_modified=LONG_AGO)}) as running:
        yield running


def source_of(server: Server, web: Web | None = None) -> ObjectSource:
    access = S3Access(endpoint=server.base, keys=KEYS, allow_http=True, machine_credentials=False)
    return ObjectSource(s3=access, web=web or Web())


def contents(stream: ByteStream) -> bytes:
    buffer, found = memoryview(bytearray(70_000)), b""
    while length := stream.readinto(buffer):
        found += buffer[:length]
    return found


def fetched(source: ObjectSource, *, offset: int = 0) -> bytes:
    with source.open(source.describe(REF), offset=offset) as stream:
        return contents(stream)


def refusal(source: ObjectSource, ref: str = str(REF)) -> UnderlayError:
    with pytest.raises(UnderlayError) as caught:
        source.describe(parse_ref(ref))
    for secret in ("geheim", "heimlich", "AKIATEST"):
        assert secret not in f"{caught.value.message} {caught.value.hint}"
    return caught.value


def answering(status: int, code: str, **headers: str) -> Served:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>geheim</Message><Region>eu-central-1</Region></Error>"
    return Served(body.encode(), status=status, headers=headers)


# -------------------------------------------------------------------------------------------------------------- the requests


def test_a_head_describes_and_is_signed_and_a_get_asks_for_what_was_described(server: Server) -> None:
    assert BODY[5:] == fetched(source_of(server), offset=5)
    head, get = server.requests
    assert ("HEAD", PATH) == (head.method, head.path)
    assert "Credential=AKIATEST/" in head.headers["authorization"]
    assert "heimlich" == head.headers["x-amz-security-token"]
    assert ("GET", "bytes=5-", '"1"') == (get.method, get.headers["range"], get.headers["if-match"])


def test_without_the_library_the_extra_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    error = refusal(source_of(server))
    assert isinstance(error, ExtraMissing)
    assert "pip install 'underlay[s3]'" == error.hint


def test_a_secret_is_in_no_repr(server: Server) -> None:
    for secret in ("geheim", "heimlich", "AKIATEST"):
        assert secret not in repr(source_of(server))


def test_where_a_head_is_refused_the_first_byte_describes(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', head_status=403))
    assert len(BODY) == source_of(server).describe(REF).size


def test_a_weak_etag_is_no_validator(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='W/"1"'))
    assert source_of(server).describe(REF).validator is None
    assert BODY == fetched(source_of(server))


def test_an_answer_with_another_etag_is_refused_although_the_condition_was_not_heeded(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', for_get=Served(BODY, etag='"2"')))
    with pytest.raises(SourceChanged):
        fetched(source_of(server))


def test_an_answer_of_another_length_is_refused_where_there_is_no_etag(server: Server) -> None:
    server.serve(PATH, Served(BODY, for_get=Served(BODY[1:])))
    with pytest.raises(SourceChanged):
        fetched(source_of(server))


@pytest.mark.parametrize(
    ("bucket", "endpoint", "style", "virtual", "asked"),
    [
        ("images", None, Addressing.AUTO, "true", None),
        ("my.images", None, Addressing.AUTO, "false", None),
        ("images", None, Addressing.PATH, "false", None),
        ("images", "https://store:9000/", Addressing.AUTO, "false", "https://store:9000"),
        ("images", "https://store:9000", Addressing.VIRTUAL, "true", "https://images.store:9000"),
    ],
)
def test_the_bucket_is_named_in_the_host_at_amazon_or_when_that_is_configured(
    bucket: str, endpoint: str | None, style: Addressing, virtual: str, asked: str | None
) -> None:
    settings = open_s3(bucket, S3Access(endpoint=endpoint, keys=KEYS, addressing_style=style), Web()).store.config
    assert virtual == settings["virtual_hosted_style_request"]
    assert asked == settings.get("endpoint_url_s3")


# ---------------------------------------------------------------------------------------------------------------- the faults


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (404, "NoSuchBucket", ImageNotFound, "there is no such bucket"),
        (405, "MethodNotAllowed", ImageNotFound, "the mark of a removal"),
        (400, "ExpiredToken", NotAuthorized, "the keys of the environment: they have expired"),
        (403, "RequestTimeTooSkewed", NotAuthorized, "this machine's clock is wrong"),
        (401, "Odd", NotAuthorized, "answers 401 Odd to the keys of the environment"),
        (403, "AccessDenied", NotAuthorized, "answers 403 AccessDenied to the keys of the environment"),
        (503, "SlowDown", SourceUnavailable, "answers 503"),
        (500, "InternalError", SourceUnavailable, "answers 500"),
        (429, "TooManyRequests", SourceUnavailable, "answers 429"),
        (400, "InvalidRequest", SourceRefused, "answers 400 InvalidRequest"),
        (301, "PermanentRedirect", SourceRefused, "the bucket is not in the region us-east-1"),
        (400, "AuthorizationHeaderMalformed", SourceRefused, "the bucket is not in the region us-east-1"),
    ],
)
def test_each_refusal_of_a_server_has_its_error(
    server: Server, status: int, code: str, kind: type[UnderlayError], says: str
) -> None:
    server.serve(PATH, answering(status, code))
    error = refusal(source_of(server))
    assert kind is type(error)
    assert says in error.message


def test_what_a_server_tells_of_a_wrong_signature_is_in_no_traceback(server: Server) -> None:
    """Amazon answers with what was signed, the token of a temporary key included."""
    server.serve(PATH, answering(403, "SignatureDoesNotMatch"))
    with pytest.raises(NotAuthorized) as caught:
        source_of(server).describe(REF)
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


def test_the_right_region_is_named_when_the_server_names_it(server: Server) -> None:
    server.serve(PATH, answering(400, "AuthorizationHeaderMalformed"))
    assert "set region = 'eu-central-1' under [sources.s3]" == refusal(source_of(server)).hint


def test_a_body_that_is_cut_off_is_truncated(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', cut_after=100_000))
    with pytest.raises(BodyTruncated):
        fetched(source_of(server))


def test_what_was_sent_before_the_cut_can_be_had_and_the_rest_from_there_on(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', cut_after=100_000))
    source, had = source_of(server), b""
    version, buffer = source.describe(REF), memoryview(bytearray(10_000))
    with source.open(version) as stream:
        with suppress(BodyTruncated):
            while length := stream.readinto(buffer):
                had += buffer[:length]
    assert 0 < len(had) <= 100_000
    server.serve(PATH, Served(BODY, etag='"1"'))
    with source.open(version, offset=len(had)) as stream:
        assert BODY == had + contents(stream)


def test_a_fetch_that_breaks_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    whole, cut = Served(BODY, etag='"1"'), Served(BODY, etag='"1"', cut_after=100_000)
    server.serve(PATH, [whole, cut, whole])  # to the HEAD, to the first GET, to all that follow
    store = Store(root=tmp_path / "base", kind=CacheKind.BASE)
    store.root.mkdir()
    retries = Retries(attempts=2, first_wait=0.01, longest_wait=0.01)
    image = Cache(name="base", store=store).ensure(REF, source_of(server), Recorder(), retries=retries).image
    assert BODY == image.path.read_bytes()
    ranges = [request.headers["range"] for request in server.requests if "range" in request.headers]
    assert ranges
    assert all(0 < int(one.removeprefix("bytes=").removesuffix("-")) <= 100_000 for one in ranges)


def test_a_body_that_stalls_is_given_up(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', stall_after=100_000))
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match="it went silent"):
        fetched(source_of(server, Web(read_timeout=0.3)))
    server.resume()
    assert time.monotonic() - started < 10


def test_a_body_that_trickles_is_given_up(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', rate=2_000))
    with pytest.raises(SourceUnavailable, match="fewer than 50000 bytes a second"):
        fetched(source_of(server, Web(low_speed_limit=50_000, low_speed_time=0.5)))


def test_a_body_that_is_slow_but_not_too_slow_is_read_to_its_end(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', rate=400_000))
    assert BODY == fetched(source_of(server, Web(low_speed_limit=5_000, low_speed_time=0.2)))


def test_a_server_without_ranges_says_so(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', ranges=False))
    with pytest.raises(SourceRefused, match="serves no ranges"):
        fetched(source_of(server), offset=5)


def test_an_object_without_an_etag_that_became_shorter_has_changed(server: Server) -> None:
    server.serve(PATH, Served(BODY, for_get=Served(BODY[:100])))
    with pytest.raises(SourceChanged):
        fetched(source_of(server), offset=200_000)


def test_a_server_that_says_nothing_is_not_waited_for(server: Server) -> None:
    server.serve(PATH, Served(BODY, etag='"1"', for_get=Served(BODY, etag='"1"', stall_after=0)))
    with pytest.raises(SourceUnavailable):
        fetched(source_of(server, Web(read_timeout=0.3)))
    server.resume()


def test_a_server_that_is_not_there_is_named_with_the_reason() -> None:
    source = ObjectSource(s3=S3Access(endpoint=NOWHERE, keys=KEYS, allow_http=True))
    error = refusal(source)
    assert isinstance(error, SourceUnavailable)
    assert f"{REF}: {NOWHERE}: Connection refused" == error.message


def test_a_host_that_no_name_server_knows_is_named_with_the_reason() -> None:
    source = ObjectSource(s3=S3Access(endpoint="https://store.invalid", keys=KEYS))
    assert f"{REF}: https://store.invalid: the name of its host cannot be resolved" == refusal(source).message


def issued(directory: Path) -> tuple[Certificate, Path]:
    """A server's certificate and its key, and the authority's that issued it: the library takes none for both."""
    now, names = (
        datetime.now(UTC),
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")]),
    )
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(name: str, public: ec.EllipticCurvePublicKey, *, is_authority: bool) -> bytes:
        subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, "authority"))
        made = x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=public)
        made = made.serial_number(x509.random_serial_number()).add_extension(names, critical=False)
        made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        return made.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    (directory / "ca.pem").write_bytes(certificate("authority", authority.public_key(), is_authority=True))
    (directory / "server.pem").write_bytes(certificate("localhost", key.public_key(), is_authority=False))
    secret = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(key.private_bytes(*secret))
    return Certificate(ca_file=directory / "server.pem", key_file=directory / "key.pem"), directory / "ca.pem"


def test_a_certificate_must_be_trusted_and_a_file_of_them_makes_it_so(tmp_path: Path) -> None:
    certificate, authority = issued(tmp_path)
    with serving({PATH: Served(BODY, etag='"1"')}, tls=certificate) as server:
        source = ObjectSource(s3=S3Access(endpoint=server.base, keys=KEYS))
        error = refusal(source)
        assert isinstance(error, UntrustedCertificate)
        assert "ca_file" in str(error.hint)
        assert BODY == fetched(replace(source, web=Web(ca_file=os.fspath(authority))))
        assert isinstance(refusal(replace(source, web=Web(ca_file=os.fspath(tmp_path / "gone.pem")))), ConfigError)


@pytest.mark.parametrize(
    ("proxies", "no_proxy", "through"),
    [
        ({"http": "PROXY"}, (), True),
        ({"http": "PROXY"}, ("127.0.0.1",), False),
        ({"http": "PROXY"}, ("*",), False),
        ({}, (), False),
    ],
)
def test_a_proxy_is_the_configured_one_and_never_one_that_the_library_finds(
    server: Server, monkeypatch: pytest.MonkeyPatch, proxies: list[str], no_proxy: tuple[str, ...], through: int
) -> None:
    with serving({f"{server.base}{PATH}": Served(BODY, etag='"1"')}) as proxy:
        monkeypatch.setenv("http_proxy", NOWHERE)
        monkeypatch.setenv("no_proxy", "")
        web = Web(proxies=dict.fromkeys(proxies, proxy.base), no_proxy=no_proxy)
        assert BODY == fetched(source_of(server, web))
        assert (2 * through, 2 - 2 * through) == (len(proxy.requests), len(server.requests))


# ------------------------------------------------------------------------------------------------------------- the endpoints


def test_an_endpoint_without_tls_is_refused_unless_it_is_allowed(server: Server) -> None:
    source = source_of(server)
    error = refusal(replace(source, s3=replace(source.s3, allow_http=False)))
    assert isinstance(error, SourceRefused)
    assert "allow_http" in str(error.hint)
    assert () == server.requests


@pytest.mark.parametrize(
    "endpoint",
    [
        "nonsense",
        "https://",
        "ftp://host",
        "https://AKIATEST:geheim@host",
        "https://host/?geheim",
        "https://ho st",
        "https://h:x",
    ],
)
def test_an_endpoint_that_is_no_plain_url_is_not_used_and_not_repeated(endpoint: str) -> None:
    for source in (ObjectSource(s3=S3Access(endpoint=endpoint, keys=KEYS)), ObjectSource(gs=GcsAccess(endpoint=endpoint))):
        scheme = "gs" if source.gs.endpoint else "s3"
        error = refusal(source, f"{scheme}://images/disk.raw")
        assert isinstance(error, ConfigError)
        assert f"the endpoint for {scheme} is no plain URL" == error.message


def test_a_region_that_is_none_is_not_used() -> None:
    assert isinstance(refusal(ObjectSource(s3=S3Access(region="eu west\n", keys=KEYS))), ConfigError)


# ----------------------------------------------------------------------------------------------------------- the credentials


def test_keys_that_are_not_complete_are_told_by_name(server: Server) -> None:
    source = source_of(server)
    for keys, word in (
        (replace(KEYS, secret_access_key=""), "the secret key is missing"),
        (replace(KEYS, access_key_id=""), "the access key's id is missing"),
        (replace(KEYS, access_key_id="AKIA TEST"), "characters that no key has"),
    ):
        error = refusal(replace(source, s3=replace(source.s3, keys=keys)))
        assert isinstance(error, NotAuthorized)
        assert "the keys of the environment" in error.message
        assert word in error.message


def test_with_no_credentials_at_all_the_error_says_which_could_be_set(server: Server) -> None:
    source = source_of(server)
    error = refusal(replace(source, s3=replace(source.s3, keys=None)))
    assert isinstance(error, NotAuthorized)
    assert "AWS_ACCESS_KEY_ID" in str(error.hint)
    assert () == server.requests


def test_a_machine_without_credentials_of_its_own_is_asked_in_bounded_time(server: Server) -> None:
    source = source_of(server, Web(read_timeout=0.3))
    silent = Served(b"", stall_after=0)
    server.serve("/latest/api/token", silent)
    for endpoint in (NOWHERE, server.base):
        access = replace(source.s3, keys=None, machine_credentials=True, metadata_endpoint=endpoint)
        started = time.monotonic()
        error = refusal(replace(source, s3=access))
        assert isinstance(error, NotAuthorized)
        assert "the machine's metadata service gives none" in error.message
        assert time.monotonic() - started < 10
    server.resume()


def test_without_credentials_nothing_is_signed(server: Server) -> None:
    source = source_of(server)
    anonymous = replace(source, s3=replace(source.s3, keys=None, anonymous=True))
    assert BODY == fetched(anonymous)
    assert all("authorization" not in request.headers for request in server.requests)


def test_a_machines_credentials_are_asked_for_once_for_all_its_fetches_and_again_after_a_refusal(server: Server) -> None:
    role = "/latest/meta-data/iam/security-credentials/"
    until = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = {"AccessKeyId": "AKIAROLE", "SecretAccessKey": "geheim", "Token": "heimlich", "Expiration": until}
    server.serve("/latest/api/token", Served(b"session", form={}))
    server.serve(role, Served(b"images"))
    server.serve(f"{role}images", Served(json.dumps(keys).encode()))
    source = source_of(server)
    access = replace(source.s3, keys=None, machine_credentials=True, metadata_endpoint=server.base)
    source = replace(source, s3=access)

    assert [BODY, BODY] == [fetched(source), fetched(source)]
    assert 1 == server.count("GET", f"{role}images")
    assert "Credential=AKIAROLE/" in server.requests[-1].headers["authorization"]

    server.serve(PATH, answering(403, "InvalidAccessKeyId"))
    assert isinstance(refusal(source), NotAuthorized)
    server.serve(PATH, Served(BODY, etag='"1"', last_modified=LONG_AGO))
    assert BODY == fetched(source)
    assert 2 == server.count("GET", f"{role}images")


def test_keys_that_are_renewed_in_their_file_are_used_at_once(server: Server, tmp_path: Path) -> None:
    file, source = tmp_path / "credentials", source_of(server)
    source = replace(source, s3=replace(source.s3, keys=None, files=(file,)))
    used = []
    for key in ("AKIAFIRST", "AKIASECOND"):
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = geheim\n")
        fetched(source)
        used.append(re.search(r"Credential=(\w+)/", server.requests[-1].headers["authorization"]))
    assert ["AKIAFIRST", "AKIASECOND"] == [match and match[1] for match in used]


# -------------------------------------------------------------------------------------------------------------- the profiles


CREDENTIALS = """
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key = one%two#three

[images]
aws_access_key_id = AKIAIMAGES
aws_secret_access_key = geheim
aws_session_token = heimlich
"""
CONFIG = """
[default]
region = eu-west-1
s3 =
    addressing_style = path

[profile images]
region = eu-central-1
endpoint_url = https://images.example.org

[profile role]
role_arn = arn:aws:iam::123456789012:role/images
source_profile = images
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "credentials").write_text(CREDENTIALS)
    (tmp_path / "config").write_text(CONFIG)
    return tmp_path / "credentials", tmp_path / "config"


def test_a_profile_is_what_both_files_say_of_it(files: tuple[Path, Path]) -> None:
    profile = read_profile(files, "images")
    assert Keys(access_key_id="AKIAIMAGES", secret_access_key="geheim", session_token="heimlich") == profile.keys
    assert ("eu-central-1", "https://images.example.org") == (profile.region, profile.endpoint)
    assert "geheim" not in repr(profile)


def test_the_default_profile_is_used_when_none_is_named_and_need_not_be_there(files: tuple[Path, Path], tmp_path: Path) -> None:
    default = read_profile(files, None)
    assert Keys(access_key_id="AKIADEFAULT", secret_access_key="one%two#three") == default.keys
    assert "eu-west-1" == default.region
    assert read_profile((tmp_path / "gone", tmp_path / "credentials" / "below"), None).keys is None


def test_a_profile_that_is_named_must_be_there(files: tuple[Path, Path]) -> None:
    with pytest.raises(NotAuthorized, match="there is no profile 'gone' in"):
        read_profile(files, "gone")


def test_a_profile_that_has_its_keys_from_elsewhere_says_how_to_get_them(files: tuple[Path, Path]) -> None:
    with pytest.raises(NotAuthorized, match="by role_arn") as caught:
        read_profile(files, "role")
    assert "aws configure export-credentials --profile role" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"geheim = 1", b"[default\ngeheim", b"[default]\n  = geheim", b"[default]\ngeheim = \xff"])
def test_a_file_that_holds_no_profiles_is_named_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "credentials").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_profile((tmp_path / "credentials",), None)
    assert str(tmp_path / "credentials") in caught.value.message
    assert "geheim" not in caught.value.message


def test_the_region_and_the_endpoint_of_a_profile_stand_in_for_those_of_the_configuration(
    server: Server, files: tuple[Path, Path]
) -> None:
    files[1].write_text(CONFIG.replace("https://images.example.org", server.base))
    source = ObjectSource(s3=S3Access(files=files, profile="images", allow_http=True))
    assert len(BODY) == source.describe(REF).size
    assert "/eu-central-1/s3/" in server.requests[0].headers["authorization"]
