"""Snapshots of real guests go into a real Glance, by whom it may, and what fails leaves an image that waits."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from glance_environment import Cloud
from glance_people import Person
from libvirt_stage import MESSAGE, Place

from underlay.compute import states
from underlay.compute.errors import ImageNotFound, OperationFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.bootimage import boot_line
from underlay.testing.fakedriver import FakeImage, FakeInstance
from underlay.testing.relay import Fault, relaying

pytest_plugins = ["libvirt_fixtures", "glance_fixtures"]
pytestmark = [
    pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "glance", "openstacksdk"),
    # The library warns of what it does itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"),
]

IMPATIENT = '[transfer]\nattempts = 3\nfirst_wait = "0s"\nlongest_wait = "0s"\n'
GLANCE = '\n[sources.glance]\ncloud = "alice"\n'


@pytest.fixture
def driver(place: Place, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[LibvirtDriver]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(cloud.clouds_yaml))
    driver = place.driver(more=GLANCE)
    yield driver
    driver.cleanup_host("node1")


@pytest.fixture
def instance(place: Place, driver: LibvirtDriver) -> Iterator[FakeInstance]:
    image = place.image()
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    place.await_boot(instance)
    yield instance
    driver.destroy(None, instance, [])
    assert [] == [name for name in os.listdir(place.instances / "snapshots") if name != "local"]


def shown(person: Person, image: str) -> dict[str, Any]:
    found: dict[str, Any] = person.session.get(f"{person.glance}/v2/images/{image}").json()
    return found


def queued(person: Person) -> str:
    made: str = person.ask("POST", "/v2/images", json={"name": "a snapshot"}).json()["id"]
    return made


def nothing(*states: str, **more: str) -> None:
    """A service that hears it."""


def test_a_snapshot_of_an_image_of_glances_is_uploaded_and_boots(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, alice: Person, cloud: Cloud
) -> None:
    live, off = queued(alice), queued(alice)
    with cloud.changing():
        driver.snapshot(None, instance, live, nothing)
        driver.power_off(instance)
        driver.snapshot(None, instance, off, nothing)
    driver.snapshot(None, instance, "local", nothing)

    assert [("active", "qcow2", "bare")] * 2 == [
        tuple(shown(alice, image)[key] for key in ("status", "disk_format", "container_format")) for image in (live, off)
    ]
    assert ["local"] == os.listdir(place.instances / "snapshots")
    image = FakeImage(id=live)
    again = place.instance(image)
    driver.spawn(None, again, image, [], None, {})
    place.await_boot(again)
    assert boot_line(MESSAGE) in place.console(again)
    driver.destroy(None, again, [])


@pytest.mark.parametrize(("fault", "sent"), [(Fault(reset=True, times=1), 2), (Fault(status=503, times=2), 3)])
def test_an_upload_that_breaks_off_is_begun_anew(
    place: Place, cloud: Cloud, alice: Person, instance: FakeInstance, fault: Fault, sent: int
) -> None:
    image = queued(alice)
    with relaying(cloud.glance) as relay, cloud.changing():
        relay.misbehave("/v2/images/*/file", fault)
        driver = place.driver(more=f'{GLANCE}endpoints = ["{relay.base}"]\n{IMPATIENT}')
        driver.snapshot(None, instance, image, nothing)
        assert sent == relay.ledger.count("PUT", f"/v2/images/{image}/file")
        driver.cleanup_host("node1")
    assert ("active", "qcow2") == (shown(alice, image)["status"], shown(alice, image)["disk_format"])


def test_an_upload_is_not_begun_anew_for_ever(place: Place, cloud: Cloud, alice: Person, instance: FakeInstance) -> None:
    image = queued(alice)
    with relaying(cloud.glance) as relay:
        relay.misbehave("/v2/images/*/file", Fault(status=503))
        driver = place.driver(more=f'{GLANCE}endpoints = ["{relay.base}"]\n{IMPATIENT}')
        with pytest.raises(OperationFailed, match="503"):
            driver.snapshot(None, instance, image, nothing)
        assert 3 == relay.ledger.count("PUT", f"/v2/images/{image}/file")
        driver.cleanup_host("node1")
    assert "queued" == shown(alice, image)["status"]


def test_who_asks_for_a_snapshot_uploads_it(
    driver: LibvirtDriver, instance: FakeInstance, people: Callable[[str], Person], cloud: Cloud
) -> None:
    bob = people("bob")
    image = queued(bob)
    with pytest.raises(ImageNotFound):
        driver.snapshot(None, instance, image, nothing)
    with cloud.changing():
        driver.snapshot(SimpleNamespace(auth_token=bob.session.get_token()), instance, image, nothing)
    assert "active" == shown(bob, image)["status"]


def test_a_snapshot_whose_image_is_deleted_meanwhile_leaves_nothing(
    driver: LibvirtDriver, instance: FakeInstance, alice: Person
) -> None:
    image = queued(alice)

    def delete(state: str, **more: str) -> None:
        if more:
            alice.delete(image)

    with pytest.raises(ImageNotFound, match=image):
        driver.snapshot(None, instance, image, delete)
    assert states.RUNNING == driver.get_info(instance).state


def test_a_snapshot_that_fails_before_its_upload_leaves_an_image_that_waits(
    driver: LibvirtDriver, instance: FakeInstance, alice: Person
) -> None:
    image = queued(alice)

    def deleting(state: str, **more: str) -> None:
        raise OperationFailed("the instance is being deleted")

    with pytest.raises(OperationFailed, match="being deleted"):
        driver.snapshot(None, instance, image, deleting)
    assert ("queued", None) == (shown(alice, image)["status"], shown(alice, image)["disk_format"])
