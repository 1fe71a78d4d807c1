"""Interfaces: the host's side of them, and their counters."""

from collections.abc import Sequence
from typing import Any

from underlay.compute.arguments import Context, ImageMeta, Instance, NetworkInfo, Vif
from underlay.compute.contract.networks import Networks
from underlay.compute.libvirt import diagnosing, interfaces, networks
from underlay.compute.libvirt.contract.located import Located


class LibvirtNetworks(Networks, Located):
    """Bridges, into which libvirt plugs guests, and taps, which are made unless somebody else made them."""

    def plug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it: taps are made, bridges have to be there; libvirt makes their taps when the guest starts."""
        networks.plug(instance, network_info)

    def unplug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it; a tap that somebody else made stays."""
        networks.unplug(instance, network_info)

    def attach_interface(self, context: Context, instance: Instance, image_meta: ImageMeta, vif: Vif) -> None:
        """As the contract has it."""
        interfaces.attach(self.site, instance, image_meta, vif)

    def detach_interface(self, context: Context, instance: Instance, vif: Vif) -> None:
        """As the contract has it; a guest that runs has to let go of it, and is asked ``device_detach_attempts`` times."""
        interfaces.detach(self.site, instance, vif)

    def get_all_bw_counters(self, instances: Sequence[Instance]) -> list[dict[str, Any]]:
        """As the contract has it, of those that run."""
        return diagnosing.traffic(self.site, instances)
