"""Virtual machines, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from underlay.model import InstanceDisk
from underlay.naming import printable
from underlay.render.answers import disk_json
from underlay.render.lines import ago, disk_line
from underlay.render.tables import Fitted, facts_table, table
from underlay.units import format_size

if TYPE_CHECKING:
    from underlay.vm.machines import UnreadableVm, Vm
    from underlay.vm.record import VmInterface

_MIB, _GIB = 1 << 20, 1 << 30
_UNREADABLE = "vm-unreadable"
_STYLES = {"running": "green", "paused": "yellow", "crashed": "red"}


def vm_json(vm: Vm, disks: Sequence[InstanceDisk]) -> dict[str, Any]:
    """A machine for programs."""
    record = vm.record
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "state": vm.state,
        "virt_type": vm.virt_type,
        "image": record.image,
        "created_at": record.created_at.isoformat(timespec="seconds"),
        "memory": record.memory_mib * _MIB,
        "vcpus": record.vcpus,
        "console_log": None if vm.console_log is None else str(vm.console_log),
        "interfaces": [
            {
                "address": one.address,
                "bridge": one.bridge,
                "network": one.network,
                "ip_addresses": list(vm.addresses.get(one.address, ())),
            }
            for one in record.interfaces
        ],
        "disks": [disk_json(disk) for disk in disks],
    }


def unreadable_vm_json(vm: UnreadableVm) -> dict[str, Any]:
    """One whose record cannot be read, for programs."""
    return {"code": _UNREADABLE, "name": vm.name, "uuid": vm.uuid, "state": vm.state, "detail": vm.why}


def unreadable_vm_text(vm: UnreadableVm) -> Text:
    """The same in one line, with what to do about it."""
    what = printable(f"{vm.why} ({vm.hint}, or 'underlay vm delete {vm.name}')")
    return Text.assemble(("problem ", "red"), f"{_UNREADABLE}: {what}")


def vm_line(vm: Vm) -> str:
    """One machine in a sentence."""
    record = vm.record
    processors = _some(record.vcpus, "processor")
    where = f", in {', '.join(map(_network, record.interfaces))}" if record.interfaces else ", without a network"
    return printable(f"{vm.name} ({vm.state}, {processors}, {format_size(record.memory_mib * _MIB)}{where})")


def vm_table(vms: Sequence[tuple[Vm, Sequence[InstanceDisk]]], unreadable: Sequence[UnreadableVm] = ()) -> RenderableType:
    """Machines, one a row; below them those of which no more is known than that they are there."""
    if not vms and not unreadable:
        return Text("No virtual machines.", style="dim")
    numbers = ("VCPUS", "MEMORY", "DISK")
    made = table("NAME", "STATE", numbers=numbers, last=("NETWORK", "IMAGE"), flexible=("NAME", "NETWORK", "IMAGE"))
    for vm, disks in vms:
        record = vm.record
        addresses = [address for one in record.interfaces for address in vm.addresses.get(one.address, ())]
        made.add_row(
            Fitted(printable(vm.name)),
            _state(vm),
            str(record.vcpus),
            format_size(record.memory_mib * _MIB),
            _root_size(disks),
            Fitted(printable(", ".join(addresses or map(_network, record.interfaces)) or "-")),
            Fitted(printable(record.image or "-"), keep_end=True),
        )
    for one in unreadable:
        made.add_row(Fitted(printable(one.name)), _state(one), "?", "?", "?", "?", "?")
    return made


def vm_facts(vm: Vm, disks: Sequence[InstanceDisk], *, now: datetime) -> RenderableType:
    """One machine, and a branch for each of its disks and interfaces."""
    record = vm.record
    facts = [
        ("state", vm.state),
        ("uuid", vm.uuid),
        (
            "size",
            f"{_some(record.vcpus, 'virtual processor')}, {format_size(record.memory_mib * _MIB)} of memory, {vm.virt_type}",
        ),
        ("image", printable(record.image or "one that records no ref")),
        ("created", f"{record.created_at:%Y-%m-%d %H:%M:%S} UTC ({ago(record.created_at, now=now)})"),
        ("serial line", printable(str(vm.console_log or "-"))),
    ]
    devices = Tree(Text(f"{_some(len(disks), 'disk')}, {_some(len(record.interfaces), 'interface')}"))
    for disk in disks:
        devices.add(Text(disk_line(disk), overflow="fold"))
    for one in record.interfaces:
        known = ", ".join(vm.addresses.get(one.address, ()))
        devices.add(Text(printable(f"{one.address} in {_network(one)}{f': {known}' if known else ''}"), overflow="fold"))
    return Group(Text(printable(vm.name), style="bold"), facts_table(facts), devices)


def _state(vm: Vm | UnreadableVm) -> Text:
    return Text(vm.state, style=_STYLES.get(vm.state, "dim"))


def _some(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _network(interface: VmInterface) -> str:
    return interface.bridge if interface.network is None else f"{interface.network} ({interface.bridge})"


def _root_size(disks: Sequence[InstanceDisk]) -> str:
    sizes = [disk.size for disk in disks if disk.name == "disk" and disk.size is not None]
    return format_size(sizes[0]) if sizes else "?"
