"""The libvirtd of the tests here, started once, and a driver on it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from libvirt_daemon import Daemon
from libvirt_stage import LibvirtStage, Place

from underlay.compute.libvirt import LibvirtDriver


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """A libvirtd; short paths, for its sockets."""
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


@pytest.fixture
def driver(place: Place) -> Iterator[LibvirtDriver]:
    driver = place.driver()
    yield driver
    driver.cleanup_host("node1")


@pytest.fixture(scope="session")
def shared_stage(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibvirtStage]:
    """One stage for all cases of the suite: each makes instances of its own, and destroys them."""
    place = Place(tmp_path_factory.mktemp("suite"), daemon)
    stage = LibvirtStage(place, place.driver())
    yield stage
    for driver in (*stage.drivers, stage.driver):
        driver.cleanup_host("node1")
