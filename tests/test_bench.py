"""The page of figures is what its generator makes of the results that are kept, and says so when a goal is missed."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from xml.etree.ElementTree import parse

import pytest

from bench.groups import GROUPS, Group, asked_for
from bench.measure import Contender, Gauge, Row, Things, measure
from bench.report import tables
from bench.report.figures import NAMES
from bench.report.goals import verdicts
from bench.report.pages import PAGE, TEMPLATE, filled, make, stale
from bench.results import RESULTS, BadResults, Goal, LeftOut, Measured, Run, Side, read, write
from bench.setting import CannotRun, Setting
from bench.sitting import Terms, sit

ROOT = Path(__file__).parents[1]
TERMS = Terms(rounds=3, size=1 << 20, limit=60.0, files=10)


def _nothing(name: str) -> Contender:
    return Contender(name=name, run=lambda _: None, repeat=100)


PEER = _nothing("peer")


# ------------------------------------------------------------------------------------------------------------------ the page


def test_the_page_and_its_pictures_are_what_the_generator_makes_of_the_kept_results() -> None:
    assert [] == stale(), "run `python -m bench report`"


def test_the_kept_results_say_something_about_every_row_and_about_no_other() -> None:
    assert {group.name: set(group.names) for group in GROUPS} == {name: set(run.names) for name, run in read().items()}


def test_every_row_that_the_page_names_exists() -> None:
    known = {name for group in GROUPS for name in group.names}
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"^(?:\| |- )?`([^`]+)`(?::| \|| was left out)", text, flags=re.MULTILINE)
    assert known == set(named)


def test_the_page_shows_every_group_and_every_picture_once() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    assert sorted(group.name for group in GROUPS) == sorted(re.findall(r"^\{\{ table (.+) \}\}$", text, flags=re.MULTILINE))
    assert sorted(NAMES) == sorted(re.findall(r"^\{\{ figure (.+) \}\}$", text, flags=re.MULTILINE))


def test_each_picture_has_its_words_as_text_and_colours_for_light_and_dark() -> None:
    pictures = sorted((PAGE.parent / "performance").glob("*.svg"))
    assert sorted(NAMES) == [picture.stem for picture in pictures]
    for picture in pictures:
        words = {"".join(element.itertext()) for element in parse(picture).iter("{http://www.w3.org/2000/svg}text")}
        assert len(words) > 5
        text = picture.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert not re.search(r"dc:date|dc:creator", text)
        assert f"]({picture.parent.name}/{picture.name})" in PAGE.read_text(encoding="utf-8")


def test_a_page_that_was_changed_by_hand_is_found_and_made_again(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    make(page=page)
    assert [] == stale(page=page)
    page.write_text(page.read_text(encoding="utf-8").replace("missed", "met"), encoding="utf-8")
    (tmp_path / "performance" / "ratios.svg").unlink()
    (tmp_path / "performance" / "of-before.svg").write_text("<svg/>", encoding="utf-8")
    assert ["of-before.svg", "performance.md", "ratios.svg"] == stale(page=page)
    make(page=page)
    assert [] == stale(page=page)


def test_a_mark_in_the_template_that_means_nothing_is_refused() -> None:
    for mark in ("{{ table nothing }}", "{{ figure nothing }}", "{{ nothing }}"):
        with pytest.raises(BadResults, match="nothing"):
            filled(f"before\n{mark}\nafter\n", {}, {})


# --------------------------------------------------------------------------------------------------------------- the results


def test_medians_and_ratios_are_those_of_the_values_beside_them() -> None:
    rows = [row for run in read().values() for row in run.rows]
    assert rows
    for row in rows:
        for side in filter(None, (row.ours, row.peer)):
            assert pytest.approx(median(side.wall), rel=1e-4) == side.wall_median
            assert pytest.approx(median(side.cpu), rel=1e-4, abs=1e-9) == side.cpu_median
        if row.peer and row.wall_ratio:
            ratios = [ours / peer for ours, peer in zip(row.ours.wall, row.peer.wall, strict=True)]
            assert pytest.approx(ratios, rel=1e-4) == list(row.wall_ratio.rounds)
            assert median(row.wall_ratio.rounds) == pytest.approx(row.wall_ratio.median, rel=1e-4)
            assert (min(row.wall_ratio.rounds), max(row.wall_ratio.rounds)) == (row.wall_ratio.least, row.wall_ratio.most)
        assert row.peer is None or row.wall_ratio


def test_what_is_kept_can_be_read_again(tmp_path: Path) -> None:
    run = _sat(_rows(_row()))
    write(run, tmp_path)
    assert {"tried": run} == read(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: text.replace('"group": "tried"', '"group": "other"'), "has the group other"),
        (lambda text: text.replace('"cores": ', '"cores": "many", "others": '), "Expected `int`"),
        (lambda text: text.replace('"left_out"', '"left"'), "missing required field `left_out`"),
        (lambda _: "", "truncated"),
    ],
)
def test_results_that_cannot_be_right_are_refused(spoil: Callable[[str], str], complaint: str, tmp_path: Path) -> None:
    path = write(_sat(_rows(_row())), tmp_path)
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(BadResults, match=complaint) as refused:
        read(tmp_path)
    assert str(path) in str(refused.value)


def test_a_group_that_was_never_measured_is_missed_on_the_page(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        if path.stem != "lock":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadResults, match="table lock"):
        make(tmp_path, tmp_path / "performance.md")
    assert not (tmp_path / "performance.md").exists()


# ------------------------------------------------------------------------------------------------------------------- a round


def test_the_first_round_is_not_counted_and_who_goes_first_changes() -> None:
    ran: list[str] = []
    ours, peer = (Contender(name=name, run=partial(_note, ran, name)) for name in ("ours", "peer"))
    measured = measure(_row(ours=ours, peer=peer), rounds=3)
    assert ["peer", "ours", "ours", "peer", "peer", "ours", "ours", "peer"] == ran
    assert (3, 3) == (len(measured.ours.wall), len(measured.ours.cpu))


def test_a_contender_is_prepared_before_each_round_and_told_how_often_it_ran() -> None:
    told: list[tuple[str, int]] = []
    ours = Contender(
        name="ours",
        run=lambda turn: told.append(("run", turn)),
        prepare=lambda number: told.append(("prepare", number)),
        repeat=2,
    )
    measure(_row(ours=ours, peer=None), rounds=1)
    assert [("prepare", 0), ("run", 0), ("run", 1), ("prepare", 1), ("run", 2), ("run", 3)] == told


def test_the_processor_time_of_a_process_that_is_asked_is_told_by_its_own_clock() -> None:
    ticks = iter(range(100))
    measured = measure(_row(peer=Contender(name="peer", run=lambda _: None, clock=lambda: float(next(ticks)))), rounds=2)
    assert measured.peer is not None
    assert (1.0, 1.0) == measured.peer.cpu


def test_a_clock_that_saw_nothing_gives_no_ratio() -> None:
    measured = measure(_row(peer=Contender(name="peer", run=lambda _: None, clock=lambda: 1.0)), rounds=2)
    assert measured.wall_ratio is not None
    assert measured.cpu_ratio is None


# ----------------------------------------------------------------------------------------------------------------- a sitting


def test_a_row_that_fails_is_left_out_with_its_reason_and_the_others_go_on() -> None:
    def fail(_: int) -> None:
        subprocess.run(["sh", "-c", "echo no such device >&2; exit 3"], check=True, capture_output=True)

    run = _sat(_rows(_row("tried, bad", ours=Contender(name="ours", run=fail)), _row("tried, good")))
    assert ["tried, good"] == [row.name for row in run.rows]
    [left_out] = run.left_out
    assert "tried, bad" == left_out.name
    assert "exit status 3" in left_out.why
    assert left_out.why.endswith("no such device")


def test_a_group_that_cannot_go_on_leaves_out_the_rest_and_is_put_away() -> None:
    put_away: list[str] = []

    def rows(_: Setting) -> Things:
        try:
            yield _row("tried, first")
            raise CannotRun("no service today")
        finally:
            put_away.append("mounts")

    run = sit(Group("tried", rows, ("tried, first", "tried, second", "tried, third")), ("tried, first", "tried, third"), TERMS)
    assert ["tried, first"] == [row.name for row in run.rows]
    assert (LeftOut(name="tried, third", why="CannotRun: no service today"),) == run.left_out
    assert ["mounts"] == put_away


def test_a_row_that_its_group_forgets_is_left_out_as_well() -> None:
    run = sit(Group("tried", lambda _: _rows(), ("tried, it",)), ("tried, it",), TERMS)
    assert (LeftOut(name="tried, it", why="its group did not make it"),) == run.left_out


def test_a_size_and_what_a_group_leaves_out_itself_are_kept() -> None:
    gauge = Gauge(name="tried, memory", what="of something", read=lambda: 42, at_most=41)
    run = _sat(_rows(gauge, LeftOut(name="tried, it", why="no disk")))
    assert [42] == [one.size for one in run.gauges]
    assert [LeftOut(name="tried, it", why="no disk")] == list(run.left_out)
    assert "**missed**" in tables.table(run)
    assert "`tried, it` was left out: no disk." in tables.table(run)


def test_along_a_curve_a_side_that_would_take_too_long_does_not_run_and_says_why() -> None:
    slow = Contender(name="slow", run=lambda _: subprocess.run(["sleep", "0.2"], check=True))
    points = [_row(f"tried, {at}", peer=slow, at=at) for at in (1, 10, 100)]
    terms = replace(TERMS, rounds=1, limit=2.0)
    run = sit(_group(_rows(*points)), tuple(point.name for point in points), terms)
    assert [True, False, False] == [row.peer is not None for row in run.rows]
    assert re.search("slow would take about [0-9]+ s a round, by what it took at 1", str(run.rows[1].alone))
    assert run.rows[1].alone is not None
    assert run.rows[1].alone in tables.table(run)
    ours = [_row(f"tried, {at}", ours=slow, at=at) for at in (1, 10)]
    run = sit(_group(_rows(*ours)), tuple(point.name for point in ours), terms)
    assert ["tried, 10"] == [one.name for one in run.left_out]


def test_a_point_of_a_curve_with_more_files_than_were_allowed_is_told_why_it_is_left_out(tmp_path: Path) -> None:
    setting = Setting(directory=tmp_path, size=1, files=10_000)
    assert setting.too_many(10_000) is None
    assert "it needs 100,000 files, and 10,000 were allowed" == setting.too_many(100_000)


# -------------------------------------------------------------------------------------------------------------------- a goal


def test_a_goal_that_is_missed_is_shown_as_missed() -> None:
    measured = measure(_row(goal=Goal(wall=0.5, cpu=2.0, seconds=1e-3, why="it is tried")), rounds=3)
    ratio = measured.wall_ratio
    assert ratio is not None
    slower = replace(measured, wall_ratio=replace(ratio, rounds=(0.4, 0.6, 0.7)), cpu_ratio=replace(ratio, rounds=(1.0,) * 3))
    slower = replace(slower, ours=replace(slower.ours, wall=(2e-3, 5e-4, 6e-4)))
    told = [str(verdict) for verdict in verdicts(slower)]
    assert ["0.5: **missed**, good in 1 of 3 rounds", "processor 2: met", "1 ms: met, good in 2 of 3 rounds"] == told
    run = replace(_sat(_rows(_row())), rows=(slower,))
    assert "Of 3 goals that could be judged, 2 are met and 1 are missed." in tables.goals({"tried": run})
    assert "- `tried, it`: 0.6 instead of 0.5" in tables.goals({"tried": run})
    assert "Where the goals come from: it is tried." in tables.table(run)


def test_a_goal_of_a_ratio_cannot_be_judged_without_a_peer() -> None:
    measured = measure(_row(peer=None, goal=Goal(wall=0.5, why="it is tried")), rounds=1)
    assert [] == list(verdicts(measured))
    assert "not judged" in tables.table(replace(_sat(_rows(_row())), rows=(measured,)))


def test_the_power_of_a_curve_is_told_and_judged() -> None:
    def power(*seconds: float) -> str:
        side = [Side(name="x", wall=(one,), cpu=(one,), wall_median=one, cpu_median=one) for one in seconds]
        rows = [measure(_row(f"tried, {10**n}", peer=None, at=10**n), rounds=1) for n in range(len(seconds))]
        run = replace(_sat(_rows(_row())), rows=tuple(replace(row, ours=its) for row, its in zip(rows, side, strict=True)))
        return tables.curve({"tried": run}, "tried")

    assert "grows with the power 1.00; 1.1 at most is the goal of ours, which is met." in power(1, 10, 100)
    assert "grows with the power 2.00; 1.1 at most is the goal of ours, which is **missed**." in power(1, 100, 10_000)
    assert "too few points" in power(1)


# ---------------------------------------------------------------------------------------------------------- the command line


def test_the_names_of_rows_are_their_own_and_begin_with_their_groups() -> None:
    names = [name for group in GROUPS for name in group.names]
    assert len(names) == len(set(names))
    for group in GROUPS:
        assert all(name.startswith(f"{group.name}, ") for name in group.names)
        assert [(group, group.names)] == list(asked_for([group.name]))


def test_a_whole_group_is_kept_and_a_part_is_not(tmp_path: Path) -> None:
    done = _bench("lock", "hit, alone", "--rounds", "1", "--size", "1MiB", "--results", tmp_path, "--directory", tmp_path)
    assert 0 == done.returncode, done.stderr
    assert ["lock.json"] == [path.name for path in tmp_path.iterdir()]
    assert 1 == done.stdout.count("not kept, as it is a part of its group")
    [row] = read(tmp_path)["lock"].rows
    assert 1 == len(row.ours.wall)


def test_the_command_line_refuses_what_it_cannot_mean(tmp_path: Path) -> None:
    for arguments, complaint in (
        (["nonsense"], "no row's name begins with nonsense; the groups are miss, "),
        (["lock", "--size", "big"], "--size"),
        (["lock", "--rounds", "none"], "--rounds"),
        (["lock", "--rounds", "0"], "--rounds"),
    ):
        done = _bench(*arguments, "--results", tmp_path)
        assert 0 != done.returncode
        assert complaint in done.stderr
        assert [] == list(tmp_path.iterdir())


def test_the_report_can_be_checked_without_changing_it() -> None:
    done = _bench("report", "--check")
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def _note(ran: list[str], name: str, _: int) -> None:
    ran.append(name)


def _bench(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def _row(
    name: str = "tried, it",
    *,
    ours: Contender | None = None,
    peer: Contender | None = PEER,
    goal: Goal | None = None,
    at: int | None = None,
) -> Row:
    curve = "tried" if at else None
    return Row(name=name, what="nothing", ours=ours or _nothing("ours"), peer=peer, goal=goal, curve=curve, at=at)


def _rows(*things: Row | Gauge | Measured | LeftOut) -> Things:
    yield from things


def _group(things: Iterator[Row | Gauge | Measured | LeftOut]) -> Group:
    made = list(things)
    return Group("tried", lambda _: _rows(*made), tuple(thing.name for thing in made))


def _sat(things: Things) -> Run:
    group = _group(things)
    return sit(group, group.names, TERMS)
