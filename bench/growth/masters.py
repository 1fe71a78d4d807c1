"""A cache of masters that grows: looked through as a listing, as a scan, and as a pass that finds nothing to remove."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import hosts
from bench.components import clock, ironic
from bench.growth.curve import Curve
from bench.measure import Contender, Things, command
from bench.results import LeftOut
from bench.scans import GOAL, scanning
from bench.setting import Setting
from bench.tree import build_masters
from underlay import Host

_POINTS = (100, 1_000, 10_000, 100_000)
LIST = Curve(
    name="masters, list",
    what="the format and the size of each image; ours inspects what nothing is recorded of, as `qemu-img info` does",
    of="masters",
    points=_POINTS,
)
PRUNE = Curve(
    name="masters, prune",
    what="a whole pass, which finds nothing too old and nothing too much",
    of="masters",
    points=_POINTS,
)
SCAN = Curve(
    name="masters, scan",
    what="each file's name, size and last use, printed by a process",
    of="masters",
    points=_POINTS,
)
CURVES = (LIST, PRUNE, SCAN)


def masters(setting: Setting) -> Things:
    """Three rows for each number of masters."""
    with ironic() as runner:
        for at in _POINTS:
            if too_many := setting.too_many(at):
                yield from (LeftOut(name=curve.row_name(at), why=too_many) for curve in CURVES)
                continue
            yield from _at(setting.directory / f"{at}", at, runner)


def _at(directory: Path, at: int, runner: Any) -> Things:
    host = Host.open(hosts.masters(directory))
    ours, theirs = (build_masters(directory / name, files=at, marked=False) for name in ("masters", "theirs"))
    prune = Contender(name="Host.plan_prune, apply", run=_pass(host, at))
    clean_up = Contender(
        name="ironic 39.0.0, ImageCache.clean_up",
        run=lambda _: runner.ask(do="clean-up", masters=os.fspath(theirs)),
        clock=clock(runner),
    )
    yield SCAN.row(at, *scanning(ours), goal=GOAL if at == _POINTS[-1] else None)
    yield PRUNE.row(at, prune, clean_up)
    yield LIST.row(at, Contender(name="Host.images", run=_listing(host, at)), _infos(theirs))


def _pass(host: Host, at: int) -> Callable[[int], object]:
    def run(_: int) -> None:
        report = host.apply(host.plan_prune())
        assert (at, 0, []) == (len(report.verdicts), len(report.removed), list(report.problems))

    return run


def _listing(host: Host, at: int) -> Callable[[int], object]:
    def run(_: int) -> None:
        found, _problems = host.images()
        assert at == len(found)

    return run


def _infos(root: Path) -> Contender:
    def run(_: int) -> None:
        for entry in os.scandir(root):
            if entry.is_file():
                command("qemu-img", "info", "-U", "--output", "json", "-f", "raw", entry.path)

    return Contender(name="qemu-img info of each", run=run)
