"""Product streams: which file a ref means, what its signature vouches for, and what is refused of a stream."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from machine import Machine
from signing import EXPIRED, GOOD, OTHER, Keys
from streams import CONTENT_ID, UBUNTU, Stream, index, item, product, products
from underlay.cache import Cache
from underlay.errors import (
    DigestMismatch,
    ImageNotFound,
    NotAuthorized,
    SignatureRefused,
    SourceChanged,
    SourceRefused,
    SourceUnavailable,
)
from underlay.host import Host
from underlay.model import Digest, ImageVersion
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.sources.simplestreams import SimplestreamsSource
from underlay.store import Store
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Served, Server, redirect, serving

OLD, NEW = b"the old one".ljust(4096, b"."), b"the new one".ljust(4096, b".")
SOURCE = SimplestreamsSource()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as server:
        yield server


@pytest.fixture
def stream(server: Server) -> Stream:
    made = Stream(server)
    made.publishes("20240423", OLD)
    return made


@pytest.fixture
def signed(server: Server, keys: Keys) -> Stream:
    made = Stream(server, sign=lambda text: keys.inline(text, GOOD))
    made.publishes("20240423", OLD)
    return made


@pytest.fixture
def verifying(keys: Keys, tmp_path: Path) -> SimplestreamsSource:
    return SimplestreamsSource(keyrings=(keys.keyring(tmp_path / "good.gpg", GOOD),))


def describe(ref: str, source: SimplestreamsSource = SOURCE, **known: Any) -> ImageVersion:
    return source.describe(parse_ref(ref), **known)


def body(version: ImageVersion, source: SimplestreamsSource = SOURCE, *, offset: int = 0) -> bytes:
    buffer, found = memoryview(bytearray(1000)), b""
    with source.open(version, offset=offset) as opened:
        while length := opened.readinto(buffer):
            found += buffer[:length]
    return found


def chosen(stream: Stream, wanted: str) -> str:
    """The product that is meant."""
    return describe(stream.ref(wanted)).properties["product"]


# ------------------------------------------------------------------------------------------------------------ what is meant


def test_a_ref_means_the_newest_version_of_its_product_with_what_the_stream_promises(stream: Stream) -> None:
    stream.publishes("20240612", NEW)

    version = describe(stream.ref())

    sha256 = hashlib.sha256(NEW).hexdigest()
    assert f"{stream.ref()}#sha256:{sha256}" == version.id == SOURCE.version_id(version.ref, sha256)
    assert (len(NEW), (Digest("sha256", sha256),), None) == (version.size, version.digests, SOURCE.fixed_id(version.ref))
    assert {"product": UBUNTU, "version": "20240612", "ftype": "disk1.img", "signed_by": "nobody"} == version.properties
    assert NEW == body(version)
    assert NEW[1000:] == body(version, offset=1000)
    assert b"" == body(version, offset=len(NEW))


@pytest.mark.parametrize(
    "wanted",
    [
        "ubuntu:24.04:amd64",
        "Ubuntu:Noble:AMD64",
        "ubuntu:lts:amd64",
        "ubuntu:24.04:amd64:disk1.img",
        f"product={UBUNTU}",
        f"product={UBUNTU};ftype=disk1.img",
    ],
)
def test_a_product_has_several_names(stream: Stream, wanted: str) -> None:
    stream.found["com.ubuntu.cloud:server:24.04:arm64"] = product({}, arch="arm64")
    stream.found["com.ubuntu.cloud:server:22.04:amd64"] = product({}, version="22.04", release="jammy", aliases="22.04,jammy")
    stream.serve()

    assert UBUNTU == chosen(stream, wanted)


def test_the_index_may_be_named_instead_of_what_it_lies_below(stream: Stream) -> None:
    url = stream.server.url("/releases/streams/v1/index.json")

    version = describe(f"simplestreams:{url}#ubuntu:24.04:amd64")

    assert stream.ref() == str(version.ref)


def test_of_several_variants_the_plain_one_is_meant(stream: Stream) -> None:
    for variant in ("cloud", "default"):
        items = {"disk.qcow2": item(OLD, f"{variant}/disk.qcow2", ftype="disk-kvm.img")}
        aliases = f"debian/bookworm/{variant}" + ",debian/bookworm" * (variant == "default")
        stream.found[f"debian:bookworm:amd64:{variant}"] = product(
            {"1": items}, os="Debian", release="bookworm", version="", variant=variant, aliases=aliases
        )
    stream.serve()

    assert "debian:bookworm:amd64:default" == chosen(stream, "debian:bookworm:amd64")
    assert "debian:bookworm:amd64:cloud" == chosen(stream, "debian:debian/bookworm/cloud:amd64")


def test_a_version_that_lacks_the_file_is_not_there_yet(stream: Stream) -> None:
    stream.found[UBUNTU]["versions"]["20250101"] = {"items": {"manifest": item(b"", "manifest", ftype="manifest")}}
    stream.serve()

    assert "20240423" == describe(stream.ref()).properties["version"]


def test_the_kind_of_file_can_be_told(stream: Stream) -> None:
    items = stream.found[UBUNTU]["versions"]["20240423"]["items"]
    items["root.tar.xz"] = item(NEW, "server/root.tar.xz", ftype="root.tar.xz")
    stream.serve()

    version = describe(stream.ref("ubuntu:24.04:amd64:root.tar.xz"))

    assert (Digest("sha256", hashlib.sha256(NEW).hexdigest()),) == version.digests
    assert "disk1.img" == describe(stream.ref()).properties["ftype"]


def test_all_lists_of_images_are_read_and_no_others(stream: Stream) -> None:
    other = "com.ubuntu.cloud.minimal:released:download"
    listed = {"x:y:z": product({"1": {"a": item(NEW, "a")}}, os="other")}
    stream.put("/releases/streams/v1/other.json", products(listed, content_id=other))
    paths = {CONTENT_ID: stream.list_path.removeprefix("/releases/"), other: "streams/v1/other.json"}
    stream.put(stream.index_path, index(paths))

    assert UBUNTU == chosen(stream, "ubuntu:24.04:amd64")
    assert "x:y:z" == chosen(stream, "other:24.04:amd64")
    assert 0 == stream.server.bodies("/releases/streams/v1/aws")


def test_a_list_that_says_it_has_not_the_product_is_not_read(stream: Stream) -> None:
    found = index({CONTENT_ID: stream.list_path.removeprefix("/releases/"), "other": "streams/v1/other.json"})
    found["index"]["other"]["products"] = ["x:y:z"]
    stream.put(stream.index_path, found)

    assert UBUNTU == chosen(stream, f"product={UBUNTU}")
    assert 0 == stream.server.bodies("/releases/streams/v1/other.json")


# --------------------------------------------------------------------------------------------------------- what is not meant


def test_a_product_that_there_is_not_is_told_with_near_ones(stream: Stream) -> None:
    with pytest.raises(ImageNotFound, match="no such product") as raised:
        describe(stream.ref("ubuntu:24.05:amd64"))
    assert raised.value.hint == "it has ubuntu:24.04:amd64"

    with pytest.raises(ImageNotFound) as raised:
        describe(stream.ref("product=com.ubuntu.cloud:server:24.04:amd46"))
    assert raised.value.hint == f"it has {UBUNTU}"


def test_an_ambiguous_product_is_told_with_all_that_are_meant(stream: Stream) -> None:
    stream.found["another:one"] = product({})
    stream.serve()

    with pytest.raises(SourceRefused, match="means 2 products") as raised:
        describe(stream.ref())
    assert "another:one" in str(raised.value.hint)
    assert UBUNTU in str(raised.value.hint)


def test_a_kind_of_file_that_there_is_not_is_told_with_those_that_are(stream: Stream) -> None:
    with pytest.raises(ImageNotFound, match=r"no version of the product has a root\.tar\.xz") as raised:
        describe(stream.ref("ubuntu:24.04:amd64:root.tar.xz"))
    assert raised.value.hint == "it has disk1.img"


def test_an_ambiguous_file_is_told_with_all_that_are_meant(stream: Stream) -> None:
    stream.found[UBUNTU]["versions"]["20240423"] = {
        "items": {name: item(OLD, name, ftype="boot-kernel") for name in ("ga", "hwe")}
    }
    stream.serve()

    with pytest.raises(SourceRefused, match="means 2 files of version 20240423") as raised:
        describe(stream.ref("ubuntu:24.04:amd64:boot-kernel"))
    assert raised.value.hint == "write the file type as one of ga, hwe"
    assert describe(stream.ref("ubuntu:24.04:amd64:hwe")).id


def test_a_stream_without_images_has_no_product(stream: Stream) -> None:
    stream.put(stream.index_path, index({}))

    with pytest.raises(ImageNotFound) as raised:
        describe(stream.ref())
    assert raised.value.hint == "it lists no images at all"


# ------------------------------------------------------------------------------------------------------- what is no stream


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"{", "is no JSON"),
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "is not in the format of Simple Streams"),
        ({"index": []}, "is not in the format of Simple Streams"),
        ({"index": {"a": {"path": 1}}}, "is not in the format of Simple Streams"),
        ({"index": {}, "format": "index:2.0"}, "has the format index:2.0"),
        (b'"' + b"x" * (1 << 20) + b'"', "has more than 1048576 bytes"),
    ],
)
def test_an_index_that_is_none_is_refused(stream: Stream, document: object, message: str) -> None:
    stream.put(stream.index_path, document)

    with pytest.raises(SourceRefused, match=message):
        describe(stream.ref())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"<html>", "is a web page"),
        ({"products": {"a": {"versions": {"1": {"items": {"b": {"path": 7}}}}}}}, "is not in the format"),
        ({"products": {"a": {"versions": {"1": {"items": {"b": {"size": -1}}}}}}}, "is not in the format"),
        ({"products": {}, "format": "products:2.0"}, "has the format products:2.0"),
    ],
)
def test_a_list_that_is_none_is_refused(stream: Stream, document: object, message: str) -> None:
    stream.put(stream.list_path, document)

    with pytest.raises(SourceRefused, match=message):
        describe(stream.ref())


@pytest.mark.parametrize(
    "path",
    [
        "https://elsewhere.example/a",
        "//elsewhere.example/a",
        "/etc/a",
        "../a",
        "a/../../b",
        "a/%2e%2e/b",
        "file:a",
        "a?b",
        "a#b",
        "a\\b",
        "a\n",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(stream: Stream, path: str) -> None:
    stream.found[UBUNTU]["versions"]["20240423"]["items"]["disk1.img"]["path"] = path
    stream.serve()
    with pytest.raises(SourceRefused, match="none below its base"):
        describe(stream.ref())

    stream.put(stream.index_path, index({CONTENT_ID: path}))
    with pytest.raises(SourceRefused, match="none below its base"):
        describe(stream.ref())


@pytest.mark.parametrize(("key", "value"), [("sha256", "0123"), ("sha256", "z" * 64), ("size", "many"), ("size", "-1")])
def test_what_a_list_says_wrongly_of_a_file_is_refused(stream: Stream, key: str, value: str) -> None:
    stream.publishes("20250101", NEW, **{key: value})

    with pytest.raises(SourceRefused, match="none"):
        describe(stream.ref())


def test_more_lists_than_any_stream_has_are_refused(stream: Stream) -> None:
    stream.put(stream.index_path, index({f"{number}": f"streams/v1/{number}.json" for number in range(17)}))

    with pytest.raises(SourceRefused, match="17 lists"):
        describe(stream.ref())


def test_sizes_as_text_and_other_digests_are_understood(stream: Stream) -> None:
    sha512, md5 = hashlib.sha512(NEW).hexdigest(), hashlib.md5(NEW).hexdigest()
    stream.publishes("20250101", NEW, size=str(len(NEW)), sha256=None, sha512=sha512, md5=md5)

    version = describe(stream.ref())

    assert (len(NEW), None) == (version.size, version.id)
    assert (Digest("sha512", sha512), Digest("md5", md5)) == version.digests
    assert version.validator == describe(stream.ref()).validator


def test_a_file_without_a_digest_has_no_validator(stream: Stream) -> None:
    stream.publishes("20250101", NEW, sha256=None, size=None)

    version = describe(stream.ref())

    assert (None, None, None, ()) == (version.id, version.size, version.validator, version.digests)
    assert NEW == body(version)


def test_there_is_no_stream_where_none_is(server: Server) -> None:
    with pytest.raises(ImageNotFound, match="there is no stream") as raised:
        describe(f"simplestreams:{server.url('/none/')}#ubuntu:24.04:amd64")
    assert raised.value.hint == "check the URL: streams/v1/index.json must lie below it"


@pytest.mark.parametrize(("status", "kind"), [(403, NotAuthorized), (503, SourceUnavailable)])
def test_what_the_server_refuses_has_its_own_error(stream: Stream, status: int, kind: type[Exception]) -> None:
    stream.server.serve(stream.list_path, Served(status=status))

    with pytest.raises(kind):
        describe(stream.ref())


def test_credentials_go_to_the_stream_and_its_files_and_into_no_message(stream: Stream) -> None:
    for path in (stream.index_path, stream.list_path, "/releases/server/20240423/disk1.img"):
        stream.server.serve(path, Served(_content(stream, path), credentials="user:secret"))
    url = stream.server.url("/releases/", credentials="user:secret")

    version = describe(f"simplestreams:{url}#ubuntu:24.04:amd64")

    assert OLD == body(version)
    assert "secret" not in f"{version}{version.ref}"
    with pytest.raises(NotAuthorized) as raised:
        describe(stream.ref())
    assert "secret" not in str(raised.value)


def _content(stream: Stream, path: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(stream.server.url(path)) as answer:
        found = answer.read()
    assert isinstance(found, bytes)
    return found


def test_a_mirror_is_where_the_server_redirects_to(stream: Stream) -> None:
    with serving({"/mirror/disk1.img": Served(OLD)}) as mirror:
        stream.server.serve("/releases/server/20240423/disk1.img", redirect(mirror.url("/mirror/disk1.img")))

        assert OLD == body(describe(stream.ref()))


# ------------------------------------------------------------------------------------------------------------------ signatures

signing = pytest.mark.component("gpg", "gpgv")


@signing
def test_a_signed_stream_is_verified_from_its_index_to_its_file(
    signed: Stream, verifying: SimplestreamsSource, keys: Keys
) -> None:
    version = describe(signed.ref(), verifying)

    assert keys.fingerprints(GOOD)[0] == version.properties["signed_by"]
    assert (Digest("sha256", hashlib.sha256(OLD).hexdigest()),) == version.digests
    assert OLD == body(version, verifying)


@signing
@pytest.mark.parametrize("which", ["index", "list"])
@pytest.mark.parametrize("fault", ["other key", "expired key", "altered", "no signature", "two messages"])
def test_what_no_trusted_key_signed_is_refused(
    signed: Stream, verifying: SimplestreamsSource, keys: Keys, which: str, fault: str
) -> None:
    path, document = {
        "index": (signed.index_path, index({CONTENT_ID: signed.list_path.removeprefix("/releases/")})),
        "list": (signed.list_path, products(signed.found)),
    }[which]
    signers = {
        "other key": lambda text: keys.inline(text, OTHER),
        "expired key": lambda text: keys.inline(text, EXPIRED, options=("--faked-system-time", "20200101T000000")),
        "altered": lambda text: keys.inline(text, GOOD).replace(b"1.0", b"1.0 "),
        "no signature": bytes,
        "two messages": lambda text: keys.inline(text, GOOD) * 2,
    }
    signed.put(path, document, sign=signers[fault])

    with pytest.raises(SignatureRefused, match=r"streams/v1/"):
        describe(signed.ref(), verifying)


@signing
def test_a_stream_that_nobody_signs_is_refused_unless_that_will_do(
    stream: Stream, verifying: SimplestreamsSource, keys: Keys
) -> None:
    with pytest.raises(SignatureRefused, match="no signed index") as raised:
        describe(stream.ref(), verifying)
    assert "require_signature" in str(raised.value.hint)

    lenient = SimplestreamsSource(keyrings=verifying.keyrings, require_signature=False)

    assert "nobody" == describe(stream.ref(), lenient).properties["signed_by"]


@signing
def test_a_signature_that_is_there_must_be_good_also_where_none_is_required(
    signed: Stream, verifying: SimplestreamsSource, keys: Keys
) -> None:
    signed.put(signed.list_path, products(signed.found), sign=lambda text: keys.inline(text, OTHER))
    lenient = SimplestreamsSource(keyrings=verifying.keyrings, require_signature=False)

    with pytest.raises(SignatureRefused):
        describe(signed.ref(), lenient)


@signing
def test_a_signed_list_in_place_of_another_is_refused(signed: Stream, verifying: SimplestreamsSource) -> None:
    signed.put(signed.list_path, products(signed.found, content_id="com.ubuntu.cloud:daily:download"))

    with pytest.raises(SignatureRefused, match="is signed as"):
        describe(signed.ref(), verifying)


@signing
def test_a_digest_that_can_be_forged_is_vouched_for_by_no_signature(signed: Stream, verifying: SimplestreamsSource) -> None:
    signed.publishes("20250101", NEW, sha256=None, md5=hashlib.md5(NEW).hexdigest())

    with pytest.raises(SignatureRefused, match="no digest that its signature could vouch for"):
        describe(signed.ref(), verifying)


@signing
def test_without_keyrings_a_signed_stream_is_read_as_it_is(signed: Stream) -> None:
    version = describe(signed.ref())

    assert "nobody" == version.properties["signed_by"]
    assert OLD == body(version)


# ------------------------------------------------------------------------------------------------------- what has not changed


def sent(stream: Stream) -> int:
    """Bytes of documents that the server has sent."""
    return sum(stream.server.sent(path) for path in (stream.index_path, stream.list_path))


def test_a_stream_that_has_not_changed_is_not_read_again(stream: Stream) -> None:
    version = describe(stream.ref())
    before = sent(stream)
    assert version.validator is not None

    again = describe(stream.ref(), known=["etag:other", version.validator])

    assert (version.id, version.validator) == (again.id, again.validator)
    assert before == sent(stream)
    assert OLD == body(again)  # although where it is has to be found out


def test_a_stream_that_has_changed_is_read_again(stream: Stream) -> None:
    first = describe(stream.ref())
    assert first.validator is not None
    stream.publishes("20240612", NEW)

    second = describe(stream.ref(), known=[first.validator])

    assert second.id != first.id
    assert (NEW, len(NEW)) == (body(second), second.size)


def test_a_version_that_has_been_left_behind_is_not_served_as_another(stream: Stream) -> None:
    first = describe(stream.ref())
    assert first.validator is not None
    known = describe(stream.ref(), known=[first.validator])
    stream.publishes("20240612", NEW)

    with pytest.raises(SourceChanged):
        body(known)
    assert OLD == body(first)  # the stream still has it where it was


def test_a_server_without_validators_is_read_each_time(stream: Stream) -> None:
    for path in (stream.index_path, stream.list_path):
        stream.server.serve(path, Served(_content(stream, path)))
    version = describe(stream.ref())
    assert version.validator is not None
    before = sent(stream)

    assert version == describe(stream.ref(), known=[version.validator])
    assert before < sent(stream)


@signing
def test_what_nobody_verified_is_read_again_once_it_is_to_be_verified(
    server: Server, signed: Stream, verifying: SimplestreamsSource
) -> None:
    version = describe(signed.ref())
    assert version.validator is not None
    before = sent(signed)

    again = describe(signed.ref(), verifying, known=[version.validator])

    assert "nobody" != again.properties["signed_by"]
    assert before < sent(signed)
    verified_size = sent(signed)
    assert again.validator is not None
    describe(signed.ref(), verifying, known=[again.validator])
    assert verified_size == sent(signed)


# -------------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(root=tmp_path / "base", kind=CacheKind.BASE, force_raw=False)
    made.root.mkdir()
    return made


def test_a_file_that_is_not_what_the_stream_promises_is_refused(stream: Stream, store: Store) -> None:
    stream.publishes("20240612", NEW, sha256="0" * 64)

    with pytest.raises(DigestMismatch):
        Cache(name="base", store=store).ensure(parse_ref(stream.ref()), SOURCE, Recorder())
    assert [".underlay"] == os.listdir(store.root)


def test_a_file_that_is_replaced_in_its_place_is_told_so_and_the_index_is_asked_afresh(stream: Stream, store: Store) -> None:
    cache, other = Cache(name="base", store=store), b"replaced".ljust(4096, b".")
    first = cache.ensure(parse_ref(stream.ref()), replace(SOURCE, revalidate_after=0), Recorder()).image
    stream.publishes("20240612", NEW)
    stream.server.serve("/releases/server/20240612/disk1.img", Served(other))

    with pytest.raises(DigestMismatch, match="damaged or replaced in their place") as refused:
        cache.ensure(parse_ref(stream.ref()), replace(SOURCE, revalidate_after=0), Recorder())
    assert refused.value.actual == f"sha256:{hashlib.sha256(other).hexdigest()}"
    assert first.path.read_bytes() == OLD
    asked = stream.server.bodies(stream.index_path)
    stream.publishes("20240612", other)

    asked_now = replace(SOURCE, revalidate_after=0)
    assert other == cache.ensure(parse_ref(stream.ref()), asked_now, Recorder()).image.path.read_bytes()
    assert asked < stream.server.bodies(stream.index_path)


@signing
def test_a_stream_is_followed_from_version_to_version(signed: Stream, verifying: SimplestreamsSource, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "instances").mkdir()
    config = tmp_path / "underlay.toml"
    config.write_text(
        f'[instances]\npath = "{tmp_path}/instances"\n[caches.base]\nkind = "base"\npath = "{tmp_path}/base"\n'
        f'[sources.simplestreams]\nkeyrings = ["{verifying.keyrings[0]}"]\nrevalidate_after = "0s"\n'
        f'[follow]\nrefs = ["{signed.ref()}"]\nkeep = 1\n'
    )
    host = Host.open(config)
    assert ["moved"] == [one.outcome for one in host.refresh()]
    assert ["current"] == [one.outcome for one in host.refresh()]
    assert 1 == signed.server.bodies("/releases/server/20240423/disk1.img")

    signed.publishes("20240612", NEW)
    [moved] = host.refresh()
    asked = len(signed.server.requests)

    assert "moved" == moved.outcome
    assert [(True, "newest"), (True, "kept-old")] == [(one.holds, one.reason.code) for one in moved.versions]
    ensured = host.fetch(signed.ref())
    assert ("hit", NEW) == (ensured.reason.code, ensured.image.path.read_bytes())
    assert asked == len(signed.server.requests)

    signed.publishes("20240701", b"another".ljust(4096, b"."))
    assert ["newest", "kept-old", "superseded"] == [one.reason.code for one in host.refresh()[0].versions]
    signed.put(signed.list_path, products(signed.found), sign=bytes)
    [refused] = host.refresh()
    assert ("last-good", "signature-refused") == (refused.outcome, refused.error and refused.error.code)
    assert "hit" == host.fetch(signed.ref()).reason.code


def test_a_dry_run_knows_what_is_here_by_the_stream_s_digest_alone(stream: Stream, tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    machine.host().ensure(stream.ref())
    for record in (machine.base / ".underlay" / "refs").iterdir():
        record.unlink()

    [planned] = machine.host().plan_refresh([stream.ref()])

    assert (None, f"{stream.ref()}#sha256:{hashlib.sha256(OLD).hexdigest()}") == (planned.before, planned.after)
    assert planned.image is not None
