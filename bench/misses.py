"""A verified, durable miss against the shell recipe that people use, and against a download that is neither."""

import os
import shutil
from pathlib import Path

from bench.hosts import configuration
from bench.images import write_dense
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.serving import serving
from bench.setting import Setting
from underlay import Host

_RECIPE = Goal(wall=0.40, cpu=0.40, why="half as much again as a bare receive, hash and write loop in Python took")
_CURL = Goal(wall=1.11, why="nine tenths of curl's throughput")


def misses(setting: Setting) -> Things:
    """The miss, in a process that runs, of an image without holes."""
    image = write_dense(setting.directory / "served" / "image.img", setting.size)
    with serving(image.parent) as base:
        url, target = f"{base}/{image.name}", setting.directory / "curl.img"
        ours = fetching(setting.directory, url)
        yield Row(
            name="miss, raw",
            what="a fetch by http: verified and durable, both",
            ours=ours,
            peer=recipe("curl; sync; sha256sum", durable_and_hashed(url, target), target),
            goal=_RECIPE,
        )
        yield Row(
            name="miss, over curl alone",
            what="a fetch by http, and a download that is neither verified nor durable",
            ours=ours,
            peer=recipe("curl", f"curl -s -o {target} {url}", target),
            goal=_CURL,
        )


def fetching(directory: Path, url: str) -> Contender:
    """A fetch into an empty cache each time."""

    def run(_: int) -> None:
        assert Host.open(configuration(directory, "miss")).fetch(url).reason.code == "fetched"

    def forget(_: int) -> None:
        shutil.rmtree(directory / "miss", ignore_errors=True)
        os.sync()  # what curl left to be written is not waited for by us

    return Contender(name="Host.fetch (durable)", run=run, prepare=forget)


def durable_and_hashed(url: str, target: Path) -> str:
    """What people type who want an image verified and on the disk."""
    return f"curl -s -o {target} {url}; sync {target}; sha256sum {target}"


def recipe(name: str, line: str, target: Path) -> Contender:
    """A line of shell that writes ``target``."""

    def forget(_: int) -> None:
        target.unlink(missing_ok=True)
        os.sync()  # as before ours: nobody waits for what another left to be written

    return Contender(name=name, run=lambda _: command("sh", "-c", line), prepare=forget)
