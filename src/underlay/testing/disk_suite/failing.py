"""Cases about a storage that has no room, does not answer, or whose user is killed: the whole disk, or nothing of it."""

import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from underlay.errors import BackendUnavailable, DiskNotFound, InsufficientSpace, UnderlayError
from underlay.model import DiskSpec, Extraction
from underlay.testing.disk_suite.case import (
    MIB,
    Case,
    Scene,
    case,
    content,
    expect,
    expect_content,
    expect_equal,
    expect_nothing,
    facts,
    in_time,
    refused,
)
from underlay.testing.disk_suite.stage import Away, Full, Killed

_KILLS = 8
_SETTLED = 30.0  # seconds in which the kernel has ended what died with a process


@case(Full)
def a_disk_for_which_there_is_no_room_is_not_made(scene: Scene) -> None:
    base, spec = scene.image(content(50)), scene.spec(size=8 * MIB)
    with scene.stage.trouble(Full()), refused(InsufficientSpace):
        scene.backend.create(base, spec)
    expect_nothing(scene, spec, "after there was no room")
    expect_content(scene, scene.backend.create(base, spec), content(50), "the disk, once there is room")


@case(Full)
def a_disk_that_is_there_outlives_a_storage_without_room(scene: Scene) -> None:
    disk = scene.disk(content(51), size=4 * MIB)
    target = scene.stage.directory / "extracted"
    with scene.stage.trouble(Full()):
        for change in (
            lambda: scene.backend.resize(disk, 8 * MIB),
            lambda: scene.backend.flatten(disk),
            lambda: scene.backend.extract(disk, target, Extraction(format="raw")),
        ):
            try:
                change()
            except InsufficientSpace:
                continue
            except UnderlayError as error:
                raise AssertionError(f"expected InsufficientSpace, found {error!r}") from error
            finally:
                target.unlink(missing_ok=True)
    found = scene.backend.describe(scene.specs[disk.path])
    expect_content(scene, found, content(51), "the disk after there was no room")


@case(Away)
def a_storage_that_does_not_answer_is_told_in_time(scene: Scene) -> None:
    disk, base, spec = scene.disk(content(52), size=4 * MIB), scene.image(content(53)), scene.spec(size=4 * MIB)
    target = scene.stage.directory / "extracted"
    with scene.stage.trouble(Away()):
        for ask in (
            lambda: scene.backend.create(base, spec),
            lambda: scene.backend.describe(scene.specs[disk.path]),
            lambda: scene.backend.exists(spec),
            lambda: scene.backend.resize(disk, 8 * MIB),
            lambda: scene.backend.remove(disk),
            lambda: scene.backend.extract(disk, target, Extraction(format="raw")),
        ):
            with refused(BackendUnavailable), in_time(scene.stage):
                ask()
            target.unlink(missing_ok=True)
    expect(not scene.backend.exists(spec), "what was asked of an absent storage was done after all")
    expect_content(scene, scene.backend.describe(scene.specs[disk.path]), content(52), "the disk, once its storage is back")
    expect_content(scene, scene.backend.create(base, spec), content(53), "a new disk, once its storage is back")


@case(Killed)
def a_maker_that_is_killed_leaves_the_whole_disk_or_nothing(scene: Scene) -> None:
    base, measured = scene.image(content(54)), scene.spec(size=4 * MIB)
    started = time.monotonic()
    scene.backend.create(base, measured)
    whole = time.monotonic() - started
    for number in range(_KILLS):
        spec = scene.spec(size=4 * MIB)
        _killed(partial(scene.backend.create, base, spec), after=whole * 1.2 * number / _KILLS)
        _expect_whole_or_nothing(scene, spec)
        made = scene.backend.create(base, spec)
        expect_content(scene, made, content(54), "the disk that is made after a maker was killed")
        scene.backend.remove(made)
        left = {name for name in scene.left() if spec.instance in name}
        expect_equal(set(), left, "what is left of a disk whose maker was killed, once it is removed")


@case(Killed)
def who_is_killed_while_a_disk_grows_leaves_it_readable(scene: Scene) -> None:
    if not scene.backend.traits.resizable:
        return
    for number in range(_KILLS // 2):
        disk = scene.disk(content(55), size=4 * MIB)
        _killed(partial(scene.backend.resize, disk, 12 * MIB), after=0.005 * number)
        found = scene.backend.describe(scene.specs[disk.path])
        sizes = (scene.rounded(4 * MIB), scene.rounded(12 * MIB))
        expect(found.size in sizes, f"a disk that was to grow has {found.size} bytes")
        expect_content(scene, found, content(55), "the disk whose grower was killed")
        grown = scene.backend.resize(found, 12 * MIB)
        expect_equal(sizes[1], grown.size, "the size of the disk that grows after all")


@case(Killed)
def who_is_killed_while_a_disk_goes_leaves_it_whole_or_nothing(scene: Scene) -> None:
    for number in range(_KILLS // 2):
        disk = scene.disk(content(56), size=4 * MIB)
        _killed(partial(scene.backend.remove, disk), after=0.002 * number)
        _expect_whole_or_gone(scene, scene.specs[disk.path], content(56))
        scene.backend.remove(disk)
        left = {name for name in scene.left() if disk.instance in name}
        expect_equal(set(), left, "what is left of a disk that was removed twice")


def _expect_whole_or_nothing(scene: Scene, spec: DiskSpec) -> None:
    try:
        found = scene.backend.describe(spec)
    except DiskNotFound:
        return
    expect_content(scene, found, content(54), "the disk that a killed maker left")
    base_facts = (found.instance, found.name, found.backend)
    expect_equal((spec.instance, spec.name, scene.backend.traits.name), base_facts, "what a killed maker's disk says of itself")


def _expect_whole_or_gone(scene: Scene, spec: DiskSpec, expected: bytes) -> None:
    try:
        found = scene.backend.describe(spec)
    except DiskNotFound:
        return
    expect_content(scene, found, expected, "the disk that was to go")
    expect_equal(facts(found)["path"], spec.path, "where the disk is that was to go")


def _killed(work: Callable[[], object], *, after: float) -> None:
    """Have a process begin some work, and kill it; the tools that it runs have to die with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child does nothing but the work
        pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)  # its tools are in its group
            work()
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + _SETTLED
    while _alive(pid):
        expect(time.monotonic() < deadline, f"the tools of who was killed end with it, within {_SETTLED:g} s")
        time.sleep(0.01)


def _alive(group: int) -> list[int]:
    """The processes of a group that have not ended (proc_pid_stat(5): after the name come the state, the parent, the group)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, its = path.read_bytes().rpartition(b")")[2].split()[:3]
            found += [int(path.parent.name)] if int(its) == group and state not in (b"Z", b"X") else []
    return found


CASES: tuple[Case, ...] = (
    a_disk_for_which_there_is_no_room_is_not_made,
    a_disk_that_is_there_outlives_a_storage_without_room,
    a_storage_that_does_not_answer_is_told_in_time,
    a_maker_that_is_killed_leaves_the_whole_disk_or_nothing,
    who_is_killed_while_a_disk_grows_leaves_it_readable,
    who_is_killed_while_a_disk_goes_leaves_it_whole_or_nothing,
)
