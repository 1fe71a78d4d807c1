"""A scrub is killed, or fails, at each system call that changes what is on disk: the image is served, or it is not; never half.

strace kills the process as it enters the call. After each kill the image is whole under its name, as it was or as it was
fetched again; nothing that is damaged is served once that is noted; and the next scrub ends as a clean one does.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from job import INSTANCE
from scenes import CONTENT, Jobs, jobs

from underlay.errors import ImageDamaged
from underlay.host import Host
from underlay.model import BaseImage
from underlay.store import Store, images, locking, quarantine, scrubs

pytestmark = pytest.mark.component("strace", "qemu-img", "leases")

DAMAGED = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
MOST = 60  # calls of one kind in one job; more would be a loop of ours that never ends
REPAIRING = ("rename", "renameat2", "fsync", "unlink")
CASES = [*((call, True) for call in REPAIRING), ("rename", False), ("fsync", False)]
FAILURES = [("rename", "EIO"), ("fsync", "EIO"), ("linkat", "ENOSPC")]


@pytest.fixture(scope="module")
def workers() -> Iterator[Jobs]:
    with jobs() as started:
        yield started


@dataclass(frozen=True, slots=True)
class Case:
    """A base that a disk stands on, damaged or not, whose source is there or not."""

    root: Path
    jobs: Jobs
    damaged: bool = True
    source: bool = True

    @property
    def host(self) -> Host:
        return Host.open(self.root / "underlay.toml")

    @property
    def store(self) -> Store:
        return self.host.config.caches["one"]

    @property
    def image(self) -> BaseImage:
        [image] = images.everything(self.store)
        return image

    def set_up(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / "instances/_base").mkdir(parents=True)
        (self.root / "underlay.toml").write_text(
            f'[instances]\npath = "{self.root}/instances"\n[caches.one]\nkind = "base"\npath = "{self.root}/instances/_base"\n'
            f'[sources.file]\nallowed_paths = ["{self.root}"]\n'
        )
        (self.root / "source").write_bytes(CONTENT)
        self.host.create_disk(INSTANCE, f"file://{self.root}/source")
        if self.damaged:
            self.image.path.write_bytes(DAMAGED)
        if not self.source:
            (self.root / "source").unlink()

    def run(self, *faults: str) -> tuple[int, Mapping[str, str]]:
        """Scrub in a process of its own: the signal that ended it, and its answer."""
        answer, log = self.root.with_suffix(".answer"), self.root.with_suffix(".log")
        answer.unlink(missing_ok=True)
        log.write_text("")
        status = self.jobs.run([answer, self.root / "underlay.toml", "scrub"], faults=faults, log=log)
        return status, json.loads(answer.read_text()) if answer.exists() else {}

    def was_hit(self) -> bool:
        return "(INJECTED)" in self.root.with_suffix(".log").read_text(errors="replace")

    def check(self) -> None:
        """The disk's base is under its name, and is served if it is right, or not known to be wrong."""
        image = self.image
        content = image.path.read_bytes()
        assert content in (CONTENT, DAMAGED)
        noted = quarantine.damage_of(self.store, image.name, inode=image.path.stat().st_ino)
        assert content == DAMAGED or noted is None  # a note of the damaged inode means no other
        if noted is not None:
            with pytest.raises(ImageDamaged):
                images.find(self.store, image.name)
        else:
            assert images.find(self.store, image.name) is not None
        with locking.try_exclusive(self.store, image.name) as taken:
            assert taken is not None

    def left(self) -> dict[str, object]:
        [subject] = scrubs.subjects(self.store, "one")[0]
        private = self.store.paths
        return {
            "content": self.image.path.read_bytes() == CONTENT,
            "noted": sorted(name for name in quarantine.names(self.store)),
            "scrubs": [name for name in os.listdir(private.scrubs) if not name.startswith(".")],
            "reached": subject.reached,
            "disk": self.host.disk(INSTANCE).path.exists(),
        }

    def settle(self) -> None:
        """A scrub without a fault."""
        status, answer = self.run()
        assert (0, None) == (status, answer.get("error"))
        self.check()


def clean_end(case: Case) -> dict[str, object]:
    case.set_up()
    case.settle()
    left = case.left()
    assert (case.source or not case.damaged) == left["content"]
    return left


@pytest.mark.parametrize(("call", "source"), CASES)
def test_after_a_kill_at_any_call_the_image_is_whole_and_the_next_scrub_ends_well(
    tmp_path: Path, workers: Jobs, call: str, *, source: bool
) -> None:
    case = Case(tmp_path / "case", workers, source=source)
    clean = clean_end(case)
    for number in range(1, MOST):
        case.set_up()
        status, _ = case.run(f"{call}:signal=SIGKILL:when={number}")
        case.check()
        if status == 0:
            return
        assert -signal.SIGKILL == status
        case.settle()
        assert clean == case.left(), f"after a kill at {call} number {number}"
    raise AssertionError(f"{call} is called without end")


@pytest.mark.parametrize(("call", "error"), FAILURES)
def test_a_call_that_fails_is_told_and_nothing_damaged_is_served_for_it(
    tmp_path: Path, workers: Jobs, call: str, error: str
) -> None:
    case = Case(tmp_path / "case", workers)
    clean = clean_end(case)
    for number in range(1, MOST):
        case.set_up()
        status, answer = case.run(f"{call}:error={error}:when={number}")
        case.check()
        assert 0 == status, f"{call} number {number}"
        if not case.was_hit():
            return
        assert answer.get("error") or answer["outcomes"] or answer["errors"], answer
        case.settle()
        assert clean == case.left(), f"after {error} at {call} number {number}"
    raise AssertionError(f"{call} is called without end")


def test_an_image_that_cannot_be_read_at_all_is_damaged(tmp_path: Path, workers: Jobs) -> None:
    case = Case(tmp_path / "case", workers, damaged=False, source=False)
    case.set_up()
    status, answer = case.run("preadv2:error=EIO:when=1+")
    assert (0, "damaged") == (status, answer["outcomes"])
    with pytest.raises(ImageDamaged, match="Input/output error"):
        images.find(case.store, case.image.name)
    assert (0, "sound") == (case.run()[0], case.run()[1]["outcomes"])
