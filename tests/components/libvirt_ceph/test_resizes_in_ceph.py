"""Resizes and moves of guests whose disks are in a Ceph: nothing is copied, and what was is kept there until the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from libvirt_ceph_stage import USER, CephPlace, Guests, define_secret
from libvirt_daemon import Daemon
from libvirt_stage import Place, command
from resized_in_ceph import AT, LARGE, NEW, OLD, SMALL, Resized

from underlay.compute.errors import InstanceFaultRollback, OperationFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.fakedriver import FakeMigration

pytest_plugins = ["ceph_fixtures", "libvirt_fixtures", "libvirt_ceph_fixtures"]
pytestmark = [
    pytest.mark.component("ceph", "rbd-python", "libvirt", "libvirt-python", "virsh", "root"),
    pytest.mark.component("qemu-img", "qemu-system-x86_64", "qemu-rbd"),
]
SHARED = 'hosts = ["node1", "node2"]'
SCRIPT = Path(__file__).parent / "ceph_maker.py"


def long(value: object) -> Any:
    return pytest.param(value, marks=pytest.mark.long)


@pytest.fixture
def one(there: CephPlace, driver_there: LibvirtDriver) -> Iterator[Resized]:
    image = replace(there.in_ceph(), properties={"img_config_drive": "mandatory"})
    one = Resized(there, driver_there, image, there.instance(image, flavor=replace(SMALL)))
    one.spawn()
    yield one
    one.instance.task_state = "deleting"
    driver_there.destroy(None, one.instance, [])
    assert [] == there.traces(one.instance)


def test_a_resize_leaves_the_disks_where_they_are_and_its_confirmation_keeps_nothing(one: Resized) -> None:
    told = one.begin()
    assert ("[]", [["nova-resize"]] * 2) == (told, one.kept())
    one.finish(told)
    one.await_boot()
    assert ([2048, 2048, 48], [OLD, OLD]) == (one.sizes(), one.read())
    assert sorted(one.images) == one.there.left(one.instance)
    one.confirm()
    one.confirm()
    assert [[], []] == one.kept()
    assert [one.instance.uuid] == [name for name in os.listdir(one.there.place.instances) if one.instance.uuid in name]
    one.driver.reboot(None, one.instance, [], "HARD", one.info())
    one.await_boot()


def test_a_resize_needs_no_room_for_what_the_ceph_keeps(there: CephPlace, driver_there: LibvirtDriver) -> None:
    instances = os.fspath(there.place.instances)
    image = there.in_ceph()
    command("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", instances)
    try:
        (there.place.instances / "_base").mkdir()
        one = Resized(there, driver_there, image, there.instance(image, flavor=replace(SMALL)))
        one.spawn()
        there.write(one.images[0], os.urandom(8 << 20), AT)
        one.finish(one.begin(), power_on=False)
        one.confirm()
        one.instance.task_state = "deleting"
        driver_there.destroy(None, one.instance, [])
        assert [] == there.traces(one.instance)
    finally:
        command("umount", instances)


@pytest.mark.parametrize("destroyed", [True, long(value=False)])
def test_a_reversal_gives_back_what_was_and_nothing_of_what_was_written_since(one: Resized, *, destroyed: bool) -> None:
    one.finish(one.begin(), power_on=False)
    for name in one.images[:2]:
        one.there.write(name, NEW, AT)
    if destroyed:
        one.driver.destroy(None, one.instance, [])
        assert sorted(one.images[:2]) == one.there.left(one.instance), "a reversal needs them"
    one.revert(power_on=True)
    one.await_boot()
    assert ([1024, 1024, 32], [OLD, OLD], [[], []]) == (one.sizes(), one.read(), one.kept())
    one.revert()
    one.driver.power_off(one.instance)
    one.finish(one.begin())
    one.confirm()
    assert [OLD, OLD] == one.read()


@pytest.mark.long
def test_a_flavor_without_swap_takes_it_away_and_a_reversal_makes_it_anew(one: Resized) -> None:
    one.finish(one.begin(replace(LARGE, swap=0)), power_on=False)
    assert sorted(one.images[:2]) == one.there.left(one.instance)
    one.revert(power_on=True)
    one.await_boot()
    assert [1024, 1024, 32] == one.sizes()


@pytest.mark.long
def test_a_resize_that_cannot_begin_changes_nothing(one: Resized) -> None:
    with one.there.opened(one.images[1], read_only=False), pytest.raises(InstanceFaultRollback, match="open"):
        one.begin()
    assert ([[], []], [1024, 1024, 32]) == (one.kept(), one.sizes())
    assert {"disk.config"} == set(os.listdir(one.there.place.instances / one.instance.uuid))
    one.finish(one.begin())
    one.await_boot()
    one.confirm()


@pytest.mark.long
@pytest.mark.parametrize("end", ["confirmed", "reverted"])
def test_a_guest_moves_to_a_host_that_shares_the_directory_and_the_ceph(
    there: CephPlace, daemon_of_another_user: Daemon, end: str
) -> None:
    there.place.root.chmod(0o755)
    for parent in there.place.root.parents[:3]:
        parent.chmod(0o755)
    key = there.ceph.run("ceph", "auth", "get-key", f"client.{USER}").decode()
    far = CephPlace(
        Place(there.place.root, daemon_of_another_user, name="node2"),
        Guests(there.ceph, daemon_of_another_user, define_secret(daemon_of_another_user, key)),
        there.source,
    )
    here = there.driver('my_ip = "127.0.0.1"', instances=SHARED)
    other = far.driver('my_ip = "127.0.0.2"', instances=SHARED)
    image = there.in_ceph()
    one = Resized(there, here, image, there.instance(image, flavor=replace(SMALL), host="node1"))
    one.migration = FakeMigration(source_compute="node1", dest_compute="node2")
    one.spawn()
    one.driver.power_on(None, one.instance, [], one.info())
    one.await_boot()
    told = one.begin(SMALL, "127.0.0.2")
    one.instance.host = "node2"
    other.finish_migration(None, one.migration, one.instance, told, [], image, False, one.info())  # noqa: FBT003
    one.await_boot()
    assert 1 == there.watchers(one.images[0])

    if end == "confirmed":
        one.confirm()
        assert (False, [[], []]) == (here.instance_exists(one.instance), one.kept())
        last = other
    else:
        other.destroy(None, one.instance, [], one.info())
        assert sorted(one.images[:2]) == there.left(one.instance), "a reversal needs them"
        one.instance.host = "node1"
        one.revert(power_on=True)
        one.await_boot()
        assert ([OLD, OLD], [[], []]) == (one.read(), one.kept())
        last = here
    one.instance.task_state = "deleting"
    last.destroy(None, one.instance, [])
    assert [] == there.traces(one.instance)
    for driver in (here, other):
        driver.cleanup_host("")


def test_what_was_let_go_of_is_not_put_back(one: Resized) -> None:
    """Whoever was killed in the middle of a confirmation is followed by another one."""
    one.finish(one.begin(), power_on=False)
    with pytest.raises(OperationFailed, match="a resize of the instance"):
        one.driver.rebuild(None, one.instance, one.image, [], None, {}, [], print, print, network_info=[])
    with one.there.opened(one.images[0], read_only=False) as image:
        image.remove_snap("nova-resize")
    with pytest.raises(OperationFailed, match="kept of its disk disk is gone"):
        one.revert()
    one.instance.flavor = LARGE
    one.confirm()
    assert ([[], []], [2048, 2048, 48]) == (one.kept(), one.sizes())


def test_what_another_driver_has_begun_is_not_ended(one: Resized) -> None:
    """Nova's own says nowhere which disks it keeps, and of those but the root disk it keeps nothing."""
    one.finish(one.begin(), power_on=False)
    (one.there.place.instances / f"{one.instance.uuid}_resize" / "resized-in-place").unlink()
    for name in one.images[:2]:
        with one.there.opened(name, read_only=False) as image:
            image.remove_snap("nova-resize")
    for end in (one.revert, one.confirm):
        with pytest.raises(OperationFailed, match=r"does not say whether the disks disk, disk\.eph0 "):
            end()
    assert ([OLD, OLD], [2048, 2048, 48]) == (one.read(), one.sizes())


def test_a_snapshot_that_somebody_else_has_made_stays(one: Resized) -> None:
    with one.there.opened(one.images[1], read_only=False) as image:
        image.create_snap("nova-resize")
    with pytest.raises(InstanceFaultRollback, match=r"disk disk\.eph0 is kept as it was already"):
        one.begin()
    assert [[], ["nova-resize"]] == one.kept()
    assert {"disk.config"} == set(os.listdir(one.there.place.instances / one.instance.uuid))
    with one.there.opened(one.images[1], read_only=False) as image:
        image.remove_snap("nova-resize")


def test_the_next_driver_lets_go_of_what_an_ended_reversal_has_left(one: Resized) -> None:
    one.finish(one.begin(), power_on=False)
    killed(one, "revert", "keptdisks.clear")
    one.there.driver().cleanup_host("node1")
    assert ([OLD, OLD], [[], []]) == (one.read(), one.kept())
    assert {"disk.config"} == set(os.listdir(one.there.place.instances / one.instance.uuid))


def killed(one: Resized, step: str, function: str) -> None:
    """Whoever does this step is killed before this function is called."""
    config = one.there.place.root / "killed.toml"
    config.write_text(one.there.text())
    argv = [sys.executable, os.fspath(SCRIPT), os.fspath(config), one.image.id, one.instance.uuid, function, step]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(argv, env=environment, capture_output=True, check=False)
    assert -signal.SIGKILL == done.returncode, done.stderr.decode()


@pytest.mark.parametrize("function", ["migrating._fill", *map(long, ("snapshots.make_snapshot", "kept.keep", "kept._unmark"))])
def test_the_next_driver_puts_back_what_was_begun_by_who_was_killed(one: Resized, function: str) -> None:
    killed(one, "begin", function)
    one.there.driver().cleanup_host("node1")
    directory = one.there.place.instances / one.instance.uuid
    assert ([[], []], {"disk.config"}) == (one.kept(), set(os.listdir(directory)))
    assert ([OLD, OLD], [1024, 1024, 32]) == (one.read(), one.sizes())


@pytest.mark.parametrize(
    "function",
    ["kept.put_back", *map(long, ("keeping.put_back", "keptdisks.remove_others", "keptdisks.clear", "resizing._define"))],
)
def test_a_reversal_that_was_killed_is_brought_to_its_end(one: Resized, function: str) -> None:
    one.finish(one.begin(), power_on=False)
    for name in one.images[:2]:
        one.there.write(name, NEW, AT)
    killed(one, "revert", function)
    one.revert()
    assert ([OLD, OLD], [1024, 1024, 32], [[], []]) == (one.read(), one.sizes(), one.kept())


@pytest.mark.long
@pytest.mark.parametrize("function", ["directory.rename_over_doomed", "keeping.let_go"])
def test_a_confirmation_that_was_killed_is_brought_to_its_end(one: Resized, function: str) -> None:
    one.finish(one.begin(), power_on=False)
    killed(one, "confirm", function)
    one.confirm()
    assert ([OLD, OLD], [2048, 2048, 48], [[], []]) == (one.read(), one.sizes(), one.kept())
