"""Tests that run in the micro virtual machine: each has its result outside, where all that are asked for run in one machine.

A test of this directory that is marked as one of the component ``microvm`` is not called outside. The first of them starts the
machine, in which pytest runs all that were asked for, and each then takes its result from what the machine left. Processes of
pytest-xdist share one machine: the first starts it, and the others wait.
"""

import fcntl
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from lvm_stage import Lvm, LvmStage
from microvm import Done, run_inside

INSIDE = "UNDERLAY_MICROVM"
_JOB = Path("/run/job")
_LIMIT = 1200.0  # seconds; on a machine that does nothing else it is two minutes
_SAID_LAST = 6000  # characters


@dataclass(frozen=True, slots=True)
class Results:
    """What the machine left.

    Attributes:
        told: by test, the outcome of each of its parts and what was said.
    """

    done: Done
    told: dict[str, list[tuple[str, str]]]

    def of(self, test: str) -> tuple[str, str]:
        """The outcome, and why it is not passed."""
        parts = self.told.get(test, [])
        worse = [part for part in parts if part[0] != "passed"]
        if worse or parts:
            return (worse or parts)[0]
        said = f"the machine ended with status {self.done.status} before this test"
        return "failed", f"{said}\n{self.done.output[-_SAID_LAST:]}\n{self.done.console[-_SAID_LAST:]}"


def _is_for_the_machine(item: pytest.Item) -> bool:
    return any("microvm" in mark.args for mark in item.iter_markers("component"))


def _is_outside() -> bool:
    return INSIDE not in os.environ


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and _is_outside() and _is_for_the_machine(item):
        item.fixturenames[:] = ["microvm_results"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not (_is_outside() and _is_for_the_machine(pyfuncitem)):
        return None
    results = pyfuncitem.funcargs["microvm_results"]
    assert isinstance(results, Results)
    outcome, why = results.of(pyfuncitem.nodeid)
    if outcome == "skipped":
        pytest.skip(why)
    if outcome != "passed":
        pytest.fail(why, pytrace=False)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not _is_outside():
        line = json.dumps([report.nodeid, report.outcome, f"{report.longreprtext}\n{report.capstderr}", report.duration])
        with (_JOB / "results").open("a") as file:
            file.write(line + "\n")


@pytest.fixture(scope="session")
def microvm_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of all tests that were asked for, of one machine."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    job = shared / "microvm"
    with (shared / "microvm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not job.exists():
            job.mkdir()
            _run([item.nodeid for item in request.session.items if _is_for_the_machine(item)], job)
    done = json.loads((job / "done").read_text())
    return Results(Done(*done), _told(job / "results"))


def _run(tests: list[str], job: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    places = dict.fromkeys(("HOME", "TMPDIR"), "/scratch")
    variables = {
        INSIDE: "1",
        "UNDERLAY_LONG_TESTS": "1",  # those that were asked for are there
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.environ["PATH"],
        **places,
    }
    done = run_inside(command, job, variables=variables, limit=_LIMIT)
    for device in ("volumes", "scratch"):
        (job / device).unlink()
    (job / "done").write_text(json.dumps([done.status, done.output, done.console]))


def _told(results: Path) -> dict[str, list[tuple[str, str]]]:
    told: dict[str, list[tuple[str, str]]] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        test, outcome, why, _ = json.loads(line)
        told.setdefault(test, []).append((outcome, why))
    return told


@pytest.fixture(scope="session")
def lvm() -> Lvm:
    """A volume group with a thin pool, in the machine."""
    group = Lvm("disks", "pool")
    group.make(Path("/dev/ubda"))
    return group


@pytest.fixture
def stage(lvm: Lvm, tmp_path: Path, request: pytest.FixtureRequest) -> LvmStage:
    return LvmStage(lvm, tmp_path, getattr(request, "param", "thick"))
