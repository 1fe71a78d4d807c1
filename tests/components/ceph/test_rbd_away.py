"""A real Ceph that goes away, does not answer, or has no room."""

import os
import signal
import time
from pathlib import Path

import pytest
from ceph_stage import CONTENT, MIB, RbdStage, base_image, of_disk, spec_at, spec_of
from ceph_worker import Task, work

from underlay.errors import BackendUnavailable, DiskNotFound, InsufficientSpace

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]


@pytest.mark.parametrize("daemon", ["osd.0", "mon.a"])
def test_a_ceph_that_goes_in_the_middle_is_told_in_time_and_nothing_is_left(
    stage: RbdStage, tmp_path: Path, daemon: str
) -> None:
    base = base_image(tmp_path, os.urandom(24 * MIB))
    steps = int(work(Task(stage.backend, "create", (base, spec_of(stage, size=None)))).stdout)
    for step in range(1, steps, 3):
        spec, started = spec_of(stage, size=None), time.monotonic()
        task = Task(stage.backend, "create", (base, spec), before=step, halts=stage.ceph.pids[daemon])
        try:
            done = work(task)
        finally:
            os.kill(stage.ceph.pids[daemon], signal.SIGCONT)
        assert time.monotonic() - started < 30
        if daemon == "osd.0":
            assert b"BackendUnavailable" in done.stderr or done.returncode == 0, done.stderr.decode()
        made = stage.backend.create(base, spec)
        assert base.path.read_bytes() == stage.read(made)
        stage.backend.remove(made)
        assert set() == of_disk(stage, spec)


def test_the_error_says_what_does_not_answer(stage: RbdStage) -> None:
    with stage.ceph.halted(), pytest.raises(BackendUnavailable, match="does not answer") as told:
        stage.backend.describe(spec_of(stage))

    assert str(stage.ceph.conf) in told.value.message
    assert "ceph -s" in str(told.value.hint)


def test_there_is_no_room_in_a_pool_over_its_quota(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)
    kept = stage.backend.create(base, spec_of(stage))
    version = stage.cloneable(CONTENT)
    with stage.ceph.without_room(stage.pool):
        with pytest.raises(InsufficientSpace, match="pool of image rbd/"):
            stage.backend.create(base, spec)
        with pytest.raises(InsufficientSpace, match="pool of image rbd/"):
            stage.backend.clone(version, spec)
        stage.backend.remove(kept)  # which is how room is made
        with pytest.raises(DiskNotFound):
            stage.backend.describe(spec_at(kept))

    assert set() == of_disk(stage, spec)
