"""Two hosts on one machine: two libvirtd, of which one lives in a network namespace at the other end of a wire.

So both can have taps and bridges of the same names, as hosts have. Their libvirts are reached by their sockets, which need no
network, and guests' memory and disks go over the wire.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from libvirt_daemon import Daemon
from libvirt_stage import command


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Both: node1 is near, node2 is far.

    Attributes:
        directory: in which each is found by its name. wire: the near end of what is between them.
    """

    near: Daemon
    far: Daemon
    directory: Path
    near_address: str
    far_address: str
    wire: str

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """Of what is sent over the wire to the far host no more than 32 KiB come in a second."""
        qdisc = ("dev", self.wire, "root", "tbf", "rate", "256kbit", "burst", "4kb", "latency", "2s")
        command("tc", "qdisc", "add", *qdisc)
        try:
            yield
        finally:
            command("tc", "qdisc", "del", "dev", self.wire, "root")

    def options(self, address: str) -> str:
        """Of the driver of the host with this address."""
        return (
            f'live_migration_uri = "qemu+unix:///system?socket={self.directory}/%s/sock/libvirt-sock"\n'
            f'live_migration_inbound_addr = "{address}"\n'
        )


@contextmanager
def two_hosts(near: Daemon, bridge: str) -> Iterator[Hosts]:
    """The second one beside a first that runs; bridges of this name are on both."""
    directory = Path(tempfile.mkdtemp(prefix="ulh-"))
    network = f"uln{os.getpid()}-{directory.name[-4:]}"
    far = Daemon(directory / "far", host_uuid=str(uuid4()), network=network)
    with _wire(network, bridge) as (near_address, far_address, wire):
        far.prepare()
        for name, daemon in (("node1", near), ("node2", far)):
            (directory / name).symlink_to(daemon.directory)
        try:
            far.start()
            addresses = {"near_address": near_address, "far_address": far_address}
            yield Hosts(near=near, far=far, directory=directory, wire=wire, **addresses)
            far.destroy_guests()
        finally:
            far.stop()
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _wire(network: str, bridge: str) -> Iterator[tuple[str, str, str]]:
    """A network namespace with a bridge, the addresses of a wire's two ends, and its near one: 169.254.0.0/16 (RFC 3927)."""
    number = int.from_bytes(os.urandom(2), "big") % 16000
    third, fourth = 1 + number // 64, number % 64 * 4
    near, far = (f"169.254.{third}.{fourth + end}" for end in (1, 2))
    here, there = f"ulw{number}a", f"ulw{number}b"
    command("ip", "netns", "add", network)
    try:
        command("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", network)
        command("ip", "address", "add", f"{near}/30", "dev", here)
        command("ip", "link", "set", here, "up")
        inside = ("ip", "-n", network)
        command(*inside, "address", "add", f"{far}/30", "dev", there)
        for device in ("lo", there):
            command(*inside, "link", "set", device, "up")
        command(*inside, "link", "add", "name", bridge, "type", "bridge")
        yield near, far, here
    finally:
        command("ip", "netns", "delete", network)
