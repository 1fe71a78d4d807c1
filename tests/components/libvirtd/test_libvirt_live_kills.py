"""Moves in which a driver or a libvirt is killed: one host has the guest, it goes on, no disk is lost and nothing is left."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from libvirt_daemon import Daemon
from libvirt_hosts import Hosts, two_hosts
from libvirt_pair import BLOCK_DEVICES, PAYLOAD, SLOW, Pair, paired
from libvirt_stage import wait_until

from underlay.compute import states
from underlay.compute.errors import ComputeError, InstanceExists, OperationFailed
from underlay.compute.libvirt.livemigration import marks, xml
from underlay.compute.libvirt.livemigration.marks import Mark
from underlay.testing.fakedriver import FakeInstance
from underlay.testing.httpserver import Served, serving

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip")


@pytest.fixture(scope="module")
def own_hosts(bridge: str) -> Iterator[Hosts]:
    """Two libvirtd for these tests alone, which kill them."""
    directory = Path(tempfile.mkdtemp(prefix="ul-"))
    near = Daemon(directory, host_uuid=str(uuid4()))
    near.prepare()
    try:
        near.start()
        with two_hosts(near, bridge) as hosts:
            yield hosts
        near.destroy_guests()
    finally:
        near.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def pair(own_hosts: Hosts, tmp_path: Path) -> Iterator[Pair]:
    with paired(own_hosts, tmp_path) as pair:
        yield pair


@pytest.fixture
def slow(own_hosts: Hosts, tmp_path: Path) -> Iterator[Pair]:
    with paired(own_hosts, tmp_path, more=SLOW) as pair:
        yield pair


@contextmanager
def doing(pair: Pair, step: str, instance: FakeInstance, data: Any, *, more: str = "") -> Iterator["subprocess.Popen[str]"]:
    """A driver in a process of its own at one step; killed when the block ends."""
    hosts, is_source = pair.hosts, step == "live_migration"
    place = pair.here if is_source else pair.there
    address = hosts.near_address if place.name == "node1" else hosts.far_address
    told: dict[str, Any] = {"config": place.config(more=hosts.options(address) + more), "host": place.name, "step": step}
    told |= {"instance": instance, "data": data, "info": pair.info_there, "dest": pair.there.name}
    path = pair.here.root / "step"
    path.write_bytes(pickle.dumps(told))
    script = Path(__file__).parent / "libvirt_mover.py"
    argv = [sys.executable, os.fspath(script), os.fspath(path)]
    with subprocess.Popen(argv, cwd=script.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def says(process: "subprocess.Popen[str]", what: str) -> None:
    assert process.stdout is not None
    assert f"{what}\n" == process.stdout.readline()


def stays(pair: Pair, instance: FakeInstance) -> None:
    """The guest goes on where it was, and nothing of it is on the other host."""
    assert pair.goes_on(pair.here, instance)
    assert ([], 1) == (pair.there.traces(instance), pair.machines(instance))
    assert [] == pair.marks(pair.here, instance)
    assert [pair.here.name] == pair.holders(instance, *(here for here, _ in pair.volumes))
    pair.destroy(instance)


def has_moved(pair: Pair, instance: FakeInstance) -> None:
    """The guest goes on at its destination, and nothing of it is where it was."""
    assert pair.goes_on(pair.there, instance)
    assert ([], 1) == (pair.here.traces(instance), pair.machines(instance))
    assert [] == pair.marks(pair.there, instance)
    assert [pair.there.name] == pair.holders(instance, *(there for _, there in pair.volumes))
    domain = pair.destination.site.domain(instance)
    assert domain.connection.ask(lambda handle: handle.lookupByUUIDString(instance.uuid).isPersistent())
    pair.destination.power_off(instance)
    assert PAYLOAD == pair.content(pair.there, instance)[1 << 16 :][: len(PAYLOAD)]
    pair.destroy(instance)


def with_volume(pair: Pair, instance: FakeInstance) -> FakeInstance:
    """The guest with a volume that has another name on the other host."""
    volume = pair.here.volume(content=PAYLOAD)
    path = Path(volume["data"]["device_path"])
    there = pair.there.root / path.name
    there.parent.mkdir(exist_ok=True)
    os.link(path, there)
    pair.attach(instance, volume, there={**volume, "data": {**volume["data"], "device_path": os.fspath(there)}})
    return instance


def is_copying(pair: Pair, instance: FakeInstance) -> bool:
    domain = pair.source.site.domain(instance)
    told: Any = domain.connection.ask(lambda handle: handle.lookupByUUIDString(instance.uuid).jobStats(0))
    return bool(told.get("memory_total"))


# --------------------------------------------------------------------------------------------------- the destination's driver


def test_a_driver_is_killed_while_it_fetches_the_image(own_hosts: Hosts, tmp_path: Path) -> None:
    with paired(own_hosts, tmp_path) as pair:
        file = tmp_path / "counting.raw"
        with serving({"/guest.raw": Served(file, etag='"1"')}) as server:
            pair.image = server.url("/guest.raw")
            instance = pair.spawn()
            data = pair.check(instance)
            sent = server.sent("/guest.raw")
            server.serve("/guest.raw", Served(file, etag='"1"', stall_after=1 << 16))
            with doing(pair, "pre_live_migration", instance, data) as process:
                server.wait_until_sent("/guest.raw", sent + (1 << 16))
                process.kill()
                process.wait()
        assert ["arriving.node2"] == os.listdir(pair.there.instances / instance.uuid)
        pair.restart_destination()
        stays(pair, instance)


def test_a_driver_is_killed_once_it_is_ready(pair: Pair) -> None:
    instance = with_volume(pair, pair.spawn())
    data = pair.check(instance)
    with doing(pair, "pre_live_migration", instance, data) as process:
        says(process, "done")
    assert {"arriving.node2", "disk"} <= {*os.listdir(pair.there.instances / instance.uuid)}
    pair.restart_destination()
    assert [] == pair.there.traces(instance)
    again = pair.prepare(instance)  # and the same instance can come after all
    assert "moved" == pair.move(instance, again)
    pair.finish(instance, again)
    has_moved(pair, instance)


def test_what_a_killed_driver_made_ready_is_gone_when_the_guest_would_come(pair: Pair) -> None:
    instance = pair.spawn()
    data = pair.prepare(instance)
    pair.restart_destination()
    assert "stayed" == pair.move(instance, data)
    pair.roll_back(instance, data)
    stays(pair, instance)


def test_a_destination_s_driver_is_restarted_while_the_guest_comes(slow: Pair) -> None:
    instance = slow.spawn()
    data = slow.prepare(instance)
    with slow.moving(instance, data) as answers:
        wait_until(lambda: is_copying(slow, instance), "its memory is copied")
        slow.restart_destination()
        with pytest.raises(InstanceExists):
            slow.destination.pre_live_migration(None, instance, None, [], None, data)
        slow.source.live_migration_force_complete(instance)
    assert ["moved"] == answers
    slow.finish(instance, data)
    has_moved(slow, instance)


def test_a_destination_s_driver_is_killed_once_the_guest_has_come(pair: Pair) -> None:
    instance = with_volume(pair, pair.spawn())
    data = pair.prepare(instance)
    assert "moved" == pair.move(instance, data)
    pair.restart_destination()
    assert states.RUNNING == pair.destination.get_info(instance).state
    pair.destination.rollback_live_migration_at_destination(None, instance, [], None, migrate_data=data)  # a mistake
    pair.source.cleanup(None, instance, [], destroy_disks=True, migrate_data=data)
    has_moved(pair, instance)


# -------------------------------------------------------------------------------------------------------- the source's driver


def test_a_source_s_driver_is_killed_while_memory_is_copied(slow: Pair) -> None:
    instance = with_volume(slow, slow.spawn())
    data = slow.prepare(instance)
    with doing(slow, "live_migration", instance, data, more=SLOW):
        wait_until(lambda: is_copying(slow, instance), "its memory is copied")
        slow.restart_source()  # another driver of this host leaves a move alone at which somebody is
        assert is_copying(slow, instance)
    slow.restart_source()
    slow.restart_destination()
    wait_until(lambda: not slow.destination.instance_exists(instance), "the destination gives it up")
    slow.destination.manage_image_cache(None, [])
    stays(slow, instance)


def test_a_source_s_driver_is_killed_as_it_begins(pair: Pair) -> None:
    pair.info = {**BLOCK_DEVICES, "ephemerals": []}  # whose swap is made to stand alone first
    instance = pair.spawn()
    data = pair.prepare(instance)
    with doing(pair, "live_migration", instance, data):
        wait_until(lambda: (pair.here.instances / instance.uuid / "leaving.node1").exists(), "it begins")
    pair.restart_source()
    wait_until(lambda: not pair.destination.instance_exists(instance) or pair.machines(instance) == 1, "libvirt is done")
    pair.restart_source()
    pair.restart_destination()
    if pair.destination.instance_exists(instance):  # libvirt was done with it already
        has_moved(pair, instance)
    else:
        stays(pair, instance)


def test_a_source_s_driver_is_killed_once_the_guest_has_gone(pair: Pair) -> None:
    instance = with_volume(pair, pair.spawn())
    data = pair.prepare(instance)
    with doing(pair, "live_migration", instance, data) as process:
        says(process, "moved")
    assert "leaving.node1" in os.listdir(pair.here.instances / instance.uuid)
    pair.restart_source()
    pair.restart_destination()
    has_moved(pair, instance)


def test_files_stay_while_the_other_host_cannot_be_asked(own_hosts: Hosts, tmp_path: Path) -> None:
    with paired(own_hosts, tmp_path) as pair:
        instance = pair.spawn()
        data = pair.prepare(instance)
        assert "moved" == pair.move(instance, data)
        name = own_hosts.directory / "node2"
        name.rename(name.with_name("away"))
        pair.restart_source()
        assert {"disk", "leaving.node1"} <= {*os.listdir(pair.here.instances / instance.uuid)}
        name.with_name("away").rename(name)
        pair.restart_source()
        pair.restart_destination()
        has_moved(pair, instance)


def test_a_guest_is_not_started_while_it_may_run_elsewhere(pair: Pair) -> None:
    instance = pair.spawn()
    pair.source.power_off(instance)
    directory = pair.source.site.directory(instance)
    with marks.made(directory, marks.LEAVING, Mark(host="node1", other="node3", shared=False)):
        """As its driver left it that was killed at the end of a move."""
    for _ in range(2):
        with pytest.raises(OperationFailed, match="node3"):
            pair.source.power_on(None, instance, [])
        pair.restart_source()  # which cannot ask that host
    with marks.made(directory, marks.LEAVING, Mark(host="node1", other="node2", shared=False)):
        """As if it were this one."""
    pair.restart_source()
    pair.source.power_on(None, instance, [])
    stays(pair, instance)


def test_a_paused_guest_whose_source_has_not_heard_that_it_has_gone_is_not_let_go_on_there(pair: Pair) -> None:
    instance = pair.spawn()
    data = pair.prepare(instance)
    pair.source.pause(instance)  # so that its move completes
    domain = pair.source.site.domain(instance)
    text = xml.moved(domain.xml(migratable=True), xml.there_of(data))
    pair.destination.site.connection.ask(lambda handle: handle.defineXML(text).create())
    with marks.made(pair.source.site.directory(instance), marks.LEAVING, Mark(host="node1", other="node2", shared=False)):
        """As libvirt and the driver left it that were killed when it went on at its destination."""
    with pytest.raises(OperationFailed, match="not known"):
        pair.source.unpause(instance)
    with pytest.raises(OperationFailed, match="has come"):
        pair.destination.rollback_live_migration_at_destination(None, instance, [], None, migrate_data=data)
    pair.restart_source()
    pair.restart_destination()
    has_moved(pair, instance)


def test_a_guest_is_not_sent_on_while_it_may_run_elsewhere(pair: Pair) -> None:
    instance = pair.spawn()
    data = pair.prepare(instance)
    pair.source.pause(instance)
    directory = pair.source.site.directory(instance)
    with marks.made(directory, marks.LEAVING, Mark(host="node1", other="node3", shared=False)):
        """As an earlier move left it, to a host that cannot be asked."""
    with pytest.raises(OperationFailed, match="node3"):
        pair.move(instance, data)
    with pytest.raises(OperationFailed, match="node3"):
        pair.source.check_can_live_migrate_source(None, instance, data)
    assert ([], "node3") == (pair.ended, getattr(marks.read(directory, marks.LEAVING, "node1"), "other", None))
    for other, libvirt in (("node2", str(uuid4())), ("node1", None)):  # names come to be another host's, or this one's own
        marks.remove(directory, marks.LEAVING, "node1")
        with marks.made(directory, marks.LEAVING, Mark(host="node1", other=other, shared=False, libvirt=libvirt)):
            """As an earlier move left it, to a host that had this name."""
        pair.restart_source()
        assert marks.read(directory, marks.LEAVING, "node1") is not None
    with marks.made(directory, marks.LEAVING, Mark(host="node1", other="node2", shared=False, libvirt=data.libvirt)):
        """As if it had been this one, which has nothing of it."""
    assert "moved" == pair.move(instance, data)
    pair.finish(instance, data)
    pair.destination.unpause(instance)
    has_moved(pair, instance)


def test_a_guest_that_is_expected_is_expected_until_it_is_settled(pair: Pair) -> None:
    instance = pair.spawn()
    data = pair.prepare(instance)
    pair.destination.manage_image_cache(None, [])  # at any moment
    other = pair.there.driver(more=pair.hosts.options(pair.hosts.far_address))  # another process of the same host
    assert pair.there.traces(instance)
    assert "moved" == pair.move(instance, data)
    pair.finish(instance, data)
    other.cleanup_host("node2")
    has_moved(pair, instance)


# ------------------------------------------------------------------------------------------------------------------ libvirt


@pytest.mark.parametrize("end", ["near", "far"])
def test_a_libvirt_is_killed_while_memory_is_copied(slow: Pair, end: str) -> None:
    daemon: Daemon = getattr(slow.hosts, end)
    instance = with_volume(slow, slow.spawn())
    data = slow.prepare(instance)
    with slow.moving(instance, data) as answers:
        wait_until(lambda: is_copying(slow, instance), "its memory is copied")
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait()
        daemon.start()
    assert ["stayed"] == answers
    wait_until(lambda: not slow.destination.instance_exists(instance), "the destination gives it up")
    slow.roll_back(instance, data)
    slow.restart_source()
    slow.restart_destination()
    stays(slow, instance)


def test_a_move_of_which_nothing_can_be_known_is_told_as_neither(own_hosts: Hosts, tmp_path: Path) -> None:
    with paired(own_hosts, tmp_path, more=SLOW + 'timeout = "15s"\n') as pair:
        _expect_neither(pair)


def _expect_neither(slow: Pair) -> None:
    instance = slow.spawn()
    data = slow.prepare(instance)
    failures: list[BaseException] = []

    def move() -> None:
        try:
            slow.move(instance, data)
        except ComputeError as error:
            failures.append(error)

    working = threading.Thread(target=move)
    working.start()
    wait_until(lambda: is_copying(slow, instance), "its memory is copied")
    near = slow.hosts.near
    assert near.process is not None
    near.process.kill()
    near.process.wait()
    working.join(60)
    try:
        assert not working.is_alive()
        assert [] == slow.ended
        assert isinstance(failures[0], ComputeError)
        assert not isinstance(failures[0], OperationFailed) or "not known" in str(failures[0])
    finally:
        near.start()
    slow.restart_source()
    wait_until(lambda: not slow.destination.instance_exists(instance), "the destination gives it up")
    slow.restart_destination()
    stays(slow, instance)


# --------------------------------------------------------------------------------------------------------- forth and back


def interrupted(pair: Pair, instance: FakeInstance, point: str) -> Pair:
    """A move at which a driver is killed, and the hosts as the guest would move next. Nobody rolls anything back."""
    if point == "ready":
        pair.restart_destination()  # so that it expects nothing itself: a host has one driver
        with doing(pair, "pre_live_migration", instance, pair.check(instance, block=None)) as process:
            says(process, "done")
        return pair
    data = pair.prepare(instance, block=None)
    if point == "come":  # nobody tells the destination that it has
        assert "moved" == pair.move(instance, data)
    else:
        slowly = SLOW if point == "copying" else ""
        with doing(pair, "live_migration", instance, data, more=slowly) as process:
            says(process, "moved") if point == "gone" else wait_until(lambda: is_copying(pair, instance), "it is copied")
    if point == "copying":
        pair.restart_source()  # until then libvirt goes on
        wait_until(lambda: not pair.destination.instance_exists(instance), "the destination gives it up")
        return pair
    instance.host = pair.there.name
    return pair.back()


POINTS = ("ready", "copying", "gone", "come")
SHORT = (("gone", "gone"), ("copying", "come"))


@pytest.mark.parametrize(
    ("forth", "back"),
    [pytest.param(*both, marks=[] if both in SHORT else [pytest.mark.long]) for both in product(POINTS, repeat=2)],
)
def test_two_moves_on_shared_storage_that_are_interrupted_end_whole(
    own_hosts: Hosts, tmp_path: Path, forth: str, back: str
) -> None:
    with paired(own_hosts, tmp_path, shared=True) as pair:
        instance = with_volume(pair, pair.spawn())
        pair = interrupted(pair, instance, forth)
        pair = interrupted(pair, instance, back)
        assert 1 == pair.machines(instance)
        data = pair.prepare(instance, block=None)
        assert "moved" == pair.move(instance, data)
        pair.finish(instance, data)
        assert pair.goes_on(pair.there, instance)
        pair.restart_source()
        pair.restart_destination()
        assert [] == pair.marks(pair.there, instance)
        assert (1, [pair.there.name]) == (pair.machines(instance), pair.holders(instance, pair.volumes[0][1]))
        assert not pair.source.instance_exists(instance)
        pair.back().destroy(instance)
