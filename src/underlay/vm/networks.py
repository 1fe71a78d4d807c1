"""What machines are plugged into: bridges of this host, among them those of libvirt's networks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from underlay.compute.errors import OperationFailed, VirtualInterfacePlugException
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.library import library
from underlay.vm.wanted import is_utf8

DEFAULT = "default"
"""The network that an installed libvirt brings along."""

_DEVICES = Path("/sys/class/net")


def check_bridges(bridges: Iterable[str]) -> None:
    """Make sure that bridges are there.

    Raises:
        VirtualInterfacePlugException
    """
    for bridge in bridges:
        if "/" in bridge or not is_utf8(bridge) or not (_DEVICES / bridge / "bridge").exists():
            hint = "'ip link show type bridge' shows those there are"
            raise VirtualInterfacePlugException(f"the bridge {bridge} is not there", hint=hint)


def bridge_of(connection: Connection, network: str) -> str:
    """The bridge of a network that is up.

    Raises:
        VirtualInterfacePlugException: there is no such network, it has no bridge, or it is not up. HypervisorUnavailable
    """
    try:
        if not is_utf8(network):
            raise OperationFailed("its name is not UTF-8")
        return connection.ask(lambda handle: _bridge(handle.networkLookupByName(network)))
    except OperationFailed as error:
        raise VirtualInterfacePlugException(
            f"the network {network} cannot be used: {error.message}",
            hint="'virsh net-list --all' shows those there are, and 'virsh net-start' starts one",
        ) from error


def has_default(connection: Connection) -> bool:
    """Whether the default network is up; a libvirt without its driver for networks has none.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    return connection.ask(_is_default_up)


def _bridge(network: Any) -> str:
    if not network.isActive():
        raise OperationFailed("it is not up")
    return str(network.bridgeName())


def _is_default_up(handle: Any) -> bool:
    libvirt = library()
    try:
        up = handle.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return False
        raise
    return any(network.name() == DEFAULT for network in up)
