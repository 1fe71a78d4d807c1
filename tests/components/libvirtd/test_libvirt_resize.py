"""Instances get another size on a real libvirt, and get their old one back with all that was in it."""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from libvirt_daemon import Daemon, quiet_library
from libvirt_stage import Place, command
from resized import AT, GIB, LARGE, MIB, NEW, OLD, SMALL, Resized, resized, sector

from installed import install_backend
from underlay import locks
from underlay.compute import states
from underlay.compute.errors import (
    ComputeError,
    DiskNotFound,
    InstanceFaultRollback,
    InstanceNotFound,
    InvalidDiskInfo,
    MigrationPreCheckError,
    OperationFailed,
    ResizeError,
    VirtualInterfacePlugException,
)
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.guestxml import parsed
from underlay.filesystems import free_bytes
from underlay.testing.disk_suite import guest_writes
from underlay.testing.fakedriver import FakeFlavor, fake_vif

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

NOWHERE = "203.0.113.254"  # RFC 5737: nobody's
SHUT_DOWN_BY_ITSELF, CUT = 1, 2  # virDomainShutoffReason


@contextmanager
def at_place(place: Place, **options: Any) -> Iterator[Resized]:
    driver = place.driver(**options)
    one = resized(place, driver)
    try:
        yield one
    finally:
        driver.destroy(None, one.instance, [])
        driver.delete_instance_files(one.instance)
        driver.cleanup_host("node1")
        assert [] == place.traces(one.instance)


def memory_of(place: Place, one: Resized) -> int:
    connection = quiet_library().open(place.daemon.uri)
    try:
        return int(parsed(connection.lookupByUUIDString(one.instance.uuid).XMLDesc(0)).findtext("memory") or 0) >> 10
    finally:
        connection.close()


def why_off(place: Place, one: Resized) -> int:
    connection = quiet_library().open(place.daemon.uri)
    try:
        return int(connection.lookupByUUIDString(one.instance.uuid).state()[1])
    finally:
        connection.close()


@pytest.mark.parametrize("backend", ["qcow2", "flat"])
def test_every_disk_grows_and_keeps_what_is_in_it(place: Place, backend: str) -> None:
    with at_place(place, more=f'images_type = "{backend}"') as one:
        one.spawn()
        one.write(OLD)
        drive = (one.directory / "disk.config").read_bytes()
        told = one.begin()
        assert ["disk", "disk.eph0", "disk.swap"] == [Path(disk["path"]).name for disk in json.loads(told)]
        assert {"disk", "disk.eph0", "disk.config", "disk.info"} == set(os.listdir(one.directory))

        one.take()
        one.finish(told)
        assert states.RUNNING == one.driver.get_info(one.instance).state
        place.await_boot(one.instance)
        one.driver.power_off(one.instance)
        assert {"disk": 2 * GIB, "disk.eph0": 2 * GIB, "disk.swap": 48 * MIB} == one.sizes()
        assert ([OLD, OLD], 48) == (one.read(), memory_of(place, one))
        assert drive == (one.directory / "disk.config").read_bytes()
        one.write(NEW)
        assert OLD == sector(one.kept / "disk", "qcow2" if backend == "qcow2" else "raw", AT)

        one.confirm()
        assert not one.kept.exists()
        assert [NEW, NEW] == one.read()
        one.confirm()


def test_an_ephemeral_file_system_grows_with_a_raw_disk(place: Place) -> None:
    with at_place(place, more='images_type = "flat"') as one:
        one.spawn()
        told = one.begin()
        one.take()
        one.finish(told, power_on=False)
        command("e2fsck", "-fn", os.fspath(one.directory / "disk.eph0"))
        with (one.directory / "disk.eph0").open("rb") as file:
            file.seek(1024 + 4)  # s_blocks_count_lo, of blocks of 4 KiB
            assert 2 * GIB == int.from_bytes(file.read(4), "little") * 4096
        assert states.SHUTDOWN == one.driver.get_info(one.instance).state


@pytest.mark.parametrize("backend", ["qcow2", "flat"])
def test_a_revert_after_the_new_guest_ran_drops_the_new_disks(place: Place, backend: str) -> None:
    with at_place(place, more=f'images_type = "{backend}"') as one:
        one.spawn()
        one.write(OLD)
        told = one.begin()
        one.take()
        one.finish(told, power_on=False)
        one.write(NEW)
        one.driver.power_on(None, one.instance, [])
        one.revert()
        assert {"disk": GIB, "disk.eph0": GIB, "disk.swap": 32 * MIB} == one.sizes()
        assert ([OLD, OLD], 32, False) == (one.read(), memory_of(place, one), one.kept.exists())
        assert states.SHUTDOWN == one.driver.get_info(one.instance).state
        one.revert(power_on=True)
        one.revert(power_on=True)
        assert states.RUNNING == one.driver.get_info(one.instance).state
        place.await_boot(one.instance)


def test_a_resize_that_cannot_be_finished_is_reverted_with_all_data(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.write(OLD)
        told = one.begin()
        one.take()
        with pytest.raises(VirtualInterfacePlugException):
            one.finish(told, network_info=[fake_vif(bridge="ul-nowhere")])
        with pytest.raises(InvalidDiskInfo):
            one.finish('{"path": 1}')
        with pytest.raises(DiskNotFound, match=r"disk\.eph7"):
            one.finish(json.dumps([*json.loads(told), {"path": f"{one.directory}/disk.eph7"}]))
        assert one.kept.is_dir()
        one.revert()
        assert ([OLD, OLD], False) == (one.read(), one.kept.exists())


def test_a_second_resize_grows_what_the_first_has_grown(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.write(OLD)
        larger = replace(LARGE, root_gb=3, ephemeral_gb=3)
        for flavor in (LARGE, larger):
            told = one.begin(flavor)
            one.take(flavor)
            one.finish(told, power_on=False)
            one.confirm()
        assert ({"disk": 3 * GIB, "disk.eph0": 3 * GIB, "disk.swap": 48 * MIB}, [OLD, OLD]) == (one.sizes(), one.read())
        with pytest.raises(InstanceFaultRollback, match="ephemeral disks of 3 GiB would be made smaller"):
            one.begin(replace(larger, ephemeral_gb=2))


def test_an_instance_whose_disk_was_grown_otherwise_moves_as_it_is(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.write(OLD)
        one.driver.site.host.resize_disk(one.instance.uuid, 3 * GIB, assume_closed=True)
        one.finish(one.begin(SMALL), grows=False, power_on=False)
        assert (3 * GIB, [OLD, OLD]) == (one.sizes()["disk"], one.read())


def test_what_was_not_begun_is_not_finished(place: Place) -> None:
    with at_place(place) as one:
        one.spawn(power_on=True)
        before = one.driver.get_info(one.instance)
        with pytest.raises(OperationFailed, match="no resize of the instance"):
            one.finish("[]")
        assert before == one.driver.get_info(one.instance)
        told = one.begin(SMALL)
        (one.kept / "resizing").write_text("node1")  # as who is killed leaves it
        with pytest.raises(OperationFailed, match="was interrupted"):
            one.finish(told, grows=False)
        one.revert()


def test_a_disk_that_somebody_has_open_is_not_copied(place: Place) -> None:
    with at_place(place) as one:
        one.spawn(power_on=True)
        with (one.directory / "disk.eph0").open("r+b"):
            with pytest.raises(InstanceFaultRollback, match="is open in QEMU or another program"):
                one.begin()
        assert (states.RUNNING, False) == (one.driver.get_info(one.instance).state, one.kept.exists())


def test_a_resize_is_finished_as_often_as_one_likes(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.write(OLD)
        told = one.begin()
        one.take()
        for _ in range(2):
            one.finish(told)
        one.driver.power_off(one.instance)
        assert ([OLD, OLD], 2 * GIB) == (one.read(), one.sizes()["disk"])


def test_a_migration_of_the_same_flavor_grows_nothing(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.write(OLD)
        one.finish(one.begin(SMALL), grows=False, power_on=False)
        one.confirm()
        assert ({"disk": GIB, "disk.eph0": GIB, "disk.swap": 32 * MIB}, [OLD, OLD]) == (one.sizes(), one.read())


REFUSED: list[tuple[str, FakeFlavor, str, type[ComputeError], str]] = [
    ("root", replace(LARGE, root_gb=0), "", ResizeError, "its root disk has a size"),
    ("ephemeral", replace(LARGE, ephemeral_gb=0), "", ResizeError, "ephemeral disks of 1 GiB would be made smaller"),
    ("host", LARGE, NOWHERE, MigrationPreCheckError, f"no host at {NOWHERE}"),
]


def test_what_cannot_be_done_is_refused_and_the_guest_runs_on(place: Place) -> None:
    with at_place(place) as one:
        one.instance.flavor = replace(SMALL, root_gb=2)
        one.spawn(power_on=True)
        before = one.driver.get_info(one.instance).internal_id
        smaller = ("smaller", replace(LARGE, root_gb=1), "", ResizeError, f"root disk of {2 * GIB} bytes")
        for name, flavor, dest, error, said in (*REFUSED, smaller):
            with pytest.raises(InstanceFaultRollback, match=said) as caught:
                one.begin(flavor, dest=dest or one.driver.get_host_ip_addr())
            assert error is type(caught.value.inner_exception), name
        assert (states.RUNNING, before) == (
            one.driver.get_info(one.instance).state,
            one.driver.get_info(one.instance).internal_id,
        )
        assert not one.kept.exists()


def earlier_resize(one: Resized) -> None:
    one.kept.mkdir()


def paused(one: Resized) -> None:
    one.driver.pause(one.instance)


def suspended(one: Resized) -> None:
    one.driver.suspend(None, one.instance)


def rescued(one: Resized) -> None:
    one.driver.rescue(None, one.instance, [], one.image, None, one.info())


def of_nova(one: Resized) -> None:
    (one.directory / "disk.local").write_bytes(OLD)


def after_a_gap(one: Resized) -> None:
    (one.directory / "disk.eph0").rename(one.directory / "disk.eph1")


def elsewhere(one: Resized) -> None:
    one.driver.site.host.remove_disk(one.instance.uuid, name="disk.swap", assume_closed=True)
    one.driver.site.host.create_disk(one.instance.uuid, one.image.id, backend="fake", name="disk.swap")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (earlier_resize, "neither confirmed nor reverted"),
        (paused, "paused or suspended"),
        (suspended, "paused or suspended"),
        (rescued, "being rescued"),
        (of_nova, r"disk\.local may be disks"),
        (after_a_gap, r"disk\.eph1 may be disks"),
        (elsewhere, "kept by the fake backend"),
    ],
)
def test_an_instance_that_cannot_be_resized_stays_as_it_is(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Resized], None], said: str
) -> None:
    if change is elsewhere:
        install_backend(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
    with at_place(place) as one:
        one.spawn(power_on=change not in (elsewhere, earlier_resize))
        change(one)
        before = one.driver.get_info(one.instance), sorted(os.listdir(one.directory))
        with pytest.raises(InstanceFaultRollback, match=said):
            one.begin()
        assert before == (one.driver.get_info(one.instance), sorted(os.listdir(one.directory)))


def test_a_guest_whose_disks_cannot_be_copied_runs_again(place: Place) -> None:
    with at_place(place, more='images_type = "flat"') as one:
        one.spawn(power_on=True)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (GIB // 2, before[1]))
        try:
            with pytest.raises(InstanceFaultRollback) as caught:
                one.begin()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert isinstance(caught.value.inner_exception, OperationFailed)
        assert states.RUNNING == one.driver.get_info(one.instance).state
        assert not one.kept.exists()
        assert "resizing" not in os.listdir(one.directory)
        one.driver.power_off(one.instance)
        one.finish(one.begin(SMALL), grows=False, power_on=False)


@pytest.fixture
def small_place() -> Iterator[Place]:
    """On a small file system, with a libvirtd that sees it: one has its own mounts since it began."""
    root = Path(tempfile.mkdtemp(prefix="ul-"))
    command("mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", os.fspath(root))
    daemon = Daemon(root / "d", host_uuid=str(uuid4()))
    daemon.directory.mkdir()
    daemon.prepare()
    try:
        daemon.start()
        yield Place(root, daemon)
        daemon.destroy_guests()
    finally:
        daemon.stop()
        command("umount", os.fspath(root))
        root.rmdir()


@contextmanager
def leaving_free(root: Path, size: int) -> Iterator[None]:
    """Somebody else takes all of a file system but so many bytes."""
    taken = root / "taken"
    with taken.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(root) - size)
    yield
    taken.unlink()


def test_a_resize_that_has_no_room_is_refused_while_the_guest_runs_on(small_place: Place) -> None:
    root = small_place.root
    with at_place(small_place) as one:
        one.spawn()
        guest_writes(one.disk("disk"), AT, b"x" * 48 * MIB)
        one.driver.power_on(None, one.instance, [])
        before = one.driver.get_info(one.instance)
        unneeded = root / "unneeded.raw"
        unneeded.write_bytes(os.urandom(24 * MIB))
        image = one.driver.site.host.ensure(unneeded.as_uri())
        with leaving_free(root, 16 * MIB), pytest.raises(InstanceFaultRollback, match="has no room") as caught:
            one.begin(SMALL)
        assert isinstance(caught.value.inner_exception, OperationFailed)
        assert (before, False) == (one.driver.get_info(one.instance), one.kept.exists())
        assert image.path.exists()

        with leaving_free(root, 40 * MIB):  # with what the image takes, that is enough
            one.finish(one.begin(SMALL), grows=False, power_on=False)
        assert not image.path.exists()
        one.confirm()


def test_nobody_resizes_or_reverts_what_somebody_else_resizes(place: Place) -> None:
    with at_place(place) as one:
        one.spawn(power_on=True)
        before = one.driver.get_info(one.instance)
        with locks.exclusive(one.directory / "resizing", timeout=0):
            with pytest.raises(InstanceFaultRollback, match="is being resized by somebody else"):
                one.begin()
            for end in (one.revert, one.confirm, lambda: one.finish("[]")):
                with pytest.raises(OperationFailed, match="is being resized"):
                    end()
        assert (before, False) == (one.driver.get_info(one.instance), one.kept.exists())


def test_disks_keep_their_formats_where_files_have_no_attributes(place: Place) -> None:
    root = place.root / "ramfs"
    root.mkdir()
    command("mount", "-t", "ramfs", "ramfs", os.fspath(root))
    try:
        with at_place(Place(root, place.daemon)) as one:
            with pytest.raises(OSError, match="not supported"):
                os.setxattr(root, "user.underlay", b"")
            one.spawn()
            one.write(OLD)
            one.finish(one.begin(SMALL), grows=False, power_on=False)
            one.write(NEW)
            one.revert()
            one.finish(one.begin(SMALL), grows=False, power_on=False)
            one.confirm()
            assert [OLD, OLD] == one.read()
    finally:
        command("umount", os.fspath(root))


def test_a_guest_that_was_started_on_what_was_copied_keeps_it_until_a_reversal(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.write(OLD)
        one.finish(one.begin(SMALL), grows=False)
        (one.kept / "resizing").write_text("node1")
        place.driver().cleanup_host("node1")
        assert one.kept.is_dir()
        assert states.RUNNING == one.driver.get_info(one.instance).state
        one.revert()
        assert ([OLD, OLD], False) == (one.read(), one.kept.exists())


@pytest.mark.parametrize(("times", "why"), [({"timeout": 60, "retry_interval": 5}, SHUT_DOWN_BY_ITSELF), ({}, CUT)])
def test_a_guest_has_its_time_to_shut_down(place: Place, times: dict[str, Any], why: int) -> None:
    with at_place(place) as one:
        one.spawn(power_on=True)
        place.await_boot(one.instance)
        one.begin(**times)
        assert why == why_off(place, one)


def test_an_instance_that_libvirt_does_not_know_is_said_to_be_so(driver: LibvirtDriver, place: Place) -> None:
    one = resized(place, driver)
    with pytest.raises(InstanceNotFound):
        one.begin()
    with pytest.raises(InstanceNotFound):
        one.revert()
    one.confirm()


def test_a_prune_keeps_what_only_the_kept_directory_stands_on(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.write(OLD)
        bases = images(place)
        assert {"swap_32"} < bases
        one.begin()
        shutil.rmtree(one.directory)  # what is kept is all that still stands on them
        one.driver.manage_image_cache(None, [])
        assert bases == images(place)
        one.instance.vm_state = "resized"
        one.driver.manage_image_cache(None, [one.instance])
        assert bases == images(place)
        one.revert(power_on=True)
        place.await_boot(one.instance)
        one.driver.power_off(one.instance)
        assert [OLD, OLD] == one.read()
        one.driver.destroy(None, one.instance, [])
        one.driver.manage_image_cache(None, [])
        assert set() == images(place)


def images(place: Place) -> set[str]:
    return {path.name for path in (place.instances / "_base").iterdir() if path.is_file()}


def test_what_is_kept_is_not_dropped_when_it_is_all_there_is(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.begin()
        shutil.rmtree(one.directory)
        with pytest.raises(OperationFailed, match="all that is whole"):
            one.confirm()
        assert (one.kept / "disk").exists()


def test_a_destroy_leaves_what_is_kept_until_the_instance_is_deleted(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        told = one.begin()
        one.take()
        one.finish(told, power_on=False)
        one.driver.destroy(None, one.instance, [])
        assert (False, True) == (one.directory.exists(), one.kept.exists())
        one.instance.task_state = "deleting"
        one.driver.destroy(None, one.instance, [])
        assert [] == place.traces(one.instance)


def test_deleted_files_are_those_that_are_kept_as_well(place: Place) -> None:
    with at_place(place) as one:
        one.spawn()
        one.begin()
        assert one.driver.delete_instance_files(one.instance)
        assert (False, False) == (one.directory.exists(), one.kept.exists())


def test_a_kernel_and_a_ramdisk_come_along(place: Place) -> None:
    for name in ("kernel", "ramdisk"):
        (place.root / name).write_bytes(name.encode() * 1000)
    with at_place(place) as one:
        one.instance.kernel_id, one.instance.ramdisk_id = f"file://{place.root}/kernel", f"file://{place.root}/ramdisk"
        one.spawn()
        told = one.begin()
        (place.root / "kernel").unlink()
        one.take()
        one.finish(told, power_on=False)
        assert [b"kernel" * 1000, b"ramdisk" * 1000] == [(one.directory / n).read_bytes() for n in ("kernel", "ramdisk")]
