"""Disks in a real Ceph that are put back to what they were."""

import os
import signal
from pathlib import Path

import pytest
from ceph_stage import CONTENT, MIB, RbdStage, base_image, nothing, of_disk, spec_at, spec_of
from ceph_worker import Task, work

from underlay.contracts import KeepsInPlace
from underlay.errors import BackendUnavailable, DiskInUse, DiskNotFound
from underlay.model import InstanceDisk

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]

OTHER = os.urandom(MIB)


@pytest.fixture(params=["cloned", "imported"])
def disk(stage: RbdStage, tmp_path: Path, request: pytest.FixtureRequest) -> InstanceDisk:
    if request.param == "cloned":
        return stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    return stage.backend.create(base_image(tmp_path, CONTENT), spec_of(stage))


def content(stage: RbdStage, disk: InstanceDisk) -> bytes:
    return stage.read(disk)[: len(CONTENT)]


def test_a_disk_is_put_back_to_what_was_kept_of_it_as_often_as_is_asked(stage: RbdStage, disk: InstanceDisk) -> None:
    backend = stage.backend
    assert isinstance(backend, KeepsInPlace)
    assert not backend.keeps(disk)
    backend.keep(disk)
    for _ in range(2):
        stage.write(disk, 2 * MIB, OTHER)
        backend.resize(disk, 16 * MIB)
        assert (disk.size, True) == (backend.put_back(disk).size, backend.keeps(disk))
        assert CONTENT == content(stage, disk)
    backend.let_go(disk)
    backend.let_go(disk)
    with pytest.raises(DiskNotFound, match="nothing is kept"):
        backend.put_back(disk)
    backend.remove(disk)
    assert set() == of_disk(stage, spec_at(disk))


def test_what_is_kept_is_replaced_and_keeps_the_disk(stage: RbdStage, disk: InstanceDisk) -> None:
    backend = stage.backend
    backend.keep(disk)
    stage.write(disk, 0, OTHER)
    backend.keep(disk)
    stage.write(disk, 0, bytes(MIB))
    backend.put_back(disk)
    assert OTHER == content(stage, disk)[:MIB]
    with pytest.raises(DiskInUse, match="has snapshots: nova-resize"):
        backend.remove(disk)
    with stage.opened(disk):
        backend.let_go(disk)
    backend.remove(disk)


def test_what_is_not_there_keeps_nothing(stage: RbdStage) -> None:
    absent = nothing(spec_of(stage))
    for ask in (stage.backend.keep, stage.backend.keeps, stage.backend.put_back):
        with pytest.raises(DiskNotFound):
            ask(absent)
    stage.backend.let_go(absent)


def test_a_clone_of_what_is_kept_has_to_go_first(stage: RbdStage, disk: InstanceDisk) -> None:
    stage.backend.keep(disk)
    kept, child = f"{stage.pool}/{disk.path.name}@nova-resize", f"{stage.pool}/child-{disk.instance}"
    stage.ceph.rbd("snap", "protect", kept)
    stage.ceph.rbd("clone", "--rbd-default-clone-format", "1", kept, child)
    with pytest.raises(DiskInUse):
        stage.backend.let_go(disk)
    stage.ceph.rbd("rm", "--no-progress", child)
    stage.backend.let_go(disk)
    stage.backend.remove(disk)


@pytest.mark.parametrize("method", ["keep", "put_back", "let_go"])
def test_who_is_killed_leaves_what_can_be_repeated(stage: RbdStage, disk: InstanceDisk, method: str) -> None:
    if method != "keep":
        stage.backend.keep(disk)
        stage.write(disk, 0, OTHER)
    for before in ("make_snapshot", "drop") if method == "keep" else ("drop",):
        assert -signal.SIGKILL == work(Task(stage.backend, method, (disk,), before=before)).returncode
    getattr(stage.backend, method)(disk)
    assert (method != "let_go") == stage.backend.keeps(disk)
    assert (OTHER[:512] if method == "let_go" else CONTENT[:512]) == content(stage, disk)[:512]
    stage.backend.let_go(disk)
    stage.backend.remove(disk)
    assert set() == of_disk(stage, spec_at(disk))


def test_a_ceph_that_goes_while_a_disk_is_put_back_is_told_in_time(stage: RbdStage, disk: InstanceDisk) -> None:
    stage.backend.keep(disk)
    with stage.ceph.halted("osd.0"), pytest.raises(BackendUnavailable):
        stage.backend.put_back(disk)
    stage.backend.put_back(disk)
    stage.backend.let_go(disk)
    stage.backend.remove(disk)
