"""Interfaces of real guests: given and taken while they run, are paused or off, and the taps behind them."""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from libvirt_daemon import quiet_library
from libvirt_stage import Place, command, wait_until

from underlay.compute import states
from underlay.compute.errors import (
    ComputeError,
    InstanceExists,
    InstanceNotFound,
    InterfaceAttachFailed,
    InterfaceDetachFailed,
    InternalError,
    InvalidInput,
    OperationFailed,
    VirtualInterfacePlugException,
)
from underlay.compute.libvirt import LibvirtDriver, taps
from underlay.compute.libvirt.guestxml import interface_of
from underlay.testing.fakedriver import FakeInstance, fake_vif

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip")

DEVICES = Path("/sys/class/net")


@pytest.fixture
def driver(place: Place) -> Iterator[LibvirtDriver]:
    """One that asks a guest twice."""
    driver = place.driver(more='device_detach_attempts = 2\ndevice_detach_timeout = "2s"')
    yield driver
    driver.cleanup_host("node1")


@pytest.fixture
def instance(place: Place, driver: LibvirtDriver) -> Iterator[FakeInstance]:
    """One that is off."""
    image = place.image()
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {}, power_on=False)
    yield instance
    driver.destroy(None, instance, [])
    assert [] == taps.made_for(instance.uuid)


def has(place: Place, instance: FakeInstance, vif: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the guest that runs has an interface, and whether it has it when it starts."""
    library = quiet_library()
    connection = library.open(place.daemon.uri)
    try:
        domain = connection.lookupByUUIDString(instance.uuid)
        live = domain.isActive() and interface_of(domain.XMLDesc(0), vif["address"])
        return bool(live), bool(interface_of(domain.XMLDesc(library.VIR_DOMAIN_XML_INACTIVE), vif["address"]))
    finally:
        connection.close()


def with_mtu(vif: dict[str, Any], mtu: object) -> dict[str, Any]:
    return vif | {"network": vif["network"] | {"meta": {"mtu": mtu}}}


def mtu_of(device: str) -> int:
    return int((DEVICES / device / "mtu").read_text())


# ------------------------------------------------------------------------------------------------------------ given and taken


def test_an_interface_is_given_to_a_running_guest_for_good_and_taken_again(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, bridge: str
) -> None:
    vif = with_mtu(fake_vif(1, bridge=bridge), 1400) | {"address": "52:54:00:AB:CD:01"}
    driver.power_on(None, instance, [])
    place.await_boot(instance)
    driver.attach_interface(None, instance, instance.image_meta, vif)
    assert (True, True) == has(place, instance, vif)
    assert (True, 1400) == ((DEVICES / bridge / "brif" / vif["devname"]).exists(), mtu_of(vif["devname"]))
    [traffic] = driver.get_all_bw_counters([instance])
    assert vif["address"].lower() == traffic["mac_address"].lower()

    driver.power_off(instance)
    driver.power_on(None, instance, [vif])
    assert (True, True) == has(place, instance, vif)
    place.await_boot(instance)
    driver.detach_interface(None, instance, vif)
    assert (False, False) == has(place, instance, vif)
    assert (False, states.RUNNING) == ((DEVICES / vif["devname"]).exists(), driver.get_info(instance).state)


def test_an_interface_is_given_to_a_guest_that_is_off_and_taken_again(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, bridge: str
) -> None:
    vif = fake_vif(2, bridge=bridge)
    driver.attach_interface(None, instance, instance.image_meta, vif)
    assert (False, True) == has(place, instance, vif)
    driver.detach_interface(None, instance, vif)
    assert (False, False) == has(place, instance, vif)
    assert states.SHUTDOWN == driver.get_info(instance).state


def test_a_guest_that_does_not_let_go_keeps_its_interface_until_it_does(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, bridge: str
) -> None:
    vif = fake_vif(3, bridge=bridge) | {"type": "tap"}
    driver.power_on(None, instance, [])
    place.await_boot(instance)
    driver.attach_interface(None, instance, instance.image_meta, vif)
    driver.pause(instance)
    with pytest.raises(InterfaceDetachFailed, match="does not let go of the interface 52:54:00:00:00:03: it was asked 2 times"):
        driver.detach_interface(None, instance, vif)
    assert ((True, True), True) == (has(place, instance, vif), taps.is_there(vif["devname"]))

    driver.unpause(instance)
    driver.detach_interface(None, instance, vif)
    assert ((False, False), False) == (has(place, instance, vif), taps.is_there(vif["devname"]))


def test_a_guest_that_answers_late_is_waited_for(place: Place, instance: FakeInstance, bridge: str) -> None:
    driver = place.driver(more='device_detach_attempts = 15\ndevice_detach_timeout = "2s"')
    vif = fake_vif(4, bridge=bridge)
    driver.power_on(None, instance, [])
    place.await_boot(instance)
    driver.attach_interface(None, instance, instance.image_meta, vif)
    driver.pause(instance)
    later = threading.Timer(2.5, driver.unpause, [instance])  # when it has been asked for the second time
    later.start()
    driver.detach_interface(None, instance, vif)
    later.join()
    assert (False, False) == has(place, instance, vif)
    driver.cleanup_host("node1")


def test_what_is_there_is_not_given_again_and_what_is_not_is_not_taken(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, bridge: str
) -> None:
    vif, another = fake_vif(5, bridge=bridge), fake_vif(6, bridge=bridge)
    for _ in ("off", "running"):
        driver.attach_interface(None, instance, instance.image_meta, vif)
        with pytest.raises(InterfaceAttachFailed, match="has an interface 52:54:00:00:00:05 already"):
            driver.attach_interface(None, instance, instance.image_meta, vif | {"type": "tap"})
        with pytest.raises(InterfaceDetachFailed, match="has no interface 52:54:00:00:00:06"):
            driver.detach_interface(None, instance, another)
        assert driver.get_info(instance).state in (states.RUNNING, states.SHUTDOWN)
        driver.power_on(None, instance, [vif])
        place.await_boot(instance)
        driver.detach_interface(None, instance, vif)
    with pytest.raises(InstanceNotFound):
        driver.attach_interface(None, place.instance(instance.image_meta), instance.image_meta, vif)


def test_an_interface_that_cannot_be_given_changes_nothing(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, bridge: str
) -> None:
    driver.power_on(None, instance, [])
    wrong: list[tuple[dict[str, Any], type[ComputeError], str]] = [
        (fake_vif(7, kind="macvtap"), InternalError, "macvtap"),
        (fake_vif(7, bridge="ul-nowhere"), VirtualInterfacePlugException, "ul-nowhere"),
        (fake_vif(7, kind="tap") | {"devname": "lo"}, VirtualInterfacePlugException, "no tap"),
        (fake_vif(7, kind="tap") | {"address": "no address"}, InterfaceAttachFailed, "libvirt refuses"),
        (with_mtu(fake_vif(7, bridge=bridge), 12), InvalidInput, "MTU"),
    ]
    for vif, error, said in wrong:
        with pytest.raises(error, match=said):
            driver.attach_interface(None, instance, instance.image_meta, vif)
        assert ((False, False), []) == (has(place, instance, vif), taps.made_for(instance.uuid))
    with pytest.raises(InternalError, match="macvtap"):
        driver.detach_interface(None, instance, fake_vif(7, kind="macvtap"))


def test_what_libvirt_gives_to_a_guest_and_cannot_write_down_is_taken_back(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    vif = fake_vif(23, kind="tap")
    driver.power_on(None, instance, [])
    place.await_boot(instance)
    definition = place.daemon.directory / f"etc/qemu/{instance.name}.xml"
    written = definition.read_bytes()
    definition.unlink()
    definition.mkdir()  # over which nothing is renamed
    try:
        with pytest.raises(InterfaceAttachFailed, match="libvirt refuses"):
            driver.attach_interface(None, instance, instance.image_meta, vif)
        assert ((False, False), []) == (has(place, instance, vif), taps.made_for(instance.uuid))
        driver.pause(instance)  # and lets go of nothing
        with pytest.raises(InterfaceAttachFailed, match="libvirt refuses"):
            driver.attach_interface(None, instance, instance.image_meta, vif)
        assert ((True, False), [vif["devname"]]) == (has(place, instance, vif), taps.made_for(instance.uuid))
    finally:
        definition.rmdir()
        definition.write_bytes(written)
    driver.unpause(instance)
    wait_until(lambda: has(place, instance, vif) == (False, False), "it lets go later")


def test_interfaces_of_what_is_saved_or_rescued_stay(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, bridge: str
) -> None:
    vif, arguments = fake_vif(8, bridge=bridge), (None, instance, instance.image_meta)
    driver.power_on(None, instance, [])
    driver.suspend(None, instance)
    with pytest.raises(InterfaceAttachFailed, match="suspended"):
        driver.attach_interface(*arguments, vif)
    driver.resume(None, instance, [])
    driver.rescue(None, instance, [], instance.image_meta, None, None)
    with pytest.raises(InterfaceAttachFailed, match="rescued"):
        driver.attach_interface(*arguments, vif)
    with pytest.raises(InterfaceDetachFailed, match="rescued"):
        driver.detach_interface(None, instance, vif)


def test_what_an_interruption_left_of_a_detach_is_finished_by_the_next(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, bridge: str
) -> None:
    vif = fake_vif(9, bridge=bridge)
    driver.power_on(None, instance, [])
    place.await_boot(instance)
    driver.attach_interface(None, instance, instance.image_meta, vif)
    domain = driver.site.domain(instance)
    domain.ask_for(str(interface_of(domain.xml(), vif["address"])))
    wait_until(lambda: has(place, instance, vif) == (False, True), "the guest has let go, and nobody was there to see")
    driver.detach_interface(None, instance, vif)
    assert (False, False) == has(place, instance, vif)


def test_a_tap_that_an_interruption_left_is_removed_by_the_next_detach_unless_another_interface_has_it(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    vif, another = fake_vif(21, kind="tap"), fake_vif(22, kind="tap")
    driver.plug_vifs(instance, [vif])  # all that there is of it when who detaches it was killed last
    driver.detach_interface(None, instance, vif)
    assert [] == taps.made_for(instance.uuid)
    driver.attach_interface(None, instance, instance.image_meta, another)
    with pytest.raises(InterfaceDetachFailed, match="has no interface 52:54:00:00:00:15"):
        driver.detach_interface(None, instance, vif | {"devname": another["devname"]})
    assert [another["devname"]] == taps.made_for(instance.uuid)


# ------------------------------------------------------------------------------------------------------------------------ taps


def test_a_tap_that_is_not_there_is_made_and_goes_with_its_instance(place: Place, driver: LibvirtDriver) -> None:
    image, vif = place.image(), with_mtu(fake_vif(10, kind="tap"), 1300)
    instance, device = place.instance(image), vif["devname"]
    driver.spawn(None, instance, image, [], None, {}, network_info=[vif])
    assert (instance.uuid, 1300) == (taps.owner_of(device), mtu_of(device))
    assert (True, True) == has(place, instance, vif)
    with pytest.raises(InstanceExists):  # and what is there is not undone
        driver.spawn(None, instance, image, [], None, {}, network_info=[vif])
    assert taps.is_there(device)

    driver.power_off(instance)
    command("ip", "link", "delete", device)  # as a reboot of the host does
    driver.power_on(None, instance, [vif])
    assert (instance.uuid, states.RUNNING) == (taps.owner_of(device), driver.get_info(instance).state)
    command("ip", "link", "delete", device)
    driver.reboot(None, instance, [vif], "HARD")
    assert instance.uuid == taps.owner_of(device)
    driver.destroy(None, instance, [vif])
    assert ([], False) == (place.traces(instance), taps.is_there(device))


def test_a_tap_is_made_again_for_a_guest_that_was_saved_when_its_host_went_down(place: Place, driver: LibvirtDriver) -> None:
    image, vif = place.image(), fake_vif(20, kind="tap")
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {}, network_info=[vif])
    driver.suspend(None, instance)  # as the service libvirt-guests does
    command("ip", "link", "delete", vif["devname"])
    driver.resume_state_on_host_boot(None, instance, [vif])
    assert (instance.uuid, states.RUNNING) == (taps.owner_of(vif["devname"]), driver.get_info(instance).state)
    driver.destroy(None, instance, [vif])


def test_a_tap_of_somebody_else_is_used_and_stays(place: Place, driver: LibvirtDriver) -> None:
    image, vif = place.image(), fake_vif(11, kind="tap")
    instance, device = place.instance(image), vif["devname"]
    command("ip", "tuntap", "add", "dev", device, "mode", "tap")
    try:
        driver.spawn(None, instance, image, [], None, {}, network_info=[vif])
        assert ((True, True), None) == (has(place, instance, vif), taps.owner_of(device))
        driver.destroy(None, instance, [vif])
        driver.unplug_vifs(instance, [vif])
        assert taps.is_there(device)
    finally:
        command("ip", "link", "delete", device)


def test_taps_are_plugged_and_unplugged_as_often_as_one_likes(place: Place, driver: LibvirtDriver, bridge: str) -> None:
    image, vifs = place.image(), [fake_vif(12, bridge=bridge), fake_vif(13, kind="tap"), fake_vif(14, kind="tap")]
    instance, another = place.instance(image), place.instance(image)
    vifs[1]["details"] = {"mac_address": "fe:54:00:00:00:77"}
    for _ in range(2):
        driver.plug_vifs(instance, vifs)
        assert sorted(vif["devname"] for vif in vifs[1:]) == taps.made_for(instance.uuid)
    assert "fe:54:00:00:00:77" == (DEVICES / vifs[1]["devname"] / "address").read_text().strip()
    with pytest.raises(VirtualInterfacePlugException, match=f"that of the instance {instance.uuid}"):
        driver.plug_vifs(another, vifs)
    driver.unplug_vifs(another, vifs)
    assert 2 == len(taps.made_for(instance.uuid))
    with pytest.raises(InternalError, match="macvtap"):
        driver.unplug_vifs(instance, [*vifs, fake_vif(kind="macvtap")])
    assert 2 == len(taps.made_for(instance.uuid))
    for _ in range(2):
        driver.unplug_vifs(instance, vifs)
        assert [] == taps.made_for(instance.uuid)


def test_when_one_tap_cannot_be_made_none_is(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    wrong = fake_vif(15, kind="tap") | {"details": {"mac_address": "no address"}}
    with pytest.raises(VirtualInterfacePlugException, match=wrong["devname"]):
        driver.plug_vifs(instance, [fake_vif(16, kind="tap"), wrong])
    with pytest.raises(VirtualInterfacePlugException, match=wrong["devname"]):
        driver.spawn(None, instance, image, [], None, {}, network_info=[fake_vif(17, kind="tap"), wrong])
    assert ([], []) == (taps.made_for(instance.uuid), place.traces(instance))
    image.properties = {"hw_machine_type": "abacus"}  # which libvirt refuses, when the tap is there
    with pytest.raises(OperationFailed, match="libvirt refuses"):
        driver.spawn(None, instance, image, [], None, {}, network_info=[fake_vif(17, kind="tap")])
    assert ([], []) == (taps.made_for(instance.uuid), place.traces(instance))
    assert [] == [name for name in os.listdir(DEVICES) if name.startswith("ul") and taps.is_tap(name)]


def test_taps_of_a_maker_that_was_killed_go_with_what_it_left(place: Place, driver: LibvirtDriver) -> None:
    instance, vif = place.instance(place.image()), fake_vif(19, kind="tap")
    directory = driver.site.directory(instance)
    directory.make()
    directory.making.write_text(f"node1\n{32 * '0'}")  # what a maker on this host leaves
    driver.plug_vifs(instance, [vif])
    command("ip", "tuntap", "add", "dev", "ul" + hashlib.sha1(b"tap-of-a-dead").hexdigest()[:12], "mode", "tap")
    driver.plug_vifs(instance, [vif | {"devname": "tap-of-a-dead"}])  # whose maker got no further
    place.driver().cleanup_host("node1")
    assert ([], []) == (taps.made_for(instance.uuid), place.traces(instance))


def test_one_tap_is_made_by_many_at_once(place: Place, driver: LibvirtDriver) -> None:
    instance, vif = place.instance(place.image()), fake_vif(18, kind="tap")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: driver.plug_vifs(instance, [vif]), range(4)))
    assert [vif["devname"]] == taps.made_for(instance.uuid)
    driver.unplug_vifs(instance, [vif])
