"""A verified, durable miss against the shell recipe that people use, and against a download that is neither."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import urllib3

from bench.hosts import configuration
from bench.images import write_dense, write_with_holes
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.serving import serving
from bench.setting import Setting
from underlay import Host

_RECIPE = Goal(wall=0.40, cpu=0.40, why="half as much again as a bare receive, hash and write loop in Python took")
_CURL = Goal(wall=1.11, why="nine tenths of curl's throughput")
_SYNCED = Goal(wall=0.95, why="the bytes are on their way to the disk while more of them arrive")
_SLOWEST = Goal(wall=1.6, why="receiving, hashing and writing share the time, and on two cores also the cores")
_SPARSE = Goal(wall=0.35, why="three tenths of the bytes are written")
_BUFFER = 1 << 20


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
        yield Row(
            name="miss, over curl and sync",
            what="a fetch by http, and a download that is durable and not verified",
            ours=ours,
            peer=recipe("curl; sync", f"curl -s -o {target} {url}; sync {target}", target),
            goal=_SYNCED,
        )
        yield Row(
            name="miss, over its slowest part",
            what="a fetch by http, and whichever of receiving, hashing and durable writing takes longest by itself",
            ours=ours,
            peer=_slowest(image, url, target),
            goal=_SLOWEST,
        )
        with image.open("rb") as file:
            sha512 = f"sha512:{hashlib.file_digest(file, 'sha512').hexdigest()}"
        yield Row(
            name="miss, two digests",
            what="a fetch by http that must have a sha512: verified and durable, both",
            ours=fetching(setting.directory, url, checksum=sha512),
            peer=recipe("curl; sync; sha256sum; sha512sum", f"{durable_and_hashed(url, target)}; sha512sum {target}", target),
            goal=_RECIPE,
        )
        image.unlink()
        write_with_holes(image, 4 * setting.size)
        yield Row(
            name="miss, sparse",
            what="a fetch by http of an image of which three tenths are data: verified and durable, both",
            ours=ours,
            peer=recipe("curl; sync; sha256sum", durable_and_hashed(url, target), target),
            goal=_SPARSE,
        )


def _slowest(image: Path, url: str, target: Path) -> Contender:
    """Receiving alone, hashing alone or writing alone: tried before each round, the slowest then runs."""
    content = image.read_bytes()

    def receive() -> None:
        answer, buffer = urllib3.request("GET", url, preload_content=False), bytearray(_BUFFER)
        while answer.readinto(buffer):
            pass

    def write() -> None:
        with target.open("xb", buffering=0) as file:
            for start in range(0, len(content), _BUFFER):
                file.write(content[start : start + _BUFFER])
            os.fsync(file.fileno())

    parts = {"receive": receive, "hash": lambda: hashlib.sha256(content), "write": write}
    slowest = "receive"

    def prepare(_: int) -> None:
        nonlocal slowest
        took = {name: _took(part, target) for name, part in parts.items()}
        slowest = max(took, key=lambda name: took[name])
        _settle(target)

    return Contender(name="the slowest of three, alone", run=lambda _: parts[slowest](), prepare=prepare)


def _took(part: Callable[[], object], target: Path) -> float:
    _settle(target)
    began = time.perf_counter()
    part()
    return time.perf_counter() - began


def _settle(target: Path) -> None:
    target.unlink(missing_ok=True)
    os.sync()


def fetching(directory: Path, url: str, *, checksum: str | None = None) -> Contender:
    """A fetch into an empty cache each time."""

    def run(_: int) -> None:
        assert Host.open(configuration(directory, "miss")).fetch(url, checksum=checksum).reason.code == "fetched"

    def forget(_: int) -> None:
        shutil.rmtree(directory / "miss", ignore_errors=True)
        os.sync()  # what curl left to be written is not waited for by us

    return Contender(name="Host.fetch (durable)", run=run, prepare=forget)


def durable_and_hashed(url: str, target: Path) -> str:
    """What people type who want an image verified and on the disk."""
    return f"curl -s -o {target} {url}; sync {target}; sha256sum {target}"


def recipe(name: str, line: str, target: Path) -> Contender:
    """A line of shell that writes ``target``."""

    # As before ours: nobody waits for what another left to be written.
    return Contender(name=name, run=lambda _: command("sh", "-c", line), prepare=lambda _: _settle(target))
