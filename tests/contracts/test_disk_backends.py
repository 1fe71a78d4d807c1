"""Our disk backends pass the shipped conformance suite."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_stages import (
    DirectoriesStage,
    FakeStage,
    FilesStage,
    SmallDirectoriesStage,
    SmallFilesStage,
    small_file_system,
)

from underlay.contracts import DiskBackend
from underlay.disks.flat import FlatBackend
from underlay.disks.ploop import PloopBackend
from underlay.disks.qcow2 import Qcow2Backend
from underlay.testing.disk_suite import CASES, Case, Full, cases, impossible

pytestmark = [pytest.mark.component("qemu-img"), pytest.mark.component("qemu-io")]

BACKENDS: dict[str, DiskBackend] = {
    "flat": FlatBackend(),
    "flat-full": FlatBackend(preallocation="full"),
    "qcow2": Qcow2Backend(),
    "qcow2-falloc": Qcow2Backend(preallocation="falloc"),
}
VARIANTS: dict[str, DiskBackend] = {
    "flat-falloc": FlatBackend(preallocation="falloc"),
    "qcow2-metadata": Qcow2Backend(preallocation="metadata"),
    "qcow2-full": Qcow2Backend(preallocation="full"),
    "qcow2-small-clusters": Qcow2Backend(cluster_bytes=4096),
    "qcow2-large-clusters": Qcow2Backend(cluster_bytes=2 << 20),
}
TELLING = ("a-disk-holds", "a-disk-grows", "a-flattened", "a-rebased", "a-disk-is-extracted", "disks-of-one-image")


@pytest.mark.parametrize("case", cases(FakeStage), ids=str)
def test_the_fake_keeps_the_contract(case: Case, tmp_path: Path) -> None:
    case.run(FakeStage(tmp_path))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", cases(FilesStage), ids=str)
def test_disks_that_are_files_keep_the_contract(case: Case, name: str, tmp_path: Path) -> None:
    case.run(FilesStage(BACKENDS[name], tmp_path))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", [case for case in cases(FilesStage) if case.name.startswith(TELLING)], ids=str)
def test_disks_that_are_laid_out_otherwise_keep_the_contract(case: Case, name: str, tmp_path: Path) -> None:
    case.run(FilesStage(VARIANTS[name], tmp_path))


@pytest.mark.parametrize("case", cases(DirectoriesStage), ids=str)
def test_disks_that_are_directories_keep_the_contract(case: Case, tmp_path: Path) -> None:
    case.run(DirectoriesStage(PloopBackend(), tmp_path))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path) as directory:
        yield directory


@pytest.mark.component("ext4")
@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.parametrize("case", [case for case in cases(SmallFilesStage) if Full in case.needs], ids=str)
def test_disks_on_a_full_file_system_keep_the_contract(case: Case, name: str, small: Path) -> None:
    case.run(SmallFilesStage(BACKENDS[name], small))


@pytest.mark.component("ext4")
@pytest.mark.parametrize("case", [case for case in cases(SmallDirectoriesStage) if Full in case.needs], ids=str)
def test_directories_on_a_full_file_system_keep_the_contract(case: Case, small: Path) -> None:
    case.run(SmallDirectoriesStage(PloopBackend(), small))


@pytest.mark.parametrize("stage", [FakeStage, FilesStage, SmallFilesStage, DirectoriesStage, SmallDirectoriesStage])
def test_every_case_is_run_or_is_impossible_for_a_reason(stage: type[FakeStage | FilesStage]) -> None:
    left_out = impossible(stage)
    assert set(CASES) == {*cases(stage), *left_out}
    assert all(left_out.values())
