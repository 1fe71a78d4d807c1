"""A guest as a value, decided from what the service says of the instance and from the disks that are there. Pure."""

import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from underlay.compute.arguments import ImageMeta, Instance, NetworkInfo, Vif
from underlay.compute.errors import InternalError, InvalidInput, NotSupported
from underlay.compute.libvirt import devicenames
from underlay.compute.libvirt.directory import InstanceDirectory
from underlay.compute.libvirt.diskplan import MIB, LocalDisk, machine_of, properties_of
from underlay.compute.libvirt.guest import DirectBoot, Guest, GuestDisk, GuestInterface, Screen, SerialLine
from underlay.compute.metadata import field_of, metadata_of
from underlay.config.libvirt import Libvirt
from underlay.model import Attachment

_KINDS = frozenset({"bridge", "tap"})
_COMMAND_LINE = "root=/dev/{root} console=tty0 console=ttyS0"
_NOVAS_DEVICE = 14  # characters of the names that Nova gives to taps
_LONGEST_DEVICE = 15  # bytes of a network device's name (IFNAMSIZ less its end)
_SMALLEST_MTU, _LARGEST_MTU = 68, 65535  # bytes: what IPv4 needs at least, and what a length of a packet can say


def guest_of(
    instance: Instance,
    image: ImageMeta,
    network_info: NetworkInfo | None,
    *,
    options: Libvirt,
    virt_type: str,
    directory: InstanceDirectory,
    disks: Sequence[tuple[LocalDisk, Attachment]],
    config_drive: Attachment | None,
    boot: DirectBoot | None,
    volumes: Sequence[GuestDisk] = (),
) -> Guest:
    """The whole machine.

    Args:
        disks: that are there, in the guest's order. boot: a kernel, in place of what the disks boot. volumes: behind them.

    Raises:
        InvalidInput, InternalError: an unknown type of interface. NotSupported: what the image asks for.
    """
    check(image, network_info)
    wanted = properties_of(image)
    machine = machine_of(image, options.machine_type)
    return Guest(
        uuid=instance.uuid,
        name=instance.name,
        memory=instance.flavor.memory_mb * MIB,
        vcpus=instance.flavor.vcpus,
        virt_type=virt_type,
        architecture=wanted.get("hw_architecture") or field_of(instance, "architecture") or platform.machine(),
        machine=machine,
        cpu_mode=cpu_mode_of(options, virt_type),
        cpu_model=options.cpu_model,
        boot=boot,
        disks=_disks(disks, volumes, config_drive, wanted, machine=machine),
        interfaces=interfaces_of(network_info, wanted),
        serial=SerialLine(
            log=directory.console_log,
            listen=options.serial_console_listen if options.serial_console_enabled else None,
        ),
        screen=_screen(options, wanted),
        local_time=field_of(instance, "os_type") == "windows",
        agent=is_true(wanted.get("hw_qemu_guest_agent")),
        metadata=metadata_of(instance, network_info or ()),
        notes=getattr(instance, "domain_metadata", {}),  # a service's instances have none
        pcie_ports=options.num_pcie_ports if "q35" in machine or machine.startswith("virt") else 0,
    )


def cpu_mode_of(options: Libvirt, virt_type: str) -> str:
    """What processor guests are given: the host's where it runs them itself, unless the configuration has it otherwise."""
    return options.cpu_mode or ("host-model" if virt_type == "kvm" else "")


def check(image: ImageMeta, network_info: NetworkInfo | None) -> None:
    """Refuse what no guest can be given, before anything is made for it.

    Raises:
        NotSupported, InternalError, InvalidInput
    """
    wanted = properties_of(image)
    if wanted.get("hw_firmware_type") not in (None, "bios"):
        raise NotSupported(f"guests are booted by a BIOS only, and the image wants {wanted.get('hw_firmware_type')}")
    devicenames.cdrom_bus("", wanted.get("hw_cdrom_bus"))
    interfaces_of(network_info, wanted)


def interfaces_of(network_info: NetworkInfo | None, wanted: Mapping[str, Any]) -> tuple[GuestInterface, ...]:
    """The interfaces that the guest gets.

    Raises:
        InternalError: an unknown type. InvalidInput: an interface without what it needs.
    """
    model = wanted.get("hw_vif_model") or "virtio"
    return tuple(_interface(vif, model) for vif in network_info or ())


def check_kind(vif: Vif) -> str:
    """The type of an interface.

    Raises:
        InternalError: it cannot be plugged here.
    """
    kind = str(vif.get("type"))
    if kind not in _KINDS:
        raise InternalError(err=f"interfaces of the type {kind} cannot be plugged, only {' and '.join(sorted(_KINDS))}")
    return kind


def address_of(vif: Vif) -> str:
    """The MAC of an interface; whether it can be one libvirt says.

    Raises:
        InvalidInput: it has none.
    """
    address = vif.get("address")
    if not isinstance(address, str) or not address.isprintable():
        raise InvalidInput(reason=f"the interface {vif.get('id')} has no address: {address!r}")
    return address


def bridge_of(vif: Vif) -> str:
    """The bridge that an interface is to be plugged into.

    Raises:
        InvalidInput
    """
    bridge = (vif.get("network") or {}).get("bridge")
    if not isinstance(bridge, str) or not _can_be_device(bridge):
        raise InvalidInput(reason=f"the interface {vif.get('id')} names no bridge: {bridge!r}")
    return bridge


def device_of(vif: Vif) -> str:
    """The name of an interface's tap on this host.

    Raises:
        InvalidInput
    """
    device = str(vif.get("devname") or (f"tap{vif['id']}"[:_NOVAS_DEVICE] if vif.get("id") else ""))
    if not _can_be_device(device):
        raise InvalidInput(reason=f"the interface {vif.get('id')} has a device that can be none: {device!r}")
    return device


def _can_be_device(name: str) -> bool:
    """Whether the kernel takes it for a name, and `ip` for nothing else."""
    is_plain = name.isprintable() and re.fullmatch(r"(?!\.{1,2}$)(?!-)[^\s/:%]+", name) is not None
    return is_plain and len(name.encode()) <= _LONGEST_DEVICE


def mtu_of(vif: Vif) -> int | None:
    """Bytes of the largest packet of an interface's network; None: nobody says.

    Raises:
        InvalidInput
    """
    mtu = ((vif.get("network") or {}).get("meta") or {}).get("mtu")
    if mtu is None:
        return None
    if isinstance(mtu, bool) or not str(mtu).isdecimal() or not _SMALLEST_MTU <= int(mtu) <= _LARGEST_MTU:
        raise InvalidInput(reason=f"the interface {vif.get('id')} has an MTU that can be none: {mtu!r}")
    return int(mtu)


def _interface(vif: Vif, model: str) -> GuestInterface:
    kind = check_kind(vif)
    return GuestInterface(
        kind=kind,
        address=address_of(vif),
        device=device_of(vif),
        bridge=bridge_of(vif) if kind == "bridge" else None,
        model=model,
        mtu=mtu_of(vif),
    )


def _disks(
    disks: Sequence[tuple[LocalDisk, Attachment]],
    volumes: Sequence[GuestDisk],
    config_drive: Attachment | None,
    wanted: Mapping[str, Any],
    *,
    machine: str,
) -> tuple[GuestDisk, ...]:
    found = [
        GuestDisk(
            attachment=opened,
            device=disk.device,
            bus=disk.bus,
            kind=disk.kind,
            boot_order=1 if disk.boots else None,
            tag=disk.tag,
        )
        for disk, opened in disks
    ]
    found.extend(volumes)
    if config_drive is not None:
        bus = devicenames.cdrom_bus(machine, wanted.get("hw_cdrom_bus"))
        device = devicenames.next_name(bus, {disk.device for disk in found})
        found.append(GuestDisk(attachment=config_drive, device=device, bus=bus, kind="cdrom"))
    return tuple(found)


def _screen(options: Libvirt, wanted: Mapping[str, Any]) -> Screen | None:
    model = wanted.get("hw_video_model") or "vga"
    return Screen(listen=options.vnc_listen, model=model) if options.vnc_enabled and model != "none" else None


def command_line(image: ImageMeta, root: str) -> str:
    """What a kernel that the hypervisor loads is told."""
    return properties_of(image).get("os_command_line") or _COMMAND_LINE.format(root=root)


def is_true(value: object) -> bool:
    """Whether a property of an image is set: a service has it as a boolean, or as somebody's text."""
    return str(value).lower() in ("true", "yes", "1", "on")
