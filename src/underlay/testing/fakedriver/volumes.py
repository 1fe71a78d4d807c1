"""The fake driver's volumes and disks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, BlockDeviceMapping, ConnectionInfo, Context, ImageMeta, Instance
from underlay.compute.contract.volumes import Volumes
from underlay.compute.errors import (
    DiskNotFound,
    InternalError,
    QemuGuestAgentNotEnabled,
    TooManyDiskDevices,
    VolumeAttachFailed,
    VolumeDriverNotFound,
)
from underlay.testing.fakedriver.devicenames import MOST, next_name
from underlay.testing.fakedriver.hypervisor import FakeDisk, FakeMachine
from underlay.testing.fakedriver.running import Running

_KINDS = frozenset({"fake", "local", "rbd"})
_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs"})
_NO_COUNTERS = {"rd_req": 0, "rd_bytes": 0, "wr_req": 0, "wr_bytes": 0}


class FakeVolumes(Volumes, Running):
    """Volumes and disks of the machines in memory."""

    @property
    def need_legacy_block_device_info(self) -> bool:
        """It takes the newer shapes."""
        return False

    def attach_volume(
        self,
        context: Context,
        connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        disk_bus: str | None = None,
        device_type: str | None = None,
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if connection_info["driver_volume_type"] not in _KINDS:
            raise VolumeDriverNotFound(driver_type=connection_info["driver_volume_type"])
        if len(machine.disks) + len(machine.volumes) >= MOST:
            raise TooManyDiskDevices(maximum=MOST)
        if mountpoint in machine.volumes:
            raise VolumeAttachFailed(volume_id=connection_info["serial"], reason=f"{mountpoint} is taken")
        if self._is_attached(connection_info):
            raise VolumeAttachFailed(volume_id=connection_info["serial"], reason="it is attached already")
        machine.volumes[mountpoint] = connection_info

    def detach_volume(
        self,
        context: Context,
        connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        self._volume(machine, connection_info, mountpoint)
        del machine.volumes[mountpoint]

    def swap_volume(
        self,
        context: Context,
        old_connection_info: ConnectionInfo,
        new_connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        resize_to: int,
    ) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        self._volume(machine, old_connection_info, mountpoint)
        if new_connection_info["driver_volume_type"] not in _KINDS:
            raise VolumeDriverNotFound(driver_type=new_connection_info["driver_volume_type"])
        machine.volumes[mountpoint] = new_connection_info

    def extend_volume(self, context: Context, connection_info: ConnectionInfo, instance: Instance, requested_size: int) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if not any(_same(one, connection_info) for one in machine.volumes.values()):
            raise DiskNotFound(location=connection_info["serial"])

    def volume_snapshot_create(
        self, context: Context, instance: Instance, volume_id: str, create_info: Mapping[str, Any]
    ) -> None:
        """As the contract has it; nothing is made."""
        self.hypervisor.machine(instance)
        if create_info.get("type") != "qcow2" or not create_info.get("snapshot_id"):
            raise InternalError(err="a snapshot is of the type qcow2 and has a snapshot_id")

    def volume_snapshot_delete(
        self, context: Context, instance: Instance, volume_id: str, snapshot_id: str, delete_info: Mapping[str, Any]
    ) -> None:
        """As the contract has it; nothing is removed."""
        self.hypervisor.machine(instance)
        if delete_info.get("type") != "qcow2" or not snapshot_id:
            raise InternalError(err="a snapshot is of the type qcow2 and has a snapshot_id")

    def get_volume_connector(self, instance: Instance) -> dict[str, Any]:
        """As the contract has it."""
        return {"ip": self.hypervisor.address, "initiator": None, "host": self.hypervisor.host}

    def get_all_volume_usage(self, context: Context, compute_host_bdms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the contract has it; nothing has been read or written."""
        return [
            {"volume": row["volume_id"], "instance": of["instance"], **_NO_COUNTERS}
            for of in compute_host_bdms
            for row in of["instance_bdms"]
            if of["instance"].uuid in self.hypervisor.machines
        ]

    def block_stats(self, instance: Instance, disk_id: str) -> list[int] | None:
        """As the contract has it; nothing has been read or written."""
        machine = self.hypervisor.machine(instance)
        return [0, 0, 0, 0, 0] if f"/dev/{disk_id}" in _names(machine) else None

    def get_instance_disk_info(self, instance: Instance, block_device_info: BlockDeviceInfo | None = None) -> str:
        """As the contract has it."""
        return disk_facts(self.hypervisor.machine(instance))

    def default_root_device_name(self, instance: Instance, image_meta: ImageMeta, root_bdm: BlockDeviceMapping) -> str:
        """As the contract has it."""
        return next_name(())

    def default_device_names_for_instance(
        self, instance: Instance, root_device_name: str, *block_device_lists: Sequence[BlockDeviceMapping]
    ) -> None:
        """As the contract has it."""
        rows = [row for rows in block_device_lists for row in rows]
        taken = {root_device_name, *_named(rows)}
        for row in rows:
            if not row.get("device_name"):
                row["device_name"] = next_name(taken)
                taken.add(row["device_name"])

    def get_device_name_for_instance(
        self, instance: Instance, bdms: Sequence[BlockDeviceMapping], block_device_obj: BlockDeviceMapping
    ) -> str:
        """As the contract has it."""
        return next_name({instance.root_device_name, *_named(bdms)})

    def is_supported_fs_format(self, fs_type: str) -> bool:
        """As the contract has it."""
        return fs_type in _FILE_SYSTEMS

    def quiesce(self, context: Context, instance: Instance, image_meta: ImageMeta) -> None:
        """As the contract has it."""
        self._freeze(instance, frozen=True)

    def unquiesce(self, context: Context, instance: Instance, image_meta: ImageMeta) -> None:
        """As the contract has it."""
        self._freeze(instance, frozen=False)

    def _freeze(self, instance: Instance, *, frozen: bool) -> None:
        machine = self.hypervisor.machine(instance)
        if not self.hypervisor.guests_answer:
            raise QemuGuestAgentNotEnabled
        machine.frozen = frozen

    def _is_attached(self, connection_info: ConnectionInfo) -> bool:
        machines = self.hypervisor.machines.values()
        return any(_same(one, connection_info) for machine in machines for one in machine.volumes.values())

    def _volume(self, machine: FakeMachine, connection_info: ConnectionInfo, mountpoint: str) -> ConnectionInfo:
        found = machine.volumes.get(mountpoint)
        if found is None or not _same(found, connection_info):
            raise DiskNotFound(location=mountpoint)
        return found


def disk_facts(machine: FakeMachine) -> str:
    """What `get_instance_disk_info` says of a machine."""
    return json.dumps([_facts(disk) for disk in machine.disks.values()])


def _facts(disk: FakeDisk) -> dict[str, str]:
    return {
        "path": disk.path,
        "type": disk.format,
        "backing_file": disk.image,
        "virt_disk_size": str(disk.size),
        "disk_size": str(disk.allocated),
        "over_committed_disk_size": str(max(0, disk.size - disk.allocated)),
    }


def _names(machine: FakeMachine) -> set[str]:
    """Of its devices: local disks first, in the order of letters, and volumes where they are."""
    names: set[str] = set(machine.volumes)
    for _ in machine.disks:
        names.add(next_name(names))
    return names


def _named(rows: Iterable[BlockDeviceMapping]) -> set[str]:
    return {row.get("device_name") for row in rows} - {None, ""}


def _same(one: ConnectionInfo, other: ConnectionInfo) -> bool:
    return bool(one.get("serial") == other.get("serial"))
