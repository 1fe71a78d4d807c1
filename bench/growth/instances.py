"""A pass over a base cache, with more and more instances and ten files for each: ours, and that of Nova's own manager."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.components import clock, nova
from bench.growth.curve import Curve
from bench.measure import Contender, Row, Things
from bench.results import Goal, LeftOut
from bench.setting import Setting
from bench.tree import Tree, build
from underlay import Host

PASS = Curve(
    name="instances",
    what="a whole pass: everything looked at, decided, uses refreshed; nothing is old enough to go",
    of="instances",
    points=(100, 1_000, 10_000),
)
_FILES = 10  # for each instance
_GOALS = {10_000: Goal(seconds=1.5, why="the system calls of such a pass alone take half a second")}


def instances(setting: Setting) -> Things:
    """A row for each number of instances, in processes that run already."""
    with nova() as runner:
        for at in PASS.points:
            name = PASS.row_name(at)
            if too_many := setting.too_many(_FILES * at):
                yield LeftOut(name=name, why=too_many)
            elif setting.wants(name):
                yield _at(setting.directory, at, runner)


def _at(directory: Path, at: int, runner: Any) -> Row:
    ours, theirs = (build(directory / f"{side}-{at}", instances=at, files=_FILES * at) for side in ("ours", "nova"))
    records = json.loads(theirs.records.read_text(encoding="utf-8"))
    runner.ask(do="load", instances_path=os.fspath(theirs.instances), instances=records)
    peer = Contender(name="nova 34.0.0, ImageCacheManager.update", run=lambda _: runner.ask(do="update"), clock=clock(runner))
    return PASS.row(at, Contender(name="Host.plan_prune, apply", run=_pass(ours)), peer, goal=_GOALS.get(at))


def _pass(tree: Tree) -> Callable[[int], object]:
    host = Host.open(tree.configuration)

    def run(_: int) -> None:
        report = host.apply(host.plan_prune())
        assert not report.removed
        assert not report.problems

    return run
