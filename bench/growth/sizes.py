"""Images that grow: what depends on their size, and what does not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import hosts
from bench.components import clock, ironic
from bench.conversions import converting
from bench.disks import copying, overlaying
from bench.growth.curve import Curve
from bench.images import write_dense, write_files
from bench.measure import Contender, Things
from bench.misses import durable_and_hashed, fetching, recipe
from bench.results import LeftOut
from bench.serving import serving
from bench.setting import Setting
from underlay import Host
from underlay.units import format_size

_POINTS = (16 << 20, 64 << 20, 256 << 20, 1 << 30, 2 << 30)
_COPIES = 7  # of an image, that are on the disk at once
_REPEAT = 20


def _curve(name: str, what: str) -> Curve:
    return Curve(name=f"size, {name}", what=what, of="bytes", points=_POINTS)


MISS = _curve("miss", "a fetch by http: verified and durable, both")
OVERLAY = _curve("overlay", "a hit, as a qcow2 overlay; ours is durable")
FLAT = _curve("flat copy", "a hit, as a flat disk on a file system that shares no blocks; durable, both")
LINK = _curve("link", "a hit, as a hard link; ours is durable and asks nobody, Ironic asks the server first")
CONVERSION = _curve("conversion", "compressed qcow2 to raw, byte for byte the same, neither durable")
CURVES = (MISS, OVERLAY, FLAT, LINK, CONVERSION)


def sizes(setting: Setting) -> Things:
    """Five rows for each size that the disk has room for."""
    with ironic() as runner:
        for at in _POINTS:
            directory = setting.directory / f"{at}"
            directory.mkdir()
            if (free := shutil.disk_usage(directory).free) < _COPIES * at:
                why = f"it needs {format_size(_COPIES * at)} of room, and {format_size(free)} are free"
                yield from (LeftOut(name=curve.row_name(at), why=why) for curve in CURVES)
                continue
            yield from _dense(directory, at, runner)
            yield from _compressed(directory, at)
            shutil.rmtree(directory)


def _dense(directory: Path, at: int, runner: Any) -> Things:
    image = write_dense(directory / "served" / "image.img", at)
    with serving(image.parent) as base:
        url, curled = f"{base}/{image.name}", directory / "curl.img"
        peer = recipe("curl; sync; sha256sum", durable_and_hashed(url, curled), curled)
        yield MISS.row(at, fetching(directory, url), peer)
        curled.unlink(missing_ok=True)
        shutil.rmtree(directory / "miss", ignore_errors=True)
        yield LINK.row(at, *_linking(directory, url, runner))
    host = Host.open(hosts.configuration(directory, "host"))
    cached = host.ensure(image.as_uri())
    yield OVERLAY.row(at, *overlaying(host, cached, directory))
    yield FLAT.row(at, *copying(host, cached, directory / "copy"))
    shutil.rmtree(directory / "host")


def _linking(directory: Path, url: str, runner: Any) -> tuple[Contender, Contender]:
    host, target = Host.open(hosts.masters(directory / "deliver")), directory / "ours"
    theirs = directory / "theirs"
    asked = {"do": "fetch", "masters": os.fspath(directory / "ironic"), "href": url, "path": os.fspath(theirs)}
    host.deliver(url, target)
    runner.ask(**asked)

    def again(path: Path, run: Callable[[], object]) -> Callable[[int], None]:
        def once(_: int) -> None:
            path.unlink()
            run()

        return once

    ours = Contender(name="Host.deliver (durable)", run=again(target, lambda: host.deliver(url, target)), repeat=_REPEAT)
    peer = Contender(
        name="ironic 39.0.0, fetch_image",
        run=again(theirs, lambda: runner.ask(**asked)),
        repeat=_REPEAT,
        clock=clock(runner),
    )
    return ours, peer


def _compressed(directory: Path, at: int) -> Things:
    disk = directory / "convert.img"
    write_files(disk, at)
    yield CONVERSION.row(at, *converting(disk, directory, "-c"))
