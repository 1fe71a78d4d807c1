"""The virtual machines that libvirt has, as far as ``underlay vm`` made them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from underlay.compute import states
from underlay.compute.errors import InstanceNotFound, OperationFailed
from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.eventloop import EventLoop
from underlay.compute.libvirt.library import library
from underlay.host import Host
from underlay.vm.neighbours import seen_addresses
from underlay.vm.record import VmRecord, is_ours, record_of
from underlay.vm.wanted import is_utf8, is_uuid


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """One machine.

    Attributes:
        state: one of the words of `underlay.compute.states`. virt_type: ``kvm`` or ``qemu``: what it runs under.
        console_log: what it writes to its serial line. addresses: by MAC, all that this host has seen; none while it is off.
    """

    name: str
    uuid: str
    state: str
    virt_type: str
    console_log: Path | None
    record: VmRecord
    addresses: Mapping[str, tuple[str, ...]]

    @property
    def is_running(self) -> bool:
        """Whether its guest runs, or would go on as soon as it is let."""
        return self.state in (states.STATE_MAP[states.RUNNING], states.STATE_MAP[states.PAUSED])


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableVm:
    """A machine whose record somebody has changed to what makes no sense. It can be removed, and nothing else.

    Attributes:
        name to virt_type: as of a `Vm`. why, hint: what is wrong with its record, and what to do about it.
    """

    name: str
    uuid: str
    state: str
    virt_type: str
    why: str
    hint: str


@contextmanager
def connected(host: Host, *, seconds: float | None = None) -> Iterator[Connection]:
    """libvirt, for who only looks.

    Args:
        seconds: that an answer may take; None: as configured.

    Raises:
        ExtraMissing
    """
    options = host.config.libvirt
    connection = Connection(options.connection_uri, timeout=options.timeout if seconds is None else seconds)
    loop = EventLoop()
    loop.start()
    try:
        yield connection
    finally:
        connection.close()
        loop.stop()


def everyone(connection: Connection) -> list[Vm | UnreadableVm]:
    """All machines, by name; one that goes away meanwhile is gone.

    Raises:
        HypervisorUnavailable, ExtraMissing
    """
    flags = _inactive()
    found = connection.ask(lambda handle: [_description(one, flags) for one in handle.listAllDomains(0)])
    trees = (guestxml.parsed(text) for _, text in sorted(one for one in found if one is not None))
    return [vm for tree in trees if is_ours(tree) and (vm := _read(connection, tree)) is not None]


def names(connection: Connection) -> list[str]:
    """The names of all machines."""
    return [vm.name for vm in everyone(connection)]


def find(connection: Connection, name: str) -> Vm:
    """The machine of a name or a UUID.

    Raises:
        OperationFailed: its record makes no sense. As `find_any`
    """
    found = find_any(connection, name)
    if isinstance(found, UnreadableVm):
        raise OperationFailed(found.why, hint=found.hint)
    return found


def find_any(connection: Connection, name: str) -> Vm | UnreadableVm:
    """The machine of a name or a UUID, whatever its record is like.

    Raises:
        InstanceNotFound: none, or one that ``underlay vm`` did not make. As `everyone`
    """
    missing = InstanceNotFound(f"there is no virtual machine {name!r}", hint="'underlay vm list' shows those there are")
    flags = _inactive()
    if not is_utf8(name):
        raise missing
    text = connection.ask(lambda handle: _looked_up(handle, name).XMLDesc(flags), missing=missing)
    tree = guestxml.parsed(text)
    if not is_ours(tree):
        raise InstanceNotFound(f"'underlay vm' did not make the domain {name!r}", hint="see 'virsh dominfo', or who made it")
    vm = _read(connection, tree)
    if vm is None:
        raise missing
    return vm


def _looked_up(handle: Any, text: str) -> Any:
    """By UUID first: somebody may have called a domain by the UUID of another, and a UUID never means two."""
    libvirt = library()
    if is_uuid(text):
        try:
            return handle.lookupByUUIDString(text)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return handle.lookupByName(text)


def _inactive() -> int:
    return int(library().VIR_DOMAIN_XML_INACTIVE)


def _description(domain: Any, flags: int) -> tuple[str, str] | None:
    libvirt = library()
    try:
        return domain.name(), domain.XMLDesc(flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _read(connection: Connection, tree: Element) -> Vm | UnreadableVm | None:
    """A machine of ours from its domain; None: it has gone away."""
    name, uuid, virt_type = tree.findtext("name", ""), tree.findtext("uuid", ""), tree.get("type", "")
    try:
        state, running_as = Domain(connection, uuid).state()
    except InstanceNotFound:
        return None
    word = states.STATE_MAP[state]
    try:
        record = record_of(tree, name)
    except OperationFailed as error:
        return UnreadableVm(name=name, uuid=uuid, state=word, virt_type=virt_type, why=error.message, hint=error.hint or "")
    log = tree.find("devices/serial/log")
    return Vm(
        name=name,
        uuid=uuid,
        state=word,
        virt_type=virt_type,
        console_log=None if log is None else Path(log.get("file", "")),
        record=record,
        addresses={} if running_as is None or not record.interfaces else seen_addresses(),
    )
