"""The power of real guests: what a guest itself sees of it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from deaf_guest import write_deaf
from libvirt_daemon import quiet_library
from libvirt_stage import CONFIG, MESSAGE, Place, wait_until

from underlay.compute import Event, LifecycleEvent, events, states
from underlay.compute.errors import InstanceNotRunning, InstancePowerOffFailure, InstanceRebootFailure
from underlay.compute.libvirt import LibvirtDriver, power
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain
from underlay.config import parse_config
from underlay.host import Host
from underlay.testing.bootimage import INTERRUPTED, boot_line
from underlay.testing.fakedriver import FakeImage, FakeInstance, fake_vif

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")


@pytest.fixture
def instance(place: Place, driver: LibvirtDriver) -> Any:
    """One whose guest is up."""
    image = place.image()
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    place.await_boot(instance)
    yield instance
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


def transitions(heard: list[Event], instance: FakeInstance) -> list[int]:
    return [one.transition for one in heard if isinstance(one, LifecycleEvent) and one.uuid == instance.uuid]


def test_a_guest_shuts_down_when_it_is_asked_and_is_cut_when_it_does_not(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    began = time.monotonic()
    driver.power_off(instance, timeout=60, retry_interval=5)
    assert time.monotonic() - began < 30
    assert states.SHUTDOWN == driver.get_info(instance).state

    driver.power_on(None, instance, [])
    driver.pause(instance)
    driver.power_off(instance, timeout=60)  # one whose processors stand hears nothing, so nobody waits for it
    assert time.monotonic() - began < 60
    assert states.SHUTDOWN == driver.get_info(instance).state


def test_a_suspended_guest_goes_on_where_it_was(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    heard: list[Event] = []
    driver.register_event_listener(heard.append)
    driver.suspend(None, instance)
    wait_until(lambda: events.EVENT_LIFECYCLE_SUSPENDED in transitions(heard, instance), "it is told that it is suspended")
    driver.suspend(None, instance)
    instance.vm_state = "suspended"
    driver.resume_state_on_host_boot(None, instance, [])
    assert states.SHUTDOWN == driver.get_info(instance).state

    driver.resume(None, instance, [])
    assert_it_goes_on(place, driver, instance)
    driver.suspend(None, instance)  # now as the host does that goes down
    instance.vm_state = "active"
    driver.resume_state_on_host_boot(None, instance, [])
    assert_it_goes_on(place, driver, instance)
    driver.power_off(instance)
    with pytest.raises(InstanceNotRunning):
        driver.suspend(None, instance)


def assert_it_goes_on(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    assert states.RUNNING == driver.get_info(instance).state
    driver.trigger_crash_dump(instance)
    wait_until(lambda: INTERRUPTED in place.console(instance), "the guest goes on")
    assert boot_line(MESSAGE) not in place.console(instance)  # what it wrote since it was started


def test_a_reboot_starts_the_guest_anew_and_nobody_hears_that_it_stopped(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    heard: list[Event] = []
    driver.register_event_listener(heard.append)
    for kind, info, device in (("SOFT", None, "vda"), ("HARD", {"root_device_name": "/dev/vdb"}, "vdb")):
        run = driver.get_info(instance).internal_id
        driver.reboot(None, instance, [], kind, info)
        assert run != driver.get_info(instance).internal_id
        assert [device] == devices(place, instance)
        place.await_boot(instance)
    driver.power_off(instance)
    wait_until(lambda: events.EVENT_LIFECYCLE_STOPPED in transitions(heard, instance), "it is told that it stopped")
    started, stopped = events.EVENT_LIFECYCLE_STARTED, events.EVENT_LIFECYCLE_STOPPED
    assert [started, started, stopped] == [one for one in transitions(heard, instance) if one in (started, stopped)]
    with pytest.raises(InstanceRebootFailure, match="neither SOFT nor HARD"):
        driver.reboot(None, instance, [], "WARM")


def devices(place: Place, instance: FakeInstance) -> list[str]:
    """What its disks are called as it runs."""
    connection = quiet_library().open(place.daemon.uri)
    try:
        xml = connection.lookupByUUIDString(instance.uuid).XMLDesc(0)
    finally:
        connection.close()
    return [one.get("dev", "") for one in fromstring(xml).findall("./devices/disk/target")]


@pytest.fixture
def hasty(place: Place) -> Iterator[LibvirtDriver]:
    """A driver that waits for 2 s only until a guest has shut down."""
    text = CONFIG.format(root=place.root, uri=place.daemon.uri, instances="", more="", virt_type="qemu")
    config = parse_config(
        text.replace('wait_soft_reboot = "30s"', 'wait_soft_reboot = "2s"'), origin=place.root / "underlay.toml"
    )
    driver = LibvirtDriver(None, host=Host.open(config))
    driver.init_host("node1")
    yield driver
    driver.cleanup_host("node1")


def test_a_guest_that_does_not_listen_is_cut_when_its_time_is_over(place: Place, hasty: LibvirtDriver) -> None:
    write_deaf(place.root / "deaf.raw", message="deaf")
    image = FakeImage(id=f"file://{place.root}/deaf.raw")
    instance = place.instance(image)
    hasty.spawn(None, instance, image, [], None, {})
    place.await_boot(instance)
    run, began = hasty.get_info(instance).internal_id, time.monotonic()
    hasty.reboot(None, instance, [], "SOFT", {})
    assert time.monotonic() - began >= 2
    assert states.RUNNING == hasty.get_info(instance).state
    assert run != hasty.get_info(instance).internal_id

    place.await_boot(instance)
    began = time.monotonic()
    hasty.power_off(instance, timeout=1, retry_interval=1)
    assert time.monotonic() - began >= 1
    assert states.SHUTDOWN == hasty.get_info(instance).state
    hasty.destroy(None, instance, [])


def test_a_reboot_that_cannot_be_leaves_the_guest_running(driver: LibvirtDriver, instance: FakeInstance) -> None:
    run = driver.get_info(instance).internal_id
    with pytest.raises(InstanceRebootFailure, match="bridge"):
        driver.reboot(None, instance, [fake_vif(bridge="nowhere0")], "HARD", {})
    assert (states.RUNNING, run) == (driver.get_info(instance).state, driver.get_info(instance).internal_id)


def test_a_guest_that_its_reboot_does_not_start_is_told_to_have_stopped(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, tmp_path: Path
) -> None:
    heard: list[Event] = []
    driver.register_event_listener(heard.append)
    base = (place.instances / "_base").rename(tmp_path / "elsewhere")  # a guest that runs has it open
    with pytest.raises(InstanceRebootFailure, match="could not be rebooted: libvirt refuses"):
        driver.reboot(None, instance, [], "HARD")
    wait_until(lambda: [events.EVENT_LIFECYCLE_STOPPED] == transitions(heard, instance), "it is told that it stopped")
    assert states.SHUTDOWN == driver.get_info(instance).state
    base.rename(place.instances / "_base")
    driver.reboot(None, instance, [], "HARD")
    assert states.RUNNING == driver.get_info(instance).state


def test_who_may_not_press_the_button_tries_to_cut_the_power(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    """libvirt's socket for those who may only look is one at which it refuses both."""
    looking = LibvirtDriver(None, host=place.host(uri=f"{place.daemon.uri}-ro"))
    looking.init_host("node1")
    with pytest.raises(InstancePowerOffFailure, match="refuses"):
        looking.power_off(instance, timeout=1)
    assert states.RUNNING == driver.get_info(instance).state
    looking.cleanup_host("node1")


def test_a_guest_whose_state_nobody_knows_is_let_be_when_its_host_starts(place: Place, driver: LibvirtDriver) -> None:
    """libvirt's driver for tests has such a guest; QEMU's has none."""
    instance = place.instance(place.image())
    known = f"<name>{instance.name}</name><uuid>{instance.uuid}</uuid><memory>1024</memory><os><type>hvm</type></os>"
    state = "<test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>0</test:runstate>"
    (place.root / "node.xml").write_text(f"<node><domain type='test'>{known}{state}</domain></node>")
    connection = Connection(f"test://{place.root}/node.xml", timeout=10)
    assert states.NOSTATE == Domain(connection, instance.uuid).state()[0]
    power.resume_state(replace(driver.site, connection=connection), instance, [], None)
    assert states.NOSTATE == Domain(connection, instance.uuid).state()[0]
    connection.close()


def test_who_hears_an_event_may_ask_back(driver: LibvirtDriver, instance: FakeInstance) -> None:
    seen: list[int] = []
    done = threading.Event()

    def ask(event: Event) -> None:
        seen.append(driver.get_info(instance).state)
        done.set()

    driver.register_event_listener(ask)
    driver.pause(instance)
    assert done.wait(30)
    assert [states.PAUSED] == seen
