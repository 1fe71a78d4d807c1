"""What making and removing an instance leave: without room, when something cannot go, and when the disk is another's."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import pytest
from libvirt_stage import Place, command

from installed import install_backend
from underlay.compute.errors import ImageNotFound, OperationFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.domain import define as define_domain
from underlay.compute.libvirt.livemigration import returning
from underlay.compute.libvirt.livemigration.marks import Mark
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

OURS = "0123456789abcdef" * 2


def spawn(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage) -> None:
    driver.spawn(None, instance, image, [], None, {}, power_on=False)


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    command("mount", *options, os.fspath(path))
    try:
        yield
    finally:
        command("umount", os.fspath(path))


def test_without_room_for_its_claim_no_directory_is_left(place: Place) -> None:
    with mounted(place.instances, "-t", "tmpfs", "-o", "nr_inodes=200", "tmpfs"):
        (place.instances / "_base").mkdir()
        driver = place.driver()
        fillers = place.instances / "fillers"
        fillers.mkdir()
        with suppress(OSError):
            for number in range(200):
                (fillers / str(number)).touch()
        for number in range(2):  # room for the file of all claims and for the directory, and for nothing in it
            (fillers / str(number)).unlink()
        image = place.image()
        instance = place.instance(image)
        with pytest.raises(OperationFailed, match="making"):
            spawn(driver, instance, image)
        assert [] == place.traces(instance)
        driver.cleanup_host("node1")


def test_what_cannot_be_removed_is_said_and_goes_later(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image)
    inside = place.instances / instance.uuid / "inside"
    inside.mkdir()
    doomed = place.instances / f"{instance.uuid}_del"
    command("mount", "-t", "tmpfs", "tmpfs", os.fspath(inside))
    try:
        with pytest.raises(OperationFailed, match="cannot be removed whole"):
            driver.destroy(None, instance, [])
        assert not driver.delete_instance_files(instance)
    finally:
        command("umount", os.fspath(doomed / "inside"))
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


def test_a_console_log_that_cannot_be_read_is_an_error_of_the_driver(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image)
    assert b"" == driver.get_console_output(None, instance)
    (place.instances / instance.uuid / "console.log").mkdir()
    with pytest.raises(OperationFailed, match=r"console\.log"):
        driver.get_console_output(None, instance)
    driver.destroy(None, instance, [])


# ------------------------------------------------------------------------------------- disks in a storage that hosts share


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that hosts share, whose backend is called fake."""
    install_backend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def names() -> frozenset[str]:
    found: frozenset[str] = import_module("underlay_volumes").STORE.names()
    return found


@pytest.mark.usefixtures("shared")
def test_a_disk_that_another_host_has_made_is_not_taken_over_and_stays(place: Place) -> None:
    driver = place.driver(more='images_type = "fake"')
    image = place.image()
    instance = place.instance(image, flavor=FakeFlavor(memory_mb=32, root_gb=0))
    disk = driver.site.host.create_disk(instance.uuid, image.id, backend="fake")
    shutil.rmtree(place.instances / "_base/.underlay/volumes")  # the other host has the record, and this one has none

    with pytest.raises(OperationFailed, match="made by somebody else"):
        spawn(driver, instance, image)

    assert disk.path.name in names()
    assert ([], []) == (driver.site.host.disks(), place.traces(instance))
    driver.cleanup_host("node1")


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("maker", [OURS, "theirs", None])
def test_of_a_killed_maker_go_the_disks_that_it_has_made_and_no_others(place: Place, maker: str | None) -> None:
    host, image = place.host(), place.image()
    instance = place.instance(image)
    disk = host.create_disk(instance.uuid, image.id, backend="fake", maker=maker)
    directory = place.instances / instance.uuid
    directory.mkdir(exist_ok=True)
    (directory / "making").write_text(f"node1\n{OURS}")

    driver = place.driver()

    assert (maker != OURS) == (disk.path.name in names())
    assert ([], []) == (driver.site.host.disks(), place.traces(instance))
    driver.cleanup_host("node1")


@pytest.mark.usefixtures("shared")
def test_a_rebuild_from_an_image_that_is_not_there_keeps_a_disk_that_might_have_been_cloned(place: Place) -> None:
    driver, image = place.driver(more='images_type = "fake"'), place.image()
    instance = place.instance(image, flavor=FakeFlavor(memory_mb=32, root_gb=0))
    disk = driver.site.host.create_disk(instance.uuid, image.id, backend="fake")
    driver.site.directory(instance).make()
    define(driver, instance)

    missing = FakeImage(id=f"file://{place.root}/nothing.qcow2")
    with pytest.raises(ImageNotFound):
        driver.rebuild(None, instance, missing, [], None, {}, [], print, print, network_info=[])

    assert [disk] == driver.site.host.disks()
    driver.destroy(None, instance, [])
    assert ([], []) == (driver.site.host.disks(), place.traces(instance))
    driver.cleanup_host("node1")


def define(driver: LibvirtDriver, instance: FakeInstance) -> None:
    """An instance without a disk, as libvirt cannot have one of a fake storage."""
    xml = f"<domain type='qemu'><name>{instance.name}</name><uuid>{instance.uuid}</uuid><memory>32768</memory>"
    define_domain(driver.site.connection, f"{xml}<os><type>hvm</type></os></domain>")


@pytest.mark.parametrize("content", [b"", b"node1", b"node1\n0123", b"\xff\n\0\0", bytes(40)])
def test_a_claim_that_nobody_has_signed_keeps_no_service_from_starting(place: Place, content: bytes) -> None:
    instance = place.instance(place.image())
    directory = place.instances / instance.uuid
    directory.mkdir()
    (directory / "making").write_bytes(content)

    driver = place.driver()

    assert [] == place.traces(instance)
    driver.cleanup_host("node1")


def test_what_says_nothing_where_snapshots_are_made_keeps_no_service_from_starting(place: Place) -> None:
    work = place.instances / "snapshots" / f".{place.instance(place.image()).uuid}.00000000"
    work.mkdir(parents=True)
    (work / "maker").write_bytes(b"\xff")

    driver = place.driver()

    assert ["maker"] == os.listdir(work)
    driver.cleanup_host("node1")


def test_an_arrival_that_cannot_be_undone_for_what_an_earlier_one_left_is_told(driver: LibvirtDriver, place: Place) -> None:
    instance = place.instance(place.image())
    directory = driver.site.directory(instance)
    mark, held = Mark(host="node1", other="node2", shared=False), place.instances / f"{instance.uuid}.held"
    for path in (directory.path, held):
        path.mkdir()
    with pytest.raises(OperationFailed, match="File exists"):
        returning.undo_arrival(driver.site, directory, mark)
    assert directory.path.is_dir()
    for path in (directory.path, held):
        path.rmdir()
