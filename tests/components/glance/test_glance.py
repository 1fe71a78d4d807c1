"""The Glance source on a real Glance and a real Keystone: what each kind of image is, what may be read, and that it goes on."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from glance_environment import GLANCE, Cloud
from glance_people import Person, rewrite

from image_signing import certificate, sign
from machine import Machine
from underlay.config import parse_config
from underlay.contracts import ByteStream
from underlay.errors import (
    ConfigError,
    DigestMismatch,
    DiskTooSmall,
    FormatMismatch,
    ImageNotFound,
    NotAuthorized,
    SignatureRefused,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
)
from underlay.host import Host
from underlay.model import Digest
from underlay.refs import parse_ref
from underlay.sources.glance import GlanceSource
from underlay.testing.bootimage import write_qcow2, write_raw
from underlay.testing.relay import relaying

pytest_plugins = ["glance_fixtures"]
pytestmark = [
    pytest.mark.component("glance", "openstacksdk"),
    # The library warns of what it does itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"),
]

NOWHERE = "http://127.0.0.1:9"  # nobody listens there
NO_SUCH = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def clouds_yaml(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(cloud.clouds_yaml))


def contents(stream: ByteStream, *, limit: int = 1 << 30) -> bytes:
    buffer, found = memoryview(bytearray(64 << 10)), b""
    while len(found) < limit and (length := stream.readinto(buffer[: limit - len(found)])):
        found += buffer[:length]
    return found


def fetched(source: GlanceSource, image: str, *, offset: int = 0) -> bytes:
    with source.open(source.describe(parse_ref(image)), offset=offset) as stream:
        return contents(stream)


# ---------------------------------------------------------------------------------------------------------------- descriptions


def test_an_image_is_described_by_what_glance_knows_of_it(alice: Person) -> None:
    content = os.urandom(10_000)
    image = alice.image(content, min_disk=2, min_ram=512, os_type="linux", hw_disk_bus="virtio")

    version = GlanceSource(cloud="alice").describe(parse_ref(image))

    assert (image, 10_000, "raw", 2 << 30) == (version.id, version.size, version.disk_format, version.min_disk)
    assert (Digest("sha512", hashlib.sha512(content).hexdigest()),) == version.digests
    told = {"min_ram": "512", "os_type": "linux", "hw_disk_bus": "virtio", "virtual_size": "10000"}
    assert told == {name: version.properties[name] for name in told}
    assert set(told) == set(version.properties)


def test_its_bytes_are_served_whole_and_from_any_byte_on(alice: Person) -> None:
    content = os.urandom(300_000)
    image, source = alice.image(content), GlanceSource(cloud="alice")

    assert content == fetched(source, image)
    assert content[123_456:] == fetched(source, image, offset=123_456)
    assert b"" == fetched(source, image, offset=len(content))


def test_an_empty_image_is_empty(alice: Person) -> None:
    image = alice.image(b"")
    assert 0 == GlanceSource(cloud="alice").describe(parse_ref(image)).size
    assert b"" == fetched(GlanceSource(cloud="alice"), image)


@pytest.mark.parametrize(
    ("disk_format", "container_format", "why"),
    [("raw", "ovf", "'ovf'"), ("vmdk", "ova", "'ova'"), ("raw", "docker", "'docker'")],
)
def test_a_container_that_is_no_disk_image_is_refused(alice: Person, disk_format: str, container_format: str, why: str) -> None:
    image = alice.image(b"content", disk_format=disk_format, container_format=container_format)
    with pytest.raises(FormatMismatch, match=why):
        GlanceSource(cloud="alice").describe(parse_ref(image))


@pytest.mark.parametrize("container_format", ["aki", "ari"])
def test_a_kernel_is_one_by_its_label(alice: Person, container_format: str) -> None:
    image = alice.image(b"content", disk_format=container_format, container_format=container_format)
    assert container_format == GlanceSource(cloud="alice").describe(parse_ref(image)).disk_format


def test_an_image_without_data_is_said_to_have_none(alice: Person) -> None:
    with pytest.raises(ImageNotFound, match="has no data: it is queued"):
        GlanceSource(cloud="alice").describe(parse_ref(alice.image(None)))


def test_an_image_whose_data_is_on_its_way_is_worth_another_try(alice: Person) -> None:
    image = alice.image(None)
    alice.upload(image, b"content", to="stage")
    with pytest.raises(SourceUnavailable, match="it is uploading"):
        GlanceSource(cloud="alice").describe(parse_ref(image))


# ------------------------------------------------------------------------------------------------------------------ visibility


def test_a_hidden_image_can_be_had(alice: Person) -> None:
    assert b"content" == fetched(GlanceSource(cloud="alice"), alice.image(b"content", os_hidden=True))


def test_an_image_of_the_community_can_be_had_by_others_and_a_private_one_cannot(alice: Person) -> None:
    image = alice.image(b"content", visibility="private")
    with pytest.raises(ImageNotFound) as refused:
        GlanceSource(cloud="bob").describe(parse_ref(image))
    assert all(word in refused.value.message for word in (image, "'bob'", "'works'"))

    alice.change(image, visibility="community")
    assert b"content" == fetched(GlanceSource(cloud="bob"), image)


def test_a_deactivated_image_is_for_administrators(alice: Person, admin: Person) -> None:
    image = alice.image(b"content")
    described = GlanceSource(cloud="alice").describe(parse_ref(image))
    admin.ask("POST", f"/v2/images/{image}/actions/deactivate")

    with pytest.raises(NotAuthorized, match="deactivated") as refused:
        fetched(GlanceSource(cloud="alice"), image)
    assert "--activate" in str(refused.value.hint)
    with pytest.raises(NotAuthorized, match="deactivated"), GlanceSource(cloud="alice").open(described):
        raise AssertionError("it was opened")
    assert b"content" == fetched(GlanceSource(cloud="admin"), image)


def test_an_image_that_is_not_there_or_not_any_more_is_not_found(alice: Person) -> None:
    source = GlanceSource(cloud="alice")
    with pytest.raises(ImageNotFound, match=NO_SUCH):
        source.describe(parse_ref(NO_SUCH))
    image = alice.image(b"content")
    version = source.describe(parse_ref(image))
    alice.delete(image)
    with pytest.raises(ImageNotFound, match=image), source.open(version):
        raise AssertionError("it was opened")


# ---------------------------------------------------------------------------------------------------------------------- tokens


def revoke(source: GlanceSource, admin: Person, cloud: Cloud) -> None:
    """End the token that the source has."""
    token = source._api.identity.headers("")["X-Auth-Token"]
    admin.session.delete(f"{cloud.keystone}/v3/auth/tokens", headers={"X-Subject-Token": token})


def test_a_token_that_has_ended_is_renewed(alice: Person, admin: Person, cloud: Cloud) -> None:
    content = os.urandom(100_000)
    image, source = alice.image(content), GlanceSource(cloud="alice")
    version = source.describe(parse_ref(image))

    revoke(source, admin, cloud)
    assert version == source.describe(parse_ref(image))
    revoke(source, admin, cloud)
    with source.open(version, offset=50_000) as stream:
        assert content[50_000:] == contents(stream)


def test_a_stream_that_is_open_goes_on_when_its_token_ends(alice: Person, admin: Person, cloud: Cloud) -> None:
    content = os.urandom(32 << 20)  # more than the connection holds
    image, source = alice.image(content), GlanceSource(cloud="alice")
    with source.open(source.describe(parse_ref(image))) as stream:
        beginning = contents(stream, limit=1000)
        revoke(source, admin, cloud)
        assert content == beginning + contents(stream)


def test_fetches_by_one_host_cost_one_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alice: Person, cloud: Cloud
) -> None:
    images = [alice.image(os.urandom(5000), disk_format="raw") for _ in range(3)]
    with relaying(cloud.keystone) as relay:
        with_cloud(tmp_path, monkeypatch, cloud, auth_auth_url=relay.base)
        (tmp_path / "host").mkdir()
        host = Machine.make(tmp_path / "host", extra='[sources.glance]\ncloud = "other"\n').host()
        host.ensure(images[0])
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(host.ensure, images))
        assert (3, 1) == (len({image.name for image in found}), relay.ledger.count("POST", "/v3/auth/tokens"))


def test_a_password_that_changes_in_its_file_is_used_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alice: Person, cloud: Cloud
) -> None:
    image = alice.image(b"content")
    with_cloud(tmp_path, monkeypatch, cloud, auth_password="guessed")
    source = GlanceSource(cloud="other")
    with pytest.raises(NotAuthorized, match="does not accept the password"):
        source.describe(parse_ref(image))
    with_cloud(tmp_path, monkeypatch, cloud)
    assert 7 == source.describe(parse_ref(image)).size
    with_cloud(tmp_path, monkeypatch, cloud, auth_password="guessed")
    with pytest.raises(NotAuthorized, match="does not accept the password"):
        source.describe(parse_ref(image))


# --------------------------------------------------------------------------------------------------------------- configuration


def with_cloud(path: Path, monkeypatch: pytest.MonkeyPatch, cloud: Cloud, **changes: Any) -> None:
    """A clouds.yaml with one cloud ``other``, which is alice's but for these keys; a key of ``auth`` begins with ``auth_``."""
    found = json.loads(cloud.clouds_yaml.read_text())["clouds"]["alice"]
    for key, value in changes.items():
        place = found["auth"] if key.startswith("auth_") and key != "auth_type" else found
        name = key.removeprefix("auth_") if key != "auth_type" else key
        place[name] = value
        if value is None:
            del place[name]
    (path / "clouds.yaml").write_text(json.dumps({"clouds": {"other": found}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(path / "clouds.yaml"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"auth_password": "wrong-secret"},
            "the password of the user 'alice' for the project 'wonderland' of the cloud 'other'",
        ),
        ({"auth_project_name": "works"}, "the password of the user 'alice' for the project 'works' of the cloud 'other'"),
        ({"auth_username": "nobody"}, "the password of the user 'nobody' for"),
    ],
)
def test_which_credential_is_wrong_is_told_by_its_name_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: Cloud, changes: Mapping[str, str], named: str
) -> None:
    with_cloud(tmp_path, monkeypatch, cloud, **changes)
    source = GlanceSource(cloud="other")
    with pytest.raises(NotAuthorized) as refused:
        source.describe(parse_ref(NO_SUCH))
    assert named in refused.value.message
    for secret in (*cloud.secrets, "wrong-secret"):
        assert secret not in f"{refused.value!r} {refused.value.hint} {source!r} {source._api!r}"


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"auth_auth_url": NOWHERE}, SourceUnavailable, "Keystone does not answer at 127.0.0.1:9"),
        ({"auth_auth_url": "{glance}"}, SourceUnavailable, "Keystone does not answer at"),
        ({"auth_auth_url": None}, ConfigError, "auth_url is missing"),
        ({"auth_type": "nonesuch"}, ConfigError, "NoMatchingPlugin"),
        ({"cacert": "/nonesuch.pem", "auth_auth_url": "https://127.0.0.1:9"}, ConfigError, "certificates cannot be used"),
        ({"verify": False, "auth_auth_url": "https://127.0.0.1:9"}, ConfigError, "not to verify"),
        ({"region_name": "Elsewhere"}, ConfigError, "no image service"),
        ({"interface": "admin"}, ConfigError, "no image service"),
        ({"interface": "internal"}, SourceUnavailable, "127.0.0.1:9"),
    ],
)
def test_what_is_wrong_with_a_cloud_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cloud: Cloud,
    changes: Mapping[str, Any],
    error: type[UnderlayError],
    told: str,
) -> None:
    filled = {key: value.format(glance=cloud.glance) if isinstance(value, str) else value for key, value in changes.items()}
    with_cloud(tmp_path, monkeypatch, cloud, **filled)
    with pytest.raises(error) as caught:
        GlanceSource(cloud="other").describe(parse_ref(NO_SUCH))
    assert told in caught.value.message
    assert not any(secret in f"{caught.value!r} {caught.value.hint}" for secret in cloud.secrets)


@pytest.mark.parametrize("text", ["", "[", "clouds: []", "clouds: {here: 7}", 'clouds: {here: {auth: "alice-secret"}}'])
def test_a_clouds_yaml_that_makes_no_sense_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: Cloud, text: str
) -> None:
    (tmp_path / "clouds.yaml").write_text(text)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(tmp_path / "clouds.yaml"))
    with pytest.raises(ConfigError) as caught:
        GlanceSource(cloud="here").describe(parse_ref(NO_SUCH))
    assert not any(secret in f"{caught.value!r} {caught.value.hint}" for secret in cloud.secrets)


def test_a_cloud_that_clouds_yaml_does_not_have_is_told() -> None:
    with pytest.raises(ConfigError, match="nonesuch"):
        GlanceSource(cloud="nonesuch").describe(parse_ref(NO_SUCH))


def test_without_any_cloud_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(tmp_path / "nonesuch.yaml"))
    with pytest.raises(ConfigError, match="missing"):
        GlanceSource().describe(parse_ref(NO_SUCH))


def test_the_environment_configures_a_cloud_as_for_every_client(
    monkeypatch: pytest.MonkeyPatch, alice: Person, cloud: Cloud, tmp_path: Path
) -> None:
    auth = json.loads(cloud.clouds_yaml.read_text())["clouds"]["alice"]["auth"]
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(tmp_path / "nonesuch.yaml"))
    for key, value in auth.items():
        monkeypatch.setenv(f"OS_{key.upper()}", value)
    assert b"content" == fetched(GlanceSource(), alice.image(b"content"))


def without_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: Cloud, kind: str, **auth: str) -> None:
    """A clouds.yaml with one cloud ``other``, in which alice is known by something else than her password."""
    auth["auth_url"] = f"{cloud.keystone}/v3"
    text = json.dumps({"clouds": {"other": {"auth_type": kind, "auth": auth, "region_name": "RegionOne"}}})
    (tmp_path / "clouds.yaml").write_text(text)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(tmp_path / "clouds.yaml"))


def test_an_application_credential_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alice: Person, cloud: Cloud
) -> None:
    place = f"{cloud.keystone}/v3/users/{alice.session.get_user_id()}/application_credentials"
    made = alice.session.post(place, json={"application_credential": {"name": f"underlay {uuid.uuid4()}"}})
    credential = made.json()["application_credential"]
    image, kind = alice.image(b"content"), "v3applicationcredential"
    told = {"application_credential_id": credential["id"], "application_credential_secret": credential["secret"]}

    without_password(tmp_path, monkeypatch, cloud, kind, **told)
    assert b"content" == fetched(GlanceSource(cloud="other"), image)

    without_password(tmp_path, monkeypatch, cloud, kind, **told | {"application_credential_secret": "guessed-secret"})
    with pytest.raises(NotAuthorized) as refusal:
        GlanceSource(cloud="other").describe(parse_ref(image))
    assert "guessed-secret" not in f"{refusal.value} {refusal.value.hint}"


def test_a_token_is_enough_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alice: Person, admin: Person, cloud: Cloud
) -> None:
    auth = json.loads(cloud.clouds_yaml.read_text())["clouds"]["alice"]["auth"]
    alice.session.invalidate()  # or the token that ends here would be hers for what follows
    token = alice.session.get_token()
    without_password(tmp_path, monkeypatch, cloud, "v3token", token=token, project_name=auth["project_name"],
                     project_domain_name=auth["project_domain_name"])  # fmt: skip
    image, source = alice.image(b"content"), GlanceSource(cloud="other")
    assert b"content" == fetched(source, image)

    admin.session.delete(f"{cloud.keystone}/v3/auth/tokens", headers={"X-Subject-Token": token})
    alice.session.invalidate()
    with pytest.raises(NotAuthorized) as refusal:
        GlanceSource(cloud="other").describe(parse_ref(image))
    assert token not in f"{refusal.value} {refusal.value.hint}"


def test_an_interface_of_the_configuration_comes_before_the_clouds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: Cloud, alice: Person
) -> None:
    with_cloud(tmp_path, monkeypatch, cloud, interface="internal", region_name=None)
    source = GlanceSource(cloud="other", interface="public", region="RegionOne")
    assert b"content" == fetched(source, alice.image(b"content"))


# ------------------------------------------------------------------------------------------------------------------- endpoints


def test_an_endpoint_that_does_not_answer_is_passed_over(alice: Person, cloud: Cloud) -> None:
    image = alice.image(b"content")
    source = GlanceSource(cloud="alice", endpoints=(NOWHERE, f"{cloud.glance}/v2/"))
    version = source.describe(parse_ref(image))
    assert f"{cloud.glance}/v2/" == version.found_at
    with source.open(version) as stream:
        assert b"content" == contents(stream)
    with pytest.raises(SourceUnavailable):
        GlanceSource(cloud="alice", endpoints=(NOWHERE,)).describe(parse_ref(image))


def test_a_ref_may_name_an_endpoint_that_is_configured_and_no_other(alice: Person, cloud: Cloud) -> None:
    image = alice.image(b"content")
    host = cloud.glance.removeprefix("http://")
    for source in (GlanceSource(cloud="alice"), GlanceSource(cloud="alice", endpoints=(NOWHERE, cloud.glance))):
        version = source.describe(parse_ref(f"glance://{host}/{image}"))
        assert (image, f"glance://{host}/{image}") == (version.id, str(version.ref))
        with source.open(version) as stream:
            assert b"content" == contents(stream)


def test_no_token_goes_to_an_endpoint_that_only_a_ref_names() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        ref = parse_ref(f"glance://127.0.0.1:{listener.getsockname()[1]}/{NO_SUCH}")
        with pytest.raises(SourceRefused, match="not configured"):
            GlanceSource(cloud="alice").describe(ref)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_glance_without_keystone_is_asked_without_a_token(people: Callable[[str], Person]) -> None:
    image = people("open").image(b"content")
    assert b"content" == fetched(GlanceSource(cloud="open"), image)
    with pytest.raises(ImageNotFound, match="the cloud 'open'"):
        GlanceSource(cloud="open").describe(parse_ref(NO_SUCH))


# ------------------------------------------------------------------------------------------------------------ direct locations


def test_bytes_are_read_from_glances_store_where_that_is_allowed(alice: Person, cloud: Cloud) -> None:
    content = os.urandom(50_000)
    image = alice.image(content)
    source = GlanceSource(cloud="alice", direct_locations=(cloud.images,))
    version = source.describe(parse_ref(image))
    assert f"file://{cloud.images / image}" == version.found_at

    # Glance itself does not serve it any more; the file is there.
    gone = GlanceSource(cloud="alice", endpoints=(NOWHERE,), direct_locations=(cloud.images,))
    with gone.open(version) as stream:
        assert content == contents(stream)
    with gone.open(version, offset=12_345) as stream:
        assert content[12_345:] == contents(stream)


def test_glance_serves_what_is_not_in_the_store_as_it_says(alice: Person, cloud: Cloud, tmp_path: Path) -> None:
    image = alice.image(b"content")
    assert b"content" == fetched(GlanceSource(cloud="alice", direct_locations=(tmp_path,)), image)

    source = GlanceSource(cloud="alice", direct_locations=(cloud.images,))
    version = source.describe(parse_ref(image))
    file = cloud.images / image
    file.rename(tmp_path / "moved")
    (tmp_path / "secret").write_bytes(b"secret!")
    file.symlink_to(tmp_path / "secret")  # out of the allowed directory, and of the right size
    with source.open(version) as stream:
        assert stream is not None  # Glance itself follows the symlink; we did not
        assert not hasattr(stream, "fd")
    file.unlink()
    (tmp_path / "moved").rename(file)
    with source.open(version) as stream:
        assert hasattr(stream, "fd")


# ---------------------------------------------------------------------------------------------------- what Glance does not know


def test_an_md5_proves_an_image_that_has_nothing_better_where_that_is_allowed(alice: Person, cloud: Cloud) -> None:
    image = alice.image(b"content")
    rewrite(cloud, image, os_hash_algo=None, os_hash_value=None)

    version = GlanceSource(cloud="alice", allow_md5=True).describe(parse_ref(image))
    assert (Digest("md5", hashlib.md5(b"content").hexdigest()),) == version.digests
    with pytest.raises(SourceRefused, match="MD5") as refused:
        GlanceSource(cloud="alice").describe(parse_ref(image))
    assert "allow_md5" in str(refused.value.hint)


def test_an_md5_is_not_looked_at_where_there_is_better(alice: Person) -> None:
    version = GlanceSource(cloud="alice", allow_md5=True).describe(parse_ref(alice.image(b"content")))
    assert ["sha512"] == [digest.algorithm for digest in version.digests]


def test_an_image_without_any_digest_or_size_can_be_had(alice: Person, cloud: Cloud) -> None:
    image = alice.image(b"content")
    rewrite(cloud, image, os_hash_algo=None, os_hash_value=None, checksum=None, size=None)
    version = GlanceSource(cloud="alice").describe(parse_ref(image))
    assert ((), None) == (version.digests, version.size)
    assert b"content" == fetched(GlanceSource(cloud="alice"), image)


def test_an_image_that_the_store_has_lost_is_not_found(alice: Person, cloud: Cloud) -> None:
    image = alice.image(b"content")
    (cloud.images / image).unlink()
    with pytest.raises(ImageNotFound, match=f"{image}.* does not have its data, although it is active"):
        fetched(GlanceSource(cloud="alice"), image)


# ------------------------------------------------------------------------------------------------------------------ end to end


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name in ("instances", "base", "masters"):
        (tmp_path / name).mkdir()
    text = f"""
        [instances]
        path = "{tmp_path}/instances"
        [caches.base]
        kind = "base"
        path = "{tmp_path}/base"
        [caches.masters]
        kind = "masters"
        path = "{tmp_path}/masters"
        [sources.glance]
        cloud = "alice"
    """
    return Host.open(parse_config(text, origin=tmp_path / "underlay.toml"))


def test_no_disk_is_made_below_the_least_that_glance_allows(
    tmp_path: Path, host: Host, alice: Person, disk: tuple[bytes, bytes]
) -> None:
    raw, _ = disk
    image = alice.image(raw, min_disk=1)

    with pytest.raises(DiskTooSmall, match=f"glance:{image}'s min_disk is {1 << 30} bytes"):
        host.create_disk("web-1", image, size=(1 << 30) - 512)
    assert 1 << 30 == host.create_disk("web-1", image, size=1 << 30).size
    assert len(raw) == host.create_disk("web-2", image).size  # as of a flavor without a root disk's size


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A disk that boots: raw, and as qcow2."""
    directory = tmp_path_factory.mktemp("disk")
    write_raw(directory / "raw", size=4 << 20, message="booted", payload=100_000)
    write_qcow2(directory / "qcow2", size=4 << 20, message="booted", payload=100_000)
    return (directory / "raw").read_bytes(), (directory / "qcow2").read_bytes()


@pytest.mark.component("qemu-img")
def test_an_image_is_cached_under_the_very_names_of_nova_and_ironic(
    host: Host, alice: Person, disk: tuple[bytes, bytes]
) -> None:
    _, qcow2 = disk
    image = alice.image(qcow2, disk_format="qcow2", visibility="private")

    base = host.ensure(f"glance:{image}")
    assert (hashlib.sha1(image.encode()).hexdigest(), "raw") == (base.name, base.format)
    master = host.ensure(image, cache="masters")
    assert (image, qcow2) == (master.name, master.path.read_bytes())
    assert base.record is not None
    assert f"sha512:{hashlib.sha512(qcow2).hexdigest()}" in base.record.digests
    assert image == base.record.version_id

    alice.delete(image)
    assert base.path == host.ensure(image).path  # a hit asks nobody


def test_several_images_are_made_present_at_once(host: Host, alice: Person, disk: tuple[bytes, bytes]) -> None:
    raw, _ = disk
    images = [alice.image(raw) for _ in range(2)]
    done = host.precache([*images, NO_SUCH], jobs=2)
    assert [None, None, ImageNotFound] == [one.error and type(one.error) for one in done]
    assert all((host.config.caches["base"].root / hashlib.sha1(image.encode()).hexdigest()).exists() for image in images)


def test_bytes_that_are_not_what_was_uploaded_are_refused(
    host: Host, alice: Person, cloud: Cloud, disk: tuple[bytes, bytes]
) -> None:
    raw, _ = disk
    image = alice.image(raw)
    (cloud.images / image).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DigestMismatch) as refused:
        host.ensure(image)
    assert refused.value.expected == f"sha512:{hashlib.sha512(raw).hexdigest()}"


@pytest.mark.component("qemu-img")
def test_what_has_another_format_than_its_label_is_refused(
    host: Host, alice: Person, cloud: Cloud, disk: tuple[bytes, bytes]
) -> None:
    _, qcow2 = disk
    image = alice.image(qcow2, disk_format="qcow2")
    rewrite(cloud, image, disk_format="vmdk")  # this Glance would not have taken it so
    with pytest.raises(FormatMismatch):
        host.ensure(image)


# ------------------------------------------------------------------------------------------------------------------ signatures


@dataclass(frozen=True)
class Publisher:
    """Somebody who signs images.

    Attributes:
        certificates: the directory that has their certificate.
    """

    key: Any
    key_type: str
    uuid: str
    certificates: Path

    def signed(self, owner: Person, content: bytes, **changes: str) -> str:
        """An image in Glance with its signature; ``changes``: properties that are otherwise than they should be."""
        image = owner.image(content)
        properties = {
            "img_signature": base64.b64encode(sign(self.key, content)).decode(),
            "img_signature_hash_method": "SHA-256",
            "img_signature_key_type": self.key_type,
            "img_signature_certificate_uuid": self.uuid,
        }
        # After the upload: a Glance without a key manager takes no upload with them.
        owner.change(image, **properties | changes)
        return image


@pytest.fixture(params=["RSA-PSS", "ECC_SECP384R1", "DSA"])
def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> Publisher:
    made: dict[str, Callable[[], Any]] = {
        "RSA-PSS": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ECC_SECP384R1": lambda: ec.generate_private_key(ec.SECP384R1()),
        "DSA": lambda: dsa.generate_private_key(key_size=2048),
    }
    key, name, now = made[request.param](), str(uuid.uuid4()), datetime.now(UTC)
    (tmp_path / "certificates").mkdir()
    found = certificate(key, begins=now - timedelta(days=1), ends=now + timedelta(days=1))
    (tmp_path / "certificates" / f"{name}.pem").write_bytes(found)
    return Publisher(key, request.param, name, tmp_path / "certificates")


def verifying(host: Host, publisher: Publisher) -> Host:
    """The host, to which every image in Glance must be signed."""
    assert host.config.origin is not None
    source = GlanceSource(cloud="alice", certificates=publisher.certificates)
    return Host.open(host.config, sources={"glance": source})


def test_a_signed_image_is_taken_and_its_signature_is_one_to_openstacks_own_verifier(
    host: Host, alice: Person, publisher: Publisher, disk: tuple[bytes, bytes]
) -> None:
    raw, _ = disk
    image = publisher.signed(alice, raw)

    assert raw == verifying(host, publisher).ensure(image).path.read_bytes()
    program = (
        "import json, sys, base64\n"
        "from cryptography import x509\n"
        "from cursive import signature_utils as u\n"
        "asked = json.load(sys.stdin)\n"
        "key = x509.load_pem_x509_certificate(asked['certificate'].encode()).public_key()\n"
        "kind = u.SignatureKeyType.lookup(asked['key_type'])\n"
        "verifier = kind.create_verifier(base64.b64decode(asked['signature']), u.get_hash_method('SHA-256'), key)\n"
        "verifier.update(base64.b64decode(asked['content']))\n"
        "verifier.verify()\n"
        "print('verified')\n"
    )
    asked = {
        "certificate": (publisher.certificates / f"{publisher.uuid}.pem").read_text(),
        "key_type": publisher.key_type,
        "signature": base64.b64encode(sign(publisher.key, b"content")).decode(),
        "content": base64.b64encode(b"content").decode(),
    }
    argv = [os.fspath(GLANCE.python()), "-W", "ignore", "-c", program]
    ended = subprocess.run(argv, input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=False)
    assert "verified\n" == ended.stdout, ended.stderr


@pytest.mark.parametrize("publisher", ["RSA-PSS"], indirect=True)
def test_what_was_signed_and_then_changed_is_refused_and_leaves_nothing(
    host: Host, alice: Person, cloud: Cloud, publisher: Publisher, disk: tuple[bytes, bytes]
) -> None:
    raw, _ = disk
    image = publisher.signed(alice, raw)
    changed = raw[:-1] + bytes([raw[-1] ^ 1])
    (cloud.images / image).write_bytes(changed)
    rewrite(cloud, image, os_hash_value=hashlib.sha512(changed).hexdigest())  # by somebody who has Glance in their hands

    with pytest.raises(SignatureRefused, match="does not have the content that was signed"):
        verifying(host, publisher).ensure(image)
    assert [] == [path for path in host.config.caches["base"].root.iterdir() if path.name != ".underlay"]
    assert host.ensure(image).size == len(raw)  # who does not ask for signatures has it


@pytest.mark.parametrize("publisher", ["RSA-PSS"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"img_signature": "no base64!"}, "no base64"),
        ({"img_signature": base64.b64encode(b"something").decode()}, "does not have the content"),
        ({"img_signature_hash_method": "MD5"}, "unknown digest"),
        ({"img_signature_key_type": "DSA"}, "has a key for RSA-PSS"),
        ({"img_signature_key_type": "ECC_NONESUCH"}, "has a key for RSA-PSS"),
        ({"img_signature_certificate_uuid": NO_SUCH}, "not trusted here"),
        ({"img_signature_certificate_uuid": "../../etc/passwd"}, "no UUID"),
    ],
)
def test_a_signature_that_cannot_be_trusted_is_refused(
    host: Host, alice: Person, publisher: Publisher, disk: tuple[bytes, bytes], changes: Mapping[str, str], told: str
) -> None:
    image = publisher.signed(alice, disk[0], **changes)
    with pytest.raises(SignatureRefused, match=told):
        verifying(host, publisher).ensure(image)


@pytest.mark.parametrize("publisher", ["RSA-PSS"], indirect=True)
def test_where_images_must_be_signed_one_that_is_not_is_refused(
    host: Host, alice: Person, publisher: Publisher, disk: tuple[bytes, bytes]
) -> None:
    with pytest.raises(SignatureRefused, match="is not signed: it has no img_signature, "):
        verifying(host, publisher).ensure(alice.image(disk[0]))
