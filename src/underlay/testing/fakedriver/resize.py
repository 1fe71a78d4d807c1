"""The fake driver's snapshots, resizes and cold migrations."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from underlay.compute.arguments import (
    Allocations,
    BlockDeviceInfo,
    Context,
    Flavor,
    ImageMeta,
    Instance,
    Migration,
    NetworkInfo,
    ShareInfo,
)
from underlay.compute.contract.resize import Resize
from underlay.compute.errors import InstanceFaultRollback, InstanceNotFound, OperationFailed
from underlay.compute.taskstates import IMAGE_PENDING_UPLOAD, IMAGE_UPLOADING
from underlay.testing.fakedriver.hypervisor import GIB, FakeDisk, FakeMachine, machine_of
from underlay.testing.fakedriver.running import Running
from underlay.testing.fakedriver.volumes import disk_facts


class FakeResize(Resize, Running):
    """Snapshots of, and moves between, hypervisors in memory."""

    def snapshot(self, context: Context, instance: Instance, image_id: str, update_task_state: Callable[..., Any]) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        update_task_state(task_state=IMAGE_PENDING_UPLOAD)
        copied = machine.disks["disk"].size
        update_task_state(task_state=IMAGE_UPLOADING, expected_state=IMAGE_PENDING_UPLOAD)
        self.site.images[image_id] = copied

    def migrate_disk_and_power_off(
        self,
        context: Context,
        instance: Instance,
        dest: str,
        flavor: Flavor,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        timeout: float = 0,
        retry_interval: float = 0,
    ) -> str:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if self.site.found(dest) is None:
            raise InstanceFaultRollback(OperationFailed(f"there is no host at {dest}"))
        root = machine.disks.get("disk")
        if root is not None and flavor.root_gb * GIB < root.size:
            raise InstanceFaultRollback(OperationFailed("a disk is never made smaller"))
        self._stop(machine)
        with self.hypervisor.lock:
            self.hypervisor.kept[instance.uuid] = self.hypervisor.machines.pop(instance.uuid)
        self._unplug(instance)
        return disk_facts(machine)

    def finish_migration(
        self,
        context: Context,
        migration: Migration,
        instance: Instance,
        disk_info: str,
        network_info: NetworkInfo,
        image_meta: ImageMeta,
        resize_instance: bool,
        block_device_info: BlockDeviceInfo | None = None,
        power_on: bool = True,
        *,
        allocations: Allocations | None = None,
    ) -> None:
        """As the contract has it."""
        machine = machine_of(instance, instance.flavor)
        machine.disks = _disks(disk_info)
        if resize_instance and "disk" in machine.disks:
            root = machine.disks["disk"]
            root.size = max(root.size, instance.flavor.root_gb * GIB)
        self._take(machine, network_info, power_on=power_on)

    def confirm_migration(self, context: Context, migration: Migration, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        self.hypervisor.kept.pop(instance.uuid, None)

    def finish_revert_migration(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        migration: Migration,
        block_device_info: BlockDeviceInfo | None = None,
        power_on: bool = True,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """As the contract has it."""
        machine = self.hypervisor.kept.pop(instance.uuid, None)
        if machine is None:
            raise InstanceNotFound(instance_id=instance.uuid)
        self._take(machine, network_info, power_on=power_on)

    def _take(self, machine: FakeMachine, network_info: NetworkInfo, *, power_on: bool) -> None:
        taken = deepcopy(machine)
        with self.hypervisor.lock:
            self.hypervisor.machines[machine.uuid] = taken
        self._plug(taken, network_info)
        if power_on:
            self._start(taken)


def _disks(disk_info: str) -> dict[str, FakeDisk]:
    return {
        one["path"].rpartition("/")[2]: FakeDisk(
            path=one["path"],
            size=int(one["virt_disk_size"]),
            format=one["type"],
            image=one["backing_file"],
            allocated=int(one["disk_size"]),
        )
        for one in json.loads(disk_info)
    }
