"""What every part of the fake driver stands on: its hypervisor, and changes of power with their events."""

from collections.abc import Mapping
from typing import Any

from underlay.compute import events, states
from underlay.compute.arguments import BlockDeviceInfo, ImageMeta, Instance, NetworkInfo
from underlay.compute.blockdevices import (
    block_device_info_get_ephemerals,
    block_device_info_get_mapping,
    block_device_info_get_swap,
    swap_is_usable,
)
from underlay.compute.contract.listening import Listening
from underlay.compute.devicemetadata import InstanceDeviceMetadata, NetworkInterfaceMetadata, PCIDeviceBus
from underlay.compute.errors import FlavorDiskSmallerThanImage, InternalError
from underlay.compute.events import LifecycleEvent
from underlay.testing.fakedriver.hypervisor import GIB, FakeDisk, FakeHypervisor, FakeMachine, FakeSite

_MIB = 1 << 20
_VIF_TYPES = frozenset({"bridge", "tap", "ovs"})


class Running(Listening):
    """The hypervisor, and what is done with its machines.

    Attributes:
        site: the hosts that this one can reach. hypervisor: this one.
    """

    site: FakeSite
    hypervisor: FakeHypervisor

    def _start(self, machine: FakeMachine) -> None:
        """Let a machine run; one that runs goes on."""
        if machine.state == states.RUNNING:
            return
        with self.hypervisor.making("start"):
            machine.state, machine.internal_id = states.RUNNING, next(self.hypervisor.ids)
            machine.console += f"{machine.name} boots\n".encode()
        self._tell(machine, events.EVENT_LIFECYCLE_STARTED)

    def _stop(self, machine: FakeMachine) -> None:
        """Cut a machine's power; one that is off stays so."""
        if machine.state == states.SHUTDOWN:
            return
        machine.state, machine.internal_id, machine.frozen = states.SHUTDOWN, None, False
        self._tell(machine, events.EVENT_LIFECYCLE_STOPPED)

    def _tell(self, machine: FakeMachine, transition: int) -> None:
        self.emit_event(LifecycleEvent(machine.uuid, transition))

    def _write_down(self, instance: Instance, machine: FakeMachine) -> None:
        """Record the tagged interfaces of a machine, each in a slot of its own; volumes have no tags here."""
        records = tuple(
            NetworkInterfaceMetadata(mac=vif["address"], tags=(vif["tag"],), bus=PCIDeviceBus(address=f"0000:00:{slot:02x}.0"))
            for slot, vif in enumerate(machine.vifs.values(), start=1)
            if vif.get("tag")
        )
        instance.device_metadata = InstanceDeviceMetadata(devices=records) if records else None

    def _plug(self, machine: FakeMachine, network_info: NetworkInfo | None) -> None:
        with self.hypervisor.making("network"):
            for vif in network_info or ():
                if vif["type"] not in _VIF_TYPES:
                    raise InternalError(err=f"interfaces of the type {vif['type']} cannot be plugged")
                machine.vifs[vif["id"]] = vif
                self.hypervisor.plugged.setdefault(machine.uuid, set()).add(vif["id"])

    def _unplug(self, instance: Instance) -> None:
        self.hypervisor.plugged.pop(instance.uuid, None)

    def _make_disks(
        self, machine: FakeMachine, instance: Instance, image: ImageMeta, block_device_info: BlockDeviceInfo | None
    ) -> None:
        with self.hypervisor.making("disks"):
            disks = _disks_of(instance, image, block_device_info)
            volumes = _volumes_of(block_device_info)
        machine.disks, machine.volumes = disks, volumes


def root_disk(instance: Instance, image: ImageMeta) -> FakeDisk:
    """The root disk of an instance from an image.

    Raises:
        FlavorDiskSmallerThanImage
    """
    smallest = max(image.min_disk * GIB, image.virtual_size or image.size)
    size = instance.flavor.root_gb * GIB or smallest
    if size < smallest:
        raise FlavorDiskSmallerThanImage(flavor_size=size, image_size=smallest)
    return FakeDisk(path=f"/instances/{instance.uuid}/disk", size=size, image=image.id)


def _disks_of(instance: Instance, image: ImageMeta, info: BlockDeviceInfo | None) -> dict[str, FakeDisk]:
    where = f"/instances/{instance.uuid}"
    disks = {}
    if not any(volume.get("boot_index") == 0 for volume in block_device_info_get_mapping(info)):
        disks["disk"] = root_disk(instance, image)
    for number, ephemeral in enumerate(block_device_info_get_ephemerals(info)):
        disks[f"disk.eph{number}"] = FakeDisk(path=f"{where}/disk.eph{number}", size=ephemeral["size"] * GIB)
    swap = block_device_info_get_swap(info)
    if swap_is_usable(swap):
        disks["disk.swap"] = FakeDisk(path=f"{where}/disk.swap", size=swap["swap_size"] * _MIB, format="raw")
    return disks


def _volumes_of(info: BlockDeviceInfo | None) -> dict[str, Mapping[str, Any]]:
    return {volume["mount_device"]: volume["connection_info"] for volume in block_device_info_get_mapping(info)}
