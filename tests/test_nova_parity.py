"""Behaviours of Nova's image cache manager that ours alone can show; docs/reference/nova-parity.md has a row for each.

Those that need the real Nova beside us are in tests/components/nova.
"""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from underlay.config import parse_config
from underlay.host import Host
from underlay.plan import Report

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/nova-parity.md"
NAMES = [digit * 40 for digit in "abcdef"]
DAY = 86400.0


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """An instances path with an empty cache."""
    (tmp_path / "instances/_base").mkdir(parents=True)
    return tmp_path / "instances"


def host_of(instances: Path, **rules: Any) -> Host:
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in rules.items())
    text = f"""
        host = "here"
        [instances]
        path = "{instances}"
        [caches.base]
        kind = "base"
        path = "{instances}/_base"
        {lines}
    """
    return Host.open(parse_config(text, origin=instances / "underlay.toml"))


def put(instances: Path, *names: str, age: float = 2 * DAY) -> list[Path]:
    """Files of the cache, last used so many seconds ago."""
    paths = [instances / "_base" / name for name in names]
    for path in paths:
        path.write_bytes(bytes(4096))
        os.utime(path, (time.time() - age, time.time() - age))
    return paths


def prune(host: Host) -> Report:
    return host.apply(host.plan_prune(instances=[]))


def left(instances: Path) -> set[str]:
    return set(os.listdir(instances / "_base")) - {".underlay"}


def codes(report: Report) -> dict[str, set[str]]:
    """The reasons by file."""
    return {verdict.file.name: {reason.code for reason in verdict.reasons} for verdict in report.verdicts}


def test_a_host_that_is_silent_for_days_keeps_its_images(instances: Path) -> None:
    put(instances, NAMES[0])
    (instances / "compute_nodes").write_text(json.dumps({"here": time.time(), "there": time.time() - 30 * DAY}))
    report = prune(host_of(instances))
    assert ([], {NAMES[0]}) == (list(report.removed), left(instances))
    assert {"hosts-undeclared"} <= codes(report)[NAMES[0]]


def test_a_registry_of_hosts_that_cannot_be_read_is_left_as_it_is(instances: Path) -> None:
    put(instances, NAMES[0])
    (instances / "compute_nodes").write_text('{"there": 17')
    report = prune(host_of(instances))
    assert '{"there": 17' == (instances / "compute_nodes").read_text()
    assert "registry-unreadable" in {problem.code for problem in report.problems}


def test_a_pass_puts_the_host_s_stamp_beside_those_of_the_others(instances: Path) -> None:
    (instances / "compute_nodes").write_text(json.dumps({"there": 17.5}))
    before = time.time()
    prune(host_of(instances))
    registry = json.loads((instances / "compute_nodes").read_text())
    assert {"here", "there"} == registry.keys()
    assert 17.5 == registry["there"]
    assert before <= registry["here"] <= time.time()


def test_a_cache_directory_that_is_not_there_is_a_problem_of_a_pass(instances: Path) -> None:
    (instances / "_base").rmdir()
    report = prune(host_of(instances))
    assert ["cache-missing"] == [problem.code for problem in report.problems]
    assert not (instances / "_base").exists()


def test_what_was_just_used_is_kept_though_the_minimum_ages_are_nought(instances: Path) -> None:
    ages: dict[str, Any] = {"remove_unused_original_minimum_age_seconds": 0, "remove_unused_resized_minimum_age_seconds": 0}
    put(instances, NAMES[0], f"{NAMES[1]}_20", age=60)
    put(instances, NAMES[2], f"{NAMES[3]}_20", age=3600)
    prune(host_of(instances, **ages))
    assert {NAMES[0], f"{NAMES[1]}_20"} == left(instances)
    prune(host_of(instances, **ages, keep_recent="0s"))
    assert set() == left(instances)


def test_files_of_all_kinds_go_in_one_pass(instances: Path) -> None:
    names = [
        NAMES[0],
        f"{NAMES[1]}_20",
        f"{NAMES[1]}_sm",
        "swap_512",
        "ephemeral_1_0706d66",
        f"{NAMES[2]}.part",
        f"{NAMES[3]}.raw",
    ]
    paths = put(instances, *names)
    report = prune(host_of(instances))
    assert (sorted(paths), set()) == (sorted(report.removed), left(instances))


def test_a_file_that_vanishes_meanwhile_does_not_end_the_pass(instances: Path) -> None:
    gone, other = put(instances, NAMES[0], NAMES[1])
    host = host_of(instances)
    plan = host.plan_prune(instances=[])
    gone.unlink()
    assert [other] == list(host.apply(plan).removed)


def test_a_file_that_cannot_be_removed_does_not_end_the_pass(instances: Path) -> None:
    stuck, other = put(instances, NAMES[0], NAMES[1])
    host = host_of(instances)
    plan = host.plan_prune(instances=[])
    # Another has the name in the trash, so that this one cannot go there.
    host.config.caches["base"].prepare()
    (instances / "_base/.underlay/trash" / stuck.name).mkdir()
    report = host.apply(plan)
    assert [other] == list(report.removed)
    assert {stuck.name} == left(instances)
    assert stuck in {problem.path for problem in report.problems} or {"unused"} != codes(report)[stuck.name]


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set() == named - written
    assert len(named) > 40


def test_the_page_has_a_row_for_each_behaviour() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for letter, count in (("C", 27), ("D", 22)):
        rows = re.findall(rf"^\| {letter}(\d+) \|(.*)\|$", text, re.MULTILINE)
        assert list(range(1, count + 1)) == [int(number) for number, _ in rows]
        assert [] == [number for number, row in rows if "`test_" not in row]
    weak = {int(number) for number in re.findall(r"\bH(\d+)\b", text)}
    assert set(range(1, 20)) == weak
