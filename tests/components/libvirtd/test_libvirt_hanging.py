"""A libvirt that hangs: nobody waits for it for long, nothing of what was asked is done later, and nothing of ours is left."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from libvirt_daemon import Daemon
from libvirt_stage import Place, wait_until

from underlay.compute import states
from underlay.compute.errors import HypervisorUnavailable
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain, uuids

pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One of these tests' own, as others shall not wait for it."""
    directory = Path(tempfile.mkdtemp(prefix="ul-"))
    daemon = Daemon(directory)
    daemon.prepare()
    try:
        daemon.start()
        yield daemon
        daemon.destroy_guests()
    finally:
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def place(daemon: Daemon, tmp_path: Path) -> Place:
    return Place(tmp_path, daemon)


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def there_are() -> tuple[int, int]:
    """How many threads and descriptors; a thread may be about to end, and is counted all the same."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def no_more_than(before: tuple[int, int]) -> bool:
    return all(now <= then for now, then in zip(there_are(), before, strict=True))


def test_what_came_too_late_is_not_done_when_libvirt_goes_on(place: Place) -> None:
    driver = place.driver()
    image = place.image()
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    run = driver.get_info(instance).internal_id
    known, new = (Connection(place.daemon.uri, timeout=2) for _ in range(2))
    uuids(known)
    threads, began = threading.active_count(), time.monotonic()
    with stopped(place.daemon):
        for change in (Domain(known, instance.uuid).cut, Domain(new, instance.uuid).cut, Domain(known, instance.uuid).start):
            with pytest.raises(HypervisorUnavailable, match="does not answer for 2 s"):
                change()
        assert threads < threading.active_count()
    assert time.monotonic() - began < 30
    wait_until(lambda: threads >= threading.active_count(), "the questions end")
    assert (states.RUNNING, run) == (driver.get_info(instance).state, driver.get_info(instance).internal_id)
    for connection in (known, new):
        connection.close()
    driver.destroy(None, instance, [])
    driver.cleanup_host("node1")


def test_a_libvirt_with_many_questions_left_is_asked_no_more_until_it_answers(place: Place) -> None:
    place.driver().cleanup_host("node1")  # from then on there is libvirt's own loop, also when this is a process's first test
    connection = Connection(place.daemon.uri, timeout=30)
    uuids(connection)
    threads = threading.active_count()
    with stopped(place.daemon):
        for _ in range(100):  # one that does not begin in time, as on a machine that is busy, is not left
            with pytest.raises(
                HypervisorUnavailable, match=r"does not answer for 0\.1 s|has not answered 16 questions"
            ) as caught:
                connection.ask(lambda handle: handle.numOfDomains(), seconds=0.1)
            if "16 questions" in str(caught.value):
                break
        with pytest.raises(HypervisorUnavailable, match="has not answered 16 questions"):
            connection.ask(lambda handle: handle.numOfDomains(), seconds=30)
        assert threads + 16 >= threading.active_count()
    wait_until(lambda: threads >= threading.active_count(), "the questions end")
    assert [] == uuids(connection)
    connection.close()


def test_a_libvirt_that_says_nothing_is_taken_for_gone_and_its_questions_end(place: Place) -> None:
    driver = place.driver(more='timeout = "1s"')
    threads = threading.active_count()
    with stopped(place.daemon):
        with pytest.raises(HypervisorUnavailable, match="does not answer for 1 s"):
            driver.list_instances()
        wait_until(lambda: threads >= threading.active_count(), "the question ends while libvirt still hangs")
    wait_until(lambda: _answers(driver), "it is asked anew")
    driver.cleanup_host("node1")


def _answers(driver: LibvirtDriver) -> bool:
    try:
        return driver.list_instances() == []
    except HypervisorUnavailable:
        return False


def test_no_thread_and_no_descriptor_is_left_of_services_that_ended(place: Place) -> None:
    place.driver().cleanup_host("node1")  # what stays open once, such as libvirt's own loop
    before = there_are()
    for _ in range(10):
        place.driver().cleanup_host("node1")
    wait_until(lambda: no_more_than(before), "all is let go of")


def test_nothing_is_left_of_connections_that_broke_or_came_too_late(place: Place) -> None:
    place.driver().cleanup_host("node1")
    before = there_are()
    driver = place.driver()
    for _ in range(2):
        place.daemon.stop()
        place.daemon.start()
        assert [] == driver.list_instances()
    driver.cleanup_host("node1")
    late = LibvirtDriver(None, host=place.host(more='timeout = "1s"'))
    with stopped(place.daemon), pytest.raises(HypervisorUnavailable):
        late.init_host("node1")
    wait_until(lambda: before[0] >= threading.active_count(), "who opened it too late closes it")
    place.driver().cleanup_host("node1")  # whose loop lets go of the descriptor: the late one's had ended
    wait_until(lambda: no_more_than(before), "all is let go of")
