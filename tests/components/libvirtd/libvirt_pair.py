"""A guest that counts, its host, and the host that it moves to; each step of a move as a compute service takes it."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import counting_guest
from libvirt_hosts import Hosts
from libvirt_stage import Place, record, wait_until

from underlay.compute import Event
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.guestxml import devices_by_path
from underlay.testing.bootimage import SMALLEST
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance

FACTS = {"disk_available_least": 100, "free_disk_gb": 100, "cpu_info": ""}
PAYLOAD = os.urandom(4 << 20)  # which its image has and its disk has not
SIZE = SMALLEST + (8 << 20)
SLOW = 'live_migration_bandwidth = "1MiB"\nlive_migration_downtime = "0.1s"\n'
BLOCK_DEVICES = {
    "root_device_name": "/dev/vda",
    "swap": {"device_name": "/dev/vdc", "swap_size": 64, "disk_bus": None},
    "ephemerals": [{"device_name": "/dev/vdb", "size": 1, "disk_bus": None, "guest_format": "ext4"}],
    "block_device_mapping": [],
}


@dataclass(slots=True)
class Pair:
    """Both hosts, with their drivers.

    Attributes:
        info: block devices, as the service has them. there_info: as it has them for the destination, if otherwise.
        image: the ref of another image than the one that is a file here.
        volumes: that were attached, each as either host reaches it.
        ended: how the last move ended, and what the service was told then. heard: by host.
    """

    hosts: Hosts
    here: Place
    there: Place
    source: LibvirtDriver
    destination: LibvirtDriver
    info: Mapping[str, Any] | None = None
    there_info: Mapping[str, Any] | None = None
    image: str | None = None
    network_info: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=list)
    ended: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    heard: dict[str, list[Event]] = field(default_factory=lambda: {"node1": [], "node2": []})

    @property
    def info_there(self) -> Mapping[str, Any] | None:
        return self.info if self.there_info is None else self.there_info

    def back(self) -> "Pair":
        """The same two hosts for a move in the other direction."""
        turned = replace(
            self, here=self.there, there=self.here, source=self.destination, destination=self.source, info=self.info_there
        )
        turned.there_info = self.info
        turned.volumes = [(there, here) for here, there in self.volumes]
        return turned

    def spawn(self, **more: Any) -> FakeInstance:
        ref = self.image or f"file://{self.here.images}/counting.raw" if self.image != "" else ""
        image = FakeImage(id=ref, disk_format="raw", properties=more.pop("properties", {}))
        instance = record(image, flavor=FakeFlavor(memory_mb=32, root_gb=0), **more)
        self.source.spawn(None, instance, image, [], "secret", {}, network_info=self.network_info, block_device_info=self.info)
        wait_until(lambda: self.counts(self.here, instance), "the guest counts")
        return instance

    def counts(self, place: Place, instance: FakeInstance) -> list[int]:
        return counting_guest.counts("counts\n" + place.console(instance).rpartition("counts\n")[2])

    def check(self, instance: FakeInstance, *, block: bool | None = True, **more: Any) -> Any:
        data = self.destination.check_can_live_migrate_destination(None, instance, FACTS, FACTS, block_migration=block, **more)
        try:
            return self.source.check_can_live_migrate_source(None, instance, data, self.info)
        finally:
            self.destination.cleanup_live_migration_destination_check(None, data)

    def prepare(self, instance: FakeInstance, *, block: bool | None = True) -> Any:
        data = self.check(instance, block=block)
        disks = self.source.get_instance_disk_info(instance, self.info) if data.block_migration else None
        return self.destination.pre_live_migration(None, instance, self.info_there, self.network_info, disks, data)

    def move(self, instance: FakeInstance, data: Any, *, dest: str | None = None) -> str:
        """How it ended: moved or stayed."""

        def told(how: str) -> Callable[..., None]:
            return lambda *arguments, **more: self.ended.append((how, arguments, more))

        self.ended.clear()
        there = self.destination.site.name if dest is None else dest
        self.source.live_migration(None, instance, there, told("moved"), told("stayed"), bool(data.block_migration), data)
        [(how, _, _)] = self.ended
        return how

    @contextmanager
    def moving(self, instance: FakeInstance, data: Any) -> Iterator[list[str]]:
        """As `move`, in the background; what it answered is there when the block has ended."""
        answers: list[str] = []
        working = threading.Thread(target=lambda: answers.append(self.move(instance, data)))
        working.start()
        yield answers
        working.join(120)
        assert not working.is_alive()

    def finish(self, instance: FakeInstance, data: Any) -> None:
        """What Nova's service does once the guest has moved."""
        self.source.post_live_migration(None, instance, self.info, data)
        if data.is_shared_instance_path:
            self.source.post_live_migration_at_source(None, instance, self.network_info)
        else:
            destroys = not data.is_shared_block_storage
            self.source.cleanup(None, instance, self.network_info, self.info, destroy_disks=destroys, migrate_data=data)
        self.destination.post_live_migration_at_destination(
            None, instance, self.network_info, bool(data.block_migration), self.info_there
        )
        instance.host = self.destination.site.name

    def roll_back(self, instance: FakeInstance, data: Any) -> None:
        self.source.rollback_live_migration_at_source(None, instance, data)
        self.destination.rollback_live_migration_at_destination(
            None,
            instance,
            self.network_info,
            self.info_there,
            destroy_disks=not data.is_shared_block_storage,
            migrate_data=data,
        )

    def restart_source(self) -> None:
        self.source.cleanup_host(self.here.name)
        self.source.init_host(self.here.name)

    def restart_destination(self) -> None:
        self.destination.cleanup_host(self.there.name)
        self.destination.init_host(self.there.name)

    def attach(self, instance: FakeInstance, volume: Mapping[str, Any], *, there: Mapping[str, Any] | None = None) -> None:
        """Attach a volume here, and have the service say how it is reached, on the destination too."""
        device = f"/dev/vd{'bcdefg'[len((self.info or {}).get('block_device_mapping', ()))]}"
        self.source.attach_volume(None, volume, instance, device)
        self.there_info = with_volume(self.info_there, device, there or volume)
        self.info = with_volume(self.info, device, volume)
        self.volumes.append((volume, there or volume))

    def holders(self, instance: FakeInstance, *volumes: Mapping[str, Any]) -> list[str]:
        """The hosts whose libvirt has these volumes in a guest, now and for its next start."""
        found, paths = list[str](), {volume["data"]["device_path"] for volume in volumes}
        for place, driver in ((self.here, self.source), (self.there, self.destination)):
            domain = driver.site.domain(instance)
            if domain.exists():
                both = [{*devices_by_path(domain.xml(inactive=one))} for one in (False, True)]
                found += [place.name] * any(paths <= one for one in both)
                assert all(paths <= one for one in both) or not any(paths & one for one in both)
        return found

    def goes_on(self, place: Place, instance: FakeInstance) -> bool:
        """Whether the guest counts on this host, from now on."""
        seen = self.counts(place, instance)
        wait_until(lambda: len(self.counts(place, instance)) > len(seen) + 5, "the guest goes on")
        return True

    def machines(self, instance: FakeInstance) -> int:
        """How many QEMUs there are of an instance, on both hosts."""
        found = 0
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = process.read_bytes().split(b"\0")
            except OSError:
                continue
            found += b"qemu-system" in words[0] and instance.uuid.encode() in words
        return found

    def marks(self, place: Place, instance: FakeInstance) -> list[str]:
        """Of a move that has not come to its end."""
        names = sorted(os.listdir(place.instances / instance.uuid))
        return [name for name in names if name.startswith(("arriving", "leaving"))]

    def destroy(self, instance: FakeInstance) -> None:
        for driver in (self.source, self.destination):
            driver.destroy(None, instance, self.network_info, self.info)
        assert [] == [*self.here.traces(instance), *self.there.traces(instance)]

    def content(self, place: Place, instance: FakeInstance, name: str = "disk") -> bytes:
        """What the guest of a disk sees, of one that is closed, but no more than its beginning."""
        target = place.root / f"{instance.uuid}.{name}"
        driver = self.source if place is self.here else self.destination
        driver.site.host.extract_disk(instance.uuid, target, format="raw", name=name, assume_closed=True)
        with target.open("rb") as file:
            return file.read(16 << 20)


@contextmanager
def paired(
    hosts: Hosts, root: Path, *, more: str = "", there_too: str = "", shared: bool = False, apart: bool = False
) -> Iterator[Pair]:
    """Two hosts.

    Args:
        more: of the configuration of both. there_too: of that of the second. shared: they have one directory of instances.
        apart: the second reaches no image.
    """
    here = Place(root, hosts.near)
    if not (root / "counting.raw").exists():
        counting_guest.write_raw(root / "counting.raw", size=SIZE, payload=PAYLOAD)
    far = root / "far"
    there = Place(far, hosts.far, name="node2", images=far if apart else root, instances=here.instances if shared else Path())
    first = 10_000 + os.getpid() % 90 * 100  # ports apart from those of another process that runs these tests
    more += f'serial_console_port_range = "{first}:{first + 99}"\n'
    source = here.driver(more=hosts.options(hosts.near_address) + more)
    destination = there.driver(more=hosts.options(hosts.far_address) + more + there_too)
    pair = Pair(hosts, here, there, source, destination)
    for name, driver in (("node1", source), ("node2", destination)):
        driver.register_event_listener(pair.heard[name].append)
    try:
        yield pair
    finally:
        source.cleanup_host("node1")
        destination.cleanup_host("node2")


def with_volume(info: Mapping[str, Any] | None, device: str, volume: Mapping[str, Any]) -> dict[str, Any]:
    """What a service says of block devices, and one volume more."""
    told = dict(info or {"root_device_name": "/dev/vda", "swap": None, "ephemerals": [], "block_device_mapping": []})
    row = {"connection_info": dict(volume), "mount_device": device, "boot_index": None, "device_type": None, "disk_bus": None}
    return {**told, "block_device_mapping": [*told["block_device_mapping"], row]}


def facts_of(pair: Pair, instance: FakeInstance) -> dict[str, dict[str, str]]:
    """What the destination says of the disks, by name."""
    told = json.loads(pair.destination.get_instance_disk_info(instance, pair.info))
    return {Path(one["path"]).name: one for one in told}
