"""The fake driver's host."""

import json
from typing import Any

from underlay.compute import states
from underlay.compute.contract.resources import Resources
from underlay.compute.providers import ProviderTree
from underlay.config import load_config
from underlay.testing.fakedriver.hypervisor import GIB
from underlay.testing.fakedriver.running import Running

_CPU = {
    "arch": "x86_64",
    "model": "fake",
    "vendor": "fake",
    "topology": {"cells": 1, "sockets": 1, "cores": 8, "threads": 2},
    "features": [],
}
_DISABLED = "COMPUTE_STATUS_DISABLED"


class FakeResources(Resources, Running):
    """A host in memory, with one node that is called as it is."""

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """As the contract has it."""
        return [self.hypervisor.host]

    def get_available_resource(self, nodename: str) -> dict[str, Any]:
        """As the contract has it."""
        here, machines = self.hypervisor, list(self.hypervisor.machines.values())
        disks = sum(disk.size for machine in machines for disk in machine.disks.values())
        return {
            "vcpus": here.vcpus,
            "vcpus_used": sum(machine.vcpus for machine in machines),
            "memory_mb": here.memory_mb,
            "memory_mb_used": sum(machine.memory_mb for machine in machines),
            "local_gb": here.local_gb,
            "local_gb_used": -(-disks // GIB),
            "disk_available_least": here.local_gb - -(-disks // GIB),
            "cpu_info": json.dumps(_CPU),
            "numa_topology": None,
            "hypervisor_hostname": nodename,
            "hypervisor_type": "fake",
            "hypervisor_version": 1_000_000,
            "supported_instances": [("x86_64", "fake", "hvm")],
            "stats": {},
        }

    def update_provider_tree(
        self, provider_tree: ProviderTree, nodename: str, allocations: dict[str, Any] | None = None
    ) -> None:
        """As the contract has it."""
        options, here = load_config().compute, self.hypervisor
        ratios = self._get_allocation_ratios(provider_tree.data(nodename).inventory)
        totals = {
            "VCPU": (here.vcpus, options.reserved_host_cpus),
            "MEMORY_MB": (here.memory_mb, options.reserved_host_memory_mb),
            "DISK_GB": (here.local_gb, self._get_reserved_host_disk_gb_from_config()),
        }
        inventory = {name: _inventory(total, reserved, ratios[name]) for name, (total, reserved) in totals.items() if total}
        provider_tree.update_inventory(nodename, inventory)
        (provider_tree.remove_traits if here.enabled else provider_tree.add_traits)(nodename, _DISABLED)

    def get_per_instance_usage(self) -> dict[str, dict[str, Any]]:
        """As the contract has it."""
        running = [machine for machine in self.hypervisor.machines.values() if machine.state == states.RUNNING]
        return {machine.uuid: {"uuid": machine.uuid, "memory_mb": machine.memory_mb} for machine in running}

    def get_host_cpu_stats(self) -> dict[str, int]:
        """As the contract has it."""
        return {"kernel": 0, "idle": 0, "user": 0, "iowait": 0, "frequency": 1000}

    def get_host_uptime(self) -> str:
        """As the contract has it."""
        return "up for ever"

    def get_host_ip_addr(self) -> str:
        """As the contract has it."""
        return self.hypervisor.address

    def set_host_enabled(self, enabled: bool) -> str:
        """As the contract has it; the provider tree says it."""
        self.hypervisor.enabled = enabled
        return "enabled" if enabled else "disabled"


def _inventory(total: int, reserved: int, ratio: float) -> dict[str, Any]:
    return {
        "total": total,
        "reserved": reserved,
        "min_unit": 1,
        "max_unit": total,
        "step_size": 1,
        "allocation_ratio": ratio,
    }
