"""One domain of libvirt, by its UUID. Each call looks it up, so that none outlives its connection."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from underlay.compute import states
from underlay.compute.errors import InstanceNotFound, OperationFailed
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.probename import is_probe

_Answer = TypeVar("_Answer")

LONG = 1800.0
"""Seconds that libvirt may take to write a guest's memory."""

_REMOVALS = 3

# libvirt's virDomainState; blocked is a guest that waits, which is one that runs.
_STATES = MappingProxyType(
    {
        0: states.NOSTATE,
        1: states.RUNNING,
        2: states.RUNNING,
        3: states.PAUSED,
        4: states.SHUTDOWN,
        5: states.SHUTDOWN,
        6: states.CRASHED,
        7: states.SUSPENDED,
    }
)


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain that may be there or not. Everything but `exists` and `remove` raises InstanceNotFound when it is not."""

    connection: Connection
    uuid: str

    def exists(self) -> bool:
        """Whether libvirt knows it."""
        try:
            self.ask(lambda domain: domain.name())
        except InstanceNotFound:
            return False
        return True

    def state(self) -> tuple[int, int | None]:
        """The power state, and libvirt's number of this run; None while it does not run."""
        number, running_as = self.ask(lambda domain: (domain.state()[0], domain.ID()))
        return _STATES.get(number, states.NOSTATE), running_as if running_as >= 0 else None

    def is_active(self) -> bool:
        """Whether there is a QEMU."""
        return bool(self.ask(lambda domain: domain.isActive()))

    def xml(self, *, inactive: bool = False, migratable: bool = False) -> str:
        """As it is, or as it starts next, with all that is secret; as another host's libvirt understands it."""
        libvirt = library()
        flags = libvirt.VIR_DOMAIN_XML_SECURE | (libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0)
        flags |= libvirt.VIR_DOMAIN_XML_MIGRATABLE if migratable else 0
        return str(self.ask(lambda domain: domain.XMLDesc(flags)))

    def running_xml(self) -> str | None:
        """As its QEMU has it; None: it has none."""
        flags = library().VIR_DOMAIN_XML_SECURE
        return self.ask(lambda domain: str(domain.XMLDesc(flags)) if domain.isActive() else None)

    def start(self) -> None:
        """Start it, from its saved memory if there is one. One that runs goes on."""
        seconds = LONG if self.is_saved() else None
        self._change(lambda domain: domain.create(), when=lambda domain: not domain.isActive(), seconds=seconds)

    def cut(self) -> None:
        """End its QEMU at once. One that is off stays so."""
        self._while_active(lambda domain: domain.destroy())

    def press(self) -> None:
        """Press its power button. One that is off stays so."""
        libvirt = library()
        self._while_active(lambda domain: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    def pause(self) -> None:
        """Stop its CPUs."""
        self.ask(lambda domain: domain.suspend())

    def unpause(self) -> None:
        """Let its CPUs go on."""
        self.ask(lambda domain: domain.resume())

    def save(self) -> None:
        """Write its memory to disk and end its QEMU."""
        self.ask(lambda domain: domain.managedSave(0), seconds=LONG)

    def is_saved(self) -> bool:
        """Whether it goes on from saved memory when it is started."""
        return bool(self.ask(lambda domain: domain.hasManagedSaveImage(0)))

    def forget_memory(self) -> None:
        """Drop its saved memory, if there is one."""
        self._change(lambda domain: domain.managedSaveRemove(0), when=lambda domain: domain.hasManagedSaveImage(0))

    def attach(self, xml: str) -> None:
        """Give it a device for good, and at once while it runs."""
        libvirt = library()
        kept, live = libvirt.VIR_DOMAIN_AFFECT_CONFIG, libvirt.VIR_DOMAIN_AFFECT_LIVE
        self.ask(lambda domain: domain.attachDeviceFlags(xml, kept | (live if domain.isActive() else 0)))

    def ask_for(self, xml: str) -> None:
        """Ask it, while it runs, to let go of a device; it may do so later, or never."""
        libvirt = library()
        self.ask(lambda domain: domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def forget_device(self, xml: str) -> None:
        """Have it start without a device the next time."""
        libvirt = library()
        self.ask(lambda domain: domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG))

    def interrupt(self) -> None:
        """Send its CPUs a non-maskable interrupt."""
        self.ask(lambda domain: domain.injectNMI(0))

    def statistics(self, kinds: int = 0) -> Mapping[str, Any]:
        """What libvirt counts of it; little while it does not run.

        Args:
            kinds: of libvirt's virDomainStatsTypes; 0: all, for some of which its QEMU is asked, which may hang.
        """
        found = self.connection.ask(
            lambda handle: handle.domainListGetStats([handle.lookupByUUIDString(self.uuid)], kinds, 0),
            missing=InstanceNotFound(instance_id=self.uuid),
            about=self.uuid,  # they are asked for again and again; what ends a guest that hangs is not to wait behind them
        )
        return dict(found[0][1]) if found else {}

    def remove(self) -> bool:
        """End it and have libvirt forget it with all that libvirt keeps of it; whether it was there.

        One that was just being started, by who was killed meanwhile, runs once it is forgotten, so it is looked for until it
        is gone.

        Raises:
            OperationFailed: it does not go.
        """
        if not self.exists():
            return False
        for _ in range(_REMOVALS):
            try:
                self.cut()
                self.ask(lambda domain: domain.undefineFlags(_undefine_flags()))
            except InstanceNotFound:
                return True
        if self.exists():
            raise OperationFailed(f"libvirt does not let go of the domain {self.uuid}")
        return True

    def ask(self, question: Callable[[Any], _Answer], *, seconds: float | None = None) -> _Answer:
        """What a question to it answers.

        Args:
            question: called with the domain as libvirt has it, in another thread, unless its time is over by then.
            seconds: as `Connection.ask` has them.

        Raises:
            InstanceNotFound, HypervisorUnavailable, OperationFailed
        """
        return self.connection.ask(question, of=self._found, missing=InstanceNotFound(instance_id=self.uuid), seconds=seconds)

    def _change(self, change: Callable[[Any], object], *, when: Callable[[Any], object], seconds: float | None = None) -> None:
        """Change it, if it is as it has to be for that."""
        self.connection.ask(
            lambda found: found and change(found),
            of=lambda handle: _if(self._found(handle), when),
            missing=InstanceNotFound(instance_id=self.uuid),
            seconds=seconds,
        )

    def _while_active(self, change: Callable[[Any], object]) -> None:
        """Change it, if it runs."""
        self._change(partial(_unless_ended, change), when=lambda domain: domain.isActive())

    def _found(self, handle: Any) -> Any:
        return handle.lookupByUUIDString(self.uuid)


def define(connection: Connection, xml: str) -> None:
    """Make a domain, or change what it is when it starts next; it goes by the name and UUID in its XML."""
    connection.ask(lambda handle: handle.defineXML(xml).name())


def has_name(connection: Connection, name: str) -> bool:
    """Whether a domain has this name."""
    try:
        connection.ask(lambda handle: handle.lookupByName(name).name(), missing=InstanceNotFound(instance_id=name))
    except InstanceNotFound:
        return False
    return True


def names(connection: Connection) -> list[str]:
    """Of all instances, running or not."""
    return [name for name, _ in _all(connection)]


def uuids(connection: Connection) -> list[str]:
    """Of all instances, running or not."""
    return [uuid for _, uuid in _all(connection)]


def _all(connection: Connection) -> list[tuple[str, str]]:
    """The name and the UUID of each."""
    return connection.ask(
        lambda handle: [(one.name(), one.UUIDString()) for one in handle.listAllDomains(0) if not is_probe(one)]
    )


def _if(domain: Any, when: Callable[[Any], object]) -> Any:
    return domain if when(domain) else None


def _unless_ended(change: Callable[[Any], object], domain: Any) -> None:
    """It may end by itself at any moment, and then there is nothing to be changed."""
    libvirt = library()
    try:
        change(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or domain.isActive():
            raise


def _undefine_flags() -> int:
    libvirt = library()
    return int(
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )
