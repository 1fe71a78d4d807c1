"""A process is killed at each system call that changes what is on disk; whatever it was at, nothing is lost and nothing stays.

strace kills the process as it enters the call, so killing at each call shows the disk in each state that a crash can leave.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scenes import CONTENT, Jobs, Scene, jobs

pytestmark = pytest.mark.component("strace", "qemu-img")

# What changes the directory: each job makes most of these calls, and a test says of which there are none.
EVERYWHERE = ("fchmod", "linkat", "fsync", "fsetxattr", "rename", "renameat2", "unlink", "utimensat")
MOST = 60  # calls of one kind in one job; more would be a loop of ours that never ends


@pytest.fixture(scope="module")
def workers() -> Iterator[Jobs]:
    with jobs() as started:
        yield started


def _kill_at_each(scene: Scene, call: str, *faults: str) -> int:
    """Kill the job at its first, second … such call until there is none left; how many there were.

    Args:
        faults: that are always there.
    """
    scene.set_up()
    assert "path" in scene.run().answer
    clean = scene.tree()
    for number in range(1, MOST):
        scene.set_up()
        outcome = scene.run(f"{call}:signal=SIGKILL:when={number}", *faults)
        scene.check_whole()
        path = scene.again()
        scene.check_whole()
        assert clean == scene.tree(), f"after a kill at {call} number {number}"
        if scene.backend is None:
            assert CONTENT == path.read_bytes()
        if not outcome.killed:
            assert "path" in outcome.answer
            return number - 1
    raise AssertionError(f"{call} is called without end")


@pytest.mark.parametrize("call", [*EVERYWHERE, "mkdir", "rmdir", "pwrite64", "ftruncate"])
def test_an_image_that_is_kept_as_served_survives_a_kill_at_each(tmp_path: Path, workers: Jobs, call: str) -> None:
    assert _kill_at_each(Scene(tmp_path / "scene", workers, laid_out=False), call) > 0


@pytest.mark.parametrize("call", [*EVERYWHERE, "mkdir", "rmdir", "pwrite64", "ftruncate"])
def test_an_image_that_is_converted_survives_a_kill_at_each(tmp_path: Path, workers: Jobs, call: str) -> None:
    assert _kill_at_each(Scene(tmp_path / "scene", workers, image="qcow2"), call) > 0


@pytest.mark.parametrize("call", ["rename", "fsync", "unlink", "fsetxattr"])
def test_a_master_is_the_old_one_or_the_new_one_after_a_kill_at_each(tmp_path: Path, workers: Jobs, call: str) -> None:
    assert _kill_at_each(Scene(tmp_path / "scene", workers, kind="masters", old=True), call) > 0


@pytest.mark.parametrize("call", [*EVERYWHERE, "mkdir", "pwrite64", "ftruncate"])
def test_an_overlay_survives_a_kill_at_each(tmp_path: Path, workers: Jobs, call: str) -> None:
    assert _kill_at_each(Scene(tmp_path / "scene", workers, backend="qcow2"), call) > 0


@pytest.mark.parametrize("call", [*EVERYWHERE, "mkdir", "copy_file_range", "ftruncate"])
def test_a_flat_disk_survives_a_kill_at_each(tmp_path: Path, workers: Jobs, call: str) -> None:
    assert _kill_at_each(Scene(tmp_path / "scene", workers, backend="flat"), call) > 0


@pytest.mark.parametrize("call", ["mkdir", "fchmod", "symlink", "linkat", "fsync", "fsetxattr", "renameat2", "unlink"])
def test_a_disk_outside_the_instances_survives_a_kill_at_each(tmp_path: Path, workers: Jobs, call: str) -> None:
    assert _kill_at_each(Scene(tmp_path / "scene", workers, backend="qcow2", outside=True), call) > 0


@pytest.mark.parametrize("call", ["linkat", "unlink"])
@pytest.mark.parametrize("backend", [None, "qcow2", "flat"])
def test_where_a_rename_is_a_link_and_an_unlink_a_kill_at_each_is_survived_too(
    tmp_path: Path, workers: Jobs, call: str, backend: str | None
) -> None:
    scene = Scene(tmp_path / "scene", workers, backend=backend)
    assert _kill_at_each(scene, call, "renameat2:error=EINVAL") > 0
