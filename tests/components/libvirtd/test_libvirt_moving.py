"""Cold migrations between two hosts, each with a libvirtd of its own, that share the directory of instances and its cache."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from libvirt_daemon import Daemon
from libvirt_stage import CONFIG, Place, wait_until
from resized import LARGE, NEW, OLD, SMALL, Resized, resized

from underlay.compute import states
from underlay.compute.errors import (
    HypervisorUnavailable,
    InstanceFaultRollback,
    InvalidInput,
    MigrationPreCheckError,
    OperationFailed,
)
from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host
from underlay.testing.fakedriver import FakeMigration

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

HERE, THERE, NOWHERE = "127.0.0.1", "127.0.0.2", "203.0.113.254"  # the last is nobody's (RFC 5737)
HOST_UUID = "7c1f7a52-2f2b-4d8e-9d3c-52c4f9a0c0de"
AGE = 2  # seconds; what another host said is older than nothing at all
SHARED = 'hosts = ["node1", "node2"]'


@pytest.fixture(scope="module")
def other_daemon() -> Iterator[Daemon]:
    """The libvirtd of another host."""
    directory = Path(tempfile.mkdtemp(prefix="ul-"))
    daemon = Daemon(directory, host_uuid=HOST_UUID)
    daemon.prepare()
    try:
        daemon.start()
        yield daemon
        daemon.destroy_guests()
    finally:
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(slots=True)
class Hosts:
    """Two hosts that share one directory, and an instance on the first."""

    place: Place
    here: LibvirtDriver
    there: LibvirtDriver
    one: Resized

    def move(self) -> None:
        """Through a migration up to where it is to be confirmed or reverted."""
        self.there.check_instance_shared_storage_cleanup(None, self.probe())
        self.one.finish(self.one.begin(SMALL), driver=self.there, grows=False)
        self.one.instance.host = "node2"

    def probe(self) -> dict[str, str]:
        """As a service asks: from one host to the other."""
        data = self.here.check_instance_shared_storage_local(None, self.one.instance)
        assert data is not None
        assert self.there.check_instance_shared_storage_remote(None, data)
        return dict(data)


def driver_of(place: Place, daemon: Daemon, name: str, address: str, *, shared: str = SHARED) -> LibvirtDriver:
    text = (
        CONFIG.replace('host = "node1"', f'host = "{name}"')
        .replace("age_seconds = 0", f"age_seconds = {AGE}")
        .format(root=place.root, uri=daemon.uri, instances=shared, more=f'my_ip = "{address}"', virt_type="qemu")
    )
    driver = LibvirtDriver(None, host=Host.open(parse_config(text, origin=place.root / f"{name}.toml")))
    driver.init_host(name)
    return driver


@pytest.fixture
def hosts(place: Place, other_daemon: Daemon) -> Iterator[Hosts]:
    here, there = driver_of(place, place.daemon, "node1", HERE), driver_of(place, other_daemon, "node2", THERE)
    migration = FakeMigration(source_compute="node1", dest_compute="node2", migration_type="migration")
    one = resized(place, here, migration=migration, dest=THERE)
    one.spawn()
    one.write(OLD)
    yield Hosts(place, here, there, one)
    for driver in (there, here):
        driver.destroy(None, one.instance, [], destroy_disks=False)
    for driver in (there, here):
        driver.destroy(None, one.instance, [])
        driver.delete_instance_files(one.instance)
        assert not driver.instance_exists(one.instance)
    assert [] == place.traces(one.instance)
    there.cleanup_host("node2")
    here.cleanup_host("node1")


def test_an_instance_moves_to_a_host_that_shares_its_directory(hosts: Hosts) -> None:
    one, instance = hosts.one, hosts.one.instance
    hosts.move()
    assert states.RUNNING == hosts.there.get_info(instance).state
    hosts.place.await_boot(instance)
    assert states.SHUTDOWN == hosts.here.get_info(instance).state
    one.confirm()
    assert not hosts.here.instance_exists(instance)
    assert states.RUNNING == hosts.there.get_info(instance).state
    hosts.there.power_off(instance)
    assert ([OLD, OLD], False) == (one.read(), one.kept.exists())
    one.confirm()


def test_a_move_that_is_reverted_gives_the_first_host_its_instance_back(hosts: Hosts) -> None:
    one, instance = hosts.one, hosts.one.instance
    hosts.move()
    hosts.there.power_off(instance)
    one.write(NEW)
    hosts.there.destroy(None, instance, [])
    assert one.kept.is_dir()
    one.revert(power_on=True)
    assert states.RUNNING == hosts.here.get_info(instance).state
    hosts.place.await_boot(instance)
    hosts.here.power_off(instance)
    assert ([OLD, OLD], False) == (one.read(), one.kept.exists())


def test_a_host_whose_libvirt_goes_leaves_the_instance_to_be_reverted(hosts: Hosts, other_daemon: Daemon) -> None:
    one = hosts.one
    told = one.begin(SMALL)
    other_daemon.stop()
    try:
        with pytest.raises(HypervisorUnavailable):
            one.finish(told, driver=hosts.there, grows=False)
        one.revert(power_on=True)
    finally:
        other_daemon.start()
    assert states.RUNNING == hosts.here.get_info(one.instance).state
    assert not hosts.there.instance_exists(one.instance)
    hosts.here.power_off(one.instance)
    assert ([OLD, OLD], False) == (one.read(), one.kept.exists())


def test_a_host_without_its_libvirt_begins_nothing(hosts: Hosts, other_daemon: Daemon) -> None:
    one = resized(hosts.place, hosts.there, dest=HERE)
    one.spawn()
    other_daemon.stop()
    try:
        with pytest.raises(InstanceFaultRollback) as caught:
            one.begin(SMALL)
        assert isinstance(caught.value.inner_exception, HypervisorUnavailable)
    finally:
        other_daemon.start()
    assert (True, False) == (one.directory.exists(), one.kept.exists())
    hosts.there.destroy(None, one.instance, [])


def test_an_instance_may_grow_on_its_way(hosts: Hosts) -> None:
    one = hosts.one
    told = one.begin()
    one.take(LARGE)
    one.finish(told, driver=hosts.there, power_on=False)
    one.confirm()
    assert (LARGE.root_gb << 30, [OLD, OLD]) == (one.sizes()["disk"], one.read())
    assert states.SHUTDOWN == hosts.there.get_info(one.instance).state


def test_a_prune_on_either_host_keeps_the_bases_of_an_instance_on_its_way(hosts: Hosts) -> None:
    def images() -> set[str]:
        return {path.name for path in (hosts.place.instances / "_base").iterdir() if path.is_file()}

    def prune() -> set[str]:
        """Both say what they need and then remove what neither does, once all is old enough."""
        time.sleep(AGE + 0.1)
        for driver in (hosts.here, hosts.there, hosts.here):
            driver.manage_image_cache(None, [])
        return images()

    bases = images()
    told = hosts.one.begin(SMALL)
    assert bases == prune()
    hosts.one.finish(told, driver=hosts.there, grows=False, power_on=False)
    assert bases == prune()
    hosts.one.confirm()
    assert bases == prune()
    hosts.one.instance.host = "node2"
    hosts.there.destroy(None, hosts.one.instance, [])
    wait_until(lambda: set() == prune(), "nobody needs them any more")


def test_a_guest_that_runs_here_is_not_taken_for_one_that_has_moved(hosts: Hosts) -> None:
    hosts.move()
    hosts.there.power_off(hosts.one.instance)
    hosts.here.power_on(None, hosts.one.instance, [])
    with pytest.raises(OperationFailed, match="runs here"):
        hosts.one.confirm()
    assert hosts.one.kept.is_dir()


def test_a_guest_that_runs_on_the_other_host_keeps_its_disks(hosts: Hosts) -> None:
    hosts.move()
    with pytest.raises(OperationFailed, match="is open in QEMU"):
        hosts.one.revert()
    assert states.RUNNING == hosts.there.get_info(hosts.one.instance).state
    assert (True, True) == (hosts.one.kept.is_dir(), (hosts.one.directory / "disk").exists())
    hosts.there.power_off(hosts.one.instance)
    hosts.one.revert()
    assert ([OLD, OLD], False) == (hosts.one.read(), hosts.one.kept.exists())


def test_the_host_that_an_instance_has_left_removes_none_of_it(hosts: Hosts) -> None:
    one = hosts.one
    hosts.move()
    hosts.there.power_off(one.instance)
    hosts.here.destroy(None, one.instance, [])
    assert not hosts.here.delete_instance_files(one.instance)
    assert not hosts.here.instance_exists(one.instance)
    assert ([OLD, OLD], True) == (one.read(), one.kept.is_dir())
    hosts.there.power_on(None, one.instance, [])
    hosts.place.await_boot(one.instance)

    one.confirm()
    one.instance.deleted = True
    hosts.there.destroy(None, one.instance, [], destroy_disks=False)
    assert hosts.here.delete_instance_files(one.instance)


def test_files_stay_of_an_instance_that_another_host_has_which_could_not_say_that_it_shares_them(
    place: Place, hosts: Hosts
) -> None:
    place.instances.joinpath(".underlay-host-node2.json").unlink()
    hosts.one.instance.host = "node2"
    hosts.here.destroy(None, hosts.one.instance, [])
    assert not hosts.here.delete_instance_files(hosts.one.instance)
    assert [OLD, OLD] == hosts.one.read()


def test_a_swap_from_before_a_move_that_its_service_knows_of_is_forgotten(hosts: Hosts) -> None:
    """The host that it left has a definition from before the move, and its service has changed the volumes since."""
    one, instance, old, new = hosts.one, hosts.one.instance, hosts.place.volume(), hosts.place.volume()

    def with_volume(volume: dict[str, Any]) -> dict[str, Any]:
        row = {"mount_device": "/dev/vdd", "disk_bus": "virtio", "boot_index": None, "connection_info": volume}
        return {**one.info(), "block_device_mapping": [row]}

    hosts.here.power_on(None, instance, [])
    hosts.here.attach_volume(None, old, instance, "/dev/vdd")
    hosts.here.swap_volume(None, old, new, instance, "/dev/vdd", 0)
    told = hosts.here.migrate_disk_and_power_off(None, instance, THERE, SMALL, [], with_volume(new))
    hosts.there.finish_migration(None, one.migration, instance, told, [], one.image, False, with_volume(new))  # noqa: FBT003
    instance.host = "node2"
    hosts.there.power_off(instance)
    hosts.there.detach_volume(None, new, instance, "/dev/vdd")
    hosts.there.attach_volume(None, old, instance, "/dev/vdd")
    hosts.there.destroy(None, instance, [])

    hosts.here.finish_revert_migration(None, instance, [], one.migration, with_volume(old), True)  # noqa: FBT003
    for inactive in (False, True):
        xml = hosts.here.site.domain(instance).xml(inactive=inactive)
        assert (True, False) == tuple(volume["data"]["device_path"] in xml for volume in (old, new))


def test_files_that_no_other_host_has_go_whoever_has_the_instance(place: Place) -> None:
    driver = driver_of(place, place.daemon, "node1", HERE, shared="")
    one = resized(place, driver)
    one.spawn()
    one.instance.host = "node2"  # it was evacuated, say
    driver.destroy(None, one.instance, [])
    assert ([], False) == (place.traces(one.instance), driver.instance_exists(one.instance))
    driver.cleanup_host("node1")


def test_each_host_ends_its_own_side_of_a_move_only(hosts: Hosts) -> None:
    one = hosts.one
    told = one.begin(SMALL)
    with pytest.raises(InvalidInput, match="goes to node2, and this is node1"):
        one.finish(told, grows=False)
    assert states.SHUTDOWN == hosts.here.get_info(one.instance).state
    one.finish(told, driver=hosts.there, grows=False)
    with pytest.raises(InvalidInput, match="comes from node1, and this is node2"):
        hosts.there.confirm_migration(None, one.migration, one.instance, [])
    with pytest.raises(InvalidInput, match="comes from node1, and this is node2"):
        hosts.there.finish_revert_migration(None, one.instance, [], one.migration)
    assert (True, states.RUNNING) == (one.kept.is_dir(), hosts.there.get_info(one.instance).state)
    one.confirm()


def test_a_driver_leaves_what_another_host_is_changing(hosts: Hosts) -> None:
    mark = hosts.one.directory / "resizing"
    mark.write_text("node1")
    driver_of(hosts.place, hosts.place.daemon, "node2", THERE).cleanup_host("node2")
    assert mark.exists()
    driver_of(hosts.place, hosts.place.daemon, "node1", HERE).cleanup_host("node1")
    assert not mark.exists()


def test_a_host_without_the_cache_says_so_and_the_instance_is_reverted(hosts: Hosts) -> None:
    one = hosts.one
    told = one.begin(SMALL)
    (base,) = (hosts.place.instances / "_base").glob("*.raw")
    base.rename(hosts.place.root / "elsewhere")
    with pytest.raises(OperationFailed, match=f"{base}, which this host has not"):
        one.finish(told, driver=hosts.there, grows=False)
    assert not hosts.there.instance_exists(one.instance)
    (hosts.place.root / "elsewhere").rename(base)
    one.revert()
    assert ([OLD, OLD], False) == (one.read(), one.kept.exists())


@pytest.mark.parametrize("why", ["nobody", "undeclared", "garbled"])
def test_a_host_that_does_not_share_the_directory_gets_nothing(hosts: Hosts, why: str) -> None:
    said = hosts.place.instances / ".underlay-host-node2.json"
    assert said.exists()
    dest = NOWHERE if why == "nobody" else THERE
    if why == "undeclared":
        hosts.one.driver = driver_of(hosts.place, hosts.place.daemon, "node1", HERE, shared='hosts = ["node1", "node3"]')
    if why == "garbled":
        said.write_text("{")
    with pytest.raises(InstanceFaultRollback, match=f"no host at {dest}") as caught:
        hosts.one.begin(SMALL, dest=dest)
    assert isinstance(caught.value.inner_exception, MigrationPreCheckError)
    assert "[instances]" in (caught.value.hint or "")
    assert not hosts.one.kept.exists()
    if why == "undeclared":
        hosts.one.driver.cleanup_host("node1")
        hosts.one.driver = hosts.here


def test_only_a_probe_is_taken_for_one(hosts: Hosts) -> None:
    data = hosts.probe()
    disk = hosts.one.directory / "disk"
    outside = hosts.place.root / "elsewhere"
    outside.mkdir()
    strange = outside / Path(data["filename"]).name
    strange.touch()
    for name in (disk, strange, f"{hosts.one.directory}/../../elsewhere/{strange.name}", f"{data['filename']}\0", None, 7):
        assert not hosts.there.check_instance_shared_storage_remote(None, {"filename": name})
        with pytest.raises(InvalidInput):
            hosts.there.check_instance_shared_storage_cleanup(None, {"filename": name})
    assert (True, True) == (disk.exists(), strange.exists())
    hosts.there.check_instance_shared_storage_cleanup(None, data)
    hosts.there.check_instance_shared_storage_cleanup(None, data)
    assert not hosts.here.check_instance_shared_storage_remote(None, data)


def test_there_is_nothing_to_probe_of_an_instance_without_a_directory(hosts: Hosts) -> None:
    assert hosts.here.check_instance_shared_storage_local(None, hosts.place.instance(hosts.place.image())) is None
