"""What a guest is to have, as values: what libvirt is told of it is written in `guestxml`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from underlay.compute.metadata import InstanceDriverMetadata
from underlay.model import Attachment


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBoot:
    """A kernel that the hypervisor loads itself, in place of what the disks would boot."""

    kernel: Path
    ramdisk: Path | None
    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """One disk.

    Attributes:
        attachment: what the hypervisor opens. device: its name in the guest, such as ``vda``. bus: what it sits on.
        kind: ``disk``, ``cdrom`` or ``lun``. boot_order: from 1 on; None: nothing boots from it. serial: that the guest sees.
        read_only: the guest may not write to it. backing: what it stands on, as libvirt has it; None: libvirt looks.
        tag: what its owner calls it, which libvirt is not told. shared: other guests may have it at the same time.
    """

    attachment: Attachment
    device: str
    bus: str
    kind: str = "disk"
    boot_order: int | None = None
    serial: str | None = None
    read_only: bool = False
    backing: str | None = None
    tag: str | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInterface:
    """One interface.

    Attributes:
        kind: ``bridge``: the hypervisor plugs its tap into one; ``tap``: the tap is there. device: the tap's name.
        model: what the guest sees. mtu: bytes; None: the hypervisor's.
    """

    kind: str
    address: str
    device: str
    bridge: str | None
    model: str
    mtu: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialLine:
    """The serial line: what the guest writes is kept in a file; with an address, callers reach it at a port of that."""

    log: Path
    listen: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A screen by VNC, at an address and a port of the hypervisor's choice. model: of the graphics card."""

    listen: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One virtual machine.

    Attributes:
        memory: bytes. virt_type: ``kvm`` or ``qemu``. machine: of the hypervisor's; empty: its default.
        cpu_mode, cpu_model: as libvirt has them; empty: the machine's own.
        local_time: the clock that it finds shows the host's time zone. agent: it has a line to QEMU's guest agent.
        metadata: what is written down beside it. notes: of who made it: the text of further elements of the metadata, by tag.
        pcie_ports: sockets for devices, those plugged in while it runs among them; 0: as many as the hypervisor thinks.
    """

    uuid: str
    name: str
    memory: int
    vcpus: int
    virt_type: str
    architecture: str
    machine: str
    cpu_mode: str
    cpu_model: str
    boot: DirectBoot | None
    disks: tuple[GuestDisk, ...]
    interfaces: tuple[GuestInterface, ...]
    serial: SerialLine
    screen: Screen | None
    local_time: bool
    agent: bool
    metadata: InstanceDriverMetadata | None
    notes: Mapping[str, str] = field(default_factory=dict)
    pcie_ports: int = 0
