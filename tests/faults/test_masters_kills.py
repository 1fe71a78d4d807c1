"""A delivery of a master is killed at each of its steps: the next succeeds, other masters are untouched, nothing is left."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from aging import aged
from children import start, tell
from machine import PATIENCE
from underlay.files import ATTRIBUTE
from underlay.filesystems import free_bytes
from underlay.host import Host, Silent
from underlay.model import BaseImage, Event, Progress
from underlay.store import staging as stagings
from underlay.testing.httpserver import Served, Server, serving

pytestmark = pytest.mark.component("qemu-img", "leases")

Mounted = Callable[..., Path]
MIB, DAY = 1 << 20, 86400.0
SIZE = 2 * MIB
CONTENT = random.Random("a master").randbytes(SIZE)
MOST = 60  # steps of a delivery, or calls of one kind in it; only a broken test comes so far
NO_STEP = -1
FAR_TOO_MUCH = 1 << 60  # bytes
CALLS = ["linkat", "unlink", "fsync", "rename", "fsetxattr", "mkdir", "rmdir"]
CONFIG = """
[instances]
path = "{where}/instances"
[caches.masters]
kind = "masters"
path = "{where}/masters"
leftover_minimum_age = "0s"
keep_recent = "0s"
"""


# --------------------------------------------------------------------------------------------------------------- the killed


class Dying(Silent):
    """Kills its process at a step, whose name it tells first."""

    def __init__(self, left: int) -> None:
        self._left = left

    def event(self, event: Event) -> None:
        self._step(event.code)

    def progress(self, progress: Progress) -> None:
        """No step to be killed at: how often it is told hangs on the clock, and would shift the numbers of the others."""

    def _step(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            tell(name)
            os.kill(os.getpid(), signal.SIGKILL)


def deliver_and_die(config: str, ref: str, place: str, form: str, step: str) -> None:
    """In a child: deliver, and die at the step of this number; without one, tell how the image came."""
    delivered = Host.open(Path(config), observer=Dying(int(step))).deliver(ref, place, raw=FORMS[form])
    assert delivered.came is not None
    tell(delivered.came.code)


FORMS = {"raw": True, "served": False, "any": None}


@dataclass(frozen=True, slots=True)
class Case:
    """A host with a cache of masters, and one image to deliver."""

    where: Path
    ref: str
    form: str

    @classmethod
    def make(cls, where: Path, ref: str, *, form: str = "any") -> "Case":
        for name in ("instances", "masters", "nodes"):
            shutil.rmtree(where / name, ignore_errors=True)
            (where / name).mkdir(parents=True)
        case = cls(where, ref, form)
        case.config.write_text(CONFIG.format(where=where))
        case.host.config.caches["masters"].prepare()
        return case

    @property
    def config(self) -> Path:
        return self.where / "underlay.toml"

    @property
    def host(self) -> Host:
        return Host.open(self.config)

    @property
    def place(self) -> Path:
        return self.where / "nodes/wanted"

    def die(self, step: int = NO_STEP, *, wrapper: Sequence[str] = ()) -> tuple[int, str]:
        """Deliver in a process of its own: its exit status, or less the signal that killed it, and what it told."""
        with start(deliver_and_die, self.config, self.ref, self.place, self.form, step, wrapper=wrapper) as child:
            status = child.process.wait(PATIENCE)
            told = child.hear() if status == 0 or step != NO_STEP else ""
        assert status in (0, -signal.SIGKILL), told
        return status, told

    def again(self) -> None:
        """The same delivery once more, in this process."""
        self.host.deliver(self.ref, self.place, raw=FORMS[self.form])
        assert CONTENT == self.place.read_bytes()

    def masters(self) -> set[str]:
        return {path.name for path in (self.where / "masters").iterdir() if path.is_file()}

    def left(self) -> dict[str, list[str]]:
        """Temporaries, trash, and the marks of use, which only masters have."""
        private = self.where / "masters/.underlay"
        left = {name: sorted(os.listdir(private / name)) for name in ("tmp", "trash", "used")}
        return left | {"nodes": sorted(path.name for path in (self.where / "nodes").iterdir() if path.name.startswith("."))}

    def assert_nothing_is_left(self) -> None:
        left = self.left()
        assert self.masters() >= set(left.pop("used"))
        assert {"tmp": [], "trash": [], "nodes": []} == left

    def assert_place_is_whole(self) -> None:
        """It is not there yet, or it is the image."""
        if self.place.exists():
            assert CONTENT == self.place.read_bytes()


def kill_at_each_step(case: Callable[[], Case], check: Callable[[Case], None]) -> list[str]:
    """Kill a delivery at its first, second … step until there is none left; their names."""
    steps: list[str] = []
    for number in range(1, MOST):
        one = case()
        status, told = one.die(number)
        one.assert_place_is_whole()
        check(one)
        if status == 0:
            return steps
        steps.append(told)
    raise AssertionError("the delivery had no end")


def kill_at_each_call(call: str, case: Callable[[], Case], check: Callable[[Case], None]) -> int:
    """As `kill_at_each_step`, at each system call of a kind; how many there were."""
    for number in range(1, MOST):
        one = case()
        fault = ["strace", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        status, _ = one.die(wrapper=fault)
        one.assert_place_is_whole()
        check(one)
        if status == 0:
            return number - 1
    raise AssertionError(f"{call} is called without end")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as server:
        yield server


# ------------------------------------------------------------------------------------------ raw, from the master as served


class Converting:
    """The master is there as it was served, and delivered so; its raw form is wanted."""

    def __init__(self, root: Path, server: Server) -> None:
        (root / "raw").write_bytes(CONTENT)
        argv: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", root / "raw", root / "qcow2"]
        subprocess.run(argv, check=True, capture_output=True)
        self.root, self.served, self.server = root, (root / "qcow2").read_bytes(), server
        server.serve("/image", Served(self.served, etag='"1"'))
        self.before: tuple[object, ...] = ()

    def case(self) -> Case:
        case = Case.make(self.root / "host", self.server.url("/image"), form="raw")
        case.host.deliver(case.ref, self.delivered, raw=False)
        self.before = self.seen(case)
        return case

    @property
    def delivered(self) -> Path:
        return self.root / "host/nodes/served"

    def master(self, case: Case) -> BaseImage:
        (master,) = [image for image in case.host.images()[0] if image.format == "qcow2"]
        return master

    def seen(self, case: Case) -> tuple[object, ...]:
        """All of the master as served that nobody may change, but its links."""
        path = self.master(case).path
        status = path.stat()
        return path.name, status.st_ino, status.st_mtime_ns, status.st_mode, os.getxattr(path, ATTRIBUTE), path.read_bytes()

    def assert_untouched(self, case: Case, *, links: Sequence[int] = (2,)) -> None:
        assert self.before == self.seen(case)
        assert self.delivered.samefile(self.master(case).path)
        assert self.delivered.stat().st_nlink in links

    def check(self, case: Case) -> None:
        """Whatever is asked for next, a sweep or the image in either form, what a crash left goes."""
        before = self.server.count("GET", "/image")
        self.assert_untouched(case, links=(2, 3))
        case.again()
        self.assert_untouched(case)
        case.assert_nothing_is_left()
        assert 2 == len(case.masters())
        assert before == self.server.count("GET", "/image")

    def check_served(self, case: Case) -> None:
        assert "delivered" == case.host.deliver(case.ref, self.delivered, raw=False).reason.code
        self.assert_untouched(case, links=(2, 3))
        self.check_sweep(case)

    def check_sweep(self, case: Case) -> None:
        self.assert_untouched(case, links=(2, 3))
        report = case.host.apply(case.host.plan_prune())
        assert self.master(case).path not in report.removed
        self.assert_untouched(case)
        assert ([], []) == (case.left()["tmp"], case.left()["trash"])
        assert not case.place.exists() or case.place.stat().st_nlink == 2

    def killed_at(self, step: str) -> Case:
        """A conversion that was killed at the step of this name."""
        for number in range(1, MOST):
            case = self.case()
            if case.die(number) == (-signal.SIGKILL, step):
                return case
        raise AssertionError(f"there is no step {step}")


@pytest.mark.parametrize("following", ["check", "check_served", "check_sweep"])
def test_a_conversion_that_is_killed_at_a_step_leaves_the_master_as_it_was(
    tmp_path: Path, server: Server, following: str
) -> None:
    converting = Converting(tmp_path, server)
    steps = kill_at_each_step(converting.case, getattr(converting, following))
    assert {"staged", "raw-wanted", "download-durable", "reserved", "converted", "published", "cleared"} <= set(steps)


@pytest.mark.component("strace")
@pytest.mark.parametrize("call", CALLS)
def test_a_conversion_that_is_killed_at_a_call_leaves_the_master_as_it_was(tmp_path: Path, server: Server, call: str) -> None:
    converting = Converting(tmp_path, server)
    assert kill_at_each_call(call, converting.case, converting.check) > 0


def test_what_a_killed_conversion_shares_with_its_master_does_not_count_as_room(tmp_path: Path, server: Server) -> None:
    converting = Converting(tmp_path, server)
    case = converting.killed_at("download-durable")
    (dead, _), *_ = stagings.ingests(case.host.config.caches["masters"])
    assert dead.download.samefile(converting.delivered)
    assert {case.where / "masters": 0} == case.host.plan_free(FAR_TOO_MUCH, case.where).frees
    assert 0 == case.host.apply(case.host.plan_prune()).freed


# ---------------------------------------------------------------------------------------------- with room to be made for it


class Short:
    """A small file system that is full of an image in use, and of an old one that nobody needs."""

    def __init__(self, where: Path, server: Server) -> None:
        self.where, self.server = where, server
        server.serve("/image", Served(CONTENT, etag='"1"'))

    def case(self) -> Case:
        self.filler.unlink(missing_ok=True)
        case = Case.make(self.where, self.server.url("/image"))
        for path in (self.used, self.unused):
            path.write_bytes(os.urandom(2 * SIZE))
            aged(path, 9 * DAY)
        (self.where / "nodes/used").hardlink_to(self.used)
        os.sync()
        with self.filler.open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free_bytes(self.where) - SIZE // 2)
        os.sync()
        return case

    @property
    def filler(self) -> Path:
        return self.where / "filler"

    @property
    def used(self) -> Path:
        return self.where / "masters/11111111-1111-1111-1111-111111111111"

    @property
    def unused(self) -> Path:
        return self.where / "masters/22222222-2222-2222-2222-222222222222"

    def check(self, case: Case) -> None:
        """The victim may have gone already; what is in use is there, and the next delivery has its room."""
        assert 2 == self.used.stat().st_nlink
        case.again()
        assert not self.unused.exists()
        assert 2 == self.used.stat().st_nlink
        assert 2 == case.place.stat().st_nlink
        assert 2 == len(case.masters())
        case.assert_nothing_is_left()


@pytest.mark.component("root", "ext4")
def test_a_delivery_that_is_killed_as_it_makes_room_keeps_what_is_in_use(mounted: Mounted, server: Server) -> None:
    short = Short(mounted("ext4", 64 * MIB), server)
    steps = kill_at_each_step(short.case, short.check)
    assert {"staged", "removed", "reserved", "fetching", "received", "verified", "published", "fetched"} <= set(steps)
    assert steps.index("staged") < steps.index("removed") < steps.index("fetching")


@pytest.mark.component("root", "ext4", "strace")
@pytest.mark.parametrize("call", ["renameat2", "unlink", "fsync"])
def test_a_delivery_that_is_killed_at_a_call_as_it_makes_room_keeps_what_is_in_use(
    mounted: Mounted, server: Server, call: str
) -> None:
    short = Short(mounted("ext4", 64 * MIB), server)
    assert kill_at_each_call(call, short.case, short.check) > 0


# ----------------------------------------------------------------------------------------------- what nobody is to keep


class NotKept:
    """An image whose source asks that no copy be kept."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root, self.server = root, server
        server.serve("/image", Served(CONTENT, etag='"1"', headers={"Cache-Control": "no-store"}))

    def case(self) -> Case:
        return Case.make(self.root / "host", self.server.url("/image"))

    def check(self, case: Case) -> None:
        """Only whoever asked has it in the end."""
        before = self.server.count("GET", "/image")
        case.again()
        assert self.server.count("GET", "/image") == before + 1  # what a crash left answers nobody
        assert set() == case.masters()
        assert 1 == case.place.stat().st_nlink
        case.assert_nothing_is_left()


def test_a_delivery_of_what_nobody_keeps_leaves_no_copy_after_a_kill_at_a_step(tmp_path: Path, server: Server) -> None:
    not_kept = NotKept(tmp_path, server)
    steps = kill_at_each_step(not_kept.case, not_kept.check)
    assert {"staged", "fetching", "verified", "remembered", "published", "cleared", "fetched"} <= set(steps)


@pytest.mark.component("strace")
@pytest.mark.parametrize("call", CALLS)
def test_a_delivery_of_what_nobody_keeps_leaves_no_copy_after_a_kill_at_a_call(
    tmp_path: Path, server: Server, call: str
) -> None:
    not_kept = NotKept(tmp_path, server)
    assert kill_at_each_call(call, not_kept.case, not_kept.check) > 0
