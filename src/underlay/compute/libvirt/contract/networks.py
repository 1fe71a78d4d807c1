"""Interfaces: the host's side of them."""

from underlay.compute.arguments import Instance, NetworkInfo
from underlay.compute.contract.networks import Networks
from underlay.compute.libvirt import networks


class LibvirtNetworks(Networks):
    """Bridges, into which libvirt plugs guests, and taps that somebody else made."""

    def plug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it: what has to be there is; libvirt makes its taps when the guest starts."""
        networks.plug(network_info)

    def unplug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        networks.unplug(network_info)
