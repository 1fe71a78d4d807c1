"""An instance with every kind of disk in a Ceph, which is resized, and what its disks hold."""

from dataclasses import dataclass, field
from typing import Any

from libvirt_ceph_stage import CLONED, CephPlace
from libvirt_stage import wait_until

from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.bootimage import boot_line
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, FakeMigration

MIB = 1 << 20
SMALL = FakeFlavor(name="small", memory_mb=32, root_gb=1, ephemeral_gb=1, swap=32)
LARGE = FakeFlavor(name="large", memory_mb=48, root_gb=2, ephemeral_gb=2, swap=48)
OLD, NEW = b"as it was before".ljust(512, b"."), b"what the new guest wrote".ljust(512, b".")
AT = 600 << 20
NAMES = ("disk", "disk.eph0", "disk.swap")


def info_of(flavor: FakeFlavor) -> dict[str, Any]:
    """The block devices of a flavor; the service changes swap, and leaves ephemeral disks as they were."""
    swap = {"device_name": "/dev/vdc", "swap_size": flavor.swap, "disk_bus": "virtio"}
    return {
        "root_device_name": "/dev/vda",
        "ephemerals": [{"device_name": "/dev/vdb", "size": 1, "disk_bus": "virtio", "guest_format": "ext4"}],
        "swap": swap if flavor.swap else None,
    }


@dataclass(slots=True)
class Resized:
    """One instance, from its making to the end of its resize."""

    there: CephPlace
    driver: LibvirtDriver
    image: FakeImage
    instance: FakeInstance
    migration: FakeMigration = field(default_factory=FakeMigration)

    def info(self) -> dict[str, Any]:
        return info_of(self.instance.flavor)

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
