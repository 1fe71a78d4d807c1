"""Resizes and moves of guests whose disks are in a Ceph: nothing is copied, and what was is kept there until the end."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from libvirt_ceph_stage import CLONED, USER, CephPlace, Guests, define_secret
from libvirt_daemon import Daemon
from libvirt_stage import Place, wait_until

from underlay.compute.errors import InstanceFaultRollback, OperationFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.bootimage import boot_line
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, FakeMigration

pytest_plugins = ["ceph_fixtures", "libvirt_fixtures", "libvirt_ceph_fixtures"]
pytestmark = [
    pytest.mark.component("ceph", "rbd-python", "libvirt", "libvirt-python", "virsh", "root"),
    pytest.mark.component("qemu-img", "qemu-system-x86_64", "qemu-rbd"),
]
GIB, MIB = 1 << 30, 1 << 20
SMALL = FakeFlavor(name="small", memory_mb=32, root_gb=1, ephemeral_gb=1, swap=32)
LARGE = FakeFlavor(name="large", memory_mb=48, root_gb=2, ephemeral_gb=2, swap=48)
OLD, NEW = b"as it was before".ljust(512, b"."), b"what the new guest wrote".ljust(512, b".")
AT = 600 << 20
SHARED = 'hosts = ["node1", "node2"]'
NAMES = ("disk", "disk.eph0", "disk.swap")


@dataclass(slots=True)
class Resized:
    """One instance, from its making to the end of its resize."""

    there: CephPlace
    driver: LibvirtDriver
    image: FakeImage
    instance: FakeInstance
    migration: FakeMigration = field(default_factory=FakeMigration)

    def info(self) -> dict[str, Any]:
        """The block devices of the present flavor; the service changes swap, and leaves ephemeral disks as they were."""
        swap = {"device_name": "/dev/vdc", "swap_size": self.instance.flavor.swap, "disk_bus": "virtio"}
        return {
            "root_device_name": "/dev/vda",
            "ephemerals": [{"device_name": "/dev/vdb", "size": 1, "disk_bus": "virtio", "guest_format": "ext4"}],
            "swap": swap if self.instance.flavor.swap else None,
        }

    def spawn(self) -> None:
        self.driver.spawn(None, self.instance, self.image, [], "a password", {}, block_device_info=self.info(), power_on=False)
        for name in self.images[:2]:
            self.there.write(name, OLD, AT)

    def begin(self, flavor: FakeFlavor = LARGE, dest: str | None = None) -> str:
        address = dest or self.driver.get_host_ip_addr()
        told = self.driver.migrate_disk_and_power_off(None, self.instance, address, flavor, [], self.info())
        self.instance.old_flavor, self.instance.flavor = self.instance.flavor, flavor
        return told

    def finish(self, told: str, **more: Any) -> None:
        self.driver.finish_migration(None, self.migration, self.instance, told, [], self.image, True, self.info(), **more)  # noqa: FBT003

    def confirm(self) -> None:
        self.driver.confirm_migration(None, self.migration, self.instance, [])

    def revert(self, *, power_on: bool = False) -> None:
        self.instance.flavor = SMALL
        self.driver.finish_revert_migration(None, self.instance, [], self.migration, self.info(), power_on)

    @property
    def images(self) -> list[str]:
        return [f"{self.instance.uuid}_{name}" for name in NAMES]

    def sizes(self) -> list[int]:
        return [self.there.size(name) // MIB for name in self.images]

    def read(self) -> list[bytes]:
        return [self.there.read(name, AT) for name in self.images[:2]]

    def kept(self) -> list[list[str]]:
        return [self.there.snapshots(name) for name in self.images[:2]]

    def await_boot(self) -> None:
        wait_until(lambda: boot_line(CLONED) in self.there.place.console(self.instance), "it boots")


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


@pytest.mark.parametrize("destroyed", [True, False])
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
    other.finish_migration(None, one.migration, one.instance, told, [], image, False, one.info())  # noqa: FBT003
    one.await_boot()
    assert 1 == there.watchers(one.images[0])

    if end == "confirmed":
        one.confirm()
        assert (False, [[], []]) == (here.instance_exists(one.instance), one.kept())
        last = other
    else:
        other.destroy(None, one.instance, [], one.info())
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
    with one.there.opened(one.images[0], read_only=False) as image:
        image.remove_snap("nova-resize")
    with pytest.raises(OperationFailed, match="kept of its disk disk is gone"):
        one.revert()
    one.instance.flavor = LARGE
    one.confirm()
    assert ([[], []], [2048, 2048, 48]) == (one.kept(), one.sizes())


def test_the_next_driver_puts_back_what_was_begun_by_who_was_killed(one: Resized) -> None:
    mark = one.there.place.instances / one.instance.uuid / "resizing"
    (mark.parent / "resized-in-place").write_text('["disk", "disk.eph0"]')
    for name in one.images[:2]:
        with one.there.opened(name, read_only=False) as image:
            image.create_snap("nova-resize")
    mark.write_text("node1")
    one.there.driver().cleanup_host("node1")
    assert ([[], []], {"disk.config"}) == (one.kept(), set(os.listdir(mark.parent)))
