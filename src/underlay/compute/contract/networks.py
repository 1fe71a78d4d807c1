"""The virtual interfaces of instances."""

from collections.abc import Sequence
from typing import Any

from underlay.compute.arguments import Context, ImageMeta, Instance, NetworkInfo, Vif


class Networks:
    """The host's side of interfaces, and the guest's."""

    def plug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """Make the host's side of all interfaces of an instance. One that is there stays.

        Raises:
            VirtualInterfacePlugException: one could not be made. InternalError: of an unknown type.
        """
        raise NotImplementedError

    def unplug_vifs(self, instance: Instance, network_info: NetworkInfo) -> None:
        """Remove the host's side of all interfaces of an instance. One that is gone is a success.

        Raises:
            InternalError: of an unknown type.
        """
        raise NotImplementedError

    def attach_interface(self, context: Context, instance: Instance, image_meta: ImageMeta, vif: Vif) -> None:
        """Give one more interface to an instance, to a running one at once.

        Raises:
            InterfaceAttachFailed, or another ComputeError
        """
        raise NotImplementedError

    def detach_interface(self, context: Context, instance: Instance, vif: Vif) -> None:
        """Take an interface away from an instance.

        Raises:
            InterfaceDetachFailed, or another ComputeError
        """
        raise NotImplementedError

    def prepare_networks_before_block_device_mapping(self, instance: Instance, network_info: NetworkInfo) -> None:
        """Do with the networks what has to be done before volumes are attached."""

    def clean_networks_preparation(self, instance: Instance, network_info: NetworkInfo) -> None:
        """Undo `prepare_networks_before_block_device_mapping`, because the spawn failed."""

    def reset_network(self, instance: Instance) -> None:
        """Make a guest configure its network anew."""

    def inject_network_info(self, instance: Instance, nw_info: NetworkInfo) -> None:
        """Write the network's configuration into a guest."""

    def network_binding_host_id(self, context: Context, instance: Instance) -> str | None:
        """The host that an instance's ports are bound to: its own, unless overridden."""
        host: str | None = instance.get("host")
        return host

    def manages_network_binding_host_id(self) -> bool:
        """Whether the driver binds ports itself."""
        return False

    def get_all_bw_counters(self, instances: Sequence[Instance]) -> list[dict[str, Any]]:
        """The traffic of the instances' interfaces.

        Returns:
            For each interface ``uuid`` (the instance's), ``mac_address``, ``bw_in`` and ``bw_out``: bytes since a counter was
            set to 0; one that is lower than before was. A driver that leaves this out is asked no more.
        """
        raise NotImplementedError
