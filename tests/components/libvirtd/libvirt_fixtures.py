"""The libvirtd of the tests here, started once, and a driver on it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from libvirt_daemon import Daemon
from libvirt_hosts import Hosts, two_hosts
from libvirt_pair import SLOW, Pair, paired
from libvirt_stage import LibvirtStage, Place, command

from underlay.compute.libvirt import LibvirtDriver

_PORTS = 12


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """A libvirtd; short paths, for its sockets."""
    directory = Path(tempfile.mkdtemp(prefix="ul-"))
    daemon = Daemon(directory, host_uuid=str(uuid4()))
    daemon.prepare()
    try:
        daemon.start()
        yield daemon
        daemon.destroy_guests()
    finally:
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def hosts(daemon: Daemon, bridge: str) -> Iterator[Hosts]:
    """That libvirtd and another, in a network of its own, each of them a host to the other."""
    with two_hosts(daemon, bridge) as hosts:
        yield hosts


@pytest.fixture
def daemon_of_another_user() -> Iterator[Daemon]:
    """One whose QEMU is not root, as on most hosts."""
    directory = Path(tempfile.mkdtemp(prefix="ul-"))
    other = Daemon(directory, user="libvirt-qemu")
    other.prepare()
    directory.chmod(0o755)
    try:
        other.start()
        yield other
        other.destroy_guests()
    finally:
        other.stop()
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
def bridge() -> Iterator[str]:
    """A bridge of this process's own, which leads nowhere."""
    name = f"ulb{os.getpid()}"
    command("ip", "link", "add", "name", name, "type", "bridge")
    yield name
    command("ip", "link", "delete", name)


@pytest.fixture(scope="session")
def shared_stage(daemon: Daemon, hosts: Hosts, bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibvirtStage]:
    """One stage for all cases of the suite: each makes instances of its own, and destroys them."""
    first = 20_000 + os.getpid() % 1000 * _PORTS  # apart from those of another process that runs these tests
    ports, root = (first, first + _PORTS - 1), tmp_path_factory.mktemp("suite")
    there = Place(root / "far", hosts.far, name="node2", images=root)
    far = LibvirtStage(there, bridge, ports, host="node2", more=hosts.options(hosts.far_address))
    stage = LibvirtStage(Place(root, daemon), bridge, ports, more=hosts.options(hosts.near_address), far=far)
    yield stage
    for driver in (*stage.drivers, *far.drivers):
        driver.cleanup_host(stage.host)


@pytest.fixture
def pair(hosts: Hosts, tmp_path: Path) -> Iterator[Pair]:
    with paired(hosts, tmp_path) as pair:
        yield pair


@pytest.fixture
def slow(hosts: Hosts, tmp_path: Path) -> Iterator[Pair]:
    """A move that never comes to its end by itself: the guest writes more memory than can be sent."""
    with paired(hosts, tmp_path, more=SLOW) as pair:
        yield pair


@pytest.fixture
def shared(hosts: Hosts, tmp_path: Path) -> Iterator[Pair]:
    """On storage that both hosts have."""
    with paired(hosts, tmp_path, shared=True) as pair:
        yield pair
