"""The host."""

from underlay.compute.contract.resources import Resources
from underlay.compute.libvirt.contract.located import Located


class LibvirtResources(Resources, Located):
    """One host is one node."""

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """As the contract has it: the host as libvirt calls it."""
        return [self.site.connection.ask(lambda handle: str(handle.getHostname()))]
