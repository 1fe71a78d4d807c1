"""A refresh is killed at each of its steps: the last good version stays held, and the next refresh makes things whole."""

import hashlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from machine import MIB, Machine
from underlay.contracts import Observer
from underlay.host import Host
from underlay.model import Event, Progress
from underlay.testing.fakes import FakeImage, FakeSource, Recorder

REF = "fake:stream"
MOST = 60  # steps of one refresh; more would be a loop of ours that never ends


def content(number: int) -> bytes:
    """A raw image that says which version it is."""
    return f"version {number}".encode().ljust(MIB, b".")


@dataclass(slots=True)
class KilledAt:
    """An observer with which the process dies at its so-manieth event."""

    left: int

    def event(self, _event: Event) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def progress(self, _progress: Progress) -> None:
        """How often it comes hangs on the clock, so it is no step."""


def laid_out(root: Path) -> Machine:
    root.mkdir()
    return Machine.make(root, extra=f'[follow]\nrefs = ["{REF}"]\nkeep = 1\n')


def refresh(machine: Machine, number: int, observer: Observer) -> Host:
    """Refresh when so many versions have been published; raises what went wrong."""
    source = FakeSource({REF: FakeImage(content(1))})
    for newer in range(2, number + 1):
        source.put(REF, FakeImage(content(newer)))
    host = Host.open(machine.config, observer=observer, sources={"fake": source})
    [one] = host.refresh()
    if one.error is not None:
        raise one.error
    return host


def held(machine: Machine) -> dict[str, int]:
    """How many holds there are of each version that is here and whole, by its digest."""
    host = Host.open(machine.config)
    found, problems = host.images()
    assert [] == problems
    digests = {image.name: hashlib.sha256(image.path.read_bytes()).hexdigest() for image in found}
    names = [name for _, lease in host.leases() for name in lease.names]
    return {digests[name]: names.count(name) for name in names}


def digest(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def killed(machine: Machine, step: int) -> bool:
    """Refresh in a process that dies at a step; whether there was that step."""
    child = os.fork()
    if child == 0:
        try:
            refresh(machine, 3, KilledAt(step))
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_the_last_good_version_stays_held_and_the_next_refresh_makes_things_whole(tmp_path: Path) -> None:
    for step in range(1, MOST):
        machine = laid_out(tmp_path / str(step))
        for number in (1, 2):
            refresh(machine, number, Recorder())
        assert {digest(1): 1, digest(2): 1} == held(machine)

        was_killed = killed(machine, step)

        between = held(machine)
        assert digest(2) in between, f"after a kill at step {step}"
        assert {digest(1), digest(2), digest(3)} >= set(between)
        refresh(machine, 3, Recorder())
        assert {digest(2): 1, digest(3): 1} == held(machine), f"after a kill at step {step}"
        assert [] == list((machine.base / ".underlay" / "tmp").iterdir())
        if not was_killed:
            assert step > 5
            return
    raise AssertionError("a refresh has steps without end")
