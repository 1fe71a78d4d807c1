"""What is left of work on a real Ceph whose worker was killed: the whole disk or none, and nothing that stays."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from secrets import token_hex

import pytest
from ceph_stage import CONTENT, MIB, RbdStage, base_image, claim, of_disk, omap, pool_of, set_omap, spec_at, spec_of
from ceph_worker import Task, work

from thorough import thorough
from underlay.errors import DiskExists, DiskNotFound
from underlay.values import replace

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]


def killed_before_each_step(begin: Callable[[], Task], after: Callable[[Task], None], *, stride: int = 1) -> None:
    for step in count(0, stride):
        task = replace(begin(), before=step)
        done = work(task)
        if done.returncode == 0:
            assert step >= 5, "the steps are not counted"
            return
        assert -signal.SIGKILL == done.returncode, done.stderr.decode()
        after(task)


def test_who_is_killed_while_importing_leaves_a_whole_disk_or_none(stage: RbdStage, tmp_path: Path) -> None:
    base = base_image(tmp_path, CONTENT)

    def after(task: Task) -> None:
        spec = task.arguments[1]
        with suppress(DiskNotFound):
            assert CONTENT == stage.read(stage.backend.describe(spec))[: len(CONTENT)]
        made = stage.backend.create(base, spec)
        assert CONTENT == stage.read(made)[: len(CONTENT)]
        assert {spec.path.name} == of_disk(stage, spec)
        stage.backend.remove(made)
        assert set() == of_disk(stage, spec)

    killed_before_each_step(lambda: Task(stage.backend, "create", (base, spec_of(stage))), after, stride=3)


def test_who_is_killed_while_cloning_leaves_a_whole_disk_or_none(stage: RbdStage) -> None:
    version = stage.cloneable(CONTENT)

    def after(task: Task) -> None:
        spec = task.arguments[1]
        made = stage.backend.clone(version, spec)
        assert (8 * MIB, CONTENT) == (made.size, stage.read(made)[: len(CONTENT)])
        assert {spec.path.name} == of_disk(stage, spec)
        stage.backend.remove(made)
        assert set() == of_disk(stage, spec)

    killed_before_each_step(lambda: Task(stage.backend, "clone", (version, spec_of(stage))), after, stride=thorough(5, 3))


def test_who_is_killed_while_removing_leaves_a_whole_disk_or_none(stage: RbdStage) -> None:
    version = stage.cloneable(CONTENT)

    def after(task: Task) -> None:
        (disk,) = task.arguments
        with suppress(DiskNotFound):
            assert CONTENT == stage.read(stage.backend.describe(spec_at(disk)))[: len(CONTENT)]
        stage.backend.remove(disk)
        assert set() == of_disk(stage, spec_at(disk))

    def begin() -> Task:
        return Task(stage.backend, "remove", (stage.backend.clone(version, spec_of(stage)),))

    killed_before_each_step(begin, after, stride=thorough(5, 3))


def test_who_is_killed_while_making_a_snapshot_leaves_nothing_that_stays(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    names = (f"snap-{disk.instance}-{number}" for number in count())

    def after(task: Task) -> None:
        name = task.arguments[1]
        try:
            location = stage.backend.snapshot(disk, name)
        except DiskExists:
            location = f"rbd://{stage.ceph.fsid}/{stage.pool}/{name}/snap"
        clone = stage.backend.clone(replace(stage.cloneable(b"x"), locations=(location,)), spec_of(stage))
        assert CONTENT == stage.read(clone)[: len(CONTENT)]
        stage.backend.remove(clone)
        stage.backend.discard_snapshot(location)
        assert {disk.path.name} == of_disk(stage, spec_at(disk))

    killed_before_each_step(lambda: Task(stage.backend, "snapshot", (disk, next(names))), after, stride=thorough(20, 9))


@pytest.mark.parametrize("known_as", ["the old name", "the new name"])
def test_a_renaming_that_stopped_halfway_is_brought_to_its_end(stage: RbdStage, tmp_path: Path, known_as: str) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)
    made = stage.backend.create(base, spec)
    token, image = token_hex(8), spec.path.name
    temporary = f".{image}.{token}"
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        if known_as == "the old name":  # before the directory was changed
            rbd.RBD().rename(pool, image, temporary)
            pool.write_full(f"rbd_id.{image}", pool.read(f"rbd_id.{temporary}"))
        else:  # before the old name was removed
            pool.write_full(f"rbd_id.{temporary}", pool.read(f"rbd_id.{image}"))
        claim(pool, f"{image}/{token}", host=stage.backend.host, makes=image)

    assert CONTENT == stage.read(stage.backend.describe(spec))[: len(CONTENT)]
    again = stage.backend.create(base, spec)

    assert made == again
    assert CONTENT == stage.read(again)[: len(CONTENT)]
    assert {image} == of_disk(stage, spec)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        assert not any(temporary in one.key for one in pool.list_objects())


def test_what_another_host_makes_is_left_alone_for_a_day(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)
    image, young, old = spec.path.name, token_hex(8), token_hex(8)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        for token, age in ((young, 0), (old, 90000)):
            rbd.RBD().create(pool, f".{image}.{token}", MIB)
            claim(pool, f"{image}/{token}", host="another", makes=image, made_at=time.time() - age)

    stage.backend.create(base, spec)

    assert {image, f".{image}.{young}", f"{image}/{young}"} == of_disk(stage, spec)
    with pool_of(stage.ceph, stage.pool) as (_, pool):
        claim(pool, f"{image}/{young}", host="another", makes=image, made_at=1.0)
    stage.backend.remove(stage.backend.describe(spec))
    assert set() == of_disk(stage, spec)


def test_the_name_of_a_half_removed_image_is_free_again(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, spec.path.name, MIB)
        with rbd.Image(pool, spec.path.name) as image:
            header = f"rbd_header.{image.id()}"
        pool.remove_object(header)

    assert CONTENT == stage.read(stage.backend.create(base, spec))[: len(CONTENT)]


@pytest.mark.parametrize("clone_format", ["1", "2"])
@pytest.mark.parametrize("before", ["flatten", "_make_lasting", "rename", "remove_snapshot"])
def test_a_disk_of_which_a_snapshot_was_being_made_can_be_removed(stage: RbdStage, clone_format: str, before: str) -> None:
    stage = replace(stage, clone_format=clone_format)
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    name = f"kept-{disk.instance}"

    assert -signal.SIGKILL == work(Task(stage.backend, "snapshot", (disk, name), before=before)).returncode
    stage.backend.remove(disk)

    assert ({name} if before == "remove_snapshot" else set()) == of_disk(stage, spec_at(disk))


def test_what_a_claim_names_that_none_of_us_made_is_not_removed(stage: RbdStage, tmp_path: Path) -> None:
    spec = spec_of(stage)
    token, image, other = token_hex(8), spec.path.name, f"other-{spec.instance}"
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, other, MIB)
        claim(pool, f"{image}/{token}", host=stage.backend.host, temporary=other)
        claim(pool, f"{image}/malformed", host="", value=b"{")

    made = stage.backend.create(base_image(tmp_path, CONTENT), spec)

    assert {image, other} == of_disk(stage, spec)
    stage.backend.remove(made)


def test_a_client_that_is_dead_is_shut_out_though_it_watches_nothing(stage: RbdStage, tmp_path: Path) -> None:
    spec = spec_of(stage)
    with pool_of(stage.ceph, stage.pool) as (_, pool):
        claim(pool, f"{spec.path.name}/{token_hex(8)}", host=stage.backend.host, address="v1:127.0.0.1:0/4711")

    stage.backend.create(base_image(tmp_path, CONTENT), spec)

    assert "127.0.0.1:0/4711" in stage.ceph.ceph("osd", "dump")["blocklist"]


def test_what_a_killed_removal_left_in_the_trash_goes_when_the_disk_is_made_again(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)
    removed_by_us = b"\x03"  # TRASH_IMAGE_SOURCE_REMOVING of cls_rbd_types.h, behind a version and a length of 6 bytes
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, spec.path.name, MIB)
        with rbd.Image(pool, spec.path.name) as image:
            entry = f"id_{image.id()}"
        rbd.RBD().trash_move(pool, spec.path.name, 0)
        [(_, value)] = [pair for pair in omap(pool, "rbd_trash") if pair[0] == entry]
        set_omap(pool, "rbd_trash", entry, value[:6] + removed_by_us + value[7:])
        claim(pool, f"{spec.path.name}/{token_hex(8)}", host=stage.backend.host)

    made = stage.backend.create(base, spec)

    with pool_of(stage.ceph, stage.pool) as (_, pool):
        assert entry not in [key for key, _ in omap(pool, "rbd_trash")]
    stage.backend.remove(made)
    assert set() == of_disk(stage, spec)
