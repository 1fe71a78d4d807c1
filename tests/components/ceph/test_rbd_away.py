"""A real Ceph that goes away, does not answer, or has no room."""

import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from ceph_stage import CONTENT, MIB, TIMEOUT, RbdStage, base_image, host_of, of_disk, pool_of, spec_at, spec_of
from ceph_worker import Task, work

from underlay.disks.rbd.cluster import Access, connected
from underlay.errors import BackendUnavailable, DiskNotFound, InsufficientSpace, StorageFailed
from underlay.testing.fakes import FakeImage, Recorder
from underlay.values import replace

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]


@pytest.mark.parametrize("daemon", ["osd.0", "mon.a"])
def test_a_ceph_that_goes_in_the_middle_is_told_in_time_and_nothing_is_left(
    stage: RbdStage, tmp_path: Path, daemon: str
) -> None:
    base = base_image(tmp_path, os.urandom(24 * MIB))
    steps = int(work(Task(stage.backend, "create", (base, spec_of(stage, size=None)))).stdout)
    for step in range(1, steps, 8):
        spec, started = spec_of(stage, size=None), time.monotonic()
        task = Task(stage.backend, "create", (base, spec), before=step, halts=stage.ceph.pids[daemon])
        try:
            done = work(task)
        finally:
            os.kill(stage.ceph.pids[daemon], signal.SIGCONT)
        assert time.monotonic() - started < 30
        assert b"BackendUnavailable" in done.stderr or done.returncode == 0, done.stderr.decode()
        made = stage.backend.create(base, spec)
        assert base.path.read_bytes() == stage.read(made)
        stage.backend.remove(made)
        assert set() == of_disk(stage, spec)


def test_a_parent_that_nobody_answers_for_is_no_reason_to_fetch(stage: RbdStage) -> None:
    task = Task(stage.backend, "clone", (stage.cloneable(CONTENT), spec_of(stage)), before="_size")

    done = halting(stage, task, "osd.0")

    assert b"BackendUnavailable" in done.stderr, done.stderr.decode()


def test_a_snapshot_that_is_made_is_told_though_what_it_was_made_with_stays(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    name = f"kept-{disk.instance}"

    done = halting(stage, Task(stage.backend, "snapshot", (disk, name), before="remove_snapshot"), "osd.0")

    assert 0 == done.returncode, done.stderr.decode()
    stage.backend.remove(disk)
    assert {name} == of_disk(stage, spec_at(disk))
    stage.backend.discard_snapshot(f"rbd://{stage.ceph.fsid}/rbd/{name}/snap")
    assert set() == of_disk(stage, spec_at(disk))


def halting(stage: RbdStage, task: Task, daemon: str) -> subprocess.CompletedProcess[bytes]:
    """Do a task; from its step on, a daemon does not answer."""
    try:
        return work(replace(task, halts=stage.ceph.pids[daemon]))
    finally:
        os.kill(stage.ceph.pids[daemon], signal.SIGCONT)


def test_what_is_not_waited_for_any_more_is_left_open(stage: RbdStage) -> None:
    access = Access(user=None, conf=stage.ceph.conf, connect_timeout=TIMEOUT, operation_timeout=TIMEOUT, host="node1")
    asked, answered = threading.Event(), threading.Event()

    def question() -> None:
        asked.set()
        answered.wait()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def refuse() -> None:
        raise KeyError("an answer as well")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with connected(access) as cluster:
            with pytest.raises(KeyError):
                cluster.ask(refuse, of="a question")
            assert not cluster.is_stuck
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                cluster.ask(question, of="a question")
            assert (True, True) == (cluster.is_stuck, asked.is_set())
            answered.set()
            cluster.is_stuck = False  # now it may be closed
    finally:
        signal.signal(signal.SIGALRM, before)


def test_disks_of_a_ceph_that_is_silent_are_listed_within_one_wait(stage: RbdStage, tmp_path: Path) -> None:
    options = f'[disks.rbd]\nceph_conf = "{stage.ceph.conf}"\nconnect_timeout = "2s"\noperation_timeout = "2s"\n'
    observer = Recorder()
    host = host_of(tmp_path, {"fake:image": FakeImage(CONTENT)}, options, observer)
    made = [host.create_disk(spec_of(stage).instance, "fake:image", backend="rbd") for _ in range(4)]
    with stage.ceph.halted():
        started = time.monotonic()
        assert [] == host.disks()
        elapsed = time.monotonic() - started

    assert elapsed < stage.patience, "each disk is waited for"
    told = {event.fields["path"] for event in observer.events if event.code == "backend-unavailable"}
    assert {str(disk.path) for disk in made} == told


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


def test_room_that_ends_in_the_middle_is_told_and_nothing_is_left(stage: RbdStage, tmp_path: Path) -> None:
    stage = replace(stage, pool=stage.ceph.make_pool(f"small-{uuid4().hex[:8]}"))  # which had no trash
    base, spec = base_image(tmp_path, os.urandom(96 * MIB)), spec_of(stage, size=None)
    kept = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    patient = stage.backend_on("node1", operation_timeout=60.0)  # it waits until the pool is full
    with ExitStack() as meanwhile, pool_of(stage.ceph, stage.pool) as (_, pool):
        done = work(
            Task(patient, "create", (base, spec), before="_settle", waits=True),
            lambda: meanwhile.enter_context(stage.ceph.without_room(stage.pool)),
        )
        assert b"InsufficientSpace" in done.stderr, done.stderr.decode()
        assert set() == of_disk(stage, spec)
        pool.set_osdmap_full_try()
        pool.remove_object("rbd_trash")  # as in a pool where others made the disks
        with pytest.raises(StorageFailed, match="into the trash"):
            stage.backend.remove(kept)

    assert kept == stage.backend.describe(spec_at(kept))
    stage.backend.remove(kept)
    assert set() == of_disk(stage, spec_at(kept))
