"""The fake driver's instances."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from underlay.compute.arguments import (
    AccelInfo,
    Allocations,
    BlockDeviceInfo,
    BlockDeviceMapping,
    Context,
    ImageMeta,
    Instance,
    MigrateData,
    NetworkInfo,
)
from underlay.compute.contract.lifecycle import LifeCycle
from underlay.compute.errors import InstanceExists, PreserveEphemeralNotSupported, QemuGuestAgentNotEnabled
from underlay.compute.states import InstanceInfo
from underlay.testing.fakedriver.hypervisor import machine_of
from underlay.testing.fakedriver.running import Running, root_disk


class FakeLifeCycle(LifeCycle, Running):
    """Instances of the hypervisor in memory."""

    def init_host(self, host: str) -> None:
        """Take the host's hypervisor, with what is on it."""
        self.hypervisor = self.site.hypervisor(host)

    def get_info(self, instance: Instance, use_cache: bool = True) -> InstanceInfo:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        return InstanceInfo(state=machine.state, internal_id=machine.internal_id)

    def list_instances(self) -> list[str]:
        """As the contract has it."""
        with self.hypervisor.lock:
            return [machine.name for machine in self.hypervisor.machines.values()]

    def list_instance_uuids(self) -> list[str]:
        """As the contract has it."""
        with self.hypervisor.lock:
            return list(self.hypervisor.machines)

    def spawn(
        self,
        context: Context,
        instance: Instance,
        image_meta: ImageMeta,
        injected_files: Sequence[Any],
        admin_password: str | None,
        allocations: Allocations | None,
        network_info: NetworkInfo | None = None,
        block_device_info: BlockDeviceInfo | None = None,
        power_on: bool = True,
        accel_info: AccelInfo | None = None,
    ) -> None:
        """As the contract has it. Raises InstanceExists as well."""
        machine = machine_of(instance, instance.flavor)
        with ExitStack() as undo:
            with self.hypervisor.lock:
                if instance.uuid in self.hypervisor.machines or instance.name in self.list_instances():
                    raise InstanceExists(name=instance.name)
                self.hypervisor.machines[instance.uuid] = machine
            undo.callback(self.destroy, context, instance, network_info or ())
            machine.password = admin_password
            self._make_disks(machine, instance, image_meta, block_device_info)
            self.hypervisor.cached.add(image_meta.id)
            self._plug(machine, network_info)
            self._write_down(instance, machine)
            if power_on:
                self._start(machine)
            undo.pop_all()

    def rebuild(
        self,
        context: Context,
        instance: Instance,
        image_meta: ImageMeta,
        injected_files: Sequence[Any],
        admin_password: str | None,
        allocations: Allocations | None,
        bdms: Sequence[BlockDeviceMapping],
        detach_block_devices: Callable[..., Any],
        attach_block_devices: Callable[..., Any],
        network_info: NetworkInfo | None = None,
        evacuate: bool = False,
        block_device_info: BlockDeviceInfo | None = None,
        preserve_ephemeral: bool = False,
        *,
        accel_uuids: Sequence[str] | None = None,
        reimage_boot_volume: bool = False,
    ) -> None:
        """As the contract has it, on the host where the instance is."""
        if evacuate or reimage_boot_volume:
            raise NotImplementedError("the fake driver rebuilds local disks where they are")
        if preserve_ephemeral:
            raise PreserveEphemeralNotSupported
        machine = self.hypervisor.machine(instance)
        self._stop(machine)
        machine.disks["disk"] = root_disk(instance, image_meta)
        machine.password, machine.rescued_by = admin_password, None
        self._start(machine)

    def destroy(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        destroy_disks: bool = True,
        *,
        destroy_secrets: bool = True,
    ) -> None:
        """As the contract has it."""
        with self.hypervisor.lock:
            machine = self.hypervisor.machines.pop(instance.uuid, None)
        if machine is not None:
            self._stop(machine)
        self.cleanup(context, instance, network_info, block_device_info, destroy_disks, destroy_secrets=destroy_secrets)

    def cleanup(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        destroy_disks: bool = True,
        migrate_data: MigrateData | None = None,
        destroy_vifs: bool = True,
        *,
        destroy_secrets: bool = True,
    ) -> None:
        """As the contract has it."""
        if destroy_vifs:
            self._unplug(instance)

    def delete_instance_files(self, instance: Instance) -> bool:
        """As the contract has it: what a resize kept."""
        self.hypervisor.kept.pop(instance.uuid, None)
        return True

    def instance_on_disk(self, instance: Instance) -> bool:
        """As the contract has it."""
        return instance.uuid in self.hypervisor.machines or instance.uuid in self.hypervisor.kept

    def set_admin_password(self, instance: Instance, new_pass: str) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if not self.hypervisor.guests_answer:
            raise QemuGuestAgentNotEnabled
        machine.password = new_pass
