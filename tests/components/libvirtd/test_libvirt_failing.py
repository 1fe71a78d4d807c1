"""What goes wrong while instances are made on a real libvirt: the error says what, and nothing is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from libvirt_daemon import quiet_library
from libvirt_stage import Place, wait_until

from underlay.compute import Event, states
from underlay.compute.errors import (
    ComputeError,
    FlavorDiskSmallerThanImage,
    HypervisorUnavailable,
    ImageNotFound,
    InstanceExists,
    InternalError,
    InvalidInput,
    NotSupported,
    OperationFailed,
    VirtualInterfacePlugException,
    VolumeDriverNotFound,
)
from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.bootimage import write_qcow2
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, fake_vif
from underlay.testing.httpserver import Served, Server, serving

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

VOLUME = {"mount_device": "/dev/vdb", "connection_info": {"driver_volume_type": "iscsi", "data": {}}, "boot_index": None}
TWO_OF_A_NAME = {
    "ephemerals": [{"device_name": "/dev/vdb", "size": 1, "disk_bus": None, "guest_format": None}] * 2,
}


def spawn(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage, **more: Any) -> None:
    driver.spawn(None, instance, image, more.pop("files", []), None, {}, **more)


# What is asked for, the error, and what it says.
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], type[ComputeError], str]] = [
    ("bridge", {}, {}, {"network_info": [fake_vif(bridge="ul-nowhere")]}, VirtualInterfacePlugException, "ul-nowhere"),
    ("tap", {}, {}, {"network_info": [fake_vif(kind="tap") | {"devname": "lo"}]}, VirtualInterfacePlugException, "no tap"),
    ("kind", {}, {}, {"network_info": [fake_vif(kind="macvtap")]}, InternalError, "macvtap"),
    ("bus", {}, {"hw_disk_bus": "floppy"}, {}, InvalidInput, "hw_disk_bus is 'floppy'"),
    ("device", {"root_device_name": "/dev/../vda"}, {}, {}, InvalidInput, "no name of a device"),
    ("twins", {}, {}, {"block_device_info": TWO_OF_A_NAME}, InvalidInput, "two disks are to be vdb"),
    ("volume", {}, {}, {"block_device_info": {"block_device_mapping": [VOLUME]}}, VolumeDriverNotFound, "iscsi"),
    ("files", {}, {}, {"files": [("/etc/motd", b"x")]}, NotSupported, "injected"),
    ("accelerators", {}, {}, {"accel_info": [{"uuid": "x"}]}, NotSupported, "accelerators"),
    ("firmware", {}, {"hw_firmware_type": "uefi"}, {}, NotSupported, "uefi"),
    ("machine", {}, {"hw_machine_type": "abacus"}, {}, OperationFailed, "libvirt refuses"),
    ("memory", {"flavor": FakeFlavor(memory_mb=1 << 30)}, {}, {}, OperationFailed, "libvirt refuses"),
    ("kernel", {"kernel_id": "file:///nowhere/kernel"}, {}, {}, ComputeError, "nowhere"),
    ("uuid", {"uuid": "../../etc"}, {}, {}, InvalidInput, "no UUID"),
]


@pytest.mark.parametrize(
    ("instance", "properties", "more", "error", "said"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED]
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    place: Place,
    driver: LibvirtDriver,
    instance: dict[str, Any],
    properties: dict[str, Any],
    more: dict[str, Any],
    error: type[ComputeError],
    said: str,
) -> None:
    image = place.image(properties=properties)
    wanted = place.instance(image, **instance)
    with pytest.raises(error, match=said) as caught:
        spawn(driver, wanted, image, **more)
    assert "\n" not in str(caught.value)
    assert ([], []) == ([*{*os.listdir(place.instances)} - {"_base", "locks", ".underlay-claims"}], driver.site.host.disks())
    assert wanted.uuid not in driver.list_instance_uuids()


def test_an_image_whose_content_is_larger_than_the_disk_is_refused(place: Place, driver: LibvirtDriver) -> None:
    write_qcow2(place.root / "large.qcow2", size=3 << 30, message="large")
    image = FakeImage(id=f"file://{place.root}/large.qcow2")
    instance = place.instance(image, flavor=FakeFlavor(memory_mb=32, root_gb=2))
    with pytest.raises(FlavorDiskSmallerThanImage) as caught:
        spawn(driver, instance, image)
    assert {"flavor_size": 2 << 30, "image_size": 3 << 30} == caught.value.details
    assert [] == place.traces(instance)
    instance.flavor = replace(instance.flavor, root_gb=0)
    spawn(driver, instance, image, power_on=False)
    assert [3 << 30] == [disk.size for disk in driver.site.host.disks()]
    driver.destroy(None, instance, [])


def test_an_image_that_is_not_there_is_said_to_be_so(place: Place, driver: LibvirtDriver) -> None:
    image = FakeImage(id=f"file://{place.root}/nothing.qcow2")
    instance = place.instance(image)
    with pytest.raises(ImageNotFound, match=r"nothing\.qcow2"):
        spawn(driver, instance, image)
    assert [] == place.traces(instance)


def test_a_rebuild_from_an_image_that_cannot_be_had_keeps_the_instance(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image)
    with pytest.raises(ImageNotFound):
        driver.rebuild(
            None, instance, FakeImage(id=f"file://{place.root}/nothing.qcow2"), [], None, {}, [], print, print, network_info=[]
        )
    assert states.RUNNING == driver.get_info(instance).state
    assert ["disk"] == [disk.name for disk in driver.site.host.disks()]
    driver.destroy(None, instance, [])


@dataclass(slots=True)
class WithUserData(FakeInstance):
    user_data: str = "no base64!"


def without_kernel(instance: FakeInstance) -> FakeInstance:
    return replace(instance, kernel_id="file:///nowhere/kernel")


def with_bad_user_data(instance: FakeInstance) -> FakeInstance:
    known = {one.name: getattr(instance, one.name) for one in fields(instance) if one.init}
    return WithUserData(**known | {"config_drive": "True"})


@pytest.mark.parametrize(("changed", "error"), [(without_kernel, ComputeError), (with_bad_user_data, InvalidInput)])
def test_a_rebuild_whose_files_cannot_be_had_keeps_the_instance(
    place: Place, driver: LibvirtDriver, changed: Callable[[FakeInstance], FakeInstance], error: type[ComputeError]
) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image)
    disk = os.stat(driver.site.host.disk(instance.uuid).path).st_ino
    with pytest.raises(error):
        driver.rebuild(None, changed(instance), image, [], None, {}, [], print, print, network_info=[])
    assert states.RUNNING == driver.get_info(instance).state
    assert disk == os.stat(driver.site.host.disk(instance.uuid).path).st_ino
    driver.destroy(None, instance, [])


@pytest.fixture
def slow(place: Place, tmp_path: Path) -> Iterator[Server]:
    """An image that stops half-way until the server goes on."""
    path = tmp_path / "slow.qcow2"
    write_qcow2(path, size=4 << 20, message="slow", payload=1 << 20, stays=True)
    with serving({"/slow.qcow2": Served(path, etag='"1"', stall_after=1 << 16)}) as server:
        yield server


def test_an_instance_that_is_being_made_is_not_made_by_another(place: Place, driver: LibvirtDriver, slow: Server) -> None:
    image = FakeImage(id=slow.url("/slow.qcow2"))
    instance = place.instance(image)
    first = threading.Thread(target=spawn, args=(driver, instance, image), kwargs={"power_on": False})
    first.start()
    slow.wait_until_sent("/slow.qcow2", 1 << 16)
    with pytest.raises(InstanceExists):
        spawn(driver, instance, image)
    again = place.driver()  # which makes whole what is left half made, and this is not
    assert place.traces(instance)
    slow.resume()
    first.join()
    assert states.SHUTDOWN == again.get_info(instance).state
    again.destroy(None, instance, [])
    again.cleanup_host("node1")


def has_domain(place: Place, uuid: str) -> bool:
    connection = quiet_library().open(place.daemon.uri)
    try:
        return uuid in [domain.UUIDString() for domain in connection.listAllDomains(0)]
    finally:
        connection.close()


# What there is of an instance as a step of its maker begins.
MOMENTS: dict[str, Callable[[Place, str], bool]] = {
    "make": lambda place, uuid: (place.instances / uuid / "making").exists(),
    "write_config_drive": lambda place, uuid: (place.instances / uuid / "disk").exists(),
    "start": has_domain,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_maker_left_goes_when_the_next_driver_starts(place: Place, moment: str) -> None:
    image = place.image()
    instance = place.instance(image)
    script = Path(__file__).parent / "libvirt_maker.py"
    argv = [sys.executable, os.fspath(script), os.fspath(place.root), place.daemon.uri, image.id, instance.uuid]
    done = subprocess.run([*argv, "spawn", "call", moment], cwd=script.parent, check=False)
    assert -signal.SIGKILL == done.returncode
    assert MOMENTS[moment](place, instance.uuid)

    driver = place.driver()
    assert [] == place.traces(instance)
    assert [] == driver.site.host.disks()
    spawn(driver, instance, image, power_on=False)
    driver.destroy(None, instance, [])
    driver.cleanup_host("node1")


def test_libvirt_may_go_and_come_again(place: Place, driver: LibvirtDriver, slow: Server) -> None:
    image, heard = place.image(), list[Event]()
    running, late = place.instance(image), FakeImage(id=slow.url("/slow.qcow2"))
    spawn(driver, running, image)
    cut, ended = place.instance(late), list[BaseException]()

    def make() -> None:
        try:
            spawn(driver, cut, late)
        except ComputeError as error:
            ended.append(error)

    maker = threading.Thread(target=make)
    maker.start()
    slow.wait_until_sent("/slow.qcow2", 1 << 16)
    place.daemon.stop()
    try:
        with pytest.raises(HypervisorUnavailable, match=r"libvirt at qemu:///system\?socket=\S+ cannot be reached"):
            driver.get_info(running)
        refused = place.instance(image)
        with pytest.raises(HypervisorUnavailable):
            spawn(driver, refused, image)
        assert not (place.instances / refused.uuid).exists()
        slow.resume()
        maker.join()
        assert [HypervisorUnavailable] == [type(error) for error in ended]
        assert ["making"] == os.listdir(place.instances / cut.uuid)
    finally:
        place.daemon.start()
    assert states.RUNNING == driver.get_info(running).state
    spawn(driver, cut, late, power_on=False)
    driver.register_event_listener(heard.append)
    driver.destroy(None, running, [])
    driver.destroy(None, cut, [])
    wait_until(lambda: heard, "events come again")
    assert ([], []) == (place.traces(running), place.traces(cut))


def test_a_libvirt_that_hangs_is_not_waited_for(place: Place) -> None:
    driver = place.driver(more='timeout = "2s"')
    assert place.daemon.process is not None
    place.daemon.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(HypervisorUnavailable, match="does not answer for 2 s"):
            driver.list_instances()
        assert time.monotonic() - began < 30
    finally:
        place.daemon.process.send_signal(signal.SIGCONT)
    assert [] == driver.list_instances()
    driver.cleanup_host("node1")


def test_a_service_does_not_wait_for_a_libvirt_that_hangs_as_it_starts_or_ends(place: Place) -> None:
    driver = LibvirtDriver(None, host=place.host(more='timeout = "2s"'))
    assert place.daemon.process is not None
    place.daemon.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(HypervisorUnavailable, match="does not answer for 2 s"):
            driver.init_host("node1")
        driver.cleanup_host("node1")
        assert time.monotonic() - began < 30
    finally:
        place.daemon.process.send_signal(signal.SIGCONT)
    driver.init_host("node1")
    assert [] == driver.list_instances()
    driver.cleanup_host("node1")


def test_a_service_without_libvirt_does_not_begin(place: Place) -> None:
    threads = threading.active_count()
    driver = LibvirtDriver(None, host=place.host(uri="qemu:///system?socket=/nowhere/sock"))
    with pytest.raises(HypervisorUnavailable, match="cannot be reached"):
        driver.init_host("node1")
    wait_until(lambda: threads >= threading.active_count(), "its threads end")
    with pytest.raises(InternalError, match="init_host"):
        driver.list_instances()
