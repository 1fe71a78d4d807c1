"""The power of real guests: what a guest itself sees of it."""

import threading
import time
from typing import Any

import pytest
from libvirt_stage import MESSAGE, Place, wait_until

from underlay.compute import Event, LifecycleEvent, events, states
from underlay.compute.errors import ImageNotFound, InstanceNotRescuable, InstanceNotRunning, InstanceRebootFailure
from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.bootimage import INTERRUPTED, SMALLEST, boot_line, write_raw
from underlay.testing.fakedriver import FakeImage, FakeInstance

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
    driver.resume_state_on_host_boot(None, instance, [])
    assert states.SHUTDOWN == driver.get_info(instance).state

    driver.resume(None, instance, [])
    driver.trigger_crash_dump(instance)
    wait_until(lambda: INTERRUPTED in place.console(instance), "the guest goes on")
    assert boot_line(MESSAGE) not in place.console(instance)  # what it wrote since it was started
    driver.power_off(instance)
    with pytest.raises(InstanceNotRunning):
        driver.suspend(None, instance)


def test_a_reboot_starts_the_guest_anew_and_nobody_hears_that_it_stopped(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    heard: list[Event] = []
    driver.register_event_listener(heard.append)
    for kind, info in (("SOFT", None), ("HARD", {"root_device_name": "/dev/vdb"})):
        run = driver.get_info(instance).internal_id
        driver.reboot(None, instance, [], kind, info)
        assert run != driver.get_info(instance).internal_id
        place.await_boot(instance)
    driver.power_off(instance)
    wait_until(lambda: events.EVENT_LIFECYCLE_STOPPED in transitions(heard, instance), "it is told that it stopped")
    started, stopped = events.EVENT_LIFECYCLE_STARTED, events.EVENT_LIFECYCLE_STOPPED
    assert [started, started, stopped] == [one for one in transitions(heard, instance) if one in (started, stopped)]
    with pytest.raises(InstanceRebootFailure, match="neither SOFT nor HARD"):
        driver.reboot(None, instance, [], "WARM")


def test_a_guest_that_does_not_listen_is_rebooted_all_the_same(place: Place) -> None:
    driver = place.driver()
    write_raw(place.root / "deaf.raw", size=SMALLEST, message="deaf", stays=True)
    image = FakeImage(id=f"file://{place.root}/deaf.raw")
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    driver.pause(instance)
    driver.reboot(None, instance, [], "SOFT", {})
    assert states.RUNNING == driver.get_info(instance).state
    driver.destroy(None, instance, [])
    driver.cleanup_host("node1")


def test_a_rescued_guest_boots_the_rescue_image_and_then_its_own_again(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    write_raw(place.root / "rescue.raw", size=SMALLEST, message="rescue", stays=True)
    rescue = FakeImage(id=f"file://{place.root}/rescue.raw")
    directory = place.instances / instance.uuid
    driver.rescue(None, instance, [], rescue, "secret", None)
    wait_until(lambda: boot_line("rescue") in place.console(instance), "the rescue image boots")
    assert {"disk", "disk.rescue"} == {disk.name for disk in driver.site.host.disks()}
    with pytest.raises(InstanceNotRescuable, match="already"):
        driver.rescue(None, instance, [], rescue, "secret", None)
    driver.reboot(None, instance, [], "HARD", {})
    wait_until(lambda: boot_line("rescue") in place.console(instance), "a reboot stays in the rescue")

    driver.unrescue(instance, [])
    wait_until(lambda: boot_line(MESSAGE) in place.console(instance), "its own disk boots again")
    assert ["disk"] == [disk.name for disk in driver.site.host.disks()]
    assert not list(directory.glob("*rescue*"))


def test_a_rescue_that_fails_leaves_the_instance_as_it_was(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    before = sorted(path.name for path in (place.instances / instance.uuid).iterdir())
    with pytest.raises(ImageNotFound):
        driver.rescue(None, instance, [], FakeImage(id=f"file://{place.root}/nothing.raw"), None, None)
    assert states.RUNNING == driver.get_info(instance).state
    assert before == sorted(path.name for path in (place.instances / instance.uuid).iterdir())


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
