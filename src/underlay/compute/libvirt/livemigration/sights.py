"""What a libvirt says of a guest that is moving: this host's, or the other's."""

from dataclasses import dataclass
from typing import Any

from underlay.compute.errors import InstanceNotFound, OperationFailed
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.guestxml import parsed
from underlay.compute.libvirt.library import library

_PATIENCE = 15.0  # seconds that another host's libvirt has for an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A domain as it is.

    Attributes:
        active: there is a QEMU. moving: it stands still for a migration, or takes part in one, so where it will be is open.
        sending: it is being sent away, which can be ended here. runs: its processors do.
        is_split: its memory is on two hosts, so neither can go on without the other.
    """

    active: bool
    moving: bool
    sending: bool
    runs: bool = False
    is_split: bool = False

    @property
    def is_settled(self) -> bool:
        """It is here and nowhere else, running or paused by somebody."""
        return self.active and not self.moving


def look(connection: Connection, uuid: str) -> Sight | None:
    """The domain; None when there is none.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    try:
        return connection.ask(
            lambda handle: _sight(handle.lookupByUUIDString(uuid)), missing=InstanceNotFound(instance_id=uuid)
        )
    except InstanceNotFound:
        return None


def look_there(uri: str, uuid: str, *, libvirt: str | None, own: str) -> Sight | None:
    """As `look`, at another host's.

    Args:
        libvirt: which it has to be, as `identity` says; None: any but this host's own, which is ``own``.

    Raises:
        HypervisorUnavailable; OperationFailed: another libvirt answers, or it fails.
    """
    connection = Connection(uri, timeout=_PATIENCE)
    try:
        found = identity(connection)
        if found == own or libvirt not in (None, found):
            raise OperationFailed(f"at {uri} is not the libvirt that was meant, but that of the host {found}")
        return look(connection, uuid)
    finally:
        connection.close()


def identity(connection: Connection) -> str:
    """The UUID of a libvirt's host, which no two have that move guests to each other.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    capabilities: str = connection.ask(lambda handle: handle.getCapabilities())
    return parsed(capabilities).findtext("host/uuid") or ""


def _sight(domain: Any) -> Sight:
    libvirt = library()
    if not domain.isActive():
        return Sight(active=False, moving=False, sending=False)
    state, reason = domain.state()
    stands = state == libvirt.VIR_DOMAIN_PAUSED and reason in (
        libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
        libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
        libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
    )
    operation = operation_of(domain)
    sending = operation == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    return Sight(
        active=True,
        moving=stands or sending or operation == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN,
        sending=sending,
        runs=state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED),
        is_split=state == libvirt.VIR_DOMAIN_PAUSED
        and reason in (libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
    )


def operation_of(domain: Any) -> int | None:
    """What libvirt is at with a domain; None: nothing, or it cannot say."""
    libvirt = library()
    try:
        told = domain.jobStats(0)
    except libvirt.libvirtError:
        return None  # it says nothing of a guest that is just coming in, or has gone
    going_on = told.get("type") in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
    operation: int | None = told.get("operation")
    return operation if going_on else None
