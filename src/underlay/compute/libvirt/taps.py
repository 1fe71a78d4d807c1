"""Tap devices of the host, and which of them this driver has made.

One that it makes says in its alias whose it is (``ip link set … alias``), so that who made it is known as long as it is there,
and no other is ever removed. It is made under another name, and gets its own when nothing is left to be done to it.
"""

import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from underlay.compute.errors import VirtualInterfacePlugException
from underlay.errors import ToolFailed, ToolMissing, ToolTimedOut
from underlay.run import Limits, run

_DEVICES = Path("/sys/class/net")
_MARK = "underlay "
_LIMITS = Limits(seconds=30)
_POLL = 0.02  # seconds


def is_there(device: str) -> bool:
    """Whether the host has a network device of this name."""
    return (_DEVICES / device).exists()


def is_tap(device: str) -> bool:
    """Whether it is one that a program can be at the other end of."""
    return (_DEVICES / device / "tun_flags").exists()


def is_open(device: str) -> bool:
    """Whether a program is at the other end of a tap: only then it has a carrier (drivers/net/tun.c in Linux)."""
    try:
        return (_DEVICES / device / "carrier").read_text(encoding="ascii").strip() == "1"
    except OSError:  # it has just gone, or is not up
        return False


def is_bridge(device: str) -> bool:
    """Whether other devices can be ports of it."""
    return (_DEVICES / device / "bridge").exists()


def owner_of(device: str) -> str | None:
    """The UUID of the instance for which this driver made a device; None: it did not, or the device is not there."""
    try:
        alias = (_DEVICES / device / "ifalias").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # it has just gone
        return None
    return alias.removeprefix(_MARK) if alias.startswith(_MARK) else None


def made_for(instance: str) -> list[str]:
    """The names of all devices that this driver has made for an instance, by its UUID."""
    return [device for device in sorted(os.listdir(_DEVICES)) if owner_of(device) == instance]


def make(device: str, *, instance: str, mtu: int | None, address: str | None) -> bool:
    """Make a tap that is up and says whose it is; whether it was not there.

    Args:
        mtu: bytes; None: the kernel's. address: of the host's side; None: the kernel's.

    Raises:
        VirtualInterfacePlugException
    """
    with _translated(device, "made"), _alone(device):
        if owner_of(device) == instance:
            return False  # somebody else has made it meanwhile
        _make(device, instance=instance, mtu=mtu, address=address)
    return True


def _make(device: str, *, instance: str, mtu: int | None, address: str | None) -> None:
    temporary = f"ul{hashlib.sha1(device.encode(), usedforsecurity=False).hexdigest()[:12]}"
    options = [*(("mtu", str(mtu)) if mtu else ()), *(("address", address) if address else ())]
    if is_tap(temporary):
        _ip("link", "delete", "dev", temporary)  # left by who was killed
    try:
        _ip("tuntap", "add", "dev", temporary, "mode", "tap")
        _ip("link", "set", "dev", temporary, "alias", f"{_MARK}{instance}", *options)
        _ip("link", "set", "dev", temporary, "name", device, "up")  # crash before: an idle device, removed the next time
    except BaseException:
        if is_tap(temporary):
            _ip("link", "delete", "dev", temporary)
        raise


def remove(device: str) -> None:
    """Remove a device that is to go. One that is gone is a success.

    Raises:
        VirtualInterfacePlugException
    """
    with _translated(device, "removed"):
        try:
            _ip("link", "delete", "dev", device)
        except ToolFailed:
            if is_there(device):
                raise


def _ip(*arguments: str) -> None:
    run(["ip", *arguments], limits=_LIMITS)


@contextmanager
def _alone(device: str) -> Iterator[None]:
    """Nobody else makes a device of this name meanwhile.

    An abstract socket is held (unix(7)), which is of the network namespace of which the device is, and goes with its process.
    """
    deadline = time.monotonic() + _LIMITS.seconds
    with socket.socket(socket.AF_UNIX) as held:
        while True:
            try:
                held.bind(f"\0underlay-tap-{device}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                    raise VirtualInterfacePlugException(f"the tap {device} is being made by somebody else: {error}") from error
            time.sleep(_POLL)
        yield


@contextmanager
def _translated(device: str, what: str) -> Iterator[None]:
    try:
        yield
    except (ToolFailed, ToolMissing, ToolTimedOut) as error:
        raise VirtualInterfacePlugException(f"the tap {device} cannot be {what}: {error.message}", hint=error.hint) from error
