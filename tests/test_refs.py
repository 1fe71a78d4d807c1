"""Refs as text: their one spelling, and what is no ref."""

import pytest

from underlay.errors import InvalidRef
from underlay.refs import MAX_LENGTH, is_ref, object_name, parse_ref

UUID = "70a599e0-31e7-49b7-b260-868f441e862b"


@pytest.mark.parametrize(
    ("text", "canonical", "location"),
    [
        (UUID, f"glance:{UUID}", UUID),
        (UUID.upper(), f"glance:{UUID}", UUID),
        (f"glance:{UUID}", f"glance:{UUID}", UUID),
        (f"  {UUID}\n", f"glance:{UUID}", UUID),
        (f"glance://{UUID}", f"glance:{UUID}", UUID),
        (f"GLANCE://{UUID.upper()}", f"glance:{UUID}", UUID),
        (f"glance://Glance.example.org:9292/{UUID.upper()}", f"glance://glance.example.org:9292/{UUID}", UUID),
        (f"glance://host/{UUID}", f"glance://host/{UUID}", UUID),
        (f"glance://[::1]:9292/{UUID}", f"glance://[::1]:9292/{UUID}", UUID),
        ("https://host/a/b.qcow2", "https://host/a/b.qcow2", "https://host/a/b.qcow2"),
        ("HTTPS://HOST/A", "https://host/A", "https://HOST/A"),
        ("https://host", "https://host/", "https://host"),
        ("https://host:443/x", "https://host/x", "https://host:443/x"),
        ("http://host:80/x", "http://host/x", "http://host:80/x"),
        ("http://host:443/x", "http://host:443/x", "http://host:443/x"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("https://user:secret@host/x", "https://host/x", "https://user:secret@host/x"),
        ("https://host/x#part", "https://host/x", "https://host/x"),
        ("https://host/x?version=3&arch=arm", "https://host/x?version=3&arch=arm", "https://host/x?version=3&arch=arm"),
        ("file:///srv/disk.img", "file:///srv/disk.img", "/srv/disk.img"),
        ("file:///srv/a%20b", "file:///srv/a%20b", "/srv/a b"),
        ("file:///srv/a b", "file:///srv/a%20b", "/srv/a b"),
        ("file:///srv/größer", "file:///srv/gr%C3%B6%C3%9Fer", "/srv/größer"),
        ("file:///srv/%FF", "file:///srv/%FF", "/srv/\udcff"),
        ("file:///srv/what?#1", "file:///srv/what%3F%231", "/srv/what?#1"),
        ("s3://bucket/key", "s3://bucket/key", "s3://bucket/key"),
        ("ftp://user:secret@host/x", "ftp://host/x", "ftp://user:secret@host/x"),
        (
            "SimpleStreams:https://user:secret@HOST:443/releases#Ubuntu:24.04:AMD64",
            "simplestreams:https://host/releases/#ubuntu:24.04:amd64",
            "https://user:secret@HOST:443/releases/#ubuntu:24.04:amd64",
        ),
        (
            "simplestreams:http://host/streams/v1/index.sjson#ubuntu:24.04:amd64:disk1.img",
            "simplestreams:http://host/#ubuntu:24.04:amd64:disk1.img",
            "http://host/#ubuntu:24.04:amd64:disk1.img",
        ),
        (
            "simplestreams:https://host#product=com.ubuntu.cloud:server:24.04:amd64;ftype=disk1.img",
            "simplestreams:https://host/#product=com.ubuntu.cloud:server:24.04:amd64;ftype=disk1.img",
            "https://host/#product=com.ubuntu.cloud:server:24.04:amd64;ftype=disk1.img",
        ),
    ],
)
def test_a_ref_has_one_spelling_and_a_location(text: str, canonical: str, location: str) -> None:
    ref = parse_ref(text)

    assert (canonical, location, canonical.partition(":")[0]) == (ref.canonical, ref.location, ref.scheme)


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=a&X-Amz-Credential=b&X-Amz-Date=c&X-Amz-Expires=1&X-Amz-SignedHeaders=host&X-Amz-Signature=d",
        "AWSAccessKeyId=a&Expires=1&Signature=b",
        "X-Goog-Algorithm=a&X-Goog-Signature=b",
        "GoogleAccessId=a&Expires=1&Signature=b",
        "sv=2020&st=1&se=2&sr=b&sp=r&sip=1.2.3.4&spr=https&sig=c",
        "Expires=1&Signature=a&Key-Pair-Id=b",
        "Policy=p&Signature=a&Key-Pair-Id=b",
        "temp_url_sig=a&temp_url_expires=1",
        "OSSAccessKeyId=a&Expires=1&Signature=b&security-token=c",
        "x-oss-signature-version=a&x-oss-credential=b&x-oss-signature=c",
        "q-sign-algorithm=a&q-ak=b&q-sign-time=1;2&q-key-time=1;2&q-header-list=host&q-url-param-list=&q-signature=c",
        "access_token=a",
        "private_token=a",
        "%53ig=encoded",
    ],
    ids=[
        "aws4",
        "aws2",
        "gcs4",
        "gcs2",
        "azure",
        "cloudfront",
        "cloudfront-policy",
        "swift",
        "oss",
        "oss4",
        "cos",
        "bearer",
        "gitlab",
        "encoded-name",
    ],
)
def test_a_signature_is_no_part_of_the_spelling(query: str) -> None:
    ref = parse_ref(f"https://host/x?versionId=3&{query}")

    assert "https://host/x?versionId=3" == ref.canonical
    assert f"https://host/x?versionId=3&{query}" == ref.location


def test_a_token_does_not_take_plain_parameters_along() -> None:
    assert "https://host/get?st=debian" == parse_ref("https://host/get?st=debian&access_token=a").canonical


@pytest.mark.parametrize(
    "text", ["oci://user:geh/eim@host/repo", "oci://user:geheim@host/repo", "glance://user:geh/eim@host/x", "oci://u:geheim/x"]
)
def test_a_password_is_in_no_message_even_with_a_slash(text: str) -> None:
    with pytest.raises(InvalidRef) as refusal:
        parse_ref(text)

    assert "geh" not in f"{refusal.value} {refusal.value.hint}"


def test_a_plain_parameter_that_a_signature_could_have_too_tells_images_apart_where_nothing_is_signed() -> None:
    debian, ubuntu = (parse_ref(f"https://host/get?st={name}") for name in ("debian", "ubuntu"))

    assert debian.canonical != ubuntu.canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "debian-12.qcow2",
        "/srv/disk.img",
        "https:",
        "https://",
        "https:///x",
        "https://host:port/x",
        "https://host:99999/x",
        "https://[::1/x",
        "https://ho st/x",
        "https://host/a b",
        "https://host/a\nb",
        "https://host/\x7f",
        "https://host/\udcff",
        "file://host/x",
        "file:/x",
        "file:x",
        "file:///",
        "file:////x",
        "file:///a//b",
        "file:///a/",
        "file:///a/../b",
        "file:///a/%2e%2e/b",
        "file:///a/./b",
        "file:///a%00b",
        "glance:",
        "glance:x",
        f"glance:{UUID}0",
        f"glance:host/{UUID}",
        f"glance:///{UUID}",
        f"glance://host/path/{UUID}",
        f"glance://host:port/{UUID}",
        f"glance://user@host/{UUID}",
        f"glance://user:secret@host/{UUID}",
        f"glance://host?x=/{UUID}",
        f"glance://ho st/{UUID}",
        f"glance://[::1/{UUID}",
        "glance://host/",
        "s3:",
        f"{UUID}0",
    ],
)
def test_what_is_no_ref_is_refused(text: str) -> None:
    with pytest.raises(InvalidRef):
        parse_ref(text)


@pytest.mark.parametrize("ending", ["", " ", "\x01", "\udcff", ":port", "\n x"])
def test_a_password_is_not_repeated_in_an_error(ending: str) -> None:
    with pytest.raises(InvalidRef) as error:
        parse_ref(f"https://user:secret@{ending}")

    assert "secret" not in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a.img\0?X-Amz-Signature=secret",
        "https://user:secret@host/a\n.img?X-Amz-Signature=secret",
        "https://host/\ud800?sig=secret",
        "https//user:secret@host/a.img?sig=secret",
    ],
)
def test_a_text_that_cannot_be_read_is_repeated_without_its_password_and_signature(text: str) -> None:
    with pytest.raises(InvalidRef, match="host/") as error:
        parse_ref(text)

    assert "secret" not in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize("end", [UUID, "x", ""])
def test_a_password_in_a_glance_ref_is_not_repeated(end: str) -> None:
    with pytest.raises(InvalidRef) as error:
        parse_ref(f"glance://user:secret@host/{end}")

    assert "secret" not in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize("letter", ["x", '"', "\\", "é"])
def test_a_ref_may_be_as_long_as_its_record_can_hold(letter: str) -> None:
    room = MAX_LENGTH - len("https://host/")
    each = {"x": 1, '"': 2, "\\": 2, "é": 2}[letter]  # bytes as JSON

    parse_ref(f"https://host/{letter * (room // each)}")
    with pytest.raises(InvalidRef, match="longer than 1024 bytes"):
        parse_ref(f"https://host/{letter * (room // each + 1)}")


@pytest.mark.parametrize(
    ("text", "is_one"), [(UUID, True), ("https://h", True), ("s3:x", True), ("name", False), ("/a:b", False)]
)
def test_a_ref_is_told_from_a_name_and_a_path(text: str, is_one: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert is_one == is_ref(text)


# ------------------------------------------------------------------------------------------------------------ OCI registries

DIGEST = "sha256:" + 64 * "a"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("oci://host/repo", "oci://host/repo:latest"),
        ("oci://host/repo:1.0", "oci://host/repo:1.0"),
        ("OCI://HOST/repo:V1", "oci://host/repo:V1"),
        ("oci://host:5000/a/b/c:1", "oci://host:5000/a/b/c:1"),
        ("oci://host:443/repo:1", "oci://host/repo:1"),
        ("oci://[::1]:5000/repo:1", "oci://[::1]:5000/repo:1"),
        (f"oci://host/repo@{DIGEST}", f"oci://host/repo@{DIGEST}"),
        (f"oci://host/repo:1@{DIGEST}", f"oci://host/repo@{DIGEST}"),
        ("oci://host/repo@sha512:" + 128 * "0", "oci://host/repo@sha512:" + 128 * "0"),
        ("oci://host/a__b-c--d.e/f_g:_x", "oci://host/a__b-c--d.e/f_g:_x"),
        ("oci://host/repo:1#", "oci://host/repo:1"),
        ("oci://host/repo:1#a b#c.raw", "oci://host/repo:1#a%20b%23c.raw"),
        ("oci://host/repo:1#a%20b/c", "oci://host/repo:1#a%20b%2Fc"),
        ("oci://docker.io/debian:12", "oci://docker.io/library/debian:12"),
        ("oci://index.docker.io/library/debian", "oci://docker.io/library/debian:latest"),
        ("oci://registry-1.docker.io/user/disk", "oci://docker.io/user/disk:latest"),
    ],
)
def test_an_oci_ref_has_one_spelling(text: str, canonical: str) -> None:
    ref = parse_ref(text)

    assert ("oci", canonical, canonical) == (ref.scheme, ref.canonical, ref.location)
    assert ref == parse_ref(canonical)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("oci:", "is no OCI ref"),
        ("oci:host/repo", "is no OCI ref"),
        ("oci://debian:12", "is no OCI ref"),
        ("oci:///repo", "is no OCI ref"),
        ("oci://host/", "names no repository"),
        ("oci://host/Repo", "names no repository"),
        ("oci://host/a//b", "names no repository"),
        ("oci://host/a/../b", "names no repository"),
        ("oci://host/a/b/", "names no repository"),
        ("oci://host/a___b", "names no repository"),
        ("oci://host/-a", "names no repository"),
        ("oci://host/a b", "names no repository"),
        ("oci://host/ä", "names no repository"),
        ("oci://host/" + 260 * "a", "names no repository"),
        ("oci://docker.io/", "names no repository"),
        ("oci://ho_st/repo", "names no host of a registry"),
        ("oci://-host/repo", "names no host of a registry"),
        ("oci://host:/repo", "names no host of a registry"),
        ("oci://host:0/repo", "names no host of a registry"),
        ("oci://host:65536/repo", "names no host of a registry"),
        ("oci://host:http/repo", "names no host of a registry"),
        ("oci://::1/repo", "names no host of a registry"),
        ("oci://host/repo:", "no valid tag"),
        ("oci://host/repo:.1", "no valid tag"),
        ("oci://host/repo:" + 129 * "a", "no valid tag"),
        ("oci://host/repo:1:2", "no valid tag"),
        ("oci://host/repo:ä", "no valid tag"),
        ("oci://host/repo@", "no valid digest"),
        ("oci://host/repo@sha256:ab", "no valid digest"),
        ("oci://host/repo@sha256:" + 64 * "A", "no valid digest"),
        ("oci://host/repo@md5:" + 32 * "a", "no valid digest"),
        (f"oci://host/repo@{DIGEST}@{DIGEST}", "no valid digest"),
        (f"oci://host/repo@{DIGEST}:1", "no valid digest"),
    ],
)
def test_what_is_no_oci_ref_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidRef, match=why):
        parse_ref(text)


def test_an_oci_ref_with_a_password_is_refused_without_it() -> None:
    with pytest.raises(InvalidRef) as refused:
        parse_ref("oci://user:open-sesame@host/repo:1")

    assert "open-sesame" not in str(refused.value)
    assert "credentials belong into docker's config.json" in str(refused.value.hint)


# --------------------------------------------------------------------------------------------------------------- object stores


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("s3://bucket/key", "s3://bucket/key"),
        ("S3://bucket/a/b.qcow2", "s3://bucket/a/b.qcow2"),
        ("s3://my.bucket-1/a b", "s3://my.bucket-1/a%20b"),
        ("s3://bucket/a%2Fb", "s3://bucket/a/b"),
        ("s3://bucket/%61", "s3://bucket/a"),
        ("s3://bucket/a+b@c:d,e;f=(g)&h", "s3://bucket/a+b@c:d,e;f=(g)&h"),
        ("s3://bucket/100%", "s3://bucket/100%25"),
        ("s3://bucket/größer", "s3://bucket/gr%C3%B6%C3%9Fer"),
        ("s3://bucket/a%3Fb%23c", "s3://bucket/a%3Fb%23c"),
        (
            "s3://bucket/key?versionId=3sL4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY",
            "s3://bucket/key?versionId=3sL4kqtJlcpXroDTDmJ%2BrmSpXd3dIbrHY",
        ),
        ("s3://bucket/key?versionid=null", "s3://bucket/key?versionId=null"),
        ("gs://my_bucket/key?generation=1360887759327000", "gs://my_bucket/key?generation=1360887759327000"),
        ("az://$web/key", "az://$web/key"),
        ("az://images/a?versionId=2024-05-17T12:30:45.1234567Z", "az://images/a?versionid=2024-05-17T12%3A30%3A45.1234567Z"),
    ],
)
def test_an_object_has_one_spelling_which_is_read_as_it_is_written(text: str, canonical: str) -> None:
    ref = parse_ref(text)
    assert (canonical, canonical) == (ref.canonical, ref.location)
    assert ref == parse_ref(canonical)


@pytest.mark.parametrize(
    ("text", "bucket", "key", "version"),
    [
        ("s3://bucket/a/b c?versionId=x/y", "bucket", "a/b c", "x/y"),
        ("gs://bucket/a%3Fb%2525", "bucket", "a?b%25", None),
    ],
)
def test_an_object_is_named_by_bucket_key_and_version(text: str, bucket: str, key: str, version: str | None) -> None:
    name = object_name(parse_ref(text))
    assert (bucket, key, version) == (name.bucket, name.key, name.version)


@pytest.mark.parametrize(
    "text",
    [
        "s3:bucket/key",
        "s3:///key",
        "s3://bucket",
        "s3://bucket/",
        "s3://Bucket/key",
        "s3://my_bucket/key",
        "s3://bu/key",
        f"s3://{64 * 'b'}/key",
        "s3://a..b/key",
        "s3://-bucket/key",
        "s3://bucket:9000/key",
        "s3://bucket//key",
        "s3://bucket/key/",
        "s3://bucket/a/../key",
        "s3://bucket/%2E%2E/key",
        "s3://bucket/./key",
        "s3://bucket/a%00b",
        "s3://bucket/a%0Ab",
        "s3://bucket/%FF",
        "s3://bucket/key#part",
        f"s3://bucket/{1025 * 'k'}",
        "s3://bucket/key?",
        "s3://bucket/key?versionId=",
        "s3://bucket/key?versionId=a%20b",
        "s3://bucket/key?generation=1",
        "gs://bucket/key?generation=x",
        "gs://bucket/key?versionId=1",
        "az://images--1/key",
        "az://im/key",
        "az://images/key?versionid=1",
    ],
)
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidRef):
        parse_ref(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:geheim@bucket/key",
        "s3://AKIA:geh/eim@bucket/key",
        "s3://bucket/key?X-Amz-Signature=geheim",
        "s3://bucket/key?versionId=1&X-Amz-Signature=geheim",
        "az://images/key?sv=2024&sig=geheim",
    ],
)
def test_a_ref_to_an_object_carries_no_credentials_and_no_message_repeats_them(text: str) -> None:
    with pytest.raises(InvalidRef) as caught:
        parse_ref(text)
    assert "geh" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    "text",
    [
        "simplestreams:",
        "simplestreams:https://host/",
        "simplestreams:https://host/#",
        "simplestreams:https://host/#ubuntu:24.04",
        "simplestreams:https://host/#ubuntu::amd64",
        "simplestreams:https://host/#a:b:c:d:e",
        "simplestreams:https://host/#ubuntu:24 04:amd64",
        "simplestreams:https://host/#product=",
        "simplestreams:https://host/#product=a b",
        "simplestreams:https://host/#product=a;ftype=",
        "simplestreams:https://host/?a=b#ubuntu:24.04:amd64",
        "simplestreams:ftp://host/#ubuntu:24.04:amd64",
        "simplestreams:///srv/streams#ubuntu:24.04:amd64",
        "simplestreams:https://user:secret@host:99999/#ubuntu:24.04:amd64",
    ],
)
def test_what_names_no_product_of_a_stream_is_refused(text: str) -> None:
    with pytest.raises(InvalidRef) as raised:
        parse_ref(text)
    assert "secret" not in f"{raised.value}{raised.value.hint}"
