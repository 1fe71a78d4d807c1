"""A prune is killed, or fails, at each system call that changes what is on disk: no file is lost that somebody needs.

strace kills the process as it enters the call, so each state that a crash can leave is looked at: the unused file is whole in
the cache or in the trash, or gone; everything else is as it was; and one or two further passes end as a clean one does.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from job import INSTANCE
from scenes import CONTENT, Jobs, jobs

from underlay.host import Host
from underlay.naming import stem_of_version
from underlay.store import Store, eviction, images, mounts

pytestmark = pytest.mark.component("strace", "qemu-img", "leases")

DAY = 86400
USED, *UNUSED = (stem_of_version(name) for name in ("used", "unused", "another"))
PART = f"{UNUSED[0]}.part"
MOST = 40  # calls of one kind in one job; more would be a loop of ours that never ends
CALLS = ("renameat2", "unlink", "fsync", "utimensat", "rename", "linkat", "mkdir")


@pytest.fixture(scope="module")
def workers() -> Iterator[Jobs]:
    with jobs() as started:
        yield started


@dataclass(frozen=True, slots=True)
class Case:
    """A cache with one base in use, two that nobody needs and a leftover, all old; a lease that has ended; a crash's trash."""

    root: Path
    jobs: Jobs
    trash: bool = False

    @property
    def host(self) -> Host:
        return Host.open(self.root / "underlay.toml")

    @property
    def store(self) -> Store:
        return self.host.config.caches["one"]

    def set_up(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / "instances/_base").mkdir(parents=True)
        (self.root / "underlay.toml").write_text(
            f'host = "one"\n[instances]\npath = "{self.root}/instances"\nhosts = ["one"]\n'
            f'[caches.one]\nkind = "base"\npath = "{self.root}/instances/_base"\n'
        )
        self.store.prepare()
        for name in (USED, *UNUSED, PART):
            (self.store.root / name).write_bytes(CONTENT)
            images.mark_used(self.store, name)
        self.host.create_disk(INSTANCE, USED)
        self.host.lease(UNUSED[0], holder="me", seconds=0.001)
        old = time.time_ns() - 2 * DAY * 10**9
        for name in (USED, *UNUSED, PART):
            os.utime(self.store.root / name, ns=(old, old))
            os.utime(self.store.paths.used_marker(name), ns=(old, old))
        if self.trash:
            for name in (USED, UNUSED[0]):
                eviction.trash(self.store, name)

    def run(self, *faults: str) -> tuple[int, Mapping[str, str]]:
        """Prune in a process of its own: the signal that ended it, and its answer."""
        answer, log = self.root.with_suffix(".answer"), self.root.with_suffix(".log")
        answer.unlink(missing_ok=True)
        log.write_text("")
        status = self.jobs.run([answer, self.root / "underlay.toml", "prune"], faults=faults, log=log)
        return status, json.loads(answer.read_text()) if answer.exists() else {}

    def was_hit(self) -> bool:
        report = self.root.with_suffix(".log").read_text(errors="replace")
        return "(INJECTED)" in report or "killed by SIGKILL" in report

    def check(self) -> None:
        """Each file is whole where it is, and the one in use can be had."""
        places = [self.store.root, self.store.paths.trash]
        for name in (USED, *UNUSED, PART):
            found = [place / name for place in places if (place / name).exists()]
            assert len(found) <= 1, found
            assert all(CONTENT == path.read_bytes() for path in found)
            assert found or name != USED
        if not self.trash:
            assert (self.store.root / USED).exists()

    def left(self) -> dict[str, object]:
        """What a pass leaves: files, markers, leases, trash, temporaries."""
        private = self.store.paths
        return {
            "files": sorted(os.listdir(self.store.root)),
            "used": sorted(os.listdir(private.used)),
            "trash": os.listdir(private.trash),
            "leases": [name for name in os.listdir(private.leases) if not name.startswith(".")],
            "hosts": sorted(name for name in os.listdir(private.hosts) if not name.startswith(".")),
            "roots": sorted(mounts.recall(self.store)),
        }

    def settle(self) -> None:
        """What was in the trash is put back by one pass and judged by the next."""
        for _ in range(2):
            status, answer = self.run()
            assert 0 == status
            assert "error" not in answer
        self.check()


def clean_end(case: Case) -> dict[str, object]:
    case.set_up()
    case.settle()
    left = case.left()
    assert [".underlay", USED] == left["files"]
    assert ([], []) == (left["trash"], left["leases"])
    return left


# What a crash has left in the trash is refreshed by the pass after that which puts it back.
@pytest.mark.parametrize(
    ("call", "trash"), [(call, trash) for call in CALLS for trash in (False, True) if (call, trash) != ("utimensat", True)]
)
def test_after_a_kill_at_any_call_of_a_prune_all_is_whole_and_a_further_pass_ends_it(
    tmp_path: Path, workers: Jobs, call: str, *, trash: bool
) -> None:
    case = Case(tmp_path / "case", workers, trash)
    clean = clean_end(case)
    for number in range(1, MOST):
        case.set_up()
        status, _ = case.run(f"{call}:signal=SIGKILL:when={number}")
        case.check()
        if status == 0:
            assert number > 1, f"a prune makes no {call}"
            return
        assert -signal.SIGKILL == status
        case.settle()
        left = case.left()
        # A crash between a file's removal and its marker's leaves the marker, which protects nothing.
        assert set(clean["used"]) <= set(left["used"]) <= {USED, *UNUSED, PART}  # type: ignore[call-overload]
        assert clean | {"used": 0} == left | {"used": 0}, f"after a kill at {call} number {number}"
    raise AssertionError(f"{call} is called without end")


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_is_told_and_loses_nothing(tmp_path: Path, workers: Jobs, call: str, error: str) -> None:
    case = Case(tmp_path / "case", workers)
    clean = clean_end(case)
    for number in range(1, MOST):
        case.set_up()
        status, answer = case.run(f"{call}:error={error}:when={number}")
        case.check()
        assert 0 == status, f"{call} number {number}"
        assert "error" not in answer, answer
        if not case.was_hit():
            assert number > 1, f"a prune makes no {call}"
            return
        assert [] == [name for name in answer["removed"].split() if (case.store.root / name).exists()]
        assert [] == os.listdir(case.store.paths.trash), f"{call} number {number}: {answer}"
        case.settle()
        left = case.left()
        assert clean | {"used": 0} == left | {"used": 0}, f"after {error} at {call} number {number}"
    raise AssertionError(f"{call} is called without end")
