"""What `get_instance_diagnostics` answers: the state of a guest and its counters, in one shape for every hypervisor.

A counter that cannot be had is None. Numbers are integers.
"""

from dataclasses import dataclass, field

DRIVERS = frozenset({"libvirt", "xenapi", "vmwareapi", "ironic", "hyperv"})
"""Whose diagnostics these can be, by the contract."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDiagnostics:
    """One virtual CPU: its number, the time that it ran (ns), and how busy it is (percent)."""

    id: int | None = None
    time: int | None = None
    utilisation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NicDiagnostics:
    """One interface: octets and packets since the guest started; the rates are octets a second."""

    mac_address: str | None = None
    rx_octets: int | None = None
    rx_errors: int | None = None
    rx_drop: int | None = None
    rx_packets: int | None = None
    rx_rate: int | None = None
    tx_octets: int | None = None
    tx_errors: int | None = None
    tx_drop: int | None = None
    tx_packets: int | None = None
    tx_rate: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDiagnostics:
    """One disk: bytes and requests since the guest started."""

    read_bytes: int | None = None
    read_requests: int | None = None
    write_bytes: int | None = None
    write_requests: int | None = None
    errors_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDiagnostics:
    """The guest's memory in MiB: all that it may have, and what it has now."""

    maximum: int | None = None
    used: int | None = None


@dataclass(slots=True, kw_only=True)
class Diagnostics:
    """A guest and its counters.

    Attributes:
        state: the power state's text. driver: one of `DRIVERS`. hypervisor: its kind, say ``qemu``. hypervisor_os: the host's
            system. uptime: seconds for which the guest has run. config_drive: whether it has one.
        num_cpus, num_nics, num_disks: how many details there are, which `add_cpu`, `add_nic` and `add_disk` keep.

    Raises:
        ValueError: the driver is none of `DRIVERS`.
    """

    state: str
    driver: str
    config_drive: bool
    hypervisor: str | None = None
    hypervisor_os: str | None = None
    uptime: int | None = None
    memory_details: MemoryDiagnostics = field(default_factory=MemoryDiagnostics)
    cpu_details: list[CpuDiagnostics] = field(default_factory=list)
    nic_details: list[NicDiagnostics] = field(default_factory=list)
    disk_details: list[DiskDiagnostics] = field(default_factory=list)
    num_cpus: int = 0
    num_nics: int = 0
    num_disks: int = 0

    def __post_init__(self) -> None:
        if self.driver not in DRIVERS:
            raise ValueError(f"{self.driver!r} is none of {', '.join(sorted(DRIVERS))}")
        self._count()

    def add_cpu(self, *, id: int | None = None, time: int | None = None, utilisation: int | None = None) -> None:  # noqa: A002
        """One more virtual CPU; see `CpuDiagnostics`."""
        self.cpu_details.append(CpuDiagnostics(id=id, time=time, utilisation=utilisation))
        self._count()

    def add_nic(
        self,
        *,
        mac_address: str | None = None,
        rx_octets: int | None = None,
        rx_errors: int | None = None,
        rx_drop: int | None = None,
        rx_packets: int | None = None,
        rx_rate: int | None = None,
        tx_octets: int | None = None,
        tx_errors: int | None = None,
        tx_drop: int | None = None,
        tx_packets: int | None = None,
        tx_rate: int | None = None,
    ) -> None:
        """One more interface; see `NicDiagnostics`."""
        self.nic_details.append(
            NicDiagnostics(
                mac_address=mac_address,
                rx_octets=rx_octets,
                rx_errors=rx_errors,
                rx_drop=rx_drop,
                rx_packets=rx_packets,
                rx_rate=rx_rate,
                tx_octets=tx_octets,
                tx_errors=tx_errors,
                tx_drop=tx_drop,
                tx_packets=tx_packets,
                tx_rate=tx_rate,
            )
        )
        self._count()

    def add_disk(
        self,
        *,
        read_bytes: int | None = None,
        read_requests: int | None = None,
        write_bytes: int | None = None,
        write_requests: int | None = None,
        errors_count: int | None = None,
    ) -> None:
        """One more disk; see `DiskDiagnostics`."""
        self.disk_details.append(
            DiskDiagnostics(
                read_bytes=read_bytes,
                read_requests=read_requests,
                write_bytes=write_bytes,
                write_requests=write_requests,
                errors_count=errors_count,
            )
        )
        self._count()

    def _count(self) -> None:
        self.num_cpus, self.num_nics = len(self.cpu_details), len(self.nic_details)
        self.num_disks = len(self.disk_details)
