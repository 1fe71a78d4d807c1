"""The address at which other hosts reach this one."""

import socket
from contextlib import suppress

from underlay.config.libvirt import Libvirt

# RFC 5737 and RFC 3849: nobody's addresses, behind the route that leads everywhere. No packet is sent there.
_ANYWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_PORT = 9  # discard
_NOWHERE = "127.0.0.1"


def own_address(options: Libvirt) -> str:
    """The configured address; else that of the interface with the default route, and without one the loopback's."""
    if options.my_ip:
        return options.my_ip
    for family, anywhere in _ANYWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((anywhere, _PORT))
            return str(asked.getsockname()[0])
    return _NOWHERE
