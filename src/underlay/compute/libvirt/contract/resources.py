"""The host."""

from typing import Any

from underlay.compute.contract.resources import Resources
from underlay.compute.libvirt import enabling, hostactivity, hostresources
from underlay.compute.libvirt.contract.located import Located
from underlay.compute.libvirt.hostaddress import own_address
from underlay.compute.libvirt.hosttraits import traits_of_site
from underlay.compute.providers import ProviderTree


class LibvirtResources(Resources, Located):
    """One host is one node."""

    capabilities: dict[str, bool]

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """As the contract has it: the host as libvirt calls it."""
        return [self.site.connection.ask(lambda handle: str(handle.getHostname()))]

    def get_available_resource(self, nodename: str) -> dict[str, Any]:
        """As the contract has it. There is no NUMA topology, and nothing is said of PCI devices."""
        return hostresources.available(self.site, nodename)

    def update_provider_tree(
        self, provider_tree: ProviderTree, nodename: str, allocations: dict[str, Any] | None = None
    ) -> None:
        """As the contract has it; nothing ever moves, so the allocations are not looked at."""
        traits = traits_of_site(self.site, self.capabilities)
        hostresources.update(self.site, provider_tree, nodename, traits=traits)

    def get_host_cpu_stats(self) -> dict[str, int]:
        """As the contract has it."""
        return hostactivity.cpu_stats(self.site)

    def get_host_uptime(self) -> str:
        """As the contract has it."""
        return hostactivity.uptime()

    def get_host_ip_addr(self) -> str:
        """As the contract has it: the configured one, else that of the interface with the default route."""
        return own_address(self.site.options)

    def set_host_enabled(self, enabled: bool) -> str:
        """As the contract has it; it is kept over restarts, and guests that are there run on."""
        return enabling.set_enabled(self.site, enabled=enabled)
