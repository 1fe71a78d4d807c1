"""Rows about ploop disks: made and grown, against qemu-img and the ploop tool; where blocks can be shared, and where not."""

import os
import shutil
from itertools import count
from pathlib import Path

from bench.hosts import configuration
from bench.images import write_with_holes
from bench.measure import Contender, Row, Things, command
from bench.mounts import mounted
from bench.results import Goal
from bench.setting import Setting
from underlay import BaseImage, DiskSpec, Host, InstanceDisk
from underlay.disks.ploop import PloopBackend
from underlay.values import replace

_MIB, _GIB = 1 << 20, 1 << 30
_SIZE = 20 * _GIB
_GOALS = {
    "xfs": Goal(wall=0.5, why="clusters are shared, and only the table is written"),
    "ext4": Goal(wall=1.2, why="the same clusters are copied"),
}


def ploop_disks(setting: Setting) -> Things:
    """A disk of an image with holes, and one that grows, each in a process that runs."""
    size = 4 * setting.size  # three tenths of it are data
    for kind, goal in _GOALS.items():
        with mounted(setting.directory, kind, max(6 * size, 512 * _MIB)) as where:
            image = where / "image.raw"
            write_with_holes(image, size)
            base = Host.open(configuration(where, "host")).ensure(image.as_uri())
            yield _made(where, base, kind, goal)
            if kind == "ext4":
                yield _grown(where, base)


def _made(where: Path, base: BaseImage, kind: str, goal: Goal) -> Row:
    backend, target = PloopBackend(), where / "theirs"
    spec = DiskSpec(instance="made", name="disk", path=where / "ours", size=_SIZE)

    def prepare(_: int) -> None:
        if backend.exists(spec):
            backend.remove(backend.describe(spec))
        target.unlink(missing_ok=True)
        os.sync()  # or one run waits for what another has written

    line = f"qemu-img convert -f raw -O parallels {base.path} {target} && sync {target}"
    return Row(
        name=f"ploop, made on {kind}",
        what=f"on {kind}, described, without holes as the tool wants it; both are durable",
        ours=Contender(name="PloopBackend.create", run=lambda _: backend.create(base, spec), prepare=prepare),
        peer=Contender(name="qemu-img convert; sync", run=lambda _: command("sh", "-c", line), prepare=prepare),
        goal=goal,
    )


def _grown(where: Path, base: BaseImage) -> Row:
    backend, numbers = PloopBackend(), count(2)
    ours = backend.create(base, DiskSpec(instance="grown", name="disk", path=where / "growing", size=_SIZE))
    theirs = where / "growing-theirs"
    shutil.copytree(ours.path, theirs)
    sizes = {theirs: _SIZE, ours.path: _SIZE}

    def larger(path: Path) -> int:
        sizes[path] += next(numbers) * _MIB
        return sizes[path]

    def grow(_: int) -> InstanceDisk:
        return backend.resize(replace(ours, size=None), larger(ours.path))

    def tool(_: int) -> None:
        command("ploop", "grow", "-s", f"{larger(theirs) // 512}", theirs / "DiskDescriptor.xml")

    return Row(
        name="ploop, grown",
        what="the table, then the description; durable at each step",
        ours=Contender(name="PloopBackend.resize", run=grow, repeat=5),
        peer=Contender(name="ploop grow", run=tool, repeat=5),
        goal=Goal(wall=1.0, why="no process is started"),
    )
