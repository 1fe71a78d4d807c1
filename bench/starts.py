"""One-shot commands, with compiled bytecode, against an interpreter that does nothing."""

import os
import sys

from bench.hosts import configuration_file
from bench.images import write_small
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.setting import Setting
from underlay import Host

_REPEAT = 3
_GOAL = Goal(cpu=3.0, why="an interpreter, and as much again for what is imported and for what is done")


def starts(setting: Setting) -> Things:
    """A row for each command that scripts call in a loop."""
    file = configuration_file(setting.directory, "start")
    ref = write_small(setting.directory / "small.img").as_uri()
    Host.open(file).ensure(ref)
    underlay = [sys.executable, "-m", "underlay", "--config", os.fspath(file)]

    def row(name: str, *arguments: str) -> Row:
        def run(number: int) -> None:
            command(*underlay, *(argument.format(number=number) for argument in arguments))

        return Row(
            name=f"start-up, {name}",
            what=f"underlay {name}",
            ours=Contender(name=f"underlay {name}", run=run, repeat=_REPEAT),
            peer=Contender(name="python -c pass", run=lambda _: command(sys.executable, "-c", "pass"), repeat=_REPEAT),
            goal=_GOAL,
        )

    yield row("list", "list")
    yield row("list --json", "list", "--json")
    yield row("show", "show", ref)
    yield row("disk create", "disk", "create", "vm-{number}", "--image", ref)
