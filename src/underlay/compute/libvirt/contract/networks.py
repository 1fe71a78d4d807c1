"""Interfaces: the host's side of them, and their counters."""

from collections.abc import Sequence
from typing import Any

from underlay.compute.arguments import Instance, NetworkInfo
from underlay.compute.contract.networks import Networks
from underlay.compute.libvirt import diagnosing, networks
from underlay.compute.libvirt.contract.located import Located


class LibvirtNetworks(Networks, Located):
    """Bridges, into which libvirt plugs guests, and taps that somebody else made."""

    def plug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it: what has to be there is; libvirt makes its taps when the guest starts."""
        networks.plug(network_info)

    def unplug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        networks.unplug(network_info)

    def get_all_bw_counters(self, instances: Sequence[Instance]) -> list[dict[str, Any]]:
        """As the contract has it, of those that run."""
        return diagnosing.traffic(self.site, instances)
