"""What the libvirt compute driver goes by, named as in nova.conf; its groups vnc and serial_console are in here too."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from underlay.config import values
from underlay.config.values import WrongValue

_HIGHEST_PORT = 65535


class LibvirtTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table as it is written."""

    connection_uri: str = "qemu:///system"
    timeout: str | int = "60s"
    my_ip: str = ""
    virt_type: Literal["auto", "kvm", "qemu"] = "auto"
    cpu_mode: Literal["", "none", "host-model", "host-passthrough", "maximum", "custom"] = ""
    cpu_model: str = ""
    machine_type: str = "q35"
    images_type: str = "default"
    cache: str | None = None
    disk_prefix: Literal["", "vd", "sd", "hd"] = ""
    force_config_drive: bool = False
    vnc_enabled: bool = True
    vnc_listen: str = "127.0.0.1"
    vnc_address: str = ""
    serial_console_enabled: bool = False
    serial_console_listen: str = "127.0.0.1"
    serial_console_address: str = ""
    serial_console_port_range: str = "10000:20000"
    wait_soft_reboot: str | int = "120s"
    device_detach_attempts: Annotated[int, msgspec.Meta(ge=1)] = 8
    device_detach_timeout: str | int = "20s"
    snapshots_directory: str | None = None
    snapshot_image_format: Literal["", "qcow2", "raw"] = ""


class Libvirt(msgspec.Struct, frozen=True, kw_only=True):
    """What it means.

    Attributes:
        connection_uri: as libvirt has it. timeout: seconds that libvirt may take for one answer.
        my_ip: the address at which other hosts reach this one; empty: that of the interface with the default route.
        virt_type: auto is kvm where a guest really runs under it, else qemu.
        cpu_mode: empty: host-model under KVM, else the machine's own. cpu_model: for ``custom``.
        machine_type: of guests whose image asks for none; empty: libvirt's own.
        images_type: the backend of instance disks. cache: from which they are made; None: the configuration's first.
        disk_prefix: of devices that nobody has named; empty: that of their bus.
        vnc_listen, serial_console_listen: the address at which consoles listen. vnc_address, serial_console_address: the one
            that callers are told.
        serial_console_port_range: first and last port of serial consoles.
        wait_soft_reboot: seconds that a guest has for a soft reboot.
        device_detach_attempts, device_detach_timeout: how often a guest is asked to let go of a device, and the seconds that it
            has each time.
        snapshots_directory: where snapshots are written. snapshot_image_format: theirs; empty: qcow2.
    """

    connection_uri: str
    timeout: float
    my_ip: str
    virt_type: str
    cpu_mode: str
    cpu_model: str
    machine_type: str
    images_type: str
    cache: str | None
    disk_prefix: str
    force_config_drive: bool
    vnc_enabled: bool
    vnc_listen: str
    vnc_address: str
    serial_console_enabled: bool
    serial_console_listen: str
    serial_console_address: str
    serial_console_port_range: tuple[int, int]
    wait_soft_reboot: float
    device_detach_attempts: int
    device_detach_timeout: float
    snapshots_directory: Path | None
    snapshot_image_format: str


def libvirt_of(table: LibvirtTable) -> Libvirt:
    """The options that a table means.

    Raises:
        WrongValue
    """
    if (table.cpu_mode == "custom") != bool(table.cpu_model):
        raise WrongValue("libvirt.cpu_model", 'a model goes with cpu_mode = "custom", and that with a model')
    return Libvirt(
        connection_uri=table.connection_uri,
        timeout=values.positive(table.timeout, "libvirt.timeout"),
        my_ip=_address(table.my_ip),
        virt_type=table.virt_type,
        cpu_mode=table.cpu_mode,
        cpu_model=table.cpu_model,
        machine_type=table.machine_type,
        images_type=table.images_type,
        cache=table.cache,
        disk_prefix=table.disk_prefix,
        force_config_drive=table.force_config_drive,
        vnc_enabled=table.vnc_enabled,
        vnc_listen=table.vnc_listen,
        vnc_address=table.vnc_address or table.vnc_listen,
        serial_console_enabled=table.serial_console_enabled,
        serial_console_listen=table.serial_console_listen,
        serial_console_address=table.serial_console_address or table.serial_console_listen,
        serial_console_port_range=_ports(table.serial_console_port_range),
        wait_soft_reboot=values.duration(table.wait_soft_reboot, "libvirt.wait_soft_reboot"),
        device_detach_attempts=table.device_detach_attempts,
        device_detach_timeout=values.positive(table.device_detach_timeout, "libvirt.device_detach_timeout"),
        snapshots_directory=values.optional_path(table.snapshots_directory, "libvirt.snapshots_directory"),
        snapshot_image_format=table.snapshot_image_format or "qcow2",
    )


def _address(text: str) -> str:
    if not text:
        return ""
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise WrongValue("libvirt.my_ip", f"{text!r} is no IP address", hint="write one such as 192.0.2.7") from error


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text, re.ASCII)
    first, last = (int(part) for part in match.groups()) if match else (0, 0)
    if not 0 < first <= last <= _HIGHEST_PORT:
        raise WrongValue("libvirt.serial_console_port_range", f"{text!r} is no range of ports", hint="write FIRST:LAST")
    return first, last
