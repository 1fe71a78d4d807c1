"""The host: what it has to give, how it does, and what can be done with it."""

from collections.abc import Callable, Mapping
from typing import Any

from underlay.compute.arguments import Context
from underlay.compute.node import local_node_uuid
from underlay.compute.options import allocation_ratios, reserved_disk_gib
from underlay.compute.providers import ProviderTree


class Resources:
    """The nodes that a driver speaks for, their resources, and the host itself."""

    @staticmethod
    def _get_reserved_host_disk_gb_from_config() -> int:
        """GiB of disk that the configuration reserves for the host, rounded up."""
        return reserved_disk_gib()

    @staticmethod
    def _get_allocation_ratios(inventory: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """How often each resource may be given away, by resource class: of VCPU, MEMORY_MB and DISK_GB.

        The configured ratio; else, of a class that the inventory does not have, the initial one; else what the inventory has.
        """
        return allocation_ratios(inventory)

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """The names of the nodes that this driver speaks for: of one hypervisor, its host name.

        Args:
            refresh: ask anew instead of from memory.
        """
        raise NotImplementedError

    def get_nodenames_by_uuid(self, refresh: bool = False) -> dict[str, str]:
        """The same by the nodes' UUIDs, which never change: of one node, this machine's."""
        return {local_node_uuid(): self.get_available_nodes(refresh=refresh)[0]}

    def node_is_available(self, nodename: str) -> bool:
        """Whether this driver speaks for a node."""
        return nodename in self.get_available_nodes() or nodename in self.get_available_nodes(refresh=True)

    def is_node_deleted(self, nodename: str) -> bool:
        """Whether a node was removed on purpose, so that nothing may be kept for it."""
        return False

    def get_available_resource(self, nodename: str) -> dict[str, Any]:
        """What a node has and what of it is taken.

        Returns:
            ``vcpus``, ``vcpus_used``; ``memory_mb``, ``memory_mb_used`` (MiB); ``local_gb``, ``local_gb_used`` (GiB);
            ``cpu_info``, ``numa_topology`` (JSON text, the latter perhaps None); ``hypervisor_hostname``; and further
            ``hypervisor_type``, ``hypervisor_version``, ``disk_available_least`` (GiB, perhaps negative),
            ``supported_instances``, ``pci_passthrough_devices``, ``stats``, ``uuid``.
        """
        raise NotImplementedError

    def update_provider_tree(
        self, provider_tree: ProviderTree, nodename: str, allocations: dict[str, Any] | None = None
    ) -> None:
        """Change a tree of resource providers in its place into what this node has to give.

        What others put into it stays as it is. A class of which there is nothing is left out.

        Args:
            provider_tree: with a root that is called as the node is.
            allocations: by consumer; given only when the driver asked for them, and changed in their place when inventory
                moves.

        Raises:
            ReshapeNeeded: inventory has to move, and the allocations were not given; nothing was changed.
            ReshapeFailed: it could not be moved.
        """
        raise NotImplementedError

    def get_per_instance_usage(self) -> dict[str, dict[str, Any]]:
        """The memory of running guests by UUID, each ``uuid`` and ``memory_mb``, so that unknown ones are counted."""
        return {}

    def get_host_cpu_stats(self) -> dict[str, int]:
        """``kernel``, ``idle``, ``user``, ``iowait``: nanoseconds since the host was started; ``frequency``: MHz now."""
        raise NotImplementedError

    def get_host_uptime(self) -> str:
        """How long the host has been up, for people."""
        raise NotImplementedError

    def get_host_ip_addr(self) -> str:
        """The address at which other hosts reach this one."""
        raise NotImplementedError

    def host_power_action(self, action: str) -> str:
        """Do ``startup``, ``shutdown`` or ``reboot`` to the host; returns what became of it."""
        raise NotImplementedError

    def host_maintenance_mode(self, host: str, mode: bool) -> str:
        """Begin or end a host's maintenance, which moves its instances away; ``on_maintenance`` or ``off_maintenance``."""
        raise NotImplementedError

    def set_host_enabled(self, enabled: bool) -> str:
        """Let the host have new instances, or not; returns ``enabled`` or ``disabled``."""
        raise NotImplementedError

    def add_to_aggregate(self, context: Context, aggregate: Any, host: str, **kwargs: Any) -> None:
        """A host was added to an aggregate of hosts; make it part of the hypervisors' pool."""
        raise NotImplementedError

    def remove_from_aggregate(self, context: Context, aggregate: Any, host: str, **kwargs: Any) -> None:
        """A host was removed from an aggregate of hosts; take it out of the hypervisors' pool."""
        raise NotImplementedError

    def undo_aggregate_operation(
        self, context: Context, op: Callable[..., Any], aggregate: Any, host: str, set_error: bool = True
    ) -> None:
        """Undo a change to an aggregate that failed.

        Args:
            op: the aggregate's own function that undoes it. set_error: the aggregate is marked as broken.
        """
        raise NotImplementedError
