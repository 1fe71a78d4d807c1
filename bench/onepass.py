"""A compressed qcow2 image from a source of 200 MB/s: verified, raw and durable, against the shell recipe that people use."""

import os
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path

from bench.hosts import configuration
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.serving import serving
from bench.setting import Setting
from underlay import Event, Host, Progress

_RATE = 200_000_000  # bytes a second: a network of 10 Gbit/s that is shared, or a Glance
_SYSTEM = (Path("/usr/lib"), Path("/usr/bin"), Path("/usr/share"))
_WAIT = 600  # seconds; only a broken fetch takes so long


def one_pass(setting: Setting) -> Things:
    """A row for the whole, and one for what is left of it when the last byte has come. The disk has four times the size."""
    directory = setting.directory
    served = directory / "one-pass"
    served.mkdir()
    disk, image = directory / "one-pass.img", served / "image.qcow2"
    write_system(disk, 4 * setting.size)
    command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", disk, image)
    disk.unlink()
    with serving(served, rate=_RATE) as base:
        url = f"{base}/{image.name}"
        yield _whole(directory, url)
        fetch = _Fetch(directory, url)
        yield _tail(fetch)
        fetch.end()


def write_system(image: Path, size: int) -> None:
    """A disk three quarters of which hold this machine's own programs and files; then nothing."""
    with image.open("wb") as file:
        for path in (path for root in _SYSTEM for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()):
            if file.tell() >= size * 3 // 4:
                break
            file.write(path.read_bytes())
        file.truncate(size)


def _whole(directory: Path, url: str) -> Row:
    target = directory / "curl.qcow2"
    recipe = f"curl -s -o {target} {url}; sha256sum {target}; qemu-img convert -f qcow2 -O raw {target} {target}.raw"

    def ours(_: int) -> None:
        Host.open(configuration(directory, "one-pass-host")).ensure(url)

    def forget(_: int) -> None:
        shutil.rmtree(directory / "one-pass-host", ignore_errors=True)
        for path in directory.glob("curl.qcow2*"):
            path.unlink()
        os.sync()

    return Row(
        name="one-pass, at 200 MB/s",
        what="verified, raw and durable; the peer's is not durable",
        ours=Contender(name="Host.ensure (durable)", run=ours, prepare=forget),
        peer=Contender(name="curl; sha256sum; qemu-img convert", run=lambda _: command("sh", "-c", recipe), prepare=forget),
        goal=Goal(wall=0.40, why="the transfer, beside which everything else is done"),
    )


def _tail(fetch: "_Fetch") -> Row:
    def begin(_: int) -> None:
        fetch.begin()

    def begin_and_wait(_: int) -> None:
        fetch.begin()
        fetch.wait_for_the_last_byte()

    return Row(
        name="one-pass, after the last byte",
        what="of the same kind of fetch",
        ours=Contender(name="until it is published", run=lambda _: fetch.end(), prepare=begin_and_wait),
        peer=Contender(name="until the last byte", run=lambda _: fetch.wait_for_the_last_byte(), prepare=begin),
        goal=Goal(wall=0.10, why="what cannot be done before the last byte is there"),
    )


class _Fetch:
    """One fetch after the other, each in a thread of its own; hears when the last byte has come."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self._url = url
        self._fetched: Future[None] | None = None
        self._last_byte = threading.Event()

    def begin(self) -> None:
        """Fetch into an empty cache; what is left of the fetch before is waited for first."""
        self.end()
        shutil.rmtree(self._directory / "tail-host", ignore_errors=True)
        os.sync()
        self._last_byte.clear()
        self._fetched = Future()
        threading.Thread(target=self._fetch, args=[self._fetched]).start()

    def wait_for_the_last_byte(self) -> None:
        assert self._last_byte.wait(_WAIT)

    def end(self) -> None:
        """Wait until the image is published; raises what the fetch has raised."""
        if self._fetched is not None:
            self._fetched.result()

    def _fetch(self, fetched: "Future[None]") -> None:
        try:
            host = Host.open(configuration(self._directory, "tail-host"), observer=self)
            host.ensure(self._url)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the fetch gets it
            fetched.set_exception(error)
            self._last_byte.set()  # it will not come, and nobody is to wait for it
        else:
            fetched.set_result(None)

    def event(self, event: Event) -> None:
        assert event.code != "converted-later", event.detail

    def progress(self, progress: Progress) -> None:
        if progress.stage == "fetch" and progress.done == progress.total:
            self._last_byte.set()
