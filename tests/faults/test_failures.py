"""A system call fails at each of its occurrences: the error says so, nothing half done is left, the next call succeeds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenes import CONTENT, Jobs, Outcome, Scene, jobs

from underlay.store import images, staging as stagings

pytestmark = pytest.mark.component("strace", "qemu-img")

MOST = 60  # calls of one kind in one job; more would be a loop of ours that never ends
FULL, BROKEN = "InsufficientSpace", "StorageFailed"


@pytest.fixture(scope="module")
def workers() -> Iterator[Jobs]:
    with jobs() as started:
        yield started


SCENES = {
    "served": {"laid_out": False},
    "converted": {"image": "qcow2"},
    "master": {"kind": "masters", "old": True},
    "overlay": {"backend": "qcow2"},
    "flat": {"backend": "flat"},
    "outside": {"backend": "qcow2", "outside": True},
}


def _scene(tmp_path: Path, workers: Jobs, name: str) -> Scene:
    return Scene(tmp_path / "scene", workers, **SCENES[name])  # type: ignore[arg-type]


def _fail_at_each(scene: Scene, call: str, error: str) -> list[Outcome]:
    """Let the job's first, second … such call fail until there is none left, and look what is there after each."""
    scene.set_up()
    assert "path" in scene.run().answer
    clean = scene.tree()
    outcomes: list[Outcome] = []
    for number in range(1, MOST):
        scene.set_up()
        before = scene.tree()
        outcome = scene.run(f"{call}:error={error}:when={number}")
        what = f"after {error} of {call} number {number}: {outcome.answer}"
        scene.check_whole()
        if "error" in outcome.answer:
            assert set() == _remains(scene, before), what
        if outcome.answer.get("error") == BROKEN:  # what such a file system holds is not trusted
            assert [] == scene.staged(), what
        path = scene.again()
        scene.check_whole()
        assert clean == scene.tree(), what
        if scene.backend is None:
            assert CONTENT == path.read_bytes()
        if not outcome.failed:
            assert "path" in outcome.answer
            return outcomes
        outcomes.append(outcome)
    raise AssertionError(f"{call} is called without end")


def _remains(scene: Scene, before: dict[str, str]) -> set[str]:
    """What a failed job left that was not there before, but for what says nothing wrong.

    That is the layout of a cache, when an image was used, for which instances, and what its ref means; a verified download
    that the next call takes; and a base image that is whole: when only an ingest's own directory cannot be made durable, the
    image was published.
    """
    records = ("format", "locks", "used", "leases", "disks", "instances", "refs", "tmp", "trash")
    harmless = ["instances/locks", "instances/_base/.underlay", *(f"instances/_base/.underlay/{name}" for name in records)]
    found = set(scene.tree()) - set(before) - set(harmless)
    found -= {
        name
        for name in found
        if Path(name).parent.name in ("used", "refs", "instances") and not Path(name).name.startswith(".")
    }
    if (scene.root / "instances/_base/.underlay").exists():
        found -= {f"instances/_base/{image.name}" for image in images.images(scene.store)[0]}
        found -= _kept_downloads(scene)
    return found


def _kept_downloads(scene: Scene) -> set[str]:
    kept = [ingest for ingest, _ in stagings.ingests(scene.store) if stagings.kept(ingest) is not None]
    paths = [path for ingest in kept for path in (ingest.directory, ingest.download, ingest.journal, ingest.progress)]
    return {os.fspath(path.relative_to(scene.root)) for path in paths}


def _errors(outcomes: list[Outcome]) -> set[str]:
    return {outcome.answer.get("error", "none") for outcome in outcomes}


@pytest.mark.parametrize("name", SCENES)
def test_a_failed_fsync_is_told_and_what_may_not_last_is_discarded(tmp_path: Path, workers: Jobs, name: str) -> None:
    outcomes = _fail_at_each(_scene(tmp_path, workers, name), "fsync", "EIO")
    assert len(outcomes) >= 4
    assert {BROKEN} == _errors(outcomes)


def test_a_spool_that_could_not_be_written_out_is_told_and_its_raw_form_is_discarded(tmp_path: Path, workers: Jobs) -> None:
    """What is read back of it may not be what was verified, and no fsync follows that would tell."""
    outcomes = _fail_at_each(_scene(tmp_path, workers, "converted"), "sync_file_range", "EIO")
    assert [BROKEN] == [outcome.answer["error"] for outcome in outcomes]


def test_a_kernel_that_does_not_tell_of_writeback_is_asked_to_write_the_spool_out(tmp_path: Path, workers: Jobs) -> None:
    scene = _scene(tmp_path, workers, "converted")
    scene.set_up()
    outcome = scene.run("sync_file_range:error=ENOSYS")
    assert (True, True) == (outcome.failed, "path" in outcome.answer)
    scene.check_whole()


def test_a_name_that_may_not_last_is_taken_back(tmp_path: Path, workers: Jobs) -> None:
    scene = _scene(tmp_path, workers, "served")
    present = []
    for number in range(1, MOST):
        scene.set_up()
        if not scene.run(f"fsync:error=EIO:when={number}").failed:
            break
        present.append(bool(images.images(scene.store)[0]))
    # Only the last fsync comes when the name is durable: that of the directory which the image has left.
    assert [False] * (len(present) - 1) + [True] == present


@pytest.mark.parametrize("call", ["mkdir", "linkat", "pwrite64", "fsetxattr", "renameat2", "rename"])
def test_a_full_file_system_is_told_and_nothing_is_left(tmp_path: Path, workers: Jobs, call: str) -> None:
    outcomes = _fail_at_each(_scene(tmp_path, workers, "served"), call, "ENOSPC")
    assert outcomes
    without_ballast = {"none"} if call == "linkat" else set()  # a cache does without, so nothing is told
    assert {FULL} | without_ballast == _errors(outcomes)


@pytest.mark.parametrize("call", ["pwrite64", "fsetxattr", "renameat2", "rename", "ftruncate"])
def test_a_failing_file_system_is_told_and_nothing_is_left(tmp_path: Path, workers: Jobs, call: str) -> None:
    outcomes = _fail_at_each(_scene(tmp_path, workers, "served"), call, "EIO")
    assert outcomes
    assert {BROKEN} == _errors(outcomes)


@pytest.mark.parametrize("name", ["overlay", "flat", "outside"])
@pytest.mark.parametrize("call", ["linkat", "fsetxattr", "renameat2"])
def test_a_disk_for_which_there_is_no_room_leaves_nothing(tmp_path: Path, workers: Jobs, name: str, call: str) -> None:
    outcomes = _fail_at_each(_scene(tmp_path, workers, name), call, "ENOSPC")
    assert outcomes
    assert {FULL} == _errors(outcomes)


def test_a_root_for_which_there_is_no_room_makes_no_disk(tmp_path: Path, workers: Jobs) -> None:
    outcomes = _fail_at_each(_scene(tmp_path, workers, "outside"), "symlink", "ENOSPC")
    assert [FULL] == [outcome.answer["error"] for outcome in outcomes]


def test_a_copy_that_runs_out_of_room_leaves_nothing(tmp_path: Path, workers: Jobs) -> None:
    outcomes = _fail_at_each(_scene(tmp_path, workers, "flat"), "copy_file_range", "ENOSPC")
    assert [FULL] == [outcome.answer["error"] for outcome in outcomes]


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", ["converted", "overlay"])
def test_a_tool_that_cannot_write_is_told_of_and_leaves_nothing_half_done(
    tmp_path: Path, workers: Jobs, name: str, error: str
) -> None:
    scene = _scene(tmp_path, workers, name)
    scene.set_up()
    assert "path" in scene.run().answer
    clean = scene.tree()
    for number in range(1, MOST):
        scene.set_up()
        before = scene.tree()
        outcome = scene.run(f"pwrite64:error={error}:when={number}")
        scene.check_whole()
        if outcome.failed:
            expected = {FULL} if error == "ENOSPC" else {BROKEN, "ToolFailed"}
            assert outcome.answer.get("error") in expected, f"{error} number {number}: {outcome.answer}"
            if name == "overlay":
                assert set() == _remains(scene, before)
        scene.again()
        assert clean == scene.tree()
        if not outcome.failed:
            return
    raise AssertionError("there is no end of it")


@pytest.mark.parametrize("error", ["ENOSYS", "EINVAL"])
@pytest.mark.parametrize("name", ["served", "converted", "overlay", "flat"])
def test_without_renameat2_all_is_as_with_it(tmp_path: Path, workers: Jobs, name: str, error: str) -> None:
    scene = _scene(tmp_path, workers, name)
    scene.set_up()
    assert "path" in scene.run().answer
    clean = scene.tree()
    scene.set_up()
    outcome = scene.run(f"renameat2:error={error}")
    assert outcome.failed
    assert "path" in outcome.answer
    scene.check_whole()
    assert clean == scene.tree()


@pytest.mark.parametrize("name", ["overlay", "flat"])
def test_without_attributes_a_disk_is_recorded_beside_it(tmp_path: Path, workers: Jobs, name: str) -> None:
    scene = _scene(tmp_path, workers, name)
    scene.set_up()
    outcome = scene.run("fsetxattr:error=EOPNOTSUPP")
    assert outcome.failed
    assert "path" in outcome.answer
    assert ("raw" if name == "flat" else "qcow2") == scene.host.disk("instance-1").format


def test_without_attributes_an_image_is_published_and_found_by_its_name(tmp_path: Path, workers: Jobs) -> None:
    scene = _scene(tmp_path, workers, "served")
    scene.set_up()
    outcome = scene.run("fsetxattr:error=EOPNOTSUPP")
    assert outcome.failed
    (image,), problems = images.images(scene.store)
    assert ([], None) == (problems, image.record)
    assert str(image.path) == outcome.answer["path"] == str(scene.again())
    assert CONTENT == image.path.read_bytes()
