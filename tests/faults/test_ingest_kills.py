"""What an ingest leaves when its process is killed at a step, or a system call fails there: a cache in which the next works."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from underlay.cache import Cache, Ensured
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store, images, staging as stagings
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Served, Server, serving

MIB = 1 << 20
PATIENCE = 60.0  # seconds; only a broken test waits for so long
_MOST = 60  # steps of an ingest, or calls of one kind in it; only a broken test comes so far

# Fetches argv[2] into the cache argv[1] of the kind argv[3], and kills itself at step number argv[4], whose name it tells.
_FETCH = """
import os, signal, sys
from pathlib import Path
from underlay.cache import Cache
from underlay.errors import UnderlayError
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store

class Dying:
    left = int(sys.argv[4])
    stages = set()
    def event(self, event):
        self.step(event.code)
    def progress(self, progress):
        # The first of a stage alone: how often it is told hangs on the clock, and would shift the numbers of the others.
        if progress.stage not in self.stages:
            self.stages.add(progress.stage)
            self.step("progress of " + progress.stage)
    def step(self, name):
        self.left -= 1
        if self.left == 0:
            print(name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

store = Store(root=Path(sys.argv[1]), kind=CacheKind(sys.argv[3]))
try:
    Cache(name="cache", store=store).ensure(parse_ref(sys.argv[2]), HttpSource(), Dying())
except UnderlayError as error:
    sys.exit(error.exit_code)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An image to fetch, and the raw bytes that must come of it."""

    server: Server
    kind: CacheKind
    served: bytes
    content: bytes

    @property
    def url(self) -> str:
        return self.server.url("/a.img")

    def store(self, root: Path) -> Store:
        root.mkdir()
        return Store(root=root, kind=self.kind)

    def fetch(self, store: Store) -> Ensured:
        return Cache(name="cache", store=store).ensure(parse_ref(self.url), HttpSource(), Recorder())

    def child(self, store: Store, step: int = -1) -> list[str]:
        return [sys.executable, "-B", "-c", _FETCH, os.fspath(store.root), self.url, self.kind, str(step)]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as server:
        yield server


def raw_case(server: Server, *, kind: CacheKind = CacheKind.BASE) -> Case:
    content = os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB)
    server.serve("/a.img", Served(content, etag='"1"'))
    return Case(server=server, kind=kind, served=content, content=content)


def image_case(server: Server, directory: Path, format: str, *, size: int = 3 * MIB) -> Case:  # noqa: A002
    content = os.urandom(1024) * (size // 1024)
    (directory / "raw").write_bytes(content)
    options = ["-c"] if format == "qcow2" else []
    paths = (directory / "raw", directory / "image")
    subprocess.run(["qemu-img", "convert", *options, "-f", "raw", "-O", format, *paths], check=True, capture_output=True)
    served = (directory / "image").read_bytes()
    server.serve("/a.img", Served(served, etag='"1"'))
    return Case(server=server, kind=CacheKind.BASE, served=served, content=content)


def image_files(store: Store) -> list[Path]:
    return sorted(path for path in store.root.iterdir() if path.name != ".underlay")


def assert_whole(case: Case, store: Store) -> None:
    """What is published after a crash is whole, with its record."""
    for path in image_files(store):
        image = images.find(store, path.name)
        assert image is not None
        assert image.record is not None
        assert case.content == path.read_bytes()


def assert_next_works(case: Case, store: Store) -> None:
    answer = case.fetch(store)
    assert case.content == answer.image.path.read_bytes()
    assert [answer.image.path] == image_files(store)
    assert [] == list(store.paths.tmp.iterdir())
    assert [] == stagings.ingests(store)


# ----------------------------------------------------------------------------------------------------------- killed at a step


def killed_at_each_step(case: Case, directory: Path) -> Iterator[tuple[str, Store]]:
    """The step at which a process was killed, and the cache that it left, for every step of a clean run."""
    for step in range(1, _MOST):
        store = case.store(directory / str(step))
        child = subprocess.run(case.child(store, step), capture_output=True, text=True, timeout=PATIENCE, check=False)
        if child.returncode == 0:
            return
        assert -signal.SIGKILL == child.returncode, child.stderr
        yield child.stdout.strip(), store
    raise AssertionError("the ingest had no end")


def assert_survives(case: Case, directory: Path, *, needs_no_second_body: Sequence[str]) -> list[str]:
    """The steps that were killed at. ``needs_no_second_body``: those after which the bytes are there to stay."""
    steps = []
    for step, store in killed_at_each_step(case, directory):
        steps.append(step)
        assert_whole(case, store)
        bodies = case.server.bodies("/a.img")
        assert_next_works(case, store)
        if step in needs_no_second_body:
            assert bodies == case.server.bodies("/a.img"), step
    return steps


@pytest.mark.parametrize("kind", list(CacheKind))
def test_after_a_kill_at_any_step_of_a_raw_ingest_the_next_succeeds(server: Server, tmp_path: Path, kind: CacheKind) -> None:
    steps = assert_survives(raw_case(server, kind=kind), tmp_path, needs_no_second_body=["published", "cleared", "fetched"])
    assert [step for step in steps if not step.startswith("progress")] == [
        "staged", "reserved", "fetching", "received", "verified", "already-raw",
        "remembered", "published", "cleared", "fetched",
    ]  # fmt: skip


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("format", ["qcow2", "vdi"])
def test_after_a_kill_at_any_step_of_a_converting_ingest_the_next_succeeds(
    server: Server,
    tmp_path: Path,
    format: str,  # noqa: A002
) -> None:
    """Our own converter makes the raw form of the one, and qemu-img that of the other: the steps are the same."""
    kept = ["download-durable", "progress of convert", "converted", "remembered", "published", "cleared", "fetched"]
    steps = assert_survives(image_case(server, tmp_path, format), tmp_path, needs_no_second_body=kept)
    before = {"staged", "reserved", "fetching", "progress of fetch", "received", "verified", "force-raw"}
    assert before | set(kept) == set(steps)


def test_after_a_kill_at_any_step_of_a_masters_replacement_it_is_the_old_one_or_the_new(server: Server, tmp_path: Path) -> None:
    case = raw_case(server, kind=CacheKind.MASTERS)
    old = b"the old master"
    for step in itertools.count(1):
        store = case.store(tmp_path / f"cache-{step}")
        server.serve("/a.img", Served(old, etag='"0"'))
        master = case.fetch(store).image.path
        delivered = tmp_path / f"delivered-{step}"
        os.link(master, delivered)
        (store.paths.refs / os.listdir(store.paths.refs)[0]).unlink()  # as if it were long ago
        server.serve("/a.img", Served(case.content, etag='"1"'))
        child = subprocess.run(case.child(store, step), capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert [master] == image_files(store)
        assert (case.content if step_is_after_publication(child.stdout) else old) == master.read_bytes()
        assert_next_works(case, store)
        assert old == delivered.read_bytes()
        if child.returncode == 0:
            return


def step_is_after_publication(told: str) -> bool:
    return told.strip() in ("published", "cleared", "fetched", "")


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("format", ["qcow2", "vdi"])
@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1, 0.3])
def test_after_a_kill_in_the_middle_of_a_conversion_the_next_succeeds(
    server: Server,
    tmp_path: Path,
    format: str,  # noqa: A002
    delay: float,
) -> None:
    """Our own threads end with their process. A tool may outlive it for a moment; what it still writes is nobody's."""
    case = image_case(server, tmp_path, format, size=96 * MIB)
    store = case.store(tmp_path / "cache")
    with subprocess.Popen(case.child(store), stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + PATIENCE
        while not list(store.root.glob(".underlay/tmp/*/converted")) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        child.kill()
    assert_whole(case, store)
    assert_next_works(case, store)
    assert 1 == server.bodies("/a.img")


# -------------------------------------------------------------------------------------------------- killed or failed at a call


CALLS = ["mkdir", "linkat", "write", "pwrite64", "ftruncate", "rename", "fsetxattr", "fsync", "unlink", "renameat2", "rmdir"]
STORAGE_FAILED = 48


def run_with(fault: str, case: Case, store: Store) -> int:
    """The exit status of a process that fetches while strace does this to the system calls of each of its threads."""
    call = fault.partition(":")[0]
    strace = ["strace", "-f", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={fault}"]
    child = subprocess.run([*strace, *case.child(store)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "Traceback" not in child.stderr, child.stderr
    return child.returncode


@pytest.mark.component("strace")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO"])
def test_after_a_fault_at_any_call_of_an_ingest_the_next_succeeds(
    server: Server, tmp_path: Path, call: str, fault: str
) -> None:
    case = raw_case(server)
    expected = -signal.SIGKILL if fault == "signal=KILL" else STORAGE_FAILED
    for number in range(1, _MOST):
        store = case.store(tmp_path / str(number))
        store.prepare()
        status = run_with(f"{call}:{fault}:when={number}", case, store)
        if status == 0:
            assert number > 1, f"an ingest makes no {call}"
            return
        assert expected == status, f"{call} {number}"
        assert_whole(case, store)
        # What a file system failed to keep once is not built upon, though it may say that all is well when asked again.
        assert [] == list(store.paths.tmp.glob("*/journal.json"))
        assert_next_works(case, store)
    raise AssertionError("the ingest had no end")
