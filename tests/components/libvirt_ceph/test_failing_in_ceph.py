"""Guests whose disks cannot be had from a Ceph: told clearly, within bounded time, and with nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from libvirt_ceph_stage import CephPlace, define_secret

from underlay.compute.errors import ComputeError, OperationFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.guestxml import parsed
from underlay.testing.fakedriver import FakeInstance

pytest_plugins = ["ceph_fixtures", "libvirt_fixtures", "libvirt_ceph_fixtures"]
pytestmark = [
    pytest.mark.component("ceph", "rbd-python", "libvirt", "libvirt-python", "virsh", "root"),
    pytest.mark.component("qemu-img", "qemu-system-x86_64", "qemu-rbd"),
]
SCRIPT = Path(__file__).parent / "ceph_maker.py"
BOUND = 90.0  # seconds; a guard against hanging


def refused(there: CephPlace, driver: LibvirtDriver, *, match: str) -> FakeInstance:
    """An instance that could not be made; what the error says, in time."""
    image = there.in_ceph()
    instance, started = there.instance(image), time.monotonic()
    with pytest.raises(ComputeError, match=match):
        driver.spawn(None, instance, image, [], None, {})
    assert time.monotonic() - started < BOUND
    return instance


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"secret": "457eb676-33da-42ec-9a8c-9293d545c337"}, "457eb676"),
        ({"pool": "nowhere"}, "has no pool nowhere"),
        ({"user": "nobody"}, "to client.nobody"),
    ],
    ids=["secret", "pool", "user"],
)
def test_what_the_configuration_has_wrong_is_told_and_nothing_is_left(
    there: CephPlace, changed: dict[str, str], said: str
) -> None:
    driver = there.driver(**changed)
    instance = refused(there, driver, match=said)
    assert [] == there.traces(instance)
    driver.cleanup_host("node1")


@pytest.mark.long
def test_a_secret_with_another_key_ends_in_time_and_leaves_nothing(there: CephPlace) -> None:
    key = there.ceph.run("ceph", "auth", "get-key", "client.admin").decode()
    driver = there.driver(secret=define_secret(there.guests.daemon, key), patience="20s")
    instance = refused(there, driver, match="has disks in a Ceph")
    assert [] == there.traces(instance)
    driver.cleanup_host("node1")


def test_a_ceph_that_is_away_is_told_and_what_is_left_goes_when_it_is_back(there: CephPlace) -> None:
    driver, image = there.driver(), there.in_ceph()
    instance, started = there.instance(image), time.monotonic()
    with there.ceph.halted(), pytest.raises(OperationFailed, match="does not answer"):
        driver.spawn(None, instance, image, [], None, {})
    assert time.monotonic() - started < BOUND
    assert [] == there.left(instance)
    there.driver().cleanup_host("node1")
    assert [] == there.traces(instance)
    driver.spawn(None, instance, image, [], None, {})
    there.place.await_boot(instance)
    driver.destroy(None, instance, [])
    assert [] == there.traces(instance)
    driver.cleanup_host("node1")


@pytest.mark.long
@pytest.mark.parametrize("before", ["assembling.assembled", "domain.Domain.start", "claiming.finish"])
def test_what_a_killed_spawn_left_goes_when_the_next_driver_starts(there: CephPlace, before: str) -> None:
    image = there.place.image()
    instance = there.instance(image)
    config = there.place.root / "killed.toml"
    config.write_text(there.text())
    argv = [sys.executable, os.fspath(SCRIPT), os.fspath(config), image.id, instance.uuid, before]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(argv, env=environment, capture_output=True, check=False)
    assert -signal.SIGKILL == done.returncode, done.stderr.decode()
    assert [f"{instance.uuid}_disk"] == there.left(instance)

    again = there.driver()
    assert [] == there.traces(instance)
    again.spawn(None, instance, image, [], None, {})
    there.place.await_boot(instance)
    again.destroy(None, instance, [])
    assert [] == there.traces(instance)
    again.cleanup_host("node1")


def test_a_guest_whose_qemu_was_killed_is_destroyed_once_the_ceph_has_seen_its_end(
    there: CephPlace, driver_there: LibvirtDriver
) -> None:
    driver, image = driver_there, there.in_ceph()
    instance = there.instance(image)
    there.ceph.configure_osd("osd_client_watch_timeout", "5")
    try:
        driver.spawn(None, instance, image, [], None, {})
        there.place.await_boot(instance)
        qemu = Path(there.guests.daemon.directory, f"run/qemu/{domain_name(driver, instance)}.pid")
        os.kill(int(qemu.read_text()), signal.SIGKILL)
        assert 1 == there.watchers(f"{instance.uuid}_disk")
        driver.destroy(None, instance, [])
    finally:
        there.ceph.configure_osd("osd_client_watch_timeout", "30")
    assert [] == there.traces(instance)


def domain_name(driver: LibvirtDriver, instance: FakeInstance) -> str:
    return parsed(driver.site.domain(instance).xml()).findtext("name") or ""
