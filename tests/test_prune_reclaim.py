"""Room made on a file system that is short of it: over all its caches by priority, and no more than is wanted."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aging import aged, original
from machine import MIB, run
from underlay.errors import CacheMissing
from underlay.filesystems import free_bytes
from underlay.host import Host
from underlay.plan import Plan

pytestmark = pytest.mark.component("root", "tmpfs", "ext4")

Mounted = Callable[..., Path]
HOUR, DAY = 3600.0, 86400.0
SIZE = 4 * MIB
WANTED = 3 * MIB


class Room:
    """A small file system with three caches, and one elsewhere."""

    def __init__(self, tmp_path: Path, where: Path) -> None:
        self.where, self.config = where, tmp_path / "underlay.toml"
        self.first, self.second, self.base = (where / name for name in ("first", "second", "base"))
        self.elsewhere = tmp_path / "elsewhere"
        for path in (self.first, self.second, self.base, self.elsewhere):
            path.mkdir()
        (tmp_path / "instances").mkdir()
        self.config.write_text(
            f'[instances]\npath = "{tmp_path}/instances"\n'
            f'[caches.second]\nkind = "masters"\npath = "{self.second}"\npriority = 25\n'
            f'[caches.first]\nkind = "masters"\npath = "{self.first}"\npriority = 75\n'
            f'[caches.base]\nkind = "base"\npath = "{self.base}"\n'
            f'[caches.elsewhere]\nkind = "masters"\npath = "{self.elsewhere}"\npriority = 99\n',
            encoding="utf-8",
        )
        self.host = Host.open(self.config)

    def put(self, cache: Path, *, age: float) -> Path:
        name = original(f"{age}") if cache == self.base else str(uuid.uuid4())
        (cache / name).write_bytes(os.urandom(SIZE))
        return aged(cache / name, age)

    def plan(self, more: int) -> Plan:
        """Of so many bytes more than are free."""
        return self.host.plan_reclaim(free_bytes(self.where) + more, self.where, instances=())


@pytest.fixture
def room(tmp_path: Path, mounted: Mounted) -> Room:
    return Room(tmp_path, mounted("ext4", 128 * MIB))


def going(plan: Plan) -> list[Path]:
    return [one.path for one in plan.verdicts if one.removes]


def codes(plan: Plan) -> dict[Path, str]:
    return {one.path: one.reasons[0].code for one in plan.verdicts}


def test_the_highest_priority_gives_first_and_the_least_recently_used_of_it(room: Room) -> None:
    old, new = room.put(room.first, age=2 * HOUR), room.put(room.first, age=HOUR)
    other, far = room.put(room.second, age=9 * DAY), room.put(room.elsewhere, age=9 * DAY)
    assert [old] == going(room.plan(WANTED))
    assert {old, new} == set(going(room.plan(SIZE + WANTED)))
    assert {old, new, other} == set(going(room.plan(2 * SIZE + WANTED)))
    assert {old: "reclaimed", new: "enough", other: "enough"} == codes(room.plan(WANTED))
    assert far not in codes(room.plan(WANTED))


def test_what_is_planned_comes_free_and_no_more_goes(room: Room) -> None:
    old, new = room.put(room.first, age=2 * HOUR), room.put(room.first, age=HOUR)
    os.sync()
    need = free_bytes(room.where) + WANTED
    report = room.host.apply(room.host.plan_reclaim(need, room.where, instances=()))
    assert ([old], 0) == (list(report.removed), report.shortfall)
    assert free_bytes(room.where) >= need
    assert new.exists()
    assert SIZE == report.freed


def test_where_there_is_room_enough_nothing_goes(room: Room) -> None:
    room.put(room.first, age=9 * DAY)
    assert [] == going(room.plan(0))
    assert 0 == room.plan(0).shortfall


def test_what_is_missing_all_the_same_is_told(room: Room) -> None:
    old = room.put(room.first, age=9 * DAY)
    plan = room.plan(SIZE + 12345)
    assert ([old], 12345) == (going(plan), plan.shortfall)


def test_what_is_in_use_or_was_used_just_now_stays(room: Room, tmp_path: Path) -> None:
    linked, pinned, recent = room.put(room.first, age=9 * DAY), room.put(room.first, age=9 * DAY), room.put(room.first, age=60)
    (room.where / "node").hardlink_to(linked)
    room.host.pin(pinned.name, holder="test")
    plan = room.plan(100 * MIB)
    assert [] == going(plan)
    assert {linked: "linked", pinned: "pin"} == {path: codes(plan)[path] for path in (linked, pinned)}
    assert recent.exists()


@pytest.mark.component("leases")
def test_what_a_program_has_open_stays_and_the_next_goes_in_its_place(room: Room) -> None:
    older, newer = room.put(room.first, age=2 * DAY), room.put(room.first, age=DAY)
    with older.open("rb"):
        report = room.host.apply(room.plan(WANTED))
    assert [newer] == report.removed
    assert older.exists()


def test_a_base_keeps_its_minimum_age(room: Room) -> None:
    young, old = room.put(room.base, age=2 * HOUR), room.put(room.base, age=2 * DAY)
    assert [old] == going(room.plan(100 * MIB))
    assert "young" == codes(room.plan(100 * MIB))[young]


def test_an_image_that_shares_its_bytes_frees_nothing_and_stays(tmp_path: Path, mounted: Mounted) -> None:
    room = Room(tmp_path, mounted("xfs"))
    shared, own = room.put(room.first, age=9 * DAY), room.put(room.first, age=DAY)
    subprocess.run(["cp", "--reflink=always", shared, room.where / "clone"], check=True)
    os.sync()
    plan = room.plan(WANTED)
    assert {shared: "frees-nothing", own: "reclaimed"} == codes(plan)
    assert [own] == list(room.host.apply(plan).removed)


def test_a_path_that_is_not_there_is_told(room: Room) -> None:
    with pytest.raises(CacheMissing):
        room.host.plan_reclaim(1, room.where / "nowhere")


def test_the_command_frees_what_is_asked_for_or_says_what_is_missing(room: Room) -> None:
    old = room.put(room.first, age=9 * DAY)
    os.sync()

    def reclaim(*arguments: str, more: int) -> tuple[int, dict[str, object]]:
        size = f"{free_bytes(room.where) + more}B"
        command = ["reclaim", size, "--path", os.fspath(room.where), "--json", *arguments]
        ended = run([*underlay(room.config), *command])
        return ended.status, ended.json

    status, told = reclaim("--dry-run", more=WANTED)
    assert (0, [], 0) == (status, told["removed"], told["shortfall"])
    assert old.exists()
    status, told = reclaim(more=WANTED)
    assert (0, [str(old)], SIZE) == (status, told["removed"], told["freed"])
    status, told = reclaim(more=WANTED)
    assert 47 == status
    assert told["shortfall"]
    refused = run([*underlay(room.config), "reclaim", "20", "--path", "/", "--json"])
    assert (13, "invalid-size") == (refused.status, refused.error["code"])


def underlay(config: Path) -> list[str]:

    return [sys.executable, "-m", "underlay", "--config", os.fspath(config)]


def test_times_given_are_the_plans_own(room: Room) -> None:
    room.put(room.base, age=2 * HOUR)
    later = datetime.now(UTC) + timedelta(days=2)
    plan = room.host.plan_reclaim(free_bytes(room.where) + WANTED, room.where, instances=(), now=later)
    assert 1 == len(going(plan))
