"""Disks outside the scanned roots: each keeps its base image by a symlink, until it is provably gone."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from storing import laid_out
from underlay.errors import CacheMissing, InvalidName, UnderlayError
from underlay.naming import CacheKind
from underlay.store import Store, roots
from underlay.values import replace

NAME, OTHER = "0123456789abcdef0123456789abcdef01234567", "ffffffffffffffffffffffffffffffffffffffff.raw"
DISK = Path("/srv/disks/a disk, oddly named\n.qcow2")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


def test_without_disks_there_are_no_roots(store: Store) -> None:
    assert [] == roots.disks(store)


def test_a_cache_that_is_not_laid_out_has_no_roots(tmp_path: Path) -> None:
    assert [] == roots.disks(Store(root=tmp_path, kind=CacheKind.BASE))


def test_a_root_is_a_symlink_to_its_disk_and_need_not_lead_anywhere(store: Store) -> None:
    roots.add(store, NAME, DISK)
    (root,) = (store.paths.disks / NAME).iterdir()
    assert DISK == root.readlink()
    assert [(NAME, DISK)] == roots.disks(store)


def test_the_roots_of_all_images_are_listed(store: Store) -> None:
    added = [(name, Path(f"/srv/{number}")) for name in (OTHER, NAME) for number in range(3)]
    for name, disk in added:
        roots.add(store, name, disk)
    assert sorted(added) == sorted(roots.disks(store))


def test_a_root_is_added_once(store: Store) -> None:
    for _ in range(3):
        roots.add(store, NAME, DISK)
    assert [(NAME, DISK)] == roots.disks(store)


def test_a_root_is_retired_for_its_image_and_its_disk_only(store: Store) -> None:
    for name in (NAME, OTHER):
        for disk in (DISK, Path("/srv/other")):
            roots.add(store, name, disk)
    for _ in range(2):
        roots.retire(store, NAME, DISK)
    assert [(NAME, Path("/srv/other")), (OTHER, DISK), (OTHER, Path("/srv/other"))] == sorted(roots.disks(store))


def test_the_last_root_of_an_image_leaves_nothing(store: Store) -> None:
    roots.add(store, NAME, DISK)
    roots.retire(store, NAME, DISK)
    assert [] == os.listdir(store.paths.disks)


def test_roots_that_come_and_go_at_once_do_not_disturb_each_other(store: Store) -> None:
    store = replace(store, lock_timeout=60.0)

    def come_and_go(number: int) -> None:
        for _ in range(20):
            roots.add(store, NAME, Path(f"/srv/{number}"))
            assert (NAME, Path(f"/srv/{number}")) in roots.disks(store)
            roots.retire(store, NAME, Path(f"/srv/{number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert [] == os.listdir(store.paths.disks)


def test_a_root_in_a_cache_that_is_not_laid_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheMissing):
        roots.add(Store(root=tmp_path, kind=CacheKind.BASE), NAME, DISK)


def test_what_was_never_rooted_is_retired_without_a_word(store: Store) -> None:
    roots.retire(store, NAME, DISK)
    assert [] == roots.disks(store)


@pytest.mark.parametrize("name", ["../tmp", ".", "a/b", ""])
def test_a_root_stays_in_its_directory(store: Store, name: str) -> None:
    with pytest.raises(InvalidName):
        roots.add(store, name, DISK)


def list_in_a_child(root: str) -> None:
    tell(" ".join(sorted(str(disk) for _, disk in roots.disks(Store(root=Path(root), kind=CacheKind.BASE)))))


@pytest.mark.component("strace")
def test_a_root_that_is_retired_during_a_listing_hides_no_other(store: Store) -> None:
    for name in (NAME, OTHER):
        for number in range(3):
            roots.add(store, name, Path(f"/srv/{name[0]}{number}"))
    first, second, _ = sorted((store.paths.disks / NAME).iterdir())
    stopped = ["strace", "-qq", "-o", os.devnull, "-P", os.fspath(first), "-e", "inject=readlink:signal=SIGSTOP:when=1"]
    with start(list_in_a_child, store.root, wrapper=stopped) as child:
        pid = child.stopped()
        gone = second.readlink()
        roots.retire(store, NAME, gone)
        os.kill(pid, signal.SIGCONT)
        found = child.hear().split()
    everything = {f"/srv/{name[0]}{number}" for name in (NAME, OTHER) for number in range(3)}
    assert sorted(everything - {str(gone)}) == found


def test_what_is_not_a_root_is_an_error_because_it_may_have_been_one(store: Store) -> None:
    roots.add(store, NAME, DISK)
    (store.paths.disks / NAME / "file").touch()
    with pytest.raises(UnderlayError, match="file"):
        roots.disks(store)


@pytest.mark.component("root")
@pytest.mark.parametrize("made", [None, 0o700])
@pytest.mark.usefixtures("umask_077")
def test_the_roots_of_an_image_are_its_groups_to_add(tmp_path: Path, made: int | None) -> None:
    os.chown(tmp_path, 1234, 5678)
    store = laid_out(tmp_path)
    if made is not None:
        (store.paths.disks / NAME).mkdir(mode=made)  # what a crash leaves between mkdir(2) and chmod(2)
    roots.add(store, NAME, DISK)
    status = (store.paths.disks / NAME).stat()
    assert (1234, 5678, 0o2775) == (status.st_uid, status.st_gid, status.st_mode & 0o7777)


def add_retire_and_say(root: str, name: str) -> None:
    store = Store(root=Path(root), kind=CacheKind.BASE)
    roots.add(store, name, DISK)
    tell(str(len(roots.disks(store))))
    roots.add(store, name, DISK.with_name("another"))
    roots.retire(store, name, DISK)
    tell(str(len(roots.disks(store))))


@pytest.mark.component("root")
@pytest.mark.parametrize("name", [NAME, OTHER])
def test_a_member_of_the_group_roots_its_own_disks(open_directory: Path, name: str) -> None:
    os.chown(open_directory, 0, 4321)
    store = laid_out(open_directory)
    roots.add(store, NAME, Path("/srv/of root"))
    with start(add_retire_and_say, open_directory, name, user=NOBODY, groups=[4321], umask=0o077) as member:
        assert ["2", "2"] == [member.hear(), member.hear()]
    assert {(NAME, Path("/srv/of root")), (name, DISK.with_name("another"))} == set(roots.disks(store))


def add_and_say(root: str) -> None:
    try:
        roots.add(Store(root=Path(root), kind=CacheKind.BASE), NAME, DISK)
    except UnderlayError as error:
        tell(type(error).__name__)
    else:
        tell("added")


@pytest.mark.component("strace")
@pytest.mark.parametrize(
    "fault", ["mkdir:error=ENOSPC", "symlink:error=ENOSPC", "fsync:error=EIO:when=1", "fsync:error=EIO:when=2"]
)
def test_a_root_that_cannot_be_made_durable_is_not_there(store: Store, fault: str) -> None:
    with start(add_and_say, store.root, wrapper=["strace", "-qq", "-o", os.devnull, "-e", f"inject={fault}"]) as child:
        assert ("StorageFailed" if "EIO" in fault else "InsufficientSpace") == child.hear()
    assert [] == os.listdir(store.paths.disks)


@pytest.mark.component("strace")
def test_a_root_is_durable_when_it_is_added(tmp_path: Path, store: Store) -> None:
    log = tmp_path / "log"
    strace = ["strace", "-qq", "-y", "-o", os.fspath(log), "-e", "trace=mkdir,symlink,fsync"]
    with start(add_retire_and_say, store.root, NAME, wrapper=strace) as child:
        assert ["1", "1"] == [child.hear(), child.hear()]
        child.end()
    calls = [line for line in log.read_text().splitlines() if os.fspath(store.root) in line]
    first_root = next(number for number, call in enumerate(calls) if call.startswith('symlink("/srv'))
    directories = [call.rpartition("<")[2].partition(">")[0] for call in calls[:first_root] if call.startswith("fsync(")]
    assert [os.fspath(store.paths.disks)] == directories
    assert calls[first_root + 1].startswith("fsync(")
    assert os.fspath(store.paths.disks / NAME) in calls[first_root + 1]
