"""Where a file's bytes lie: what is its own, what it shares, and what no file system tells."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import PATIENCE
from underlay.extents import Extent, extents, own_bytes

Mounted = Callable[..., Path]
MIB = 1 << 20


def lying(path: Path) -> list[Extent] | None:
    with path.open("rb") as file:
        found = extents(file.fileno())
        return None if found is None else list(found)


def own(path: Path) -> int:
    with path.open("rb") as file:
        return own_bytes(file.fileno())


def written(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
    return path


def reflinked(path: Path, copy: Path) -> Path:
    subprocess.run(["cp", "--reflink=always", path, copy], check=True)
    return copy


SHARING = [pytest.param(kind, marks=pytest.mark.component("root", kind)) for kind in ("xfs", "btrfs")]


@pytest.mark.component("root", "ext4")
def test_a_files_bytes_are_its_own_where_nothing_is_shared(mounted: Mounted) -> None:
    path = written(mounted("ext4", 64 << 20) / "file", 3 * MIB)
    found = lying(path)
    assert found is not None
    assert 3 * MIB == sum(extent.length for extent in found)
    assert all(extent.physical is not None and not extent.shared for extent in found)
    assert path.stat().st_blocks * 512 == own(path)


@pytest.mark.component("root", "ext4")
def test_holes_are_no_extents(mounted: Mounted) -> None:
    path = mounted("ext4", 64 << 20) / "file"
    with path.open("wb") as file:
        file.truncate(1 << 34)
        file.seek(1 << 33)
        file.write(b"x" * MIB)
    found = lying(path)
    assert found is not None
    assert MIB == sum(extent.length for extent in found)
    assert own(path) == path.stat().st_blocks * 512


@pytest.mark.component("root", "ext4")
def test_a_file_of_many_extents_is_told_whole(mounted: Mounted) -> None:
    path = mounted("ext4", 64 << 20) / "file"
    with path.open("wb") as file:
        for number in range(1000):
            file.seek(number * 32768)
            file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())
    found = lying(path)
    assert found is not None
    assert 1000 * 4096 == sum(extent.length for extent in found)
    assert len({extent.physical for extent in found}) == len(found)


@pytest.mark.parametrize("kind", SHARING)
def test_what_two_files_share_is_neithers_own(mounted: Mounted, kind: str) -> None:
    directory = mounted(kind)
    path = written(directory / "file", 4 * MIB)
    assert 4 * MIB <= own(path)
    copy = reflinked(path, directory / "copy")
    assert (0, 0) == (own(path), own(copy))
    with copy.open("r+b") as file:
        file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
    assert MIB <= own(copy) < 2 * MIB
    first, second = lying(path), lying(copy)
    assert first is not None
    assert second is not None
    assert {extent.physical for extent in second if extent.shared}
    copy.unlink()
    deadline = time.monotonic() + PATIENCE
    while own(path) < 4 * MIB and time.monotonic() < deadline:  # the file system frees what is unlinked when it likes
        subprocess.run(["sync", "-f", directory], check=True)
        time.sleep(0.05)
    assert 4 * MIB <= own(path)


@pytest.mark.component("root", "btrfs")
def test_a_small_file_inside_its_inode_lies_nowhere(mounted: Mounted) -> None:
    path = mounted("btrfs") / "file"
    path.write_bytes(b"small")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    found = lying(path)
    assert found is not None
    assert {None} == {extent.physical for extent in found}


@pytest.mark.component("root", "tmpfs")
def test_a_file_system_that_does_not_tell_shares_nothing(mounted: Mounted) -> None:
    path = written(mounted("tmpfs") / "file", MIB)
    assert None is lying(path)
    assert MIB == own(path)


@pytest.mark.parametrize("kind", SHARING)
def test_an_empty_file_has_none(mounted: Mounted, kind: str) -> None:
    path = mounted(kind) / "file"
    path.touch()
    assert ([], 0) == (lying(path), own(path))
