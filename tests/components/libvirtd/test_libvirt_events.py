"""What is heard of domains, over libvirt's driver for tests: it lives in this process, and its events are libvirt's own."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
from libvirt_daemon import quiet_library
from libvirt_stage import wait_until

from underlay.compute import LifecycleEvent, events
from underlay.compute.errors import HypervisorUnavailable, InstanceNotFound
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain, names, uuids
from underlay.compute.libvirt.eventloop import EventLoop, turn_until
from underlay.compute.libvirt.lifecycleevents import LifecycleEvents
from underlay.compute.libvirt.probename import probe_name

pytestmark = pytest.mark.component("libvirt-python")

URI = "test:///default"
NAME = "test"  # of the one domain that this driver begins with
STARTED, STOPPED = events.EVENT_LIFECYCLE_STARTED, events.EVENT_LIFECYCLE_STOPPED
PROBE = "5d0e6a02-7a1f-4b0e-9d5c-0a5d1f2c3b4a"


@dataclass(slots=True)
class Ear:
    """What has been heard, and a domain of which there is something to hear."""

    heard: list[int] = field(default_factory=list)
    failing: list[BaseException] = field(default_factory=list)
    is_active: Callable[[str], bool] = lambda _uuid: False
    handle: Any = None
    domain: Any = None
    events: LifecycleEvents = field(init=False)

    def __post_init__(self) -> None:
        self.events = LifecycleEvents(tell=self.tell, is_active=lambda uuid: self.is_active(uuid))

    def tell(self, event: LifecycleEvent) -> None:
        self.heard.append(event.transition)
        if self.failing:
            raise self.failing.pop()

    def await_all(self, *transitions: int) -> None:
        wait_until(lambda: list(transitions) == self.heard, f"{transitions} are heard, not {self.heard}")


@pytest.fixture
def ear() -> Iterator[Ear]:
    quiet_library()
    loop, ear = EventLoop(), Ear()
    loop.start()
    ear.events.start()
    ear.handle = import_module("libvirt").open(URI)
    ear.domain = ear.handle.lookupByName(NAME)
    hang_up = ear.events.listen(ear.handle)
    yield ear
    if not ear.domain.isActive():
        ear.domain.create()
    hang_up()
    ear.handle.close()
    ear.events.stop()
    loop.stop()


def test_one_event_that_cannot_be_told_does_not_keep_the_next(ear: Ear) -> None:
    ear.failing.append(RuntimeError("a listener's own"))
    ear.domain.destroy()
    ear.domain.create()
    ear.await_all(STOPPED, STARTED)


def test_a_look_that_fails_does_not_keep_the_next_event(ear: Ear) -> None:
    def fail(_uuid: str) -> bool:
        raise RuntimeError("can't start new thread")

    ear.is_active = fail
    ear.domain.destroy()
    ear.domain.create()
    ear.await_all(STARTED)


@pytest.mark.parametrize("runs", [True, False])
def test_who_was_held_and_stopped_is_told_when_that_is_over_unless_it_runs_again(ear: Ear, *, runs: bool) -> None:
    uuid = ear.domain.UUIDString()
    ear.is_active = lambda _uuid: runs
    ear.events.hold(uuid)
    ear.domain.destroy()
    ear.domain.create()
    ear.await_all(STARTED)  # and before that it stopped
    ear.events.release(uuid)
    ear.domain.suspend()
    ear.await_all(STARTED, *([] if runs else [STOPPED]), events.EVENT_LIFECYCLE_PAUSED)
    ear.domain.resume()


def test_nobody_hears_of_a_probe_or_sees_it(ear: Ear) -> None:
    xml = f"<domain type='test'><name>{probe_name(PROBE)}</name><uuid>{PROBE}</uuid>"
    probe = ear.handle.createXML(f"{xml}<memory>1024</memory><os><type>hvm</type></os></domain>", 0)
    connection = Connection(URI, timeout=10)
    assert PROBE in connection.ask(lambda handle: [one.UUIDString() for one in handle.listAllDomains(0)])
    assert (False, False) == (PROBE in uuids(connection), probe_name(PROBE) in names(connection))
    assert NAME in names(connection)
    connection.close()
    probe.destroy()
    ear.domain.destroy()
    ear.await_all(STOPPED)


def test_a_loop_that_fails_is_turned_again(caplog: pytest.LogCaptureFixture) -> None:
    libvirt, ends, turns = quiet_library(), threading.Event(), list[str]()

    def turn() -> None:
        turns.append("turn")
        if len(turns) == 1:
            raise libvirt.libvirtError("the loop broke")
        ends.set()

    turn_until(ends, turn)
    assert len(turns) > 2
    assert "the loop broke" in caplog.text


def test_a_connection_that_was_let_go_of_is_not_opened_again() -> None:
    seen: list[str] = []

    def opened(_handle: Any) -> Callable[[], None]:
        seen.append("opened")
        return lambda: seen.append("left")

    connection = Connection(URI, timeout=10, opened=opened)
    assert NAME in names(connection)
    connection.close()
    with pytest.raises(HypervisorUnavailable, match="let go"):
        names(connection)
    connection.close()
    assert ["opened", "left"] == seen


def test_who_is_let_go_of_while_it_is_asked_is_closed_by_the_last_who_asks() -> None:
    connection, began, goes_on, answers = Connection(URI, timeout=10), threading.Event(), threading.Event(), list[bool]()

    def ask(handle: Any) -> None:
        began.set()
        goes_on.wait(30)
        answers.append(bool(handle.isAlive() and handle.listAllDomains(0)))

    asking = threading.Thread(target=connection.ask, args=(ask,))
    asking.start()
    assert began.wait(30)
    connection.close()
    goes_on.set()
    asking.join()
    assert [True] == answers


def test_without_a_thread_libvirt_is_said_not_to_be_asked() -> None:
    connection = Connection(URI, timeout=10)
    usual = threading.stack_size(1 << 46)  # no machine has that much
    try:
        with pytest.raises(HypervisorUnavailable, match="cannot be asked"):
            names(connection)
    finally:
        threading.stack_size(usual)
    assert NAME in names(connection)
    connection.close()


def test_the_service_s_handler_of_errors_stays() -> None:
    libvirt, told = import_module("libvirt"), list[str]()
    libvirt.registerErrorHandler(lambda _context, error: told.append(error[2]), None)
    connection = Connection(URI, timeout=10)
    try:
        with pytest.raises(InstanceNotFound):
            Domain(connection, PROBE).state()
    finally:
        quiet_library()
        connection.close()
    assert [one for one in told if PROBE in one or "not found" in one]


def test_nothing_is_printed_where_nobody_else_has_a_handler() -> None:
    script = (
        "from underlay.compute.libvirt.connection import Connection\n"
        "from underlay.compute.libvirt.domain import Domain\n"
        f"print(Domain(Connection({URI!r}, timeout=30), {PROBE!r}).exists())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ("False\n", "") == (done.stdout, done.stderr)
