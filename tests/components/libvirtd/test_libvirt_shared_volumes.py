"""One volume that several instances have at the same time, on real guests."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from libvirt_stage import Place, asked_of_qemu

from underlay.compute import get_block_device_info, states
from underlay.compute.errors import NotSupported, VolumeAttachFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.guestxml import parsed
from underlay.testing.fakedriver import FakeInstance

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

SECTOR = 512


@pytest.fixture
def volume(place: Place) -> dict[str, Any]:
    return {**place.volume(), "multiattach": True}


@pytest.fixture
def two(place: Place, driver: LibvirtDriver, volume: dict[str, Any]) -> Iterator[tuple[FakeInstance, FakeInstance]]:
    """Two guests that are up: one has had the volume from its beginning, and one is given it."""
    image = place.image()
    first, second = place.instance(image), place.instance(image)
    for instance, volumes in ((first, [volume]), (second, [])):
        driver.spawn(None, instance, image, [], None, {}, block_device_info=info_of(instance, *volumes))
    for instance in (first, second):
        place.await_boot(instance)
    driver.attach_volume(None, volume, second, "/dev/vdb")
    yield first, second
    for instance in (first, second):
        driver.destroy(None, instance, [])
        assert [] == place.traces(instance)


def info_of(instance: FakeInstance, *volumes: Mapping[str, Any]) -> dict[str, Any]:
    row = {"source_type": "volume", "destination_type": "volume", "device_name": "/dev/vdb"}
    return get_block_device_info(instance, [{**row, "connection_info": dict(volume)} for volume in volumes])


def shared(driver: LibvirtDriver, instance: FakeInstance, *, inactive: bool = False) -> dict[str, str | None]:
    """The disks that others may have as well, with how they are cached."""
    domain = parsed(driver.site.domain(instance).xml(inactive=inactive))
    found = {}
    for disk in domain.iterfind("devices/disk"):
        target, opened = disk.find("target"), disk.find("driver")
        assert target is not None
        assert opened is not None
        if disk.find("shareable") is not None:
            found[target.get("dev", "")] = opened.get("cache")
    return found


def write(place: Place, instance: FakeInstance, sector: int, byte: int) -> None:
    """Have the guest's QEMU write a sector of its second disk, as it does for its guest."""
    words = f'qemu-io -d /machine/peripheral/virtio-disk1/virtio-backend "write -P {byte} {sector * SECTOR} {SECTOR}"'
    assert "" == asked_of_qemu(place, instance, "human-monitor-command", **{"command-line": words})


def test_two_guests_have_one_volume_and_each_writes_to_it(
    place: Place, driver: LibvirtDriver, volume: dict[str, Any], two: tuple[FakeInstance, FakeInstance]
) -> None:
    (first, second), path = two, Path(volume["data"]["device_path"])
    for instance in two:
        assert [{"vdb": "none"}] * 2 == [shared(driver, instance, inactive=one) for one in (False, True)]
    write(place, first, 0, 7)
    write(place, second, 1, 8)
    assert bytes([7]) * SECTOR + bytes([8]) * SECTOR == path.read_bytes()[: 2 * SECTOR]

    driver.detach_volume(None, volume, first, "/dev/vdb")
    assert ({}, {"vdb": "none"}) == (shared(driver, first), shared(driver, second))
    write(place, second, 0, 9)
    driver.reboot(None, second, [], "HARD", info_of(second, volume))
    driver.attach_volume(None, volume, first, "/dev/vdb")
    assert {"vdb": "none"} == shared(driver, first) == shared(driver, second)
    assert [states.RUNNING] * 2 == [driver.get_info(one).state for one in two]
    driver.destroy(None, first, [])
    write(place, second, 1, 10)
    assert bytes([9]) * SECTOR + bytes([10]) * SECTOR == path.read_bytes()[: 2 * SECTOR]


def test_a_volume_is_shared_only_by_those_that_are_told_so(
    place: Place, driver: LibvirtDriver, volume: dict[str, Any], two: tuple[FakeInstance, FakeInstance]
) -> None:
    first, second = two
    alone = {**volume, "multiattach": False}
    image = place.image()
    third = place.instance(image)
    with pytest.raises(VolumeAttachFailed, match="has it, as vdb"):
        driver.spawn(None, third, image, [], None, {}, block_device_info=info_of(third, alone))
    assert [] == place.traces(third)
    driver.detach_volume(None, volume, second, "/dev/vdb")
    with pytest.raises(VolumeAttachFailed, match=f"{first.uuid} has it, as vdb"):
        driver.attach_volume(None, alone, second, "/dev/vdb")
    driver.detach_volume(None, volume, first, "/dev/vdb")
    driver.attach_volume(None, alone, first, "/dev/vdb")
    with pytest.raises(VolumeAttachFailed, match=f"{first.uuid} has it, as vdb"):
        driver.attach_volume(None, volume, second, "/dev/vdb")
    assert {} == shared(driver, first)


def test_what_would_part_those_that_share_a_volume_is_refused(
    place: Place, driver: LibvirtDriver, volume: dict[str, Any], two: tuple[FakeInstance, FakeInstance]
) -> None:
    first, _ = two
    other = place.volume()
    with pytest.raises(NotSupported, match="cannot be swapped"):
        driver.swap_volume(None, volume, other, first, "/dev/vdb", 0)
    with pytest.raises(NotSupported, match="cannot be swapped"):
        driver.swap_volume(None, other, volume, first, "/dev/vdb", 0)
    wanted = {"type": "qcow2", "snapshot_id": "s", "new_file": "snapshot"}
    with pytest.raises(NotSupported, match="no snapshots"):
        driver.volume_snapshot_create(None, first, volume["serial"], wanted)
    assert not os.path.lexists(Path(volume["data"]["device_path"]).with_name("snapshot"))
    assert {"vdb": "none"} == shared(driver, first)
