"""What the host has to give and what of it is taken: for a compute service, and for placement."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from underlay.compute.libvirt.hostactivity import uptime
from underlay.compute.libvirt.hostcapabilities import cpu_info, host_capabilities
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.storageroom import room_of
from underlay.compute.node import local_node_uuid
from underlay.compute.options import allocation_ratios, reserved_disk_gib
from underlay.compute.providers import ProviderTree

_GIB, _KIB_IN_MIB = 1 << 30, 1024
_SHARED = "DISK_GB"
_OURS = ("VCPU", "MEMORY_MB", "DISK_GB")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """The host's processors and memory. Memory is in MiB.

    Attributes:
        vcpus_used, memory_used: what guests that run were given.
    """

    vcpus: int
    vcpus_used: int
    memory: int
    memory_used: int


def available(site: Site, node: str) -> dict[str, Any]:
    """What a compute service is told of the host.

    The memory that is taken is what guests that run were given, with what is reserved for the host: what the host has written
    on its memory changes from moment to moment, and caches are part of it.

    Raises:
        OperationFailed, HypervisorUnavailable, ConfigError: the machine has no id.
    """
    machine, room = _machine(site), room_of(site)
    capabilities = host_capabilities(site.connection.ask(lambda handle: handle.getCapabilities()))
    return {
        "vcpus": machine.vcpus,
        "vcpus_used": machine.vcpus_used,
        "memory_mb": machine.memory,
        "memory_mb_used": machine.memory_used + site.host.config.compute.reserved_host_memory_mb,
        "local_gb": room.total // _GIB,
        "local_gb_used": (room.total - room.free) // _GIB,
        "disk_available_least": (room.free - room.promised) // _GIB,
        "cpu_info": json.dumps(cpu_info(capabilities)),
        "numa_topology": None,
        "hypervisor_hostname": node,
        "hypervisor_type": site.connection.ask(lambda handle: str(handle.getType())),
        "hypervisor_version": site.connection.ask(lambda handle: int(handle.getVersion())),
        "supported_instances": [guest for guest in capabilities.guests if guest[1] == site.virt_type],
        "stats": {"uptime": uptime()},
        "uuid": local_node_uuid(),
    }


def update(site: Site, tree: ProviderTree, node: str, *, traits: Mapping[str, bool]) -> None:
    """Change the node in a tree of providers into what it has to give. What others put there stays.

    Disks of a storage that has a provider of its own, which shares with this node, are that one's to count: the node gives
    out none any more.

    Args:
        traits: those that are the driver's to say, each with whether the host has it.

    Raises:
        ValueError: there is no such node. OperationFailed, HypervisorUnavailable
    """
    before = tree.data(node).inventory
    ours = _inventory(site, before)
    if tree.has_sharing_provider(_SHARED):
        ours = {name: one for name, one in ours.items() if name != _SHARED} | _all_reserved(before, _SHARED)
    tree.update_inventory(node, {name: one for name, one in before.items() if name not in _OURS} | ours)
    tree.add_traits(node, *(trait for trait, has in traits.items() if has))
    tree.remove_traits(node, *(trait for trait, has in traits.items() if not has))


def _all_reserved(before: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """What there has been of a class, if anything, with nothing of it left to be given out.

    Placement removes no inventory of which an instance has something, and then changes nothing of the node at all (bug 1784020
    of Nova's).
    """
    return {name: {**before[name], "reserved": before[name]["total"]}} if name in before else {}


def _inventory(site: Site, before: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By class: of those of which there is something."""
    options, machine, room = site.host.config.compute, _machine(site), room_of(site)
    cached = -(-room.cached // _GIB)
    amounts = {
        "VCPU": (machine.vcpus, options.reserved_host_cpus),
        "MEMORY_MB": (machine.memory, options.reserved_host_memory_mb),
        "DISK_GB": (room.total // _GIB, reserved_disk_gib(options) + cached),
    }
    ratios = allocation_ratios(before, options=options)
    return {name: _of(total, reserved, ratios[name]) for name, (total, reserved) in amounts.items() if total}


def _of(total: int, reserved: int, ratio: float) -> dict[str, Any]:
    return {
        "total": total,
        "reserved": min(reserved, total),  # placement takes no more than all
        "min_unit": 1,
        "max_unit": total,
        "step_size": 1,
        "allocation_ratio": ratio,
    }


def _machine(site: Site) -> _Machine:
    online, memory, given = site.connection.ask(
        lambda handle: (handle.getCPUMap(0)[1], handle.getInfo()[1], list(_given(handle)))
    )
    return _Machine(
        vcpus=sum(1 for one in online if one),
        vcpus_used=sum(vcpus for vcpus, _ in given),
        memory=int(memory),
        memory_used=sum(kib for _, kib in given) // _KIB_IN_MIB,
    )


def _given(handle: Any) -> Iterator[tuple[int, int]]:
    """Processors, and KiB of memory, of each guest that runs.

    By what libvirt knows itself: its statistics ask each QEMU, and one that hangs would keep the whole host from being told.
    """
    libvirt = library()
    for domain in handle.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            _, memory, _, vcpus, _ = domain.info()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue  # it has just gone
        yield int(vcpus), int(memory)
