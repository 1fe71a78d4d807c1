"""What libvirt counts of a guest while it runs, as values (virConnectGetAllDomainStats). What it does not count is None."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCounters:
    """Of one disk, since the guest was started."""

    device: str
    read_requests: int | None
    read_bytes: int | None
    write_requests: int | None
    write_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficCounters:
    """Of one interface, since its tap was made; ``rx`` is what the guest received.

    Attributes:
        device: the tap's name.
    """

    device: str
    rx_bytes: int | None
    rx_packets: int | None
    rx_errors: int | None
    rx_drop: int | None
    tx_bytes: int | None
    tx_packets: int | None
    tx_errors: int | None
    tx_drop: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Of one guest.

    Attributes:
        cpu_times: nanoseconds that each virtual CPU ran. memory, memory_maximum: KiB that it has and may have.
    """

    cpu_times: tuple[int, ...]
    memory: int | None
    memory_maximum: int | None
    disks: tuple[DiskCounters, ...]
    traffic: tuple[TrafficCounters, ...]


def counters_of(told: Mapping[str, Any]) -> Counters:
    """The counters in what libvirt tells of one domain; none of one that does not run."""
    return Counters(
        cpu_times=tuple(
            time for number in range(told.get("vcpu.maximum", 0)) if (time := told.get(f"vcpu.{number}.time")) is not None
        ),
        memory=told.get("balloon.current"),
        memory_maximum=told.get("balloon.maximum"),
        disks=tuple(_disk(told, number) for number in range(told.get("block.count", 0))),
        traffic=tuple(_traffic(told, number) for number in range(told.get("net.count", 0))),
    )


def _disk(told: Mapping[str, Any], number: int) -> DiskCounters:
    of = f"block.{number}"
    return DiskCounters(
        device=told[f"{of}.name"],
        read_requests=told.get(f"{of}.rd.reqs"),
        read_bytes=told.get(f"{of}.rd.bytes"),
        write_requests=told.get(f"{of}.wr.reqs"),
        write_bytes=told.get(f"{of}.wr.bytes"),
    )


def _traffic(told: Mapping[str, Any], number: int) -> TrafficCounters:
    of = f"net.{number}"
    return TrafficCounters(
        device=told[f"{of}.name"],
        rx_bytes=told.get(f"{of}.rx.bytes"),
        rx_packets=told.get(f"{of}.rx.pkts"),
        rx_errors=told.get(f"{of}.rx.errs"),
        rx_drop=told.get(f"{of}.rx.drop"),
        tx_bytes=told.get(f"{of}.tx.bytes"),
        tx_packets=told.get(f"{of}.tx.pkts"),
        tx_errors=told.get(f"{of}.tx.errs"),
        tx_drop=told.get(f"{of}.tx.drop"),
    )
