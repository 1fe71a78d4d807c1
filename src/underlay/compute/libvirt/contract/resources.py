"""The host."""

from underlay.compute.contract.resources import Resources
from underlay.compute.libvirt.contract.located import Located
from underlay.compute.libvirt.hostaddress import own_address


class LibvirtResources(Resources, Located):
    """One host is one node."""

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """As the contract has it: the host as libvirt calls it."""
        return [self.site.connection.ask(lambda handle: str(handle.getHostname()))]

    def get_host_ip_addr(self) -> str:
        """As the contract has it: the configured one, else that of the interface with the default route."""
        return own_address(self.site.options)
