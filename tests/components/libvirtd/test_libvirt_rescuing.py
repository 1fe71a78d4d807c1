"""Rescues of real guests: what fails, and what is killed, leaves an instance that is itself."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest
from libvirt_daemon import quiet_library
from libvirt_stage import MESSAGE, Place, wait_until

from underlay.compute import states
from underlay.compute.errors import ImageNotFound, InstanceNotRescuable, OperationFailed, VirtualInterfacePlugException
from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.bootimage import SMALLEST, boot_line, write_raw
from underlay.testing.fakedriver import FakeImage, FakeInstance, fake_vif

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

# Each step of the driver at which somebody is killed, by the function that begins then.
RESCUE_STEPS = ("make", "define", "Domain.cut", "start")
UNRESCUE_STEPS = ("define", "_remove_files", "start")


@pytest.fixture
def instance(place: Place, driver: LibvirtDriver) -> Iterator[FakeInstance]:
    """One whose guest is up."""
    image = place.image()
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    yield instance
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


@pytest.fixture
def rescue_image(place: Place) -> FakeImage:
    write_raw(place.root / "rescue.raw", size=SMALLEST, message="rescue", stays=True)
    return FakeImage(id=f"file://{place.root}/rescue.raw")


def inactive(place: Place, instance: FakeInstance) -> Element:
    """Its domain as it starts next."""
    library = quiet_library()
    connection = library.open(place.daemon.uri)
    try:
        return fromstring(connection.lookupByUUIDString(instance.uuid).XMLDesc(library.VIR_DOMAIN_XML_INACTIVE))
    finally:
        connection.close()


def disks(place: Place, instance: FakeInstance) -> list[str]:
    found = [one.get("file", "") for one in inactive(place, instance).findall("./devices/disk/source")]
    return [os.path.basename(one) for one in found]


def files(place: Place, instance: FakeInstance) -> list[str]:
    return sorted(os.listdir(place.instances / instance.uuid))


def test_a_rescued_guest_boots_the_rescue_image_and_then_its_own_again(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, rescue_image: FakeImage
) -> None:
    driver.rescue(None, instance, [], rescue_image, "secret", None)
    wait_until(lambda: boot_line("rescue") in place.console(instance), "the rescue image boots")
    assert {"disk", "disk.rescue"} == {disk.name for disk in driver.site.host.disks()}
    assert 0o600 == stat.S_IMODE((place.instances / instance.uuid / "unrescue.xml").stat().st_mode)
    with pytest.raises(InstanceNotRescuable, match="already"):
        driver.rescue(None, instance, [], rescue_image, "secret", None)
    driver.reboot(None, instance, [], "HARD", {})
    wait_until(lambda: boot_line("rescue") in place.console(instance), "a reboot stays in the rescue")

    driver.unrescue(instance, [])
    wait_until(lambda: boot_line(MESSAGE) in place.console(instance), "its own disk boots again")
    run = driver.get_info(instance).internal_id
    assert ["disk"] == [disk.name for disk in driver.site.host.disks()]
    assert not list((place.instances / instance.uuid).glob("*rescue*"))

    driver.unrescue(instance, [])  # a second time, or by mistake
    assert (states.RUNNING, run) == (driver.get_info(instance).state, driver.get_info(instance).internal_id)


def test_the_guest_runs_on_when_a_rescue_cannot_be(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, rescue_image: FakeImage
) -> None:
    missing = replace(rescue_image, id=f"file://{place.root}/nothing.raw")
    on_ide = replace(rescue_image, properties={"hw_rescue_bus": "ide"})  # the instance is a q35, which has none
    nowhere = fake_vif(bridge="nowhere0")
    before = (driver.get_info(instance).internal_id, files(place, instance), disks(place, instance))
    for image, network_info, error in (
        (missing, [], ImageNotFound),
        (on_ide, [], OperationFailed),
        (rescue_image, [nowhere], VirtualInterfacePlugException),
    ):
        with pytest.raises(error):
            driver.rescue(None, instance, network_info, image, None, None)
        assert states.RUNNING == driver.get_info(instance).state
        assert before == (driver.get_info(instance).internal_id, files(place, instance), disks(place, instance))


def test_the_guest_runs_again_as_itself_when_a_rescue_does_not_start(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, rescue_image: FakeImage
) -> None:
    before = (files(place, instance), disks(place, instance))
    (place.root / "kernel").write_bytes(b"none")  # QEMU refuses it once it has a ramdisk
    broken = replace(instance, kernel_id=f"file://{place.root}/kernel", ramdisk_id=f"file://{place.root}/kernel")
    with pytest.raises(OperationFailed, match="libvirt refuses"):
        driver.rescue(None, broken, [], rescue_image, None, None)
    assert states.RUNNING == driver.get_info(instance).state
    assert before == (files(place, instance), disks(place, instance))

    driver.power_off(instance)
    with pytest.raises(OperationFailed, match="libvirt refuses"):
        driver.rescue(None, broken, [], rescue_image, None, None)
    assert states.SHUTDOWN == driver.get_info(instance).state
    assert before == (files(place, instance), disks(place, instance))


def test_a_rescue_is_on_the_instance_s_own_machine(place: Place, driver: LibvirtDriver, rescue_image: FakeImage) -> None:
    image = place.image(properties={"hw_machine_type": "pc", "hw_disk_bus": "ide"})
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {}, power_on=False)
    driver.rescue(None, instance, [], rescue_image, None, None)
    wait_until(lambda: boot_line("rescue") in place.console(instance), "the rescue image boots")
    kind = inactive(place, instance).find("./os/type")
    assert kind is not None
    assert kind.get("machine", "").startswith("pc-i440fx")
    assert ["disk.rescue", "disk"] == disks(place, instance)
    driver.destroy(None, instance, [])


def test_a_rescue_whose_memory_was_saved_is_not_gone_on_with(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, rescue_image: FakeImage
) -> None:
    before = (files(place, instance), disks(place, instance))
    driver.rescue(None, instance, [], rescue_image, None, None)
    driver.suspend(None, instance)
    driver.unrescue(instance, [])
    assert states.RUNNING == driver.get_info(instance).state
    assert before == (files(place, instance), disks(place, instance))


@pytest.mark.parametrize("content", [b"\xff", None])
def test_a_guest_that_cannot_be_put_back_runs_on(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, content: bytes | None
) -> None:
    kept = place.instances / instance.uuid / "unrescue.xml"
    kept.mkdir() if content is None else kept.write_bytes(content)
    run = driver.get_info(instance).internal_id
    with pytest.raises(OperationFailed):
        driver.unrescue(instance, [])
    assert (states.RUNNING, run) == (driver.get_info(instance).state, driver.get_info(instance).internal_id)


@pytest.mark.parametrize(("action", "steps"), [("rescue", RESCUE_STEPS), ("unrescue", UNRESCUE_STEPS)])
def test_who_is_killed_at_any_step_of_a_rescue_is_followed_by_an_unrescue(
    place: Place,
    driver: LibvirtDriver,
    instance: FakeInstance,
    rescue_image: FakeImage,
    action: str,
    steps: tuple[str, ...],
) -> None:
    before = (files(place, instance), disks(place, instance))
    for step in steps:
        if action == "unrescue":
            driver.rescue(None, instance, [], rescue_image, None, {})
        kill_at(place, instance, rescue_image, action=action, step=step)
        driver.unrescue(instance, [])
        assert (step, states.RUNNING) == (step, driver.get_info(instance).state)
        assert (step, *before) == (step, files(place, instance), disks(place, instance))
    wait_until(lambda: boot_line(MESSAGE) in place.console(instance), "its own disk boots")


def kill_at(place: Place, instance: FakeInstance, rescue_image: FakeImage, *, action: str, step: str) -> None:
    script = Path(__file__).parent / "libvirt_rescuer.py"
    argv = [sys.executable, os.fspath(script), os.fspath(place.root), place.daemon.uri]
    argv += [instance.image_ref, rescue_image.id, instance.uuid, action, step]
    assert (step, -signal.SIGKILL) == (step, subprocess.run(argv, cwd=script.parent, check=False).returncode)
