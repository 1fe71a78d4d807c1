"""The fake driver's interfaces."""

from collections.abc import Sequence
from typing import Any

from underlay.compute.arguments import Context, ImageMeta, Instance, NetworkInfo, Vif
from underlay.compute.contract.networks import Networks
from underlay.compute.errors import InterfaceAttachFailed, InterfaceDetachFailed
from underlay.testing.fakedriver.running import Running


class FakeNetworks(Networks, Running):
    """Interfaces of the machines in memory."""

    def plug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        self._plug(self.hypervisor.machine(instance), network_info)

    def unplug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        plugged = self.hypervisor.plugged.get(instance.uuid, set())
        plugged.difference_update(vif["id"] for vif in network_info)

    def attach_interface(self, context: Context, instance: Instance, image_meta: ImageMeta, vif: Vif) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if vif["id"] in machine.vifs:
            raise InterfaceAttachFailed(instance_uuid=instance.uuid)
        self._plug(machine, [vif])
        self._write_down(instance, machine)

    def detach_interface(self, context: Context, instance: Instance, vif: Vif) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if machine.vifs.pop(vif["id"], None) is None:
            raise InterfaceDetachFailed(instance_uuid=instance.uuid)
        self.unplug_vifs(instance, [vif])
        self._write_down(instance, machine)

    def get_all_bw_counters(self, instances: Sequence[Instance]) -> list[dict[str, Any]]:
        """As the contract has it; nothing has been sent."""
        return [
            {"uuid": instance.uuid, "mac_address": vif["address"], "bw_in": 0, "bw_out": 0}
            for instance in instances
            if instance.uuid in self.hypervisor.machines
            for vif in self.hypervisor.machine(instance).vifs.values()
        ]
