"""How it goes, on standard error: events by how much they matter, progress in bars and in lines."""

import json
import re
from pathlib import Path

import pytest

from machine import MIB, Machine, on_terminal, plain
from underlay.cli.session import Reporter
from underlay.model import Event, Level
from underlay.testing.httpserver import Served, serving

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (debug|info|warning|problem) [a-z-]+( \S+=(\"[^\"]*\"|\S+))*")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


def codes(lines: str) -> list[str]:
    return [line.split()[2] for line in lines.splitlines()]


def test_each_event_is_one_structured_line(machine: Machine) -> None:
    ended = machine.run("fetch", machine.raw_image())

    assert ["fetching", "verified", "published"] == codes(ended.err)
    assert all(LINE.fullmatch(line) for line in ended.err.splitlines()), ended.err


def test_verbose_tells_every_step(machine: Machine) -> None:
    ref = machine.raw_image()
    quiet, verbose = machine.run("fetch", ref), machine.run("-v", "fetch", ref)

    assert "debug" not in quiet.err
    assert ["revalidated"] == codes(verbose.err)
    assert "debug" == verbose.err.split()[1]
    assert {"staged", "reserved", "received", "published", "cleared"} <= set(
        codes(machine.run("-vv", "fetch", machine.raw_image("b.raw")).err)
    )


def test_a_log_in_json_has_the_same_events(machine: Machine) -> None:
    ended = machine.run("-v", "--log-format", "json", "fetch", machine.raw_image())

    events = [json.loads(line) for line in ended.err.splitlines()]
    assert ["fetching", "verified", "published"] == [event["event"] for event in events if event["level"] == "info"]
    assert all({"time", "level", "event", "detail", "ref"} <= event.keys() for event in events)


def test_the_answer_is_alone_on_standard_output(machine: Machine) -> None:
    ended = machine.run("-vv", "--log-format", "json", "fetch", machine.raw_image(), "--json")

    assert {"image", "reason"} == ended.json.keys()


def test_what_a_listing_could_not_look_at_is_a_warning(machine: Machine) -> None:
    odd = machine.root / "root.img"
    machine.host().create_disk("web-1", machine.raw_image(), path=odd, backend="flat")
    odd.unlink()
    odd.mkdir()

    for command in (["list"], ["disk", "list"], ["du"], ["show", "image"]):
        ended = machine.run(*command)
        if command != ["show", "image"]:
            assert 0 == ended.status
            assert ["disk-unrecorded"] == codes(ended.err)
            assert f"path={odd}" in ended.err


@pytest.mark.parametrize("threshold", Level)
def test_an_event_is_told_when_it_matters_as_much_as_is_asked_for(capsys: pytest.CaptureFixture[str], threshold: Level) -> None:
    reporter = Reporter(threshold=threshold, as_json=False)

    for level in Level:
        reporter.event(Event(code="x", level=level, detail=""))

    weights = list(Level)
    assert [str(level) for level in weights[weights.index(threshold) :]] == [
        line.split()[1] for line in capsys.readouterr().err.splitlines()
    ]


# ---------------------------------------------------------------------------------------------------------------- on a terminal


def test_on_a_terminal_a_bar_tells_stage_amount_rate_and_time_left(machine: Machine) -> None:
    with serving({"/a.img": Served(bytes(range(256)) * 4096 * 6, etag='"1"', rate=4 * MIB)}) as server:
        status, sent = on_terminal(machine.argv("fetch", server.url("/a.img")))

    assert 0 == status, sent
    frames = [line for line in re.split(r"[\r\n]+", plain(sent)) if line.startswith("fetch ")]
    told = re.compile(r"fetch    ━+\S* +\d\.\d MiB of 6\.0 MiB +[\d.]+ [MK]iB/s \d+ s left")
    assert any(told.search(frame) for frame in frames), frames
    assert re.search(r"6\.0 MiB of 6\.0 MiB", frames[-1])
    assert all(len(frame) <= 80 for frame in frames)
    answer = plain(sent).splitlines()[-2:]
    assert answer[0].startswith(f"fetched {server.url('/a.img')}: ")


def test_on_a_terminal_only_warnings_are_lines(machine: Machine) -> None:
    image = Served(bytes(range(256)) * 4096, etag='"1"')
    with serving({"/a.img": image}) as server:
        ref = server.url("/a.img")
        _, first = on_terminal(machine.argv("fetch", ref))
        machine.config.write_text(machine.config.read_text() + '[sources.http]\nrevalidate_after = "0s"\n')
    status, second = on_terminal(machine.argv("fetch", ref))

    assert "published" not in plain(first)
    assert 0 == status
    assert re.search(r"Z warning source-unavailable ", plain(second))


def test_on_a_terminal_an_error_is_one_line_below_the_bar(machine: Machine) -> None:
    with serving({"/a.img": Served(bytes(range(256)) * 4096, etag='"1"')}) as server:
        status, sent = on_terminal(machine.argv("fetch", server.url("/a.img"), "--checksum", "md5:" + 32 * "0"))

    assert 30 == status
    assert plain(sent).splitlines()[-1].startswith("underlay: ") or "underlay: " in plain(sent)
    assert "Traceback" not in sent


# ----------------------------------------------------------------------------------------------------------- not on a terminal


def test_elsewhere_long_work_tells_a_line_every_few_seconds(machine: Machine) -> None:
    image = Served(bytes(range(256)) * 4096 * 8, etag='"1"', rate=5 * MIB / 4)
    with serving({"/a.img": image, "/b.img": image}) as server:
        processes = [
            machine.start("fetch", server.url("/a.img")),
            machine.start("--log-format", "json", "fetch", server.url("/b.img")),
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
    assert [0, 0] == [process.returncode for process in processes]

    (line,) = [line for line in outputs[0][1].splitlines() if line.startswith("fetch ")]
    told = r": \d\.\d MiB of 8\.0 MiB \(\d+ %\) at (1\.\d MiB|\d+ KiB)/s \d+ s left"
    assert re.fullmatch(f"fetch {server.url('/a.img')}{told}", line), line
    events = [json.loads(line) for line in outputs[1][1].splitlines()]
    (progress,) = [event for event in events if event["event"] == "progress"]
    assert (server.url("/b.img"), "fetch", 8 * MIB) == (progress["ref"], progress["stage"], progress["total"])
    assert 0 < progress["done"] <= 8 * MIB
