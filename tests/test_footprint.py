"""What files occupy together: links and reflinks are counted once, and nothing that is there is left out."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storing import laid_out
from underlay.files import reflink
from underlay.footprint import Footprint, files_of, footprints
from underlay.naming import CacheKind
from underlay.store.eviction import freed_by_removal

MIB = 1 << 20
SHA1 = 40 * "a"


def written(path: Path, size: int = MIB) -> Path:
    path.write_bytes(os.urandom(size))
    sync(path)
    return path


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def reflinked(source: Path, target: Path) -> Path:
    """A copy that shares all its blocks."""
    with source.open("rb") as one, target.open("wb") as other:
        assert reflink(one.fileno(), other.fileno())
    return target


def occupied(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_files_of_their_own_are_counted_as_they_are(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a"), written(tmp_path / "b", 3 * MIB)

    told = footprints({"first": [one], "second": [other], "third": []})

    assert {
        "first": Footprint(1, occupied(one), 0),
        "second": Footprint(1, occupied(other), 0),
        "third": Footprint(0, 0, 0),
    } == told


def test_holes_occupy_nothing(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)

    assert Footprint(1, occupied(sparse), 0) == footprints({"": [sparse]})[""]
    assert occupied(sparse) < MIB


def test_an_inode_is_counted_once_with_the_first_group_that_has_it(tmp_path: Path) -> None:
    file = written(tmp_path / "a")
    os.link(file, tmp_path / "b")
    size = occupied(file)

    assert {"first": Footprint(2, size, size), "second": Footprint(1, 0, size)} == footprints(
        {"first": [file, tmp_path / "b"], "second": [file]}
    )
    assert 0 == freed_by_removal(file)


def test_what_is_gone_or_not_a_plain_file_counts_as_it_can(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")

    told = footprints({"": [tmp_path / "gone", tmp_path / "link"]})[""]

    assert (1, 0) == (told.count, told.allocated)


@pytest.mark.component("root")
@pytest.mark.parametrize(
    "kind",
    [pytest.param("xfs", marks=pytest.mark.component("xfs")), pytest.param("btrfs", marks=pytest.mark.component("btrfs"))],
)
def test_shared_blocks_are_counted_once(kind: str, mounted: Callable[..., Path]) -> None:
    root = mounted(kind)
    original = written(root / "original", 8 * MIB)
    copies = [reflinked(original, root / f"disk-{number}") for number in range(3)]
    with copies[0].open("r+b") as file:  # a guest writes: from here on this MiB is the copy's own
        file.seek(2 * MIB)
        file.write(os.urandom(MIB))
    os.sync()

    told = footprints({"cache": [original], "disks": copies})

    assert Footprint(1, occupied(original), 0) == told["cache"]
    assert (3, MIB) == (told["disks"].count, told["disks"].allocated)
    assert sum(map(occupied, copies)) - MIB == told["disks"].shared
    assert MIB == freed_by_removal(copies[0])
    assert 0 == freed_by_removal(copies[1])


@pytest.mark.component("root", "xfs")
def test_the_sum_of_all_groups_is_what_the_file_system_has_less(mounted: Callable[..., Path]) -> None:
    root = mounted("xfs")
    before = os.statvfs(root)
    original = written(root / "original", 16 * MIB)
    other = written(root / "other", 4 * MIB)
    copies = [reflinked(original, root / f"copy-{number}") for number in range(4)]
    os.sync()
    after = os.statvfs(root)

    told = footprints({"cache": [original, copies[0]], "other": [other, copies[1]], "disks": copies[2:]})

    less = (before.f_bfree - after.f_bfree) * after.f_frsize
    assert 20 * MIB == sum(one.allocated for one in told.values())
    assert 20 * MIB <= less < 22 * MIB  # the rest are the file system's own records
    assert 16 * MIB == told["cache"].allocated


def test_every_plain_file_of_a_cache_has_its_kind(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "base")
    expected = {
        SHA1: "original", f"{SHA1}.raw": "original", f"{SHA1}_20": "resized", "swap_512": "swap",
        "ephemeral_20_abcdefg": "ephemeral", f"{SHA1}.part": "leftover", "notes": "other", ".hidden": "other",
    }  # fmt: skip
    for name in (*expected, ".underlay/trash/swap_1"):
        (store.root / name).touch()
    (store.root / "directory").mkdir()
    (store.root / "swap_9").symlink_to("swap_512")
    os.mkfifo(store.root / "swap_8")

    told = {path.name: kind for kind, path in files_of(store)}

    assert expected | {"swap_1": "leftover"} == told


def test_masters_have_a_kind_of_their_own(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "masters", kind=CacheKind.MASTERS)
    (store.root / "6f1b3c0e-3f8e-4a41-9b1e-1c2d3e4f5a6b").touch()
    (store.root / SHA1).touch()

    assert {"master", "other"} == {kind for kind, _ in files_of(store)}
