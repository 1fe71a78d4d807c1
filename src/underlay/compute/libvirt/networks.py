"""The host's side of interfaces: what has to be there before a guest can have them."""

from pathlib import Path

from underlay.compute.arguments import NetworkInfo
from underlay.compute.errors import VirtualInterfacePlugException
from underlay.compute.libvirt.guestplan import bridge_of, check_kind, device_of

_DEVICES = Path("/sys/class/net")


def plug(network_info: NetworkInfo | None) -> None:
    """Make sure that each interface can be plugged: its bridge is there, for which libvirt makes the tap, or its tap is.

    Raises:
        VirtualInterfacePlugException: something is not there. InternalError, InvalidInput
    """
    for vif in network_info or ():
        kind = check_kind(vif)
        device = bridge_of(vif) if kind == "bridge" else device_of(vif)
        sign = _DEVICES / device / ("bridge" if kind == "bridge" else "tun_flags")
        if not sign.exists():
            raise VirtualInterfacePlugException(
                f"the {kind} {device} of the interface {vif.get('id')} is not there", hint="make it before the instance"
            )


def unplug(network_info: NetworkInfo | None) -> None:
    """libvirt takes its taps away with the guest, and others' taps stay theirs, so nothing is left to be removed.

    Raises:
        InternalError: an unknown type.
    """
    for vif in network_info or ():
        check_kind(vif)
