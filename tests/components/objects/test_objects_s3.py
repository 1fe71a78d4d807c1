"""Images in a real S3 server's buckets: what describes them, which version is sent, and what each refusal is called."""

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from moto_environment import s3_server
from object_places import S3Place, s3_place, s3_user, signatures_checked

from underlay import Host
from underlay.cache import Cache
from underlay.contracts import ByteStream
from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged, SourceRefused, UnderlayError
from underlay.model import ImageVersion
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.sources.objects.access import Keys, S3Access
from underlay.sources.objects.source import ObjectSource
from underlay.store import Store
from underlay.testing.fakes import Recorder
from underlay.values import replace

pytestmark = pytest.mark.component("moto")

CONTENT = os.urandom(300_000)
BUCKETS = count(1)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A server, started once for the tests of one process."""
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_url: str) -> S3Place:
    """A new bucket."""
    return s3_place(s3_url, f"images-{next(BUCKETS)}")


def contents(stream: ByteStream) -> bytes:
    buffer, found = memoryview(bytearray(70_000)), b""
    while length := stream.readinto(buffer):
        found += buffer[:length]
    return found


def described(place: S3Place, ref: str, source: ObjectSource | None = None) -> ImageVersion:
    return (source or place.source).describe(parse_ref(ref))


def fetched(place: S3Place, version: ImageVersion, *, offset: int = 0) -> bytes:
    with place.source.open(version, offset=offset) as stream:
        return contents(stream)


def refusal(place: S3Place, ref: str, source: ObjectSource | None = None) -> UnderlayError:
    with pytest.raises(UnderlayError) as caught:
        described(place, ref, source)
    assert "geheim" not in caught.value.message
    return caught.value


# ----------------------------------------------------------------------------------------------------------------- the bytes


def test_an_object_is_described_by_its_size_and_its_etag_and_served_whole(s3: S3Place) -> None:
    s3.put("debian/12.raw", CONTENT)
    version = described(s3, s3.ref("debian/12.raw"))
    assert (len(CONTENT), None, ()) == (version.size, version.id, version.digests)
    assert f'etag:"{hashlib.md5(CONTENT).hexdigest()}"' == version.validator
    assert CONTENT == fetched(s3, version)


@pytest.mark.parametrize("offset", [1, 65_537, 299_999, 300_000])
def test_bytes_are_served_from_an_offset_on(s3: S3Place, offset: int) -> None:
    s3.put("image", CONTENT)
    assert CONTENT[offset:] == fetched(s3, described(s3, s3.ref("image")), offset=offset)


def test_an_empty_object_is_served_empty(s3: S3Place) -> None:
    s3.put("empty", b"")
    version = described(s3, s3.ref("empty"))
    assert 0 == version.size
    assert b"" == fetched(s3, version)


def test_the_etag_of_an_object_that_came_in_parts_is_a_validator_and_no_digest(s3: S3Place) -> None:
    parts = [os.urandom(5 << 20), b"the end"]
    s3.put_in_parts("parts", parts)
    version = described(s3, s3.ref("parts"))
    assert version.validator is not None
    assert version.validator.endswith('-2"')
    assert () == version.digests
    assert b"".join(parts) == fetched(s3, version)
    assert parts[1] == fetched(s3, version, offset=5 << 20)


@pytest.mark.parametrize(
    "key", ["ein Bild.raw", "größer/bild", "100%", "a+b", "what?", "a#b", "a&b=c;d,e@f:g", "a%20b", "ü~(1)*'!$"]
)
def test_a_key_of_odd_characters_is_found_by_its_quoted_spelling(s3: S3Place, key: str) -> None:
    s3.put(key, key.encode())
    assert key.encode() == fetched(s3, described(s3, s3.ref(key)))


def test_an_object_that_must_not_be_kept_says_so(s3: S3Place) -> None:
    s3.put("image", CONTENT, cache_control="private, No-Store")
    s3.put("other", CONTENT, cache_control="max-age=60")
    assert [True, False] == [described(s3, s3.ref(key)).no_store for key in ("image", "other")]


def test_an_object_that_is_stored_in_another_coding_is_refused(s3: S3Place) -> None:
    s3.put("image", CONTENT, content_encoding="gzip")
    s3.put("streamed", CONTENT, content_encoding="aws-chunked")
    assert "content encoding" in refusal(s3, s3.ref("image")).message
    assert CONTENT == fetched(s3, described(s3, s3.ref("streamed")))


# -------------------------------------------------------------------------------------------------------------- the versions


def test_a_bucket_that_keeps_versions_gives_the_id(s3: S3Place) -> None:
    s3.keep_versions()
    first = s3.put("image", b"first" * 1000)
    second = s3.put("image", b"second" * 1000)
    ref = s3.ref("image")
    assert f"{ref}#{second}" == described(s3, ref).id
    assert f"{ref}#{first}" == described(s3, f"{ref}?versionId={first}").id
    assert b"first" * 1000 == fetched(s3, described(s3, f"{ref}?versionId={first}"))


def test_a_ref_with_a_version_is_fixed_and_the_version_has_the_same_id_by_either_ref(s3: S3Place) -> None:
    s3.keep_versions()
    first = s3.put("image", CONTENT)
    by_version = parse_ref(f"{s3.ref('image')}?versionId={first}")
    assert described(s3, s3.ref("image")).id == s3.source.fixed_id(by_version) == s3.source.version_id(by_version, 64 * "0")
    assert s3.source.fixed_id(parse_ref(s3.ref("image"))) is None


def test_what_was_described_is_what_is_sent_although_a_newer_version_is_there(s3: S3Place) -> None:
    s3.keep_versions()
    s3.put("image", b"first" * 1000)
    version = described(s3, s3.ref("image"))
    s3.put("image", b"second" * 1000)
    for offset in (0, 5, 5000):
        assert (b"first" * 1000)[offset:] == fetched(s3, version, offset=offset)


def test_the_version_null_is_replaced_in_its_place_and_so_is_no_id(s3: S3Place) -> None:
    s3.put("image", b"first" * 1000)
    s3.keep_versions("Suspended")
    s3.put("image", CONTENT)
    ref = parse_ref(f"{s3.ref('image')}?versionId=null")
    assert s3.source.fixed_id(ref) is None
    version = described(s3, s3.ref("image"))
    assert version.id is None
    assert CONTENT == fetched(s3, version)


# ---------------------------------------------------------------------------------------------------- what changes meanwhile


@pytest.mark.parametrize("offset", [0, 5, 300_000])
def test_an_object_that_was_replaced_after_its_description_is_refused(s3: S3Place, offset: int) -> None:
    s3.put("image", CONTENT)
    version = described(s3, s3.ref("image"))
    s3.put("image", os.urandom(len(CONTENT)))
    with pytest.raises(SourceChanged) as caught:
        fetched(s3, version, offset=offset)
    assert caught.value.transient


def test_an_object_that_was_removed_after_its_description_is_not_found(s3: S3Place) -> None:
    s3.put("image", CONTENT)
    version = described(s3, s3.ref("image"))
    s3.withdraw("image")
    with pytest.raises(ImageNotFound, match="the bucket has no such object"):
        fetched(s3, version)


# ---------------------------------------------------------------------------------------------------------- what is not there


def test_a_missing_key_a_missing_bucket_and_a_missing_version_are_told_apart(s3: S3Place) -> None:
    s3.keep_versions()
    s3.put("image", CONTENT)
    for ref, why in (
        (s3.ref("gone"), "the bucket has no such object"),
        ("s3://no-such-bucket/image", "there is no such bucket"),
        (f"{s3.ref('image')}?versionId=gone", "the object has no such version"),
    ):
        error = refusal(s3, ref)
        assert isinstance(error, ImageNotFound)
        assert f"{ref}: {why} at {s3.url}" == error.message


def test_an_archived_object_is_refused_with_what_to_do(s3: S3Place) -> None:
    s3.put("image", CONTENT, x_amz_storage_class="GLACIER")
    with pytest.raises(SourceRefused, match="is archived") as caught:
        fetched(s3, described(s3, s3.ref("image")))
    assert "restore" in str(caught.value.hint)


# ----------------------------------------------------------------------------------------------------------- the credentials


def anonymous(place: S3Place) -> ObjectSource:
    return ObjectSource(s3=replace(place.access, keys=None, anonymous=True))


def test_what_all_may_read_needs_no_credentials(s3: S3Place) -> None:
    s3.put("image", CONTENT)
    source = anonymous(s3)
    with source.open(described(s3, s3.ref("image"), source)) as stream:
        assert CONTENT == contents(stream)


def test_what_is_forbidden_is_not_authorised_and_what_was_tried_is_named(s3: S3Place) -> None:
    s3.put("image", CONTENT)
    s3.forbid("image")
    error = refusal(s3, s3.ref("image"), anonymous(s3))
    assert isinstance(error, NotAuthorized)
    assert "requests without credentials" in error.message


def test_wrong_and_powerless_keys_are_told_apart_by_name_and_right_ones_read(s3: S3Place) -> None:
    s3.put("image", CONTENT)
    right = s3_user(s3.url, f"reader-{s3.bucket}", reads=s3.bucket)
    powerless = s3_user(s3.url, f"nobody-{s3.bucket}", reads=None)
    told = {}
    with signatures_checked(s3.url):
        assert len(CONTENT) == described(s3, s3.ref("image"), ObjectSource(s3=replace(s3.access, keys=right))).size
        for what, keys in {
            "unknown": Keys(access_key_id="AKIAUNKNOWN", secret_access_key="geheim"),
            "wrong": replace(right, secret_access_key="geheim"),
            "powerless": powerless,
            "token": replace(right, session_token="geheim"),
        }.items():
            error = refusal(s3, s3.ref("image"), ObjectSource(s3=replace(s3.access, keys=keys)))
            assert isinstance(error, NotAuthorized)
            assert "the keys of the environment" in error.message
            assert keys.access_key_id not in error.message
            told[what] = error.message.rpartition(": ")[2]
    assert "the service does not know that key" == told["unknown"]
    assert "the secret key is not the right one" == told["wrong"]
    assert "their token is not valid" == told["token"]
    assert "403 AccessDenied" in told["powerless"]


def test_the_keys_of_a_profile_are_read_anew_for_each_request(s3: S3Place, tmp_path: Path) -> None:
    s3.put("image", CONTENT)
    right = s3_user(s3.url, f"profile-{s3.bucket}", reads=s3.bucket)
    file = tmp_path / "credentials"
    source = ObjectSource(s3=S3Access(endpoint=s3.url, allow_http=True, profile="images", files=(file,)))

    def write(secret: str) -> None:
        file.write_text(f"[images]\naws_access_key_id = {right.access_key_id}\naws_secret_access_key = {secret}\n")

    with signatures_checked(s3.url):
        write("geheim")
        error = refusal(s3, s3.ref("image"), source)
        assert "refuses the keys of the profile 'images': the secret key is not the right one" in error.message
        write(right.secret_access_key)
        assert len(CONTENT) == described(s3, s3.ref("image"), source).size


def test_a_token_of_the_environment_is_not_sent_with_the_keys_of_a_profile(
    s3: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("image", CONTENT)
    right = s3_user(s3.url, f"token-{s3.bucket}", reads=s3.bucket)
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = {right.access_key_id}\naws_secret_access_key = {right.secret_access_key}\n"
    )
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://elsewhere.invalid")
    source = ObjectSource(s3=S3Access(endpoint=s3.url, allow_http=True, files=(tmp_path / "credentials",)))
    with signatures_checked(s3.url):
        assert len(CONTENT) == described(s3, s3.ref("image"), source).size


# ------------------------------------------------------------------------------------------------------------- into a cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Store(root=tmp_path / "base", kind=CacheKind.BASE)
    store.root.mkdir()
    return Cache(name="base", store=store)


def test_an_image_is_fetched_once_and_anew_when_it_changed(s3: S3Place, cache: Cache) -> None:
    ref, source = parse_ref(s3.ref("image.raw")), replace(s3.source, revalidate_after=0.0)
    s3.put("image.raw", CONTENT)
    first = cache.ensure(ref, source, Recorder()).image
    assert first.record is not None
    assert f"{ref}#sha256:{hashlib.sha256(CONTENT).hexdigest()}" == first.record.version_id
    again = Recorder()
    assert first.path == cache.ensure(ref, source, again).image.path
    assert "fetching" not in again.codes
    s3.put("image.raw", CONTENT[::-1])
    second = cache.ensure(ref, source, Recorder()).image
    assert (CONTENT, CONTENT[::-1]) == (first.path.read_bytes(), second.path.read_bytes())


def test_a_host_fetches_by_its_configuration_and_a_profile(
    s3: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.keep_versions()
    s3.put_in_parts("image.raw", [CONTENT * 18, CONTENT])
    (tmp_path / "credentials").write_text("[images]\naws_access_key_id = admin\naws_secret_access_key = geheim\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.fspath(tmp_path / "credentials"))
    (tmp_path / "underlay.toml").write_text(
        f"""
        [caches.base]
        kind = "base"
        path = "{tmp_path}/base"
        [instances]
        path = "{tmp_path}/instances"
        [sources.s3]
        endpoint = "{s3.url}"
        profile = "images"
        allow_http = true
        """
    )
    (tmp_path / "base").mkdir()
    image = Host.open(tmp_path / "underlay.toml").ensure(s3.ref("image.raw"))
    assert CONTENT * 19 == image.path.read_bytes()
    assert image.record is not None
    assert image.record.version_id.startswith(f"{s3.ref('image.raw')}#")
    assert "#sha256:" not in image.record.version_id


def test_a_version_is_fetched_once_by_whichever_ref_it_is_asked_for(s3: S3Place, cache: Cache) -> None:
    s3.keep_versions()
    version = s3.put("image.raw", CONTENT)
    first = cache.ensure(parse_ref(s3.ref("image.raw")), s3.source, Recorder()).image
    again = Recorder()
    by_version = parse_ref(f"{s3.ref('image.raw')}?versionId={version}")
    assert first.path == cache.ensure(by_version, s3.source, again).image.path
    assert "fetching" not in again.codes


# ------------------------------------------------------------------------------------------------------------------- processes

FORKS = textwrap.dedent(
    """
    import os, signal, sys
    from underlay.errors import SourceRefused
    from underlay.refs import parse_ref
    from underlay.sources.objects.access import Keys, S3Access
    from underlay.sources.objects.source import ObjectSource

    url, ref, when = sys.argv[1:]
    keys = Keys(access_key_id="admin", secret_access_key="geheim")
    access = S3Access(endpoint=url, region="us-east-1", allow_http=True, keys=keys, machine_credentials=False)
    source = ObjectSource(s3=access)
    version = source.describe(parse_ref(ref)) if when != "before" else None
    buffer = memoryview(bytearray(1000))
    with source.open(version) if when == "meanwhile" else open(os.devnull) as stream:
        child = os.fork()
        signal.alarm(30)  # ends what hangs, in whichever of the two
        try:
            if when == "meanwhile":
                told = f"{stream.readinto(buffer)} bytes"
            else:
                asking = ObjectSource(s3=access) if child == 0 and when == "another" else source
                told = f"{asking.describe(parse_ref(ref)).size} bytes"
        except SourceRefused as error:
            told = f"{error}; {error.hint}"
        if child == 0:
            print("child:", told, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    print("parent:", told)
    """
)


def forked(s3: S3Place, when: str) -> tuple[str, str]:
    """What a process and its child are told, which both ask.

    Args:
        when: the fork comes ``before`` the first request, ``after`` one, ``meanwhile`` a body is read, or the child asks
            ``another`` source than the one that was asked.
    """
    s3.put("image", CONTENT)
    argv = [sys.executable, "-c", FORKS, s3.url, s3.ref("image"), when]
    child, parent = subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True).stdout.splitlines()
    return child, parent


@pytest.mark.parametrize(("when", "served"), [("after", 300_000), ("another", 300_000), ("meanwhile", 1000)])
def test_a_child_that_is_forked_after_a_request_is_refused_at_once(s3: S3Place, when: str, served: int) -> None:
    child, parent = forked(s3, when)
    assert f"child: {s3.ref('image')}: this process was forked from one that has used obstore" in child
    assert child.endswith("start a new process for it, or fork before the first fetch from an object store")
    assert f"parent: {served} bytes" == parent


def test_a_child_that_is_forked_before_the_first_request_asks_as_its_parent_does(s3: S3Place) -> None:
    assert ("child: 300000 bytes", "parent: 300000 bytes") == forked(s3, "before")
