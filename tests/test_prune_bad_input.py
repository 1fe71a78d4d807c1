"""Whatever a prune meets: an answer, in bounded time, and nothing removed on doubt. In a process, as users run it."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from machine import Ended, Machine
from probing import DAY, IMAGES, ORIGINAL, OTHER, config_of, original, overlay, put, record
from underlay.errors import UnderlayError
from underlay.model import Problem
from underlay.plan import Plan
from underlay.prune import observation

ODD_NAMES = [
    "line\nbreak",
    "bad\udcff\udcfe",
    "-rf",
    "tab\t",
    "\x1b[31mred",
    "\u2019",
    "a" * 255,
    "{}",
    "%s",
    "disk\r",
    "\u202e",
]
UNUSED = original("a-2")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine.make(tmp_path)
    put(machine, ORIGINAL, age=10 * DAY)
    put(machine, UNUSED, age=10 * DAY)
    return machine


def plan(machine: Machine) -> Plan:
    return machine.host().plan_prune()


def removes(plan: Plan) -> set[str]:
    return {one.file.name for one in plan.verdicts if one.removes}


def told(ended: Ended) -> str:
    """All that a command said, which must not be a traceback."""
    said = ended.out + ended.err
    assert "Traceback" not in said, said
    assert ended.status in (0, 3), said
    return said


# --------------------------------------------------------------------------------------------------------------- odd names


def test_disks_and_directories_of_odd_names_are_seen_and_printed(machine: Machine) -> None:
    for name in ODD_NAMES:
        overlay(machine.instances / name / "disk", machine.base / ORIGINAL)
        overlay(machine.instances / OTHER / name, machine.base / ORIGINAL)
        (machine.base / name).touch()
        (machine.base / f".{name}"[:255]).mkdir()
    said = told(machine.run("prune", "--dry-run"))
    assert "\x1b[31m" not in said
    answer = machine.run("prune", "--json")
    told(answer)
    assert [str(machine.base / UNUSED)] == answer.json["removed"]
    assert (machine.base / ORIGINAL).exists()
    assert all((machine.base / name).exists() for name in ODD_NAMES)


def test_unreadable_disks_of_odd_names_are_told_and_keep_what_they_may_need(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    for name in ODD_NAMES:
        os.mkfifo(machine.instances / OTHER / f"disk{name}"[:250])
    answer = machine.run("prune", "--json")
    told(answer)
    assert [] == answer.json["removed"]
    assert len(ODD_NAMES) == len([one for one in answer.json["problems"] if one["code"] == "disk-unreadable"])
    told(machine.run("prune"))
    told(machine.run("explain", UNUSED))


@pytest.mark.parametrize("name", ["/x\udcff/base", "x\n" * 300, "json:" + "[" * 900, "\x1b[2J"])
def test_odd_backing_names_are_told(machine: Machine, name: str) -> None:
    overlay(machine.instances / OTHER / "disk", name)
    told(machine.run("prune", "--dry-run"))
    answer = machine.run("prune", "--json")
    told(answer)
    assert (machine.base / ORIGINAL).exists()


# ------------------------------------------------------------------------------------------------------- what is not there


def test_a_cache_that_is_not_there_is_told_and_the_others_go_on(machine: Machine, tmp_path: Path) -> None:
    with machine.config.open("a", encoding="utf-8") as file:
        file.write(f'[caches.gone]\nkind = "base"\npath = "{tmp_path}/gone"\n')
    answer = machine.run("prune", "--json")
    told(answer)
    assert {str(machine.base / ORIGINAL), str(machine.base / UNUSED)} == set(answer.json["removed"])
    assert [("cache-missing", str(tmp_path / "gone"))] == [
        (one["code"], one["path"]) for one in answer.json["problems"] if one["code"] == "cache-missing"
    ]


def test_a_cache_that_vanishes_after_it_was_looked_at_is_told(machine: Machine) -> None:
    found = plan(machine)
    shutil.rmtree(machine.base)
    report = machine.host().apply(found)
    assert [] == list(report.removed)
    assert "cache-missing" in {problem.code for problem in report.problems}


def test_a_cache_that_vanishes_while_it_is_pruned_is_told(machine: Machine) -> None:
    for number in range(300):
        put(machine, original(f"image-{number}"), age=10 * DAY)
    away = machine.base.with_name("away")
    for pause in (0.0, 0.01, 0.03, 0.1):
        found = plan(machine)
        timer = threading.Timer(pause, machine.base.rename, [away])
        timer.start()
        report = machine.host().apply(found)
        timer.join()
        assert not [path for path in report.removed if (away / path.name).exists()]
        shutil.rmtree(machine.base, ignore_errors=True)
        away.rename(machine.base)


def test_a_cache_that_vanishes_while_it_is_looked_at_is_an_answer(machine: Machine) -> None:
    for number in range(2000):
        put(machine, original(f"image-{number}"), age=10 * DAY)
    away = machine.base.with_name("away")
    for pause in (0.0, 0.005, 0.02):
        timer = threading.Timer(pause, machine.base.rename, [away])
        timer.start()
        try:
            found = plan(machine)
            assert found.problems or found.verdicts
        except UnderlayError:
            pass
        timer.join()
        away.rename(machine.base)


def test_instances_that_vanish_while_they_are_looked_at_keep_everything_or_nothing(machine: Machine) -> None:
    overlay(machine.instances / OTHER / "disk", machine.base / ORIGINAL)
    found = plan(machine)
    machine.instances.rename(machine.instances.with_name("away"))
    report = machine.host().apply(found)
    assert [] == list(report.removed)
    assert (machine.base / UNUSED).exists()


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink", "socketless"])
def test_what_stands_in_an_images_place_is_never_touched(machine: Machine, kind: str) -> None:
    path = machine.base / original("odd")
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "symlink":
            path.symlink_to(UNUSED)
        case _:
            path.symlink_to("nowhere")
    answer = machine.run("prune", "--json")
    told(answer)
    assert os.path.lexists(path)


# ------------------------------------------------------------------------------------------------------------------- times


def _lay(path: Path, seconds: float) -> None:
    try:
        os.utime(path, (seconds, seconds))
    except (OverflowError, OSError) as error:
        pytest.fail(f"no file system of a test refuses this time: {error}")


def test_a_last_use_in_the_future_keeps_a_file(machine: Machine) -> None:
    for seconds in (time.time() + 3600, 2**33, 15_032_385_000):
        _lay(machine.base / UNUSED, seconds)
        answer = machine.run("prune", "--json")
        told(answer)
        told(machine.run("prune", "--dry-run"))
        told(machine.run("explain", UNUSED))
        assert str(machine.base / UNUSED) not in answer.json["removed"]


def test_a_last_use_before_1970_is_an_old_one(machine: Machine) -> None:
    for seconds in (-1, -(2**31) + 1, 0):
        _lay(machine.base / UNUSED, seconds)
        told(machine.run("prune", "--dry-run"))
        assert UNUSED in removes(plan(machine))
    answer = machine.run("prune", "--json")
    told(answer)
    assert str(machine.base / UNUSED) in answer.json["removed"]


def test_a_use_in_the_future_is_set_right_when_it_is_refreshed(machine: Machine) -> None:
    overlay(machine.instances / OTHER / "disk", machine.base / ORIGINAL)
    _lay(machine.base / ORIGINAL, time.time() + 30 * DAY)
    machine.host().apply(plan(machine))
    assert abs((machine.base / ORIGINAL).stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize("days", [-36500, -1, 36500])
def test_a_now_of_the_callers_is_believed(machine: Machine, days: int) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    found = machine.host().plan_prune(now=now)
    assert removes(found) == ({ORIGINAL, UNUSED} if days > -9 else set())


def test_the_clock_of_a_cache_is_this_hosts_where_its_file_system_is(machine: Machine) -> None:
    problems: list[Problem] = []
    clock = observation._clock(machine.base, problems)
    assert abs((datetime.now(UTC) - clock).total_seconds()) < 60
    assert [] == problems


def look_at_the_clock(config: str) -> None:
    machine = Machine(Path(config).parent, Path(), Path(), Path(config))
    problems: list[Problem] = []
    clock = observation._clock(config_of(machine).caches["base"].root, problems)
    tell(f"{abs((datetime.now(UTC) - clock).total_seconds()) < 60} {len(problems)}")


@pytest.mark.component("root")
def test_who_may_not_write_a_cache_goes_by_this_hosts_clock(open_directory: Path) -> None:
    machine = Machine.make(open_directory)
    with start(look_at_the_clock, machine.config, user=NOBODY) as child:
        assert "True 0" == child.hear()


@pytest.mark.component("root", "tmpfs")
def test_a_cache_that_is_read_only_is_told_and_loses_nothing(machine: Machine, mounted: Callable[..., Path]) -> None:
    root = mounted("tmpfs")
    shutil.copy2(machine.base / UNUSED, root / UNUSED)
    text = machine.config.read_text(encoding="utf-8").replace(str(machine.base), str(root))
    machine.config.write_text(text, encoding="utf-8")
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
    answer = machine.run("prune", "--json")
    assert "Traceback" not in answer.out + answer.err
    assert [] == answer.json["removed"]
    assert "cache-not-writable" in {one["code"] for one in answer.json["problems"]}
    assert (root / UNUSED).exists()


# ------------------------------------------------------------------------------------------------------------------- sizes


def test_huge_directories_are_pruned_in_bounded_time(machine: Machine) -> None:
    for number in range(10_000):
        (machine.base / f"stranger-{number}").touch()
    for number in range(2000):
        (machine.instances / f"instance-{number}").mkdir()
    started = time.monotonic()
    assert {ORIGINAL, UNUSED} == removes(plan(machine))
    assert time.monotonic() - started < 20


def test_the_same_file_linked_thousands_of_times_is_kept(machine: Machine, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for number in range(3000):
        os.link(machine.base / UNUSED, links / f"{number}")
    verdict = next(one for one in plan(machine).verdicts if one.file.name == UNUSED)
    assert (False, ["linked"]) == (verdict.removes, [reason.code for reason in verdict.reasons])


def test_thousands_of_unreadable_disks_make_a_reason_that_a_person_can_read(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    for number in range(2000):
        os.mkfifo(machine.instances / OTHER / f"disk.{number}")
    found = plan(machine)
    assert set() == removes(found)
    assert 2000 == len([problem for problem in found.problems if problem.code == "disk-unreadable"])
    assert all(len(reason.detail) < 1000 for verdict in found.verdicts for reason in verdict.reasons)


def test_an_inventory_that_does_not_answer_keeps_every_image(machine: Machine) -> None:
    text = machine.config.read_text(encoding="utf-8").replace("[instances]", '[instances]\ninventory = "file:/nowhere/at/all"')
    machine.config.write_text(text, encoding="utf-8")
    put(machine, f"{ORIGINAL}.part", age=10 * DAY)
    answer = machine.run("prune", "--json")
    told(answer)
    assert [str(machine.base / f"{ORIGINAL}.part")] == answer.json["removed"]


def test_records_of_odd_refs_are_answers(machine: Machine) -> None:
    for ref in ("", " ", "\n", "\0", "x" * 100_000, "glance:", "https://", "file:///", "é\udcff", "oci://x@sha256:0"):
        odd = record(image_ref=ref, name=ref or "x", os_type="\udcff")
        found = machine.host().plan_prune(instances=[odd])
        assert found.verdicts
        assert not {unknown.code for unknown in found.unknowns} & IMAGES
