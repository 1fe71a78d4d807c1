"""What a pass is made of: whose backing file a disk has, and the memory that the largest pass takes."""

import os
import subprocess
import sys

from bench.measure import Contender, Gauge, Row, Things, command
from bench.results import Goal
from bench.setting import Setting
from bench.tree import build
from underlay.usage.directories import header

_DISKS, _PROCESSES = 1000, 20
_MEMORY = 150 << 20
_PEAK = (
    "import resource, sys; from underlay import Host; host = Host.open(sys.argv[1]); host.apply(host.plan_prune()); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
)


def prunes(setting: Setting) -> Things:
    """A disk's header read natively, against a process for each disk; and a process of its own that prunes."""
    disks = [os.fspath(disk) for disk in build(setting.directory / "backing", instances=_DISKS, files=_DISKS).disks()]

    def peer(number: int) -> None:
        command("qemu-img", "info", "-U", "--output", "json", disks[number % _DISKS])

    yield Row(
        name="prune, backing file of a disk",
        what="which file a disk is backed by, warm; ours is read until two reads agree",
        ours=Contender(name="usage.directories.header", run=lambda number: header(disks[number % _DISKS]), repeat=_DISKS),
        peer=Contender(name="qemu-img info", run=peer, repeat=_PROCESSES),
        goal=Goal(wall=1 / 200, why="a read of a header is 8 us, and a process 4 ms"),
    )
    yield Gauge(
        name="prune, memory",
        what="resident memory of a process that prunes 100,000 files with 10,000 instances, at its peak",
        read=lambda: _peak(setting),
        at_most=_MEMORY,
    )


def _peak(setting: Setting) -> int:
    tree = build(setting.directory / "pass", instances=10_000, files=100_000)
    argv = [sys.executable, "-c", _PEAK, os.fspath(tree.configuration)]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
