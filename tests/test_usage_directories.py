"""Listings: what moves while it is looked at is seen or told as unknown, and a second look sees all that has changed."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from children import start, tell
from probing import overlay
from underlay.usage.directories import Sight, look, look_again

NONE: frozenset[tuple[int, int]] = frozenset()
BASE = "/somewhere/base"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "instances"
    path.mkdir()
    return path


def disks(sight: Sight) -> list[str]:
    return [file.path for file in sight.files()]


def seen(root: Path) -> Sight:
    return look([os.fspath(root)], skipped=NONE)


def again(root: Path, before: Sight) -> Sight:
    return look_again([os.fspath(root)], before.directories, skipped=NONE)


@contextmanager
def busy(work: Callable[[], None], *, pause: float) -> Iterator[None]:
    """Something that goes on in a thread, over and over."""
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            work()
            time.sleep(pause)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# ------------------------------------------------------------------------------------------------------------ a first look


def test_a_look_names_the_files_that_matter_and_the_directories_that_it_read(root: Path) -> None:
    disk = overlay(root / "web-1/disk", BASE)
    (root / "web-1/console.log").write_bytes(b"QFI\xfb")
    (root / "web-1/raw").write_bytes(bytes(4096))
    (root / "empty").mkdir()
    sight = seen(root)
    assert [str(root / "web-1/console.log"), str(disk)] == disks(sight)
    assert {str(root), str(root / "web-1"), str(root / "empty")} == set(sight.directories)
    assert {} == sight.failed


def test_a_root_within_another_is_read_once(root: Path) -> None:
    disk = overlay(root / "web-1/disk", BASE)
    roots = [os.fspath(root), os.fspath(root / "web-1"), os.fspath(root)]
    assert [str(disk)] == disks(look(roots, skipped=NONE))


def test_what_is_skipped_is_skipped_by_any_name(root: Path) -> None:
    overlay(root / "_base/disk", BASE)
    (root / "link").symlink_to("_base")
    status = (root / "_base").stat()
    sight = look([os.fspath(root)], skipped=frozenset({(status.st_dev, status.st_ino)}))
    assert ([], {}) == (disks(sight), sight.failed)


@pytest.mark.parametrize("stamp", [0, -(10**9), 2**33, 2**40])
def test_directories_with_any_mtime_are_read_at_once(root: Path, stamp: int) -> None:
    for number in range(100):
        overlay(root / f"web-{number}/disk", BASE)
        os.utime(root / f"web-{number}", (stamp, stamp))
    os.utime(root, (stamp, stamp))
    started = time.monotonic()
    sight = seen(root)
    assert (100, {}) == (len(disks(sight)), sight.failed)
    assert time.monotonic() - started < 20


def test_many_directories_and_files_are_read_in_bounded_time(root: Path) -> None:
    for number in range(3000):
        (root / f"instance-{number}").mkdir()
    (root / "full").mkdir()
    for number in range(3000):
        (root / "full" / f"file-{number}").touch()
    disk = overlay(root / "instance-2999/disk", BASE)
    started = time.monotonic()
    sight = seen(root)
    assert ([str(disk)], {}, 3002) == (disks(sight), sight.failed, len(sight.directories))
    assert time.monotonic() - started < 60


def test_a_file_that_is_gone_before_it_is_read_is_no_failure(root: Path) -> None:
    directory = root / "web-1"
    directory.mkdir()

    def come_and_go() -> None:
        path = overlay(directory / "passing", BASE)
        path.unlink()

    with busy(come_and_go, pause=0.1):
        for _ in range(5):
            sight = seen(root)
            assert [] == [why for path, why in sight.failed.items() if path != str(directory)]


# ---------------------------------------------------------------------------------------------------- what moves meanwhile


@pytest.mark.parametrize("pause", [0.0, 0.004, 0.02, 0.06])
def test_a_directory_that_is_renamed_while_it_is_looked_for_is_found_or_told(root: Path, pause: float) -> None:
    """As a resize renames it: whatever the pace, its disk is seen, or the look says that it is not complete."""
    for number in range(400):
        (root / f"instance-{number:03}").mkdir()
    overlay(root / "moving-0/disk", BASE)
    turn = 0

    def rename() -> None:
        nonlocal turn
        (root / f"moving-{turn}").rename(root / f"moving-{turn + 1}")
        turn += 1

    with busy(rename, pause=pause):
        for _ in range(12 if pause else 2):
            sight = seen(root)
            assert disks(sight) or sight.failed


def test_a_directory_that_changes_places_with_a_new_one_is_found_or_told(root: Path) -> None:
    """As a resize to the same host does: the old directory gets another name, and a new one has its."""
    for number in range(300):
        (root / f"instance-{number:03}").mkdir()
    overlay(root / "web-1/disk", BASE)
    there, then = "web-1", "web-1_resize"

    def resize() -> None:
        nonlocal there, then
        (root / there).rename(root / then)
        (root / there).mkdir()
        time.sleep(0.03)
        (root / there).rmdir()
        there, then = then, there

    with busy(resize, pause=0.05):
        for _ in range(15):
            sight = seen(root)
            assert disks(sight) or sight.failed


def test_a_disk_that_is_renamed_while_it_is_looked_for_is_found_or_told(root: Path) -> None:
    disk = overlay(root / "web-1/disk", BASE)

    def rename() -> None:
        os.rename(disk, f"{disk}.swapped")
        os.rename(f"{disk}.swapped", disk)

    with busy(rename, pause=0.001):
        for _ in range(4):
            sight = seen(root)
            assert disks(sight) or sight.failed


def look_at_what_never_holds_still(root: str) -> None:
    """In a child, whose every reading of a directory is disturbed: another process would have to be as quick as we are."""
    path = os.path.join(root, "web-1", "restless")

    def disturb(event: str, _arguments: object) -> None:
        if event == "os.scandir":
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            os.unlink(path)

    sys.addaudithook(disturb)
    started = time.monotonic()
    sight = seen(Path(root))
    tell(f"{sorted(sight.failed)} {time.monotonic() - started < 60}")


def test_a_directory_that_never_holds_still_is_told_in_bounded_time(root: Path) -> None:
    directory = root / "web-1"
    directory.mkdir()
    with start(look_at_what_never_holds_still, root) as child:
        assert f"{[str(directory)]} True" == child.hear()


def test_directories_that_vanish_are_no_failure(root: Path) -> None:
    for number in range(500):
        (root / f"instance-{number:03}").mkdir()

    def remove_all() -> None:
        for path in sorted(root.iterdir(), reverse=True):
            shutil.rmtree(path)

    thread = threading.Thread(target=remove_all)
    thread.start()
    sight = seen(root)
    thread.join()
    assert [] == [path for path in sight.failed if path != str(root)]
    assert {str(root)} == set(again(root, seen(root)).directories)


# ----------------------------------------------------------------------------------------------------------- a second look


def test_a_second_look_at_what_is_unchanged_reads_nothing(root: Path) -> None:
    overlay(root / "web-1/disk", BASE)
    before = seen(root)
    after = again(root, before)
    assert ([], before.directories) == (disks(after), after.directories)


def test_a_second_look_sees_every_kind_of_change(root: Path) -> None:
    for name in ("unchanged", "replaced", "emptied", "renamed", "filled", "deep/deeper"):
        overlay(root / name / "disk", BASE)
    before = seen(root)
    overlay(root / "filled/disk.local", BASE)
    overlay(root / "new/disk", BASE)
    overlay(root / "deep/deeper/deepest/disk", BASE)
    (root / "renamed").rename(root / "by another name")
    shutil.rmtree(root / "emptied")
    (root / "replaced").rename(root / "aside")
    overlay(root / "replaced/disk", BASE)
    after = again(root, before)
    expected = {"filled/disk.local", "filled/disk", "new/disk", "deep/deeper/deepest/disk", "by another name/disk"}
    assert {str(root / name) for name in expected} <= set(disks(after))
    assert {str(root / "replaced/disk"), str(root / "aside/disk")} <= set(disks(after))
    assert str(root / "unchanged/disk") not in disks(after)
    assert {} == after.failed


def test_a_second_look_sees_a_change_within_the_same_tick_of_the_clock(root: Path) -> None:
    for turn in range(30):
        directory = root / f"web-{turn}"
        directory.mkdir()
        before = seen(root)
        disk = overlay(directory / "disk", BASE)
        assert str(disk) in disks(again(root, before))


def test_a_second_look_sees_a_change_whose_mtime_was_set_back(root: Path) -> None:
    (root / "web-1").mkdir()
    before = seen(root)
    status = (root / "web-1").stat()
    disk = overlay(root / "web-1/disk", BASE)
    os.utime(root / "web-1", ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync and tar do
    assert [str(disk)] == disks(again(root, before))


def test_a_second_look_tells_that_a_root_is_gone(root: Path) -> None:
    overlay(root / "web-1/disk", BASE)
    before = seen(root)
    root.rename(root.with_name("away"))
    assert {str(root)} == set(again(root, before).failed)
    root.touch()
    assert str(root) in again(root, before).failed


def test_a_second_look_reads_a_root_that_could_not_be_read_before(root: Path) -> None:
    root.rename(root.with_name("away"))
    before = seen(root)
    assert {str(root)} == set(before.failed)
    root.with_name("away").rename(root)
    disk = overlay(root / "web-1/disk", BASE)
    after = again(root, before)
    assert ([str(disk)], {}) == (disks(after), after.failed)


def test_a_second_look_finds_what_is_renamed_all_the_time_or_tells_it(root: Path) -> None:
    for number in range(200):
        (root / f"instance-{number:03}").mkdir()
    overlay(root / "moving-0/disk", BASE)
    before = seen(root)
    turn = 0

    def rename() -> None:
        nonlocal turn
        (root / f"moving-{turn}").rename(root / f"moving-{turn + 1}")
        turn += 1

    with busy(rename, pause=0.01):
        time.sleep(0.05)
        for _ in range(10):
            sight = again(root, before)
            assert disks(sight) or sight.failed


@pytest.mark.component("root", "ext4")
def test_a_file_system_with_coarse_times_loses_no_change(tmp_path: Path) -> None:
    """An ext4 with small inodes keeps whole seconds: a second change within one leaves no trace in the times."""
    image, root = tmp_path / "coarse.img", tmp_path / "coarse"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    root.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, root], check=True)
    try:
        for turn in range(2):
            directory = root / f"web-{turn}"
            directory.mkdir()
            before = seen(root)
            time.sleep(0.1)
            disk = overlay(directory / "disk", BASE)
            sight = again(root, before)
            assert str(disk) in disks(sight) or before.failed
    finally:
        subprocess.run(["umount", root], check=True)
