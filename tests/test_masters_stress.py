"""Masters are fetched, delivered and evicted at the same time: no delivery fails, and no link ever loses its master."""

import hashlib
import itertools
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from children import Child, start, tell, told
from machine import MIB
from underlay.host import Host
from underlay.naming import master_name
from underlay.refs import parse_ref
from underlay.testing.httpserver import Server, serving

pytestmark = pytest.mark.component("qemu-img", "leases")

THREADS, PROCESSES = 24, 8
ROUNDS = 4
DELIVERIES = 25  # of each worker in a round, at least
SLOTS = 2  # destinations of each worker
GOES = 0.85  # how likely an image is taken away at once; else it stays until its place is wanted for another
IMAGES, CONVERTED = 12, 3  # of all images, those that are served as qcow2
ENOUGH = 5 * IMAGES  # masters that go while they are delivered; fewer, and nothing was ever in danger
SIZE = MIB // 8
MAX_SIZE = "512KiB"  # of four images, where a dozen is wanted
LIMIT = 300.0  # seconds: a guard against hanging; 10 alone
GOING_ON, PAUSED, DONE = ".", "paused", "done"
CONFIG = """
[instances]
path = "{root}/instances"
[caches.masters]
kind = "masters"
path = "{root}/masters"
max_size = "{max_size}"
keep_recent = "0s"
leftover_minimum_age = "0s"
"""
# What a pass tells of a host without an inventory.
EXPECTED_PROBLEMS = {"no-inventory"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("instances", "masters", "nodes", "served", "raw"):
        (tmp_path / name).mkdir()
    (tmp_path / "gone").touch()
    (tmp_path / "underlay.toml").write_text(CONFIG.format(root=tmp_path, max_size=MAX_SIZE))
    for number in range(IMAGES):
        raw, served = tmp_path / f"raw/image-{number}", tmp_path / f"served/image-{number}"
        raw.write_bytes(random.Random(f"image {number}").randbytes(SIZE))
        form = "qcow2" if number < CONVERTED else "raw"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, raw, served], check=True)
    return tmp_path


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serving(root / "served") as server:
        yield server


# --------------------------------------------------------------------------------------------------------------- who asks


class Worker:
    """Delivers images to places of its own, takes them away again, and looks that each is what it has to be."""

    def __init__(self, root: Path, number: int, base: str) -> None:
        self.root = root
        self.host = Host.open(root / "underlay.toml")
        self.chance = random.Random(f"worker {number}")
        self.base = base
        self.places = [root / f"nodes/node-{number}-{slot}" for slot in range(SLOTS)]
        self.wanted: dict[Path, str] = {}
        self.contents = {
            (image, form): digest_of(root / form / f"image-{image}") for image in range(IMAGES) for form in ("raw", "served")
        }

    def round(self, number: int) -> Iterator[int]:
        """Steps; and more, slower ones where the machine has not let the evictors take their share meanwhile."""
        for done in itertools.count():
            if done >= DELIVERIES:
                if count_gone(self.root) >= ENOUGH * (number + 1) // ROUNDS:
                    return
                time.sleep(self.chance.random() / 5)
            self.step()
            yield done

    def step(self) -> None:
        place = self.chance.choice(self.places)
        image, form = self.chance.randrange(IMAGES), self.chance.choice(["raw", "served"])
        delivered = self.host.deliver(f"{self.base}/image-{image}", place, raw=form == "raw")
        self.wanted[place] = self.contents[image, form]
        # While the place has its link, the master is no other file, whoever prunes.
        assert place.samefile(delivered.image.path), f"{place} lost its master {delivered.image.path}"
        self.look()
        if self.chance.random() < GOES:
            place.unlink()
            del self.wanted[place]

    def look(self) -> None:
        for place, content in self.wanted.items():
            assert content == digest_of(place), f"{place} holds something else"
            assert place.stat().st_nlink >= 2, f"{place} is the last link"


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def work(root: str, number: str, base: str) -> None:
    """In a child: rounds of deliveries, paused after each until the parent has looked at what there is."""
    worker = Worker(Path(root), int(number), base)
    for number_of_round in range(ROUNDS):
        for done in worker.round(number_of_round):
            if done % 10 == 0:
                tell(GOING_ON)
        tell(PAUSED)
        told()
        worker.look()
    tell(DONE)


def work_in_thread(root: Path, number: int, base: str, barrier: threading.Barrier) -> None:
    """As `work`; the parent takes part in the barrier."""
    worker = Worker(root, number, base)
    try:
        for number_of_round in range(ROUNDS):
            for _ in worker.round(number_of_round):
                pass
            barrier.wait(LIMIT)
            barrier.wait(LIMIT)
            worker.look()
    except threading.BrokenBarrierError:  # whoever broke it tells why
        return
    except BaseException:
        barrier.abort()
        raise


# --------------------------------------------------------------------------------------------------------- who makes room


def evict(root: Path, seed: str, stopped: Callable[[], bool]) -> Counter[str]:
    """Prune, and free some bytes more, until it is over; how often each master went."""
    host, chance, gone = Host.open(root / "underlay.toml"), random.Random(seed), Counter[str]()
    while not stopped():
        is_prune = chance.random() < 0.5
        plan = host.plan_prune() if is_prune else host.plan_free(chance.randrange(4) * SIZE, root / "masters")
        report = host.apply(plan)
        failed = [problem for problem in report.problems if problem.code not in EXPECTED_PROBLEMS]
        assert [] == failed, failed
        gone.update(path.name for path in report.removed)
        with (root / "gone").open("ab") as tally:
            tally.write(b"." * len(report.removed))
    return gone


def count_gone(root: Path) -> int:
    """How many masters the evictors, be they threads or processes, have taken until now: a byte each."""
    return (root / "gone").stat().st_size


def evict_in_child(root: str, seed: str) -> None:
    gone = evict(Path(root), seed, (Path(root) / "stop").exists)
    for name in gone.elements():
        tell(name)
    tell(DONE)


def lines_until(child: Child, last: str) -> list[str]:
    """What a child tells before the last line of a kind, but that it goes on."""
    lines: list[str] = []
    while (line := child.hear()) != last:
        lines += [line] if line != GOING_ON else []
    return lines


# ------------------------------------------------------------------------------------------------------------- what holds


def assert_links_are_right(root: Path) -> None:
    """Nobody delivers at the moment: each master that is at some places has a link for each, and its own in the cache."""
    masters = {path.stat().st_ino: path for path in (root / "masters").iterdir() if path.is_file()}
    places = Counter(path.stat().st_ino for path in (root / "nodes").iterdir())
    for inode, count in places.items():
        assert inode in masters, "what is linked to has left the cache"
        assert count + 1 == masters[inode].stat().st_nlink, masters[inode]


def assert_nothing_is_left(root: Path) -> None:
    """No temporaries, no trash; what no place has may still go, and the size is kept."""
    private = root / "masters/.underlay"
    assert ([], []) == (os.listdir(private / "tmp"), os.listdir(private / "trash"))
    assert [] == [path.name for path in (root / "nodes").iterdir() if path.name.startswith(".")]
    for place in (root / "nodes").iterdir():
        place.unlink()
    host = Host.open(root / "underlay.toml")
    gone = {path.name for path in host.apply(host.plan_prune()).removed}
    images, problems = host.images()
    assert [] == problems
    assert sum(image.allocated for image in images) <= 512 << 10
    assert gone.isdisjoint(image.name for image in images)
    assert {image.name for image in images} == set(os.listdir(private / "used"))


def assert_fetched_once_each_time(server: Server, gone: Counter[str]) -> None:
    """A GET for an image that was never there, and for one that was evicted; no other."""
    for number in range(IMAGES):
        ref = parse_ref(server.url(f"/image-{number}"))
        evicted = sum(gone[master_name("", ref=ref, raw=raw)] for raw in (True, False))
        both_forms = 1 if number < CONVERTED else 0  # from the raw form, the served one cannot be made
        assert 1 <= server.count("GET", f"/image-{number}") <= 1 + both_forms + evicted, f"image {number}"


def check_end(root: Path, server: Server, gone: Counter[str], *, began: float) -> None:
    took = time.monotonic() - began
    assert_fetched_once_each_time(server, gone)
    assert_nothing_is_left(root)
    assert gone.total() >= ENOUGH, "nothing was ever in danger"
    assert took < LIMIT


# ------------------------------------------------------------------------------------------------------------------ tests


def test_threads_get_their_images_while_all_that_is_unused_goes(root: Path, server: Server) -> None:
    began, over, barrier = time.monotonic(), threading.Event(), threading.Barrier(THREADS + 1)
    with ThreadPoolExecutor(THREADS + 2) as pool:
        evictors = [pool.submit(evict, root, f"evictor {number}", over.is_set) for number in range(2)]
        workers = [pool.submit(work_in_thread, root, number, server.base, barrier) for number in range(THREADS)]
        try:
            with suppress(threading.BrokenBarrierError):  # a worker tells why, below
                look_after_each_round(root, barrier)
        except BaseException:
            barrier.abort()
            raise
        finally:
            over.set()
    for worker in workers:
        worker.result()
    check_end(root, server, sum((evictor.result() for evictor in evictors), Counter[str]()), began=began)


def look_after_each_round(root: Path, barrier: threading.Barrier) -> None:
    for _ in range(ROUNDS):
        barrier.wait(LIMIT)
        assert_links_are_right(root)
        barrier.wait(LIMIT)


def test_processes_get_their_images_while_all_that_is_unused_goes(root: Path, server: Server) -> None:
    began = time.monotonic()
    with ExitStack() as stack:
        evictors = [stack.enter_context(start(evict_in_child, root, f"evictor {number}")) for number in range(2)]
        workers = [stack.enter_context(start(work, root, number, server.base)) for number in range(PROCESSES)]
        for _ in range(ROUNDS):
            assert [] == [line for worker in workers for line in lines_until(worker, PAUSED)]
            assert_links_are_right(root)
            for worker in workers:
                worker.say()
        assert [] == [line for worker in workers for line in lines_until(worker, DONE)]
        (root / "stop").touch()
        gone = Counter(name for evictor in evictors for name in lines_until(evictor, DONE))
    check_end(root, server, gone, began=began)
