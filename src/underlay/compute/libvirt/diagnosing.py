"""Counters of guests in the shapes that the contract has for them."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from underlay.compute import states
from underlay.compute.arguments import Instance
from underlay.compute.diagnostics import Diagnostics, MemoryDiagnostics
from underlay.compute.errors import InstanceNotFound
from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.counters import Counters, DiskCounters, TrafficCounters, counters_of
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.site import Site
from underlay.compute.metadata import field_of

_KIB_IN_MIB = 1024


def flat(site: Site, instance: Instance) -> dict[str, int]:
    """A guest's counters in one mapping; of one that is off there are few.

    Raises:
        InstanceNotFound
    """
    found = _counters(site, instance)
    told: dict[str, int | None] = {f"cpu{number}_time": time for number, time in enumerate(found.cpu_times)}
    for disk in found.disks:
        told |= _of_disk(disk)
    for traffic in found.traffic:
        told |= _of_traffic(traffic)
    told |= {"memory": found.memory_maximum, "memory-actual": found.memory}
    return {name: value for name, value in told.items() if value is not None}


def shaped(site: Site, instance: Instance) -> Diagnostics:
    """The same in the shape of every hypervisor.

    Raises:
        InstanceNotFound
    """
    domain = site.domain(instance)
    state, _ = domain.state()
    found, addresses = _counters(site, instance), guestxml.addresses_by_device(domain.xml())
    told = Diagnostics(
        state=states.STATE_MAP[state],
        driver="libvirt",
        hypervisor=site.virt_type,
        hypervisor_os=platform.system().lower(),
        uptime=_uptime(instance),
        config_drive=site.directory(instance).config_drive().exists(),
        memory_details=MemoryDiagnostics(maximum=_mib(found.memory_maximum), used=_mib(found.memory)),
    )
    for number, time in enumerate(found.cpu_times):
        told.add_cpu(id=number, time=time)
    for traffic in found.traffic:
        _add_nic(told, traffic, addresses)
    for disk in found.disks:
        told.add_disk(
            read_bytes=disk.read_bytes,
            read_requests=disk.read_requests,
            write_bytes=disk.write_bytes,
            write_requests=disk.write_requests,
        )
    return told


def traffic(site: Site, instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """What went through the interfaces of instances that run. One that is gone has none."""
    return [one for instance in instances for one in _traffic(site, instance)]


def of_disk(site: Site, instance: Instance, device: str) -> list[int] | None:
    """The counters of one disk: read requests, bytes read, write requests, bytes written, and failures, which libvirt does not
    count of QEMU's disks, so that they are 0; None when there are no others."""
    try:
        found = _counters(site, instance)
    except InstanceNotFound:
        return None
    for disk in found.disks:
        told = (disk.read_requests, disk.read_bytes, disk.write_requests, disk.write_bytes)
        if disk.device == device and None not in told:
            return [*(one for one in told if one is not None), 0]
    return None


def _counters(site: Site, instance: Instance) -> Counters:
    return counters_of(site.domain(instance).statistics())


def _traffic(site: Site, instance: Instance) -> list[dict[str, Any]]:
    domain = site.domain(instance)
    try:
        found = counters_of(domain.statistics(library().VIR_DOMAIN_STATS_INTERFACE))  # by the host's side of it alone
        addresses = guestxml.addresses_by_device(domain.xml())
    except InstanceNotFound:
        return []
    return [
        {
            "uuid": instance.uuid,
            "mac_address": addresses[one.device],
            "bw_in": one.rx_bytes or 0,
            "bw_out": one.tx_bytes or 0,
        }
        for one in found.traffic
        if one.device in addresses
    ]


def _of_disk(disk: DiskCounters) -> dict[str, int | None]:
    return {
        f"{disk.device}_read_req": disk.read_requests,
        f"{disk.device}_read": disk.read_bytes,
        f"{disk.device}_write_req": disk.write_requests,
        f"{disk.device}_write": disk.write_bytes,
    }


def _of_traffic(one: TrafficCounters) -> dict[str, int | None]:
    return {
        f"{one.device}_rx": one.rx_bytes,
        f"{one.device}_rx_packets": one.rx_packets,
        f"{one.device}_rx_errors": one.rx_errors,
        f"{one.device}_rx_drop": one.rx_drop,
        f"{one.device}_tx": one.tx_bytes,
        f"{one.device}_tx_packets": one.tx_packets,
        f"{one.device}_tx_errors": one.tx_errors,
        f"{one.device}_tx_drop": one.tx_drop,
    }


def _add_nic(told: Diagnostics, one: TrafficCounters, addresses: Mapping[str, str]) -> None:
    told.add_nic(
        mac_address=addresses.get(one.device),
        rx_octets=one.rx_bytes,
        rx_errors=one.rx_errors,
        rx_drop=one.rx_drop,
        rx_packets=one.rx_packets,
        tx_octets=one.tx_bytes,
        tx_errors=one.tx_errors,
        tx_drop=one.tx_drop,
        tx_packets=one.tx_packets,
    )


def _uptime(instance: Instance) -> int | None:
    """Seconds since the service launched it, which is as long as anybody knows."""
    launched = field_of(instance, "launched_at")
    if not isinstance(launched, datetime):
        return None
    aware = launched if launched.tzinfo else launched.replace(tzinfo=UTC)
    return max(0, int((datetime.now(UTC) - aware).total_seconds()))


def _mib(kib: int | None) -> int | None:
    return None if kib is None else kib // _KIB_IN_MIB
