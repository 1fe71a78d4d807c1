"""Whether a piece of work on this host is under way: a name that the kernel keeps for exactly as long.

The name is that of a unix socket in the abstract namespace (unix(7)). It lies in no directory, and goes with whoever bound it,
however that ended. It is seen within one network namespace and until the next boot, so whoever asks has to compare `sight`
first.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc_sys_kernel(5)
_NAMESPACE = Path("/proc/self/ns/net")  # namespaces(7)


def sight() -> tuple[str, str]:
    """Since which boot, and in which network namespace, names are seen here."""
    return _BOOT_ID.read_text(encoding="ascii").strip(), os.readlink(_NAMESPACE)


@contextmanager
def under_way() -> Iterator[str]:
    """A token of new work, which is under way as long as the block lasts and the process lives."""
    token = token_hex(8)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        held.bind(_address(token))
        yield token


def is_under_way(token: str) -> bool:
    """Whether the work of a token still lasts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(_address(token)) != errno.ECONNREFUSED


def _address(token: str) -> str:
    return f"\0underlay.rbd.{token}"
