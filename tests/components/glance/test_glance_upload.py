"""An image that was made here gets its data in a real Glance: whole and once, by whom it may, or not at all."""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from glance_environment import Cloud
from glance_people import Person

from children import start
from underlay.contracts import ImageReceiver
from underlay.errors import ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
from underlay.refs import parse_ref
from underlay.sources.glance import GlanceSource
from underlay.testing.bootimage import write_qcow2
from underlay.testing.relay import Fault, relaying

pytest_plugins = ["glance_fixtures"]
pytestmark = [
    pytest.mark.component("glance", "openstacksdk"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"),
]

SIZE = 5 << 20  # more than one piece


@pytest.fixture(autouse=True)
def clouds_yaml(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(cloud.clouds_yaml))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    write_qcow2(path, size=64 << 20, message="a snapshot", payload=SIZE)
    return path


def shown(person: Person, image: str) -> dict[str, Any]:
    found: dict[str, Any] = person.session.get(f"{person.glance}/v2/images/{image}").json()
    return found


def queued(person: Person) -> str:
    made: str = person.ask("POST", "/v2/images", json={"name": "a snapshot"}).json()["id"]
    return made


def send(source: GlanceSource, cloud: Cloud, image: str, file: Path, **more: Any) -> None:
    with cloud.changing():
        source.upload(parse_ref(image), file, disk_format="qcow2", **more)


def upload(image: str, file: str) -> None:
    GlanceSource(cloud="alice").upload(parse_ref(image), Path(file), disk_format="raw")


def test_an_image_gets_its_format_and_its_data(alice: Person, cloud: Cloud, file: Path) -> None:
    image, source = queued(alice), GlanceSource(cloud="alice")
    assert isinstance(source, ImageReceiver)
    source.check_waits(parse_ref(image))

    send(source, cloud, image, file)

    found = shown(alice, image)
    assert ("active", file.stat().st_size, "qcow2", "bare") == tuple(
        found[key] for key in ("status", "size", "disk_format", "container_format")
    )
    assert hashlib.sha512(file.read_bytes()).hexdigest() == found["os_hash_value"]
    with pytest.raises(SourceRefused, match="waits for no data: it is active"):
        send(source, cloud, image, file)


def test_who_asks_uploads_by_a_token_of_their_own(
    alice: Person, people: Callable[[str], Person], cloud: Cloud, file: Path
) -> None:
    bob, source = people("bob"), GlanceSource(cloud="alice")
    image = queued(bob)
    with pytest.raises(ImageNotFound, match="does not show it to the user 'alice'"):
        send(source, cloud, image, file)

    send(source, cloud, image, file, token=bob.session.get_token())
    assert "active" == shown(bob, image)["status"]

    with pytest.raises(NotAuthorized, match="does not accept the token of who asks") as caught:
        source.check_waits(parse_ref(queued(alice)), token="no-such-token")
    assert "no-such-token" not in f"{caught.value!r} {source!r}"


def test_a_token_that_ended_is_renewed(alice: Person, cloud: Cloud, file: Path) -> None:
    source = GlanceSource(cloud="alice")
    source.check_waits(parse_ref(queued(alice)))
    old = source._api.identity.headers("it")["X-Auth-Token"]
    alice.session.delete(f"{cloud.keystone}/v3/auth/tokens", headers={"X-Subject-Token": old})
    image = queued(alice)
    send(source, cloud, image, file)
    assert "active" == shown(alice, image)["status"]

    late = queued(alice)
    with relaying(cloud.glance) as relay:  # it ends when the bytes are on their way
        relay.misbehave("/v2/images/*/file", Fault(status=401, times=1))
        send(GlanceSource(cloud="alice", endpoints=(relay.base,)), cloud, late, file)
    assert "active" == shown(alice, late)["status"]


def test_an_image_that_is_deleted_meanwhile_is_not_found(alice: Person, cloud: Cloud, file: Path) -> None:
    image, source = queued(alice), GlanceSource(cloud="alice")
    alice.delete(image)
    with pytest.raises(ImageNotFound, match=image):
        source.check_waits(parse_ref(image))
    with pytest.raises(ImageNotFound, match=image):
        send(source, cloud, image, file)


def test_an_image_that_is_deleted_while_its_data_comes_is_not_found(alice: Person, cloud: Cloud, tmp_path: Path) -> None:
    image, file = queued(alice), tmp_path / "large"
    with file.open("wb") as large:
        large.truncate(256 << 20)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(upload, image, os.fspath(file))
        while shown(alice, image)["status"] != "saving":
            assert not sent.done()
        alice.delete(image)
        with pytest.raises(ImageNotFound, match=image):
            sent.result()


def test_a_killed_upload_leaves_an_image_that_waits_again(alice: Person, cloud: Cloud, tmp_path: Path) -> None:
    image, file = queued(alice), tmp_path / "large"
    with file.open("wb") as large:
        large.truncate(2 << 30)
    with start(upload, image, file) as child:
        while shown(alice, image)["status"] != "saving":
            assert child.process.poll() is None
        child.kill()
    while (status := shown(alice, image)["status"]) == "saving":
        time.sleep(0.1)
    assert "queued" == status
    with file.open("wb") as small:
        small.truncate(1 << 20)
    with cloud.changing():
        upload(image, os.fspath(file))
    assert ("active", 1 << 20) == (shown(alice, image)["status"], shown(alice, image)["size"])


def test_a_glance_that_breaks_off_is_unavailable(alice: Person, cloud: Cloud, file: Path) -> None:
    image = queued(alice)
    with relaying(cloud.glance) as relay:
        relay.misbehave("/v2/images/*/file", Fault(status=503))
        with pytest.raises(SourceUnavailable, match="503"):
            send(GlanceSource(cloud="alice", endpoints=(relay.base,)), cloud, image, file)
        relay.misbehave("/v2/images/*/file", Fault(status=302, headers={"Location": "http://127.0.0.1:9/"}))
        with pytest.raises(SourceRefused, match="redirects"):
            send(GlanceSource(cloud="alice", endpoints=(relay.base,)), cloud, image, file)
    assert "queued" == shown(alice, image)["status"]


def test_an_upload_of_which_only_the_answer_is_lost_is_one(alice: Person, cloud: Cloud, file: Path) -> None:
    whole, none = queued(alice), queued(alice)
    with relaying(cloud.glance) as relay:
        source = GlanceSource(cloud="alice", endpoints=(relay.base,))
        relay.misbehave(f"/v2/images/{whole}/file", Fault(lost=True))
        send(source, cloud, whole, file)
        relay.misbehave(f"/v2/images/{none}/file", Fault(reset=True))
        with pytest.raises(SourceUnavailable):
            send(source, cloud, none, file)
    assert ("active", file.stat().st_size) == (shown(alice, whole)["status"], shown(alice, whole)["size"])
    assert "queued" == shown(alice, none)["status"]


def test_whether_an_image_has_a_file_is_told_by_its_digest(alice: Person, cloud: Cloud, file: Path, tmp_path: Path) -> None:
    image, source = queued(alice), GlanceSource(cloud="alice")
    ref, other = parse_ref(image), tmp_path / "other"
    other.write_bytes(file.read_bytes()[:-1] + b"!")
    assert not source.has(ref, file)
    send(source, cloud, image, file)
    assert (True, False) == (source.has(ref, file), source.has(ref, other))
    other.write_bytes(b"")
    assert not source.has(ref, other)
    alice.delete(image)
    with pytest.raises(ImageNotFound):
        source.has(ref, file)


def test_an_upload_waits_for_one_before(alice: Person, cloud: Cloud, file: Path, tmp_path: Path) -> None:
    image, large = queued(alice), tmp_path / "large"
    with large.open("wb") as content:
        content.truncate(512 << 20)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(upload, image, os.fspath(large))
        while shown(alice, image)["status"] != "saving":
            assert not sent.done()
        with pytest.raises(SourceUnavailable, match="still takes the data of an earlier upload"):
            upload(image, os.fspath(file))
        sent.result()
