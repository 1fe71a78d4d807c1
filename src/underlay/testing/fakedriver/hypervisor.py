"""The hypervisor in memory: its machines and what belongs to them, and the other hosts to which machines can be moved."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import RLock
from typing import Any

from underlay.compute import states
from underlay.compute.arguments import Flavor, Instance, Vif
from underlay.compute.errors import InstanceNotFound, OperationFailed

GIB = 1 << 30


@dataclass(slots=True, kw_only=True)
class FakeDisk:
    """A local disk.

    Attributes:
        size, allocated: bytes. image: the id of what it was made from.
    """

    path: str
    size: int
    format: str = "qcow2"
    image: str = ""
    allocated: int = 196_608


@dataclass(slots=True, kw_only=True)
class FakeMachine:
    """One virtual machine.

    Attributes:
        internal_id: of a run. disks: by name. volumes: connections by the device's name. vifs: by id. console: what the guest
            wrote. rescued_by: the image that it runs instead of its own. frozen: its file systems are.
    """

    uuid: str
    name: str
    memory_mb: int
    vcpus: int
    state: int = states.SHUTDOWN
    internal_id: int | None = None
    disks: dict[str, FakeDisk] = field(default_factory=dict)
    volumes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    vifs: dict[str, Vif] = field(default_factory=dict)
    console: bytes = b""
    rescued_by: str | None = None
    frozen: bool = False
    password: str | None = None


@dataclass(slots=True, kw_only=True)
class FakeHypervisor:
    """One host.

    Attributes:
        address: at which other hosts reach it. plugged: the host's side of interfaces, by the instance's UUID.
        kept: machines as they were before a resize. cached: ids of images. enabled: new instances are welcome.
        broken: the step of a spawn or a start that fails: ``disks``, ``network`` or ``start``.
        guests_answer: guests shut down when they are asked to, and have an agent.
        vcpus, memory_mb (MiB), local_gb (GiB): what it has.
    """

    host: str
    address: str
    vcpus: int = 16
    memory_mb: int = 65536
    local_gb: int = 1024
    machines: dict[str, FakeMachine] = field(default_factory=dict)
    plugged: dict[str, set[str]] = field(default_factory=dict)
    kept: dict[str, FakeMachine] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    enabled: bool = True
    broken: str | None = None
    guests_answer: bool = True
    lock: RLock = field(default_factory=RLock)
    ids: Iterator[int] = field(default_factory=lambda: count(1))

    def machine(self, instance: Instance) -> FakeMachine:
        """The machine of an instance.

        Raises:
            InstanceNotFound
        """
        with self.lock:
            found = self.machines.get(instance.uuid)
        if found is None:
            raise InstanceNotFound(instance_id=instance.uuid)
        return found

    @contextmanager
    def making(self, step: str) -> Iterator[None]:
        """One step of making something, which fails when it is the one that is broken."""
        if self.broken == step:
            raise OperationFailed(f"{self.host} cannot do it: its {step} is broken")
        yield

    def traces(self, instance: Instance) -> list[str]:
        """Whatever there is of an instance, in words."""
        uuid = instance.uuid
        there = {"a machine": uuid in self.machines, "interfaces": self.plugged.get(uuid), "old disks": uuid in self.kept}
        return [what for what, found in there.items() if found]


@dataclass(slots=True, kw_only=True)
class FakeSite:
    """The hosts that can reach each other, and what they share.

    Attributes:
        hosts: by name. images: that were uploaded, with the bytes of their disk. shared: probes on shared storage.
    """

    hosts: dict[str, FakeHypervisor] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def hypervisor(self, host: str) -> FakeHypervisor:
        """The hypervisor of a host, which is a new one the first time."""
        address = f"192.0.2.{len(self.hosts) + 1}"
        return self.hosts.setdefault(host, FakeHypervisor(host=host, address=address))

    def found(self, host_or_address: str) -> FakeHypervisor | None:
        """The hypervisor of a name or an address."""
        return next((one for one in self.hosts.values() if host_or_address in (one.host, one.address)), None)


def machine_of(instance: Instance, flavor: Flavor) -> FakeMachine:
    """A machine of this size without anything."""
    return FakeMachine(uuid=instance.uuid, name=instance.name, memory_mb=flavor.memory_mb, vcpus=flavor.vcpus)
