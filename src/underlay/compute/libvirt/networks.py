"""The host's side of interfaces: what has to be there before a guest can have them, and what goes with them.

libvirt makes and removes the taps of bridges. A tap of its own is made here unless somebody else has made it, and only what was
made here is removed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from underlay.compute.arguments import Instance, NetworkInfo, Vif
from underlay.compute.errors import ComputeError, HypervisorUnavailable, InvalidInput, VirtualInterfacePlugException
from underlay.compute.libvirt import taps
from underlay.compute.libvirt.guestplan import bridge_of, check_kind, device_of, mtu_of


def check(network_info: NetworkInfo | None) -> None:
    """Make sure that each interface can be plugged: its bridge is there, and its tap is one if it is there.

    Raises:
        VirtualInterfacePlugException: something is not there. InternalError: an unknown type. InvalidInput
    """
    for vif in network_info or ():
        if check_kind(vif) == "bridge":
            _check_bridge(vif)
        else:
            _check_tap(vif)


def plug(instance: Instance, network_info: NetworkInfo | None) -> list[str]:
    """Make what is not there yet; the names of what was made. When one cannot be made, none is.

    Raises:
        as `check`
    """
    check(network_info)
    made: list[str] = []
    try:
        for vif in network_info or ():
            made += _made(instance, vif)
    except BaseException:
        _remove(made)
        raise
    return made


@contextmanager
def plugged(instance: Instance, network_info: NetworkInfo | None) -> Iterator[None]:
    """As `plug`; when the block fails, what was made for it is removed, unless a guest has it now or nobody knows.

    Nobody knows when libvirt does not answer, or when somebody interrupts us who wait for its answer.

    Raises:
        as `check`
    """
    made = plug(instance, network_info)
    try:
        yield
    except HypervisorUnavailable:
        raise
    except ComputeError:
        _remove([device for device in made if not taps.is_open(device)])
        raise


def unplug(instance: Instance, network_info: NetworkInfo | None) -> list[str]:
    """Remove the taps that were made here for these interfaces of an instance, and tell which; others' taps stay theirs.

    Raises:
        InternalError: an unknown type. VirtualInterfacePlugException: one does not go.
    """
    kinds = [(vif, check_kind(vif)) for vif in network_info or ()]
    devices = [device_of(vif) for vif, kind in kinds if kind == "tap"]
    ours = [device for device in devices if taps.owner_of(device) == instance.uuid]
    _remove(ours)
    return ours


def unplug_all(uuid: str) -> None:
    """Remove every tap that was made here for an instance, whatever is known of its interfaces.

    Raises:
        VirtualInterfacePlugException: one does not go.
    """
    _remove(taps.made_for(uuid))


def _check_bridge(vif: Vif) -> None:
    bridge = bridge_of(vif)
    if not taps.is_bridge(bridge):
        raise VirtualInterfacePlugException(
            f"the bridge {bridge} of the interface {vif.get('id')} is not there", hint="make it before the instance"
        )


def _check_tap(vif: Vif) -> None:
    device = device_of(vif)
    if taps.is_there(device) and not taps.is_tap(device):
        raise VirtualInterfacePlugException(f"the device {device} of the interface {vif.get('id')} is there, and is no tap")


def _made(instance: Instance, vif: Vif) -> list[str]:
    if check_kind(vif) != "tap":
        return []
    device = device_of(vif)
    if not taps.is_there(device):
        made = taps.make(device, instance=instance.uuid, mtu=mtu_of(vif), address=_own_address(vif))
        return [device] if made else []
    owner = taps.owner_of(device)
    if owner not in (None, instance.uuid):
        raise VirtualInterfacePlugException(
            f"the tap {device} of the interface {vif.get('id')} is that of the instance {owner}"
        )
    return []


def _own_address(vif: Vif) -> str | None:
    """The MAC of the host's side; None: nobody says."""
    address = (vif.get("details") or {}).get("mac_address")
    if address is not None and not (isinstance(address, str) and address.isprintable()):
        raise InvalidInput(reason=f"the interface {vif.get('id')} has an address of its tap that can be none: {address!r}")
    return address


def _remove(devices: list[str]) -> None:
    for device in devices:
        taps.remove(device)
