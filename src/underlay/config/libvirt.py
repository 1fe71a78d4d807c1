"""What the libvirt compute driver goes by, named as in nova.conf; its groups vnc and serial_console are in here too."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from underlay.config import values
from underlay.config.values import WrongValue

_HIGHEST_PORT = 65535
_MIB = 1 << 20


class LibvirtTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table as it is written."""

    connection_uri: str = "qemu:///system"
    timeout: str | int = "60s"
    my_ip: str = ""
    virt_type: Literal["auto", "kvm", "qemu"] = "auto"
    cpu_mode: Literal["", "none", "host-model", "host-passthrough", "maximum", "custom"] = ""
    cpu_model: str = ""
    machine_type: str = "q35"
    num_pcie_ports: Annotated[int, msgspec.Meta(ge=0, le=28)] = 16
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
    live_migration_uri: str = ""
    live_migration_scheme: str = "tcp"
    live_migration_inbound_addr: str = ""
    live_migration_bandwidth: str | int | None = None
    live_migration_downtime: str | int = "0.5s"
    live_migration_downtime_steps: int = 10
    live_migration_downtime_delay: str | int = "75s"
    live_migration_completion_timeout: str | int = "800s"
    live_migration_timeout_action: Literal["abort", "force_complete"] = "abort"
    live_migration_permit_auto_converge: bool = False
    live_migration_permit_post_copy: bool = False


class Moves(msgspec.Struct, frozen=True, kw_only=True):
    """How guests that run move to other hosts: the options ``live_migration_*``, without that.

    Attributes:
        uri: of another host's libvirt, with ``%s`` for its name; empty: made of the scheme and the address.
        inbound_addr: at which others reach this host, for the libvirt and for what moves; empty: its name.
        bandwidth: MiB a second that one move may take; 0: all.
        downtime: the most seconds that a guest is to stand still, reached in so many ``downtime_steps``, each of which takes
            ``downtime_delay`` seconds for each GiB that moves.
        completion_timeout: seconds for each GiB after which ``timeout_action`` is taken: abort or force_complete; 0: never.
        permit_auto_converge: a guest that writes faster than is copied is slowed down.
        permit_post_copy: forced to complete, a guest goes on over there and its memory follows; else it stands still.
    """

    uri: str
    scheme: str
    inbound_addr: str
    bandwidth: int
    downtime: float
    downtime_steps: int
    downtime_delay: float
    completion_timeout: float
    timeout_action: str
    permit_auto_converge: bool
    permit_post_copy: bool


class Libvirt(msgspec.Struct, frozen=True, kw_only=True):
    """What it means.

    Attributes:
        connection_uri: as libvirt has it. timeout: seconds that libvirt may take for one answer.
        my_ip: the address at which other hosts reach this one; empty: that of the interface with the default route.
        virt_type: auto is kvm where a guest really runs under it, else qemu.
        cpu_mode: empty: host-model under KVM, else the machine's own. cpu_model: for ``custom``.
        machine_type: of guests whose image asks for none; empty: libvirt's own.
        num_pcie_ports: sockets for devices of a guest that has PCI Express; 0: as many as libvirt thinks.
        images_type: the backend of instance disks. cache: from which they are made; None: the configuration's first.
        disk_prefix: of devices that nobody has named; empty: that of their bus.
        vnc_listen, serial_console_listen: the address at which consoles listen. vnc_address, serial_console_address: the one
            that callers are told.
        serial_console_port_range: first and last port of serial consoles.
        wait_soft_reboot: seconds that a guest has for a soft reboot.
        device_detach_attempts, device_detach_timeout: how often a guest is asked to let go of a device, and the seconds that it
            has each time.
        snapshots_directory: where snapshots are written. snapshot_image_format: theirs; empty: qcow2.
        moves: how guests that run move to other hosts.
    """

    connection_uri: str
    timeout: float
    my_ip: str
    virt_type: str
    cpu_mode: str
    cpu_model: str
    machine_type: str
    num_pcie_ports: int
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
    moves: Moves


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
        num_pcie_ports=table.num_pcie_ports,
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
        moves=_moves(table),
    )


def _address(text: str) -> str:
    if not text:
        return ""
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise WrongValue("libvirt.my_ip", f"{text!r} is no IP address", hint="write one such as 192.0.2.7") from error


def _moves(table: LibvirtTable) -> Moves:
    key = "libvirt.live_migration_{}".format
    uri, scheme, inbound = table.live_migration_uri, table.live_migration_scheme, table.live_migration_inbound_addr
    if uri and not re.fullmatch(r"[a-z0-9+]+://\S+", uri):
        raise WrongValue(key("uri"), f"{uri!r} is no URI", hint="write qemu+tcp://%s/system, for one")
    if uri and "%s" not in uri:
        raise WrongValue(key("uri"), f"{uri!r} is one host's for all", hint="write %s where the host's name belongs")
    if not re.fullmatch(r"[a-z0-9]+", scheme):
        raise WrongValue(key("scheme"), f"{scheme!r} is no transport of libvirt", hint="write tcp or tls")
    if inbound and not re.fullmatch(values.ADDRESS, inbound):
        raise WrongValue(key("inbound_addr"), f"{inbound!r} is no address and no name of a host")
    delay = values.duration(table.live_migration_downtime_delay, key("downtime_delay"))
    return Moves(
        uri=uri,
        scheme=scheme,
        inbound_addr=inbound,
        bandwidth=_bandwidth(table.live_migration_bandwidth, key("bandwidth")),
        downtime=_at_least(values.duration(table.live_migration_downtime, key("downtime")), 0.1, key("downtime")),
        downtime_steps=int(_at_least(table.live_migration_downtime_steps, 3, key("downtime_steps"))),
        downtime_delay=_at_least(delay, 3, key("downtime_delay")),
        completion_timeout=values.duration(table.live_migration_completion_timeout, key("completion_timeout")),
        timeout_action=table.live_migration_timeout_action,
        permit_auto_converge=table.live_migration_permit_auto_converge,
        permit_post_copy=table.live_migration_permit_post_copy,
    )


def _bandwidth(value: str | int | None, key: str) -> int:
    """MiB, in which libvirt counts it."""
    found = values.optional_positive_size(value, key) or 0
    if found % _MIB:
        raise WrongValue(key, f"{value!r} is no whole number of MiB", hint="libvirt counts MiB a second")
    return found // _MIB


def _at_least(value: float, least: float, key: str) -> float:
    if value < least:
        raise WrongValue(key, f"{value:g} is less than {least:g}, the least that there can be")
    return value


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text, re.ASCII)
    first, last = (int(part) for part in match.groups()) if match else (0, 0)
    if not 0 < first <= last <= _HIGHEST_PORT:
        raise WrongValue("libvirt.serial_console_port_range", f"{text!r} is no range of ports", hint="write FIRST:LAST")
    return first, last
