"""What a resize makes of disks, and what becomes of directories that it renames, without any libvirt."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from machine import Machine
from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt import claiming, kept
from underlay.compute.libvirt.directory import InstanceDirectory, directory_of
from underlay.compute.libvirt.diskplan import GIB, disks_of
from underlay.compute.libvirt.resizeplan import refused, resized
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance

UUID = "6ddd9f0a-f4b3-4b33-a9d9-1cbd84dc1b14"
# Removes both directories; when the new one is gone somebody puts back the old one, as a resize does that fails.
REMOVER = """
import os, sys
from pathlib import Path
from underlay.compute.libvirt.directory import directory_of

def put_back(event, arguments):
    if event == "os.rename" and Path(arguments[1]) == directory.doomed and not directory.path.exists():
        os.rename(directory.kept, directory.path)

directory = directory_of(Path(sys.argv[1]), sys.argv[2])
sys.addaudithook(put_back)
assert directory.remove_both()
"""
SMALL, LARGE = FakeFlavor(root_gb=10, ephemeral_gb=2), FakeFlavor(root_gb=20, ephemeral_gb=5)


def info(*sizes: int) -> dict[str, Any]:
    ephemerals = [{"device_name": None, "size": size, "disk_bus": None, "guest_format": None} for size in sizes]
    return {"ephemerals": ephemerals, "swap": {"device_name": "/dev/vdz", "swap_size": 512, "disk_bus": None}}


@pytest.mark.parametrize(
    ("old", "new", "sizes", "root", "said"),
    [
        (SMALL, LARGE, [2], 10 * GIB, None),
        (SMALL, SMALL, [2], 10 * GIB, None),
        (LARGE, SMALL, [2], 20 * GIB, "the root disk of 21474836480 bytes would be made smaller"),
        (SMALL, FakeFlavor(root_gb=10, ephemeral_gb=2), [2], 12 * GIB, None),
        (SMALL, FakeFlavor(root_gb=11, ephemeral_gb=2), [2], 12 * GIB, "would be made smaller"),
        (SMALL, FakeFlavor(root_gb=10, ephemeral_gb=5), [2], 12 * GIB, None),
        (SMALL, FakeFlavor(root_gb=0, ephemeral_gb=2), [2], 10 * GIB, "its root disk has a size"),
        (FakeFlavor(root_gb=0), FakeFlavor(root_gb=0), [], 3 * GIB, None),
        (FakeFlavor(root_gb=0), FakeFlavor(root_gb=2), [], 3 * GIB, "would be made smaller"),
        (LARGE, FakeFlavor(root_gb=1, ephemeral_gb=5), [], None, None),
        (SMALL, FakeFlavor(root_gb=10, ephemeral_gb=1), [1, 1], 10 * GIB, "the ephemeral disks of 2 GiB"),
        (SMALL, FakeFlavor(root_gb=10, ephemeral_gb=1), [], 10 * GIB, "the ephemeral disks of 2 GiB"),
        (LARGE, FakeFlavor(root_gb=20, ephemeral_gb=2), [1, 1], 20 * GIB, None),
    ],
)
def test_nothing_is_made_smaller(
    old: FakeFlavor, new: FakeFlavor, sizes: list[int], root: int | None, said: str | None
) -> None:
    found = refused(old, new, info(*sizes), root=root)
    assert said in found if said is not None and found is not None else found is said


def test_an_ephemeral_disk_that_an_earlier_resize_has_grown_is_not_made_smaller() -> None:
    """The block devices still tell the size that it had before that."""
    grown = FakeFlavor(root_gb=10, ephemeral_gb=3)
    found = refused(grown, FakeFlavor(root_gb=10, ephemeral_gb=2), info(2), root=10 * GIB, ephemeral=3 * GIB)
    assert "the ephemeral disks of 3 GiB would be made smaller, 2 GiB" == found


@pytest.mark.parametrize(
    ("old", "sizes", "there", "expected"),
    [
        (SMALL, [2], {}, [5]),
        (SMALL, [2], {"disk.eph0": 2 * GIB}, [5]),
        (SMALL, [1], {"disk.eph0": 2 * GIB}, [5]),  # as after an earlier resize
        (SMALL, [1], {"disk.eph0": GIB}, [1]),
        (SMALL, [1, 1], {}, [1, 1]),
        (None, [2], {}, [2]),
        (LARGE, [5], {}, [5]),
        (SMALL, [], {}, []),
    ],
)
def test_the_one_ephemeral_disk_of_a_flavor_grows_with_it(
    old: FakeFlavor | None, sizes: list[int], there: dict[str, int], expected: list[int]
) -> None:
    disks = disks_of(FakeInstance(flavor=LARGE), FakeImage(), info(*sizes))
    found = resized(disks, old, LARGE, sizes=there)
    assert [size * GIB for size in expected] == [disk.size for disk in found if disk.role == "ephemeral"]
    assert [disk for disk in disks if disk.role != "ephemeral"] == [disk for disk in found if disk.role != "ephemeral"]


# ------------------------------------------------------------------------------------------------------------- directories


@pytest.fixture
def directory(tmp_path: Path) -> InstanceDirectory:
    found = directory_of(tmp_path, UUID)
    found.make()
    (found.path / "disk").write_text("old")
    return found


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns so often that they meet between any two steps."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_what_is_kept_is_put_back_in_place_of_what_was_made(directory: InstanceDirectory) -> None:
    kept.keep(directory)
    (directory.path / "disk").write_text("new")
    directory.doomed.mkdir()
    (directory.doomed / "left").touch()
    for _ in range(2):
        kept.put_back(directory)
        assert ([UUID], "old") == (os.listdir(directory.instances), (directory.path / "disk").read_text())


def test_nothing_is_kept_twice(directory: InstanceDirectory) -> None:
    kept.keep(directory)
    with pytest.raises(OperationFailed):
        kept.keep(directory)
    assert "old" == (directory.kept / "disk").read_text()


def test_what_is_kept_goes_once_there_is_something_in_its_place(directory: InstanceDirectory) -> None:
    kept.keep(directory)
    directory.path.rmdir()
    with pytest.raises(OperationFailed, match="all that is whole"):
        drop(directory)
    directory.make()
    (directory.path / "disk").write_text("new")
    for _ in range(2):
        drop(directory)
        assert [UUID] == os.listdir(directory.instances)


@pytest.mark.parametrize("name", ["disk", "disk.eph0"])
def test_what_is_kept_stays_while_it_alone_has_one_of_the_disks(directory: InstanceDirectory, name: str) -> None:
    """As after a kill in the middle of removing the new disks, or of making them anew."""
    for disk in ("disk", "disk.eph0", "disk.swap"):
        (directory.path / disk).write_text("old")
    kept.keep(directory)
    for disk in {"disk", "disk.eph0"} - {name}:
        (directory.path / disk).write_text("new")
    with pytest.raises(OperationFailed, match=f"has the disks {name} of") as caught:
        drop(directory)
    assert ("revert the resize", "old") == (caught.value.hint, (directory.kept / name).read_text())
    (directory.path / name).write_text("new")
    drop(directory)
    assert not directory.kept.exists()


def drop(directory: InstanceDirectory) -> None:
    with kept.dropped(directory):
        pass


def give_back(directory: InstanceDirectory) -> None:
    with kept.held(directory) as is_kept:
        if is_kept:
            kept.put_back(directory)


def test_nobody_else_ends_a_resize_while_somebody_does(directory: InstanceDirectory) -> None:
    kept.keep(directory)
    (directory.path / "disk").write_text("new")
    with kept.held(directory) as is_kept:
        assert is_kept
        for end in (give_back, drop):
            with pytest.raises(OperationFailed, match="is being resized by somebody else"):
                end(directory)
        kept.put_back(directory)
    with kept.held(directory) as is_kept:
        assert not is_kept
    assert ([UUID], ["disk"]) == (os.listdir(directory.instances), os.listdir(directory.path))
    assert "old" == (directory.path / "disk").read_text()


@pytest.mark.parametrize("other", [give_back, drop])
def test_ends_of_a_resize_that_meet_leave_one_of_both_directories(
    directory: InstanceDirectory, quick_switches: None, other: Callable[[InstanceDirectory], None]
) -> None:
    def end(how: Callable[[InstanceDirectory], None]) -> None:
        meeting.wait()
        with suppress(OperationFailed):
            how(directory)

    meeting = threading.Barrier(2)
    for _ in range(150):
        kept.keep(directory)
        (directory.path / "disk").write_text("new")
        ends = [threading.Thread(target=end, args=(how,)) for how in (give_back, other)]
        for one in ends:
            one.start()
        for one in ends:
            one.join()
        give_back(directory)
        assert (directory.path / "disk").exists()


def test_nothing_is_finished_where_the_old_directory_still_has_its_name(directory: InstanceDirectory) -> None:
    """As another host of a network file system may see it for a while."""
    with pytest.raises(OperationFailed, match="waits to be finished"):
        kept.refuse_unfilled(directory)
    directory.kept.symlink_to(directory.path)
    with pytest.raises(OperationFailed, match="where its new directory is"):
        kept.refuse_unfilled(directory)
    directory.kept.unlink()
    kept.keep(directory)
    kept.refuse_unfilled(directory)


def test_nothing_is_left_of_what_is_deleted_while_its_resize_fails(directory: InstanceDirectory) -> None:
    kept.keep(directory)
    (directory.kept / "disk.eph0").touch()
    ended = subprocess.run(
        [sys.executable, "-c", REMOVER, directory.instances, UUID], capture_output=True, text=True, check=False
    )
    assert (0, "") == (ended.returncode, ended.stderr)
    assert [] == os.listdir(directory.instances)


def test_no_resize_ends_while_the_instance_is_rebuilt_or_removed(directory: InstanceDirectory) -> None:
    kept.keep(directory)
    with claiming.alone(directory), pytest.raises(OperationFailed, match="is being made or removed"):
        kept.refuse_changing(directory)
    kept.refuse_changing(directory)


def test_a_mark_is_there_while_a_directory_is_changed(directory: InstanceDirectory) -> None:
    with kept.marked(directory, host="node1"):
        assert "node1" == (directory.path / "resizing").read_text()
        with pytest.raises(OperationFailed, match="by somebody else"), kept.marked(directory, host="node1"):
            pass
        with pytest.raises(OperationFailed, match="is being resized"):
            kept.refuse_changing(directory)
        kept.keep(directory)
        assert kept.is_marked(directory)
        with pytest.raises(OperationFailed, match="is being resized"):
            drop(directory)
    assert not kept.is_marked(directory)
    kept.refuse_changing(directory)


def test_a_mark_stays_with_what_could_not_be_put_back(directory: InstanceDirectory) -> None:
    with pytest.raises(KeyboardInterrupt), kept.marked(directory, host="node1"):
        _interrupted_after(kept.keep, directory)
    assert kept.is_marked(directory)
    with pytest.raises(OperationFailed, match="all that is whole"):
        drop(directory)
    kept.put_back(directory)
    assert ["disk"] == os.listdir(directory.path)


def test_a_prune_beside_renames_never_takes_the_base_image(tmp_path: Path) -> None:
    """What is kept, made, and put back again and again stands on its base whatever name it has at the moment."""
    ages = 'remove_unused_original_minimum_age_seconds = 0\nkeep_recent = "0s"'
    machine = Machine.make(tmp_path, options=ages)
    host = machine.host()
    base = host.create_disk(UUID, machine.qcow2_image(), backend="qcow2").base_path
    directory, until, turns = directory_of(machine.instances, UUID), time.monotonic() + 1.5, 0
    assert base is not None

    def rename() -> None:
        while time.monotonic() < (until if turns > 1 else until + 60):
            with kept.marked(directory, host="node1"):
                kept.keep(directory)
            kept.put_back(directory)

    renaming = threading.Thread(target=rename)
    renaming.start()
    while renaming.is_alive():
        host.apply(host.plan_prune())
        turns += 1
        assert base.exists()
    assert turns > 1
    assert ["disk", "disk.info"] == sorted(os.listdir(directory.path))
    host.remove_disk(UUID)
    host.apply(host.plan_prune())
    assert not base.exists()


def _interrupted_after(step: Callable[[InstanceDirectory], None], directory: InstanceDirectory) -> None:
    step(directory)
    raise KeyboardInterrupt
