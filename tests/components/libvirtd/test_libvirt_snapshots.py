"""Snapshots of real guests, which boot on their own."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from libvirt_stage import MESSAGE, Place

from underlay.compute import states
from underlay.compute.errors import InvalidInput, OperationFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.taskstates import IMAGE_PENDING_UPLOAD, IMAGE_UPLOADING
from underlay.testing.bootimage import boot, boot_line
from underlay.testing.fakedriver import FakeInstance

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")


@pytest.fixture
def instance(place: Place, driver: LibvirtDriver) -> Iterator[FakeInstance]:
    image = place.image()
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {}, power_on=False)
    yield instance
    driver.destroy(None, instance, [])


def nothing(*states: str, **more: str) -> None:
    """A service that hears it."""


def snapshots(place: Place) -> list[str]:
    try:
        return os.listdir(place.instances / "snapshots")
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("runs", [True, False], ids=["live", "off"])
def test_a_snapshot_boots_on_its_own(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, tmp_path: Path, *, runs: bool
) -> None:
    if runs:
        driver.power_on(None, instance, [])
        place.await_boot(instance)
    image_id, told = str(uuid4()), list[tuple[str, ...]]()
    driver.snapshot(None, instance, image_id, lambda state, **more: told.append((state, *more.values())))

    assert [(IMAGE_PENDING_UPLOAD,), (IMAGE_UPLOADING, IMAGE_PENDING_UPLOAD)] == told
    assert (states.RUNNING if runs else states.SHUTDOWN) == driver.get_info(instance).state
    assert [image_id] == snapshots(place)
    alone = tmp_path / "alone"
    alone.mkdir()
    moved = (place.instances / "snapshots" / image_id).rename(alone / "disk.qcow2")
    (place.instances / "_base").rename(tmp_path / "elsewhere")  # it needs no base image
    assert boot_line(MESSAGE) in boot(moved, format="qcow2", until=boot_line(MESSAGE), seconds=60)
    (tmp_path / "elsewhere").rename(place.instances / "_base")


def test_a_snapshot_that_fails_leaves_nothing(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    driver.power_on(None, instance, [])

    def deleted(state: str, **more: str) -> None:
        raise OperationFailed("the image was deleted meanwhile")

    with pytest.raises(OperationFailed, match="deleted meanwhile"):
        driver.snapshot(None, instance, "one", deleted)
    with pytest.raises(InvalidInput):
        driver.snapshot(None, instance, "../one", nothing)
    assert [] == snapshots(place)
    driver.snapshot(None, instance, "one", nothing)
    with pytest.raises(OperationFailed, match="is there"):
        driver.snapshot(None, instance, "one", nothing)
    assert ["one"] == snapshots(place)


def test_what_an_interrupted_snapshot_left_is_removed(place: Place, driver: LibvirtDriver, instance: FakeInstance) -> None:
    (place.instances / "snapshots").mkdir()
    left = place.instances / "snapshots" / f".{instance.uuid}.snapshot"
    left.write_bytes(b"half")
    for _ in range(2):
        driver.post_interrupted_snapshot_cleanup(None, instance)
    assert [] == snapshots(place)
    left.write_bytes(b"half")
    driver.snapshot(None, instance, "whole", nothing)
    assert ["whole"] == snapshots(place)
