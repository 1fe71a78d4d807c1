"""Snapshots of real guests, which boot on their own."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from libvirt_daemon import Daemon
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


def test_a_guest_whose_qemu_is_not_root_has_live_snapshots(daemon_of_another_user: Daemon, open_directory: Path) -> None:
    before = os.umask(0o077)
    place = Place(open_directory, daemon_of_another_user)
    for path in (place.instances, place.instances / "_base"):
        path.chmod(0o755)
    try:
        driver = place.driver()
        image = place.image()
        instance = place.instance(image)
        driver.spawn(None, instance, image, [], None, {})
        place.await_boot(instance)
        driver.snapshot(None, instance, "one", nothing)
        written = place.instances / "snapshots/one"
        assert (0, 0o640) == (written.stat().st_uid, written.stat().st_mode & 0o777)
        assert boot_line(MESSAGE) in boot(written, format="qcow2", until=boot_line(MESSAGE), seconds=60)
        driver.destroy(None, instance, [])
        driver.cleanup_host("node1")
    finally:
        os.umask(before)


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
    left = place.instances / "snapshots" / f".{instance.uuid}.0123abcd"
    for maker in ("", "node1"):
        left.mkdir(parents=True)
        (left / "maker").write_text(maker)
        (left / "half").write_bytes(b"half")
        for _ in range(2):
            driver.post_interrupted_snapshot_cleanup(None, instance)
        assert [] == snapshots(place)


def test_what_another_hosts_snapshot_or_one_that_goes_on_writes_stays(
    place: Place, driver: LibvirtDriver, instance: FakeInstance
) -> None:
    snapshots_path = place.instances / "snapshots"
    theirs = snapshots_path / f".{instance.uuid}.0123abcd"
    theirs.mkdir(parents=True)
    (theirs / "maker").write_text("node2")

    def clean(*states: str, **more: str) -> None:
        driver.post_interrupted_snapshot_cleanup(None, instance)

    driver.snapshot(None, instance, "whole", clean)
    assert sorted(["whole", theirs.name]) == sorted(snapshots(place))
