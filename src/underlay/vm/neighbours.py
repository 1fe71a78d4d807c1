"""Which addresses of guests this host has seen: the kernel's table of IPv4 neighbours, arp(7).

libvirt can be asked as well, but the one of Debian 12 fails over the answer of newer kernels.
"""

from collections.abc import Mapping
from pathlib import Path

_TABLE = Path("/proc/net/arp")
_ADDRESS, _FLAGS, _MAC = 0, 2, 3  # columns: IP address, HW type, Flags, HW address, Mask, Device
_COMPLETE = 0x02  # ATF_COM of net/if_arp.h


def seen_addresses(table: Path = _TABLE) -> Mapping[str, tuple[str, ...]]:
    """IPv4 addresses by the MAC that they were last seen with."""
    found: dict[str, list[str]] = {}
    for line in table.read_text(encoding="ascii").splitlines()[1:]:
        columns = line.split()
        if int(columns[_FLAGS], 16) & _COMPLETE:
            found.setdefault(columns[_MAC], []).append(columns[_ADDRESS])
    return {mac: tuple(addresses) for mac, addresses in found.items()}
