"""An instance with every kind of disk that is resized, and what its disks hold."""

import os
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from libvirt_stage import Place, record

from underlay.compute.libvirt import LibvirtDriver
from underlay.model import InstanceDisk
from underlay.testing.disk_suite import guest_writes
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, FakeMigration

SMALL = FakeFlavor(name="small", memory_mb=32, root_gb=1, ephemeral_gb=1, swap=32)
LARGE = FakeFlavor(name="large", memory_mb=48, root_gb=2, ephemeral_gb=2, swap=48)
GIB, MIB = 1 << 30, 1 << 20
OLD, NEW = b"as it was before".ljust(512, b"."), b"what the new guest wrote".ljust(512, b".")
AT = 600 << 20  # beyond all that the image has, within the smallest disk
DISKS = ("disk", "disk.eph0")


@dataclass(slots=True)
class Resized:
    """One instance, from its making to the end of its resize."""

    instances: Path
    driver: LibvirtDriver
    image: FakeImage
    instance: FakeInstance
    migration: FakeMigration = field(default_factory=FakeMigration)
    dest: str | None = None

    @property
    def kept(self) -> Path:
        return self.instances / f"{self.instance.uuid}_resize"

    @property
    def directory(self) -> Path:
        return self.instances / self.instance.uuid

    def info(self) -> dict[str, Any]:
        """The block devices of the present flavor; the service changes swap, and leaves ephemeral disks as they were."""
        return {
            "root_device_name": "/dev/vda",
            "ephemerals": [
                {"device_name": "/dev/vdb", "size": SMALL.ephemeral_gb, "disk_bus": "virtio", "guest_format": "ext4"}
            ],
            "swap": {"device_name": "/dev/vdc", "swap_size": self.instance.flavor.swap, "disk_bus": "virtio"},
        }

    def spawn(self, *, power_on: bool = False) -> None:
        self.driver.spawn(
            None, self.instance, self.image, [], "a password", {}, block_device_info=self.info(), power_on=power_on
        )

    def begin(self, flavor: FakeFlavor = LARGE, **more: Any) -> str:
        dest = more.pop("dest", self.dest or self.driver.get_host_ip_addr())
        return self.driver.migrate_disk_and_power_off(None, self.instance, dest, flavor, [], self.info(), **more)

    def take(self, flavor: FakeFlavor = LARGE) -> None:
        """As its service does: the record has the new flavor from here on."""
        self.instance.old_flavor, self.instance.new_flavor = self.instance.flavor, flavor
        self.instance.flavor = flavor

    def finish(self, told: str, *, driver: LibvirtDriver | None = None, **more: Any) -> None:
        grows, network = more.pop("grows", True), more.pop("network_info", [])
        (driver or self.driver).finish_migration(
            None, self.migration, self.instance, told, network, self.image, grows, self.info(), **more
        )

    def confirm(self) -> None:
        self.driver.confirm_migration(None, self.migration, self.instance, [])

    def revert(self, *, power_on: bool = False) -> None:
        self.instance.flavor = SMALL
        self.driver.finish_revert_migration(None, self.instance, [], self.migration, self.info(), power_on)

    def disk(self, name: str) -> InstanceDisk:
        return self.driver.site.host.disk(self.instance.uuid, name=name)

    def write(self, content: bytes) -> None:
        for name in DISKS:
            guest_writes(self.disk(name), AT, content)

    def read(self) -> list[bytes]:
        return [sector(self.disk(name).path, self.disk(name).format or "", AT) for name in DISKS]

    def sizes(self) -> dict[str, int | None]:
        return {name: self.disk(name).size for name in (*DISKS, "disk.swap")}


def record_of(ref: str, **more: Any) -> tuple[FakeImage, FakeInstance]:
    image = FakeImage(id=ref, properties={"img_config_drive": "mandatory"})
    return image, record(image, flavor=replace(SMALL), **more)


def resized(place: Place, driver: LibvirtDriver, **more: Any) -> Resized:
    return Resized(place.instances, driver, *record_of(place.image().id), **more)


def sector(path: Path, disk_format: str, offset: int) -> bytes:
    """512 bytes that a guest reads, through the backing chain."""
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as directory:
        target = Path(directory, "seen")
        argv = ["qemu-img", "convert", "-f", disk_format, "-O", "raw", os.fspath(path), os.fspath(target)]
        subprocess.run(argv, check=True, capture_output=True)
        with target.open("rb") as file:
            return os.pread(file.fileno(), 512, offset)
