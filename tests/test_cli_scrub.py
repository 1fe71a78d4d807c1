"""``underlay scrub``: what people and programs are told, and the status that a timer's monitor sees."""

import json
from pathlib import Path

import pytest

from machine import MIB, NOBODY, Machine, on_terminal, plain
from test_scrub import flip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def image(machine: Machine) -> Path:
    return machine.host().ensure(machine.raw_image()).path


def test_a_sound_cache_is_one_line_and_a_success(machine: Machine, image: Path) -> None:
    ended = machine.call("scrub")
    assert (0, 1) == (ended.status, len(ended.out.splitlines()))
    assert ended.out.startswith("read 1 image, ")
    assert ended.out.endswith(": 1 sound\n")


def test_an_empty_cache_is_a_success(machine: Machine) -> None:
    ended = machine.call("scrub", "--json")
    assert (0, [], []) == (ended.status, ended.json["images"], ended.json["left"])
    assert "would read 0 images, 0 B\n" == machine.call("scrub", "--dry-run").out


def test_damage_is_told_with_who_needs_it_and_ends_in_its_own_status(machine: Machine, image: Path) -> None:
    disk = machine.host().create_disk("web-1", image.name).path
    flip(image, 600)

    ended = machine.call("scrub", "--no-refetch")

    assert 35 == ended.status
    heading, row, summary = ended.out.splitlines()
    assert ["OUTCOME", "IMAGE", "CACHE", "WHAT"] == heading.split()
    assert row.startswith("damaged")
    assert f"needed: backing-file {disk}" in row
    assert summary.endswith(": 1 damaged")
    assert "quarantined" in ended.err
    again = machine.call("scrub", "--json")
    assert 35 == again.status
    [one] = again.json["images"]
    assert ("damaged", "refetched") == (one["outcome"], one["repair"]["code"])
    assert ["backing-file"] == [user["code"] for user in one["users"]]
    assert 0 == machine.call("scrub").status


def test_a_dry_run_reads_nothing_and_tells_the_order(machine: Machine, image: Path) -> None:
    flip(image, 600)
    answer = machine.call("scrub", "--dry-run", "--json").json
    assert ([], 0, True) == (answer["images"], answer["read"], answer["dry_run"])
    [left] = answer["left"]
    assert (str(image), "scrub", "due", None, 0) == (
        left["path"],
        left["action"],
        left["reason"]["code"],
        left["read_at"],
        left["reached"],
    )
    assert not (machine.base / ".underlay" / "scrubs").exists()
    assert "published" in machine.call("scrub", "--dry-run").out
    assert "left out: read recently" in machine.call("scrub", "--dry-run", "--older-than", "1h").out


def test_a_scrub_that_runs_out_of_time_says_what_is_left(machine: Machine, image: Path) -> None:
    other = machine.host().ensure(machine.raw_image("other.raw", size=64 * MIB, payload=48 * MIB, message="another")).path
    ended = machine.run("scrub", "--time", "0.5s", "--rate", "1MiB")
    assert 0 == ended.status
    assert "left for the next scrub: " in ended.out or "stopped" in ended.out
    told = machine.call("scrub", "--dry-run", "--json").json["left"]
    assert {str(image), str(other)} == {one["path"] for one in told}


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["nothing-of-the-kind"], 40, "not-cached"),
        (["--cache", "none"], 17, "unknown-cache"),
        (["--rate", "100"], 13, "invalid-size"),
        (["--rate", "0B"], 13, "invalid-size"),
        (["--time", "2"], 13, "invalid-size"),
        (["--time", "0s"], 13, "invalid-size"),
        (["--older-than", "old"], 13, "invalid-size"),
        (["--rate", "100", "--dry-run"], 13, "invalid-size"),
        (["--sideways"], 2, "usage"),
        (["--instances", "/nowhere.json"], 84, "inventory-unavailable"),
    ],
)
def test_what_cannot_be_meant_is_refused(machine: Machine, image: Path, arguments: list[str], status: int, code: str) -> None:
    ended = machine.call("scrub", *arguments, "--json")
    assert (status, code) == (ended.status, ended.error["code"])


def test_an_interrupted_scrub_goes_on_where_it_was(machine: Machine) -> None:
    machine.host().ensure(machine.raw_image(size=64 * MIB, payload=48 * MIB))
    with machine.start("--log-format", "json", "scrub", "--rate", "4MiB") as process:
        assert process.stderr is not None
        while not json.loads(process.stderr.readline()).get("done"):
            pass
        process.send_signal(2)
        assert 130 == process.wait(60)
    [left] = machine.call("scrub", "--dry-run", "--json").json["left"]
    assert "stopped" == left["reason"]["code"]
    assert left["reached"] > 0
    assert 0 == machine.call("scrub").status


def test_a_terminal_shows_a_bar_with_the_time_that_is_left(machine: Machine, image: Path) -> None:
    status, seen = on_terminal(machine.argv("scrub"))
    assert 0 == status
    assert "scrub" in plain(seen)
    assert "1 sound" in plain(seen)


@pytest.mark.component("root")
def test_another_user_may_not_scrub_what_it_may_not_write(open_directory: Path) -> None:
    (open_directory / "host").mkdir()
    machine = Machine.make(open_directory / "host")
    path = machine.host().ensure(machine.raw_image()).path
    ended = machine.run("scrub", "--json", user=NOBODY)
    assert (42, ["cache-not-writable"]) == (ended.status, [one["code"] for one in ended.json["problems"]])
    assert [str(path)] == [one["path"] for one in ended.json["left"]]
    assert path.exists()
