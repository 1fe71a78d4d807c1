"""How another host is reached: its libvirt, and what a guest's memory and disks are sent to."""

import re

from underlay.compute.errors import InvalidInput
from underlay.config.libvirt import Moves
from underlay.config.values import ADDRESS


def check(dest: str) -> str:
    """A host's name or address, and nothing that could be more than that in a URI.

    Raises:
        InvalidInput
    """
    if not re.fullmatch(ADDRESS, dest):
        raise InvalidInput(reason=f"{dest!r} is no name and no address of a host")
    return dest


def of_libvirt(options: Moves, host: str, inbound: str | None = None) -> str:
    """The URI of another host's libvirt.

    Args:
        host: its name. inbound: the address that it has told; a configured URI goes by the name alone.

    Raises:
        InvalidInput
    """
    name = check(host)
    if options.uri:
        return options.uri.replace("%s", name)
    return f"qemu+{options.scheme}://{_in_uri(check(inbound or name))}/system"


def of_stream(inbound: str | None) -> str | None:
    """The URI that memory is sent to; None: libvirt has it from the other host.

    Raises:
        InvalidInput
    """
    return f"tcp://{_in_uri(check(inbound))}" if inbound else None


def _in_uri(address: str) -> str:
    return f"[{address}]" if ":" in address else address
