"""A guest as libvirt's domain XML (https://libvirt.org/formatdomain.html), and what of a domain's XML is read back.

All of it is built of elements, so that no name, path or value can become markup.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt.guest import Guest, GuestDisk, GuestInterface, Screen, SerialLine
from underlay.compute.metadata import InstanceDriverMetadata
from underlay.model import Attachment

NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"
"""The namespace of what a compute service's driver writes down of an instance. Who looks over a host knows it."""

_KIB = 1024
_CEPH_USER = "admin"  # whom Ceph's clients ask as when nobody says
_AGENT = "org.qemu.guest_agent.0"
_SCSI = MappingProxyType({"type": "scsi", "index": "0", "model": "virtio-scsi"})


def to_xml(guest: Guest) -> str:
    """The domain."""
    domain = Element("domain", type=guest.virt_type)
    _text(domain, "uuid", guest.uuid)
    _text(domain, "name", guest.name)
    _text(domain, "memory", str(guest.memory // _KIB), unit="KiB")
    _text(domain, "vcpu", str(guest.vcpus))
    if guest.metadata is not None:
        metadata = SubElement(domain, "metadata")
        _add_metadata(metadata, guest.metadata)
        for tag, text in guest.notes.items():
            _text(metadata, tag, text)
    _add_system(domain, guest)
    _add_cpu(domain, guest)
    SubElement(domain, "clock", offset="localtime" if guest.local_time else "utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(domain, event, action)
    _add_devices(SubElement(domain, "devices"), guest)
    return tostring(domain, encoding="unicode")


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    child = SubElement(parent, tag, attributes)
    child.text = text
    return child


def _some(**attributes: object) -> dict[str, str]:
    """Those that are set."""
    return {name: str(value) for name, value in attributes.items() if value not in (None, "")}


def _add_system(domain: Element, guest: Guest) -> None:
    system = SubElement(domain, "os")
    _text(system, "type", "hvm", **_some(arch=guest.architecture, machine=guest.machine))
    if guest.boot is not None:
        _text(system, "kernel", str(guest.boot.kernel))
        if guest.boot.ramdisk is not None:
            _text(system, "initrd", str(guest.boot.ramdisk))
        _text(system, "cmdline", guest.boot.command_line)
    features = SubElement(domain, "features")
    for feature in ("acpi", "apic"):
        SubElement(features, feature)


def _add_cpu(domain: Element, guest: Guest) -> None:
    if guest.cpu_mode in ("", "none"):
        return
    cpu = SubElement(domain, "cpu", mode=guest.cpu_mode)
    if guest.cpu_mode == "custom":
        _text(cpu, "model", guest.cpu_model)


def _add_devices(devices: Element, guest: Guest) -> None:
    _add_pcie_ports(devices, guest.pcie_ports)
    for disk in guest.disks:
        _add_disk(devices, disk)
    if any(disk.bus == "scsi" for disk in guest.disks):
        SubElement(devices, "controller", dict(_SCSI))
    for interface in guest.interfaces:
        _add_interface(devices, interface)
    _add_serial(devices, guest.serial)
    if guest.screen is not None:
        _add_screen(devices, guest.screen)
    if guest.agent:
        channel = SubElement(devices, "channel", type="unix")
        SubElement(channel, "target", type="virtio", name=_AGENT)


# ---------------------------------------------------------------------------------------------------------------- one device


def disk_xml(disk: GuestDisk) -> str:
    """One disk alone, to be plugged into a guest."""
    devices = Element("devices")
    _add_disk(devices, disk)
    return tostring(devices[0], encoding="unicode")


def reopen(disk: Element, opened: Attachment) -> None:
    """Have the same disk of a guest opened otherwise."""
    disk.set("type", opened.type)
    driver = disk.find("driver")
    if driver is not None:
        for name, value in (("type", opened.format), ("cache", opened.cache), ("io", opened.io), ("discard", opened.discard)):
            driver.attrib.pop(name, None)
            driver.attrib.update(_some(**{name: value}))
    for source in disk.findall("source"):
        disk.remove(source)
    _add_source(disk, opened)


def scsi_controller_xml() -> str:
    """What disks on SCSI sit on."""
    return tostring(Element("controller", dict(_SCSI)), encoding="unicode")


def _add_pcie_ports(devices: Element, ports: int) -> None:
    if ports:
        SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(ports):
        SubElement(devices, "controller", type="pci", model="pcie-root-port")


def _add_disk(devices: Element, disk: GuestDisk) -> None:
    opened = disk.attachment
    element = SubElement(devices, "disk", type=opened.type, device=disk.kind)
    driver = _some(type=opened.format, cache=opened.cache, io=opened.io, discard=opened.discard)
    SubElement(element, "driver", {"name": "qemu", **driver})
    _add_source(element, opened)
    if disk.backing is not None:
        element.append(parsed(disk.backing))
    SubElement(element, "target", dev=disk.device, bus=disk.bus)
    if disk.serial is not None:
        _text(element, "serial", disk.serial)
    if disk.boot_order is not None:
        SubElement(element, "boot", order=str(disk.boot_order))
    if disk.kind == "cdrom" or disk.read_only:
        SubElement(element, "readonly")
    if disk.shared:
        SubElement(element, "shareable")


def _add_source(element: Element, opened: Attachment) -> None:
    if opened.type != "network":
        SubElement(element, "source", {"dev" if opened.type == "block" else "file": opened.source})
        return
    source = SubElement(element, "source", protocol=str(opened.protocol), name=opened.source)
    for name, port in opened.servers:
        SubElement(source, "host", name=name, port=str(port))
    if opened.secret is not None:  # libvirt takes no user without one; then QEMU asks as Ceph is configured on the host
        auth = SubElement(source, "auth", username=opened.user or _CEPH_USER)
        SubElement(auth, "secret", type="ceph", uuid=opened.secret)


def _add_interface(devices: Element, interface: GuestInterface) -> None:
    element = SubElement(devices, "interface", type="bridge" if interface.kind == "bridge" else "ethernet")
    SubElement(element, "mac", address=interface.address)
    SubElement(element, "model", type=interface.model)
    target = {"dev": interface.device}
    if interface.kind == "bridge":
        SubElement(element, "source", bridge=str(interface.bridge))
    else:
        target["managed"] = "no"  # it is there, and stays when the guest goes
    SubElement(element, "target", target)
    if interface.mtu is not None:
        SubElement(element, "mtu", size=str(interface.mtu))


def _add_serial(devices: Element, serial: SerialLine) -> None:
    element = SubElement(devices, "serial", type="pty" if serial.listen is None else "tcp")
    if serial.listen is not None:
        SubElement(element, "source", mode="bind", host=serial.listen, service=str(serial.port or 0))
        SubElement(element, "protocol", type="raw")
    SubElement(element, "log", file=str(serial.log), append="off")
    SubElement(element, "target", port="0")


def _add_screen(devices: Element, screen: Screen) -> None:
    graphics = SubElement(devices, "graphics", type="vnc", autoport="yes", port="-1")
    SubElement(graphics, "listen", type="address", address=screen.listen)
    SubElement(SubElement(devices, "video"), "model", type=screen.model)


def interface_xml(interface: GuestInterface) -> str:
    """One interface by itself, as it is attached."""
    devices = Element("devices")
    _add_interface(devices, interface)
    return tostring(devices[0], encoding="unicode")


def backup_xml(xml: str, *, device: str, target: Path, disk_format: str) -> str:
    """A copy of one disk of a domain, and of no other (https://libvirt.org/formatbackup.html)."""
    backup = Element("domainbackup", mode="push")
    disks = SubElement(backup, "disks")
    for name in devices_by_path(xml).values():
        if name != device:
            SubElement(disks, "disk", name=name, backup="no")
    disk = SubElement(disks, "disk", name=device, backup="yes", type="file")
    SubElement(disk, "driver", type=disk_format)
    SubElement(disk, "target", file=str(target))
    return tostring(backup, encoding="unicode")


def backup_target(xml: str) -> Path | None:
    """The file that a copy of a disk is written into; None: it is none that goes into a file."""
    target = parsed(xml).find("disks/disk/target")
    return Path(target.get("file", "")) if target is not None else None


# ------------------------------------------------------------------------------------------------------------------ metadata


def _add_metadata(parent: Element, told: InstanceDriverMetadata) -> None:
    instance = SubElement(parent, f"{{{NOVA}}}instance")
    SubElement(instance, f"{{{NOVA}}}package", version=told.nova_package)
    _nova(instance, "name", told.instance_meta.name)
    _nova(instance, "creationTime", time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(told.creation_time)))
    flavor = SubElement(instance, f"{{{NOVA}}}flavor", name=told.flavor.name)
    sizes = {
        "memory": told.flavor.memory_mb,
        "disk": told.flavor.root_gb,
        "swap": told.flavor.swap,
        "ephemeral": told.flavor.ephemeral_gb,
        "vcpus": told.flavor.vcpus,
    }
    for name, value in sizes.items():
        _nova(flavor, name, str(value))
    owner = SubElement(instance, f"{{{NOVA}}}owner")
    _nova(owner, "user", told.owner.username, **_some(uuid=told.owner.userid))
    _nova(owner, "project", told.owner.projectname, **_some(uuid=told.owner.projectid))
    if told.root_type == "image" and told.root_id:
        SubElement(instance, f"{{{NOVA}}}root", type="image", uuid=told.root_id)


def _nova(parent: Element, name: str, text: str, **attributes: str) -> None:
    _text(parent, f"{{{NOVA}}}{name}", text, **attributes)


# ----------------------------------------------------------------------------------------------------------------- read back


def parsed(xml: str) -> Element:
    """The XML of a domain as libvirt writes it.

    Raises:
        OperationFailed: it has a document type, which libvirt never writes.
    """
    if "<!DOCTYPE" in xml:
        raise OperationFailed("libvirt's XML of a domain has a document type")
    return fromstring(xml)  # noqa: S314 - entities need the document type that was just refused


def with_serial_port(xml: str, port: int) -> str:
    """The same domain with its serial line at another port."""
    domain = parsed(xml)
    for tag in ("serial", "console"):
        for source in domain.iterfind(f"devices/{tag}[@type='tcp']/source"):
            source.set("service", str(port))
    return tostring(domain, encoding="unicode")


def serial_listens_at(xml: str) -> tuple[str, int] | None:
    """The address and port of the serial line, if it is reached so."""
    source = parsed(xml).find("devices/serial[@type='tcp']/source[@mode='bind']")
    return None if source is None else (source.get("host", ""), int(source.get("service", "0")))


def console_log(xml: str) -> Path | None:
    """The file in which what the guest writes is kept."""
    log = parsed(xml).find("devices/serial/log")
    return None if log is None else Path(log.get("file", ""))


def screen_port(xml: str) -> int | None:
    """The port of its screen by VNC, while it runs."""
    graphics = parsed(xml).find("devices/graphics[@type='vnc']")
    port = -1 if graphics is None else int(graphics.get("port", "-1"))
    return port if port > 0 else None


def devices_by_path(xml: str) -> Mapping[str, str]:
    """The names of its disks, by what the hypervisor opens."""
    found = {}
    for disk in parsed(xml).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None:
            opened = source.get("file") or source.get("dev") or source.get("name") or ""
            found[opened] = target.get("dev", "")
    return found


def has_ceph_disks(xml: str) -> bool:
    """Whether any of its disks is in a Ceph."""
    return parsed(xml).find("devices/disk/source[@protocol='rbd']") is not None


def has_agent(xml: str) -> bool:
    """Whether there is a line to QEMU's guest agent."""
    return parsed(xml).find(f"devices/channel/target[@name='{_AGENT}']") is not None


def interface_of(xml: str, address: str) -> str | None:
    """The interface of a domain that has this MAC, as libvirt has it; None: there is none."""
    for interface in parsed(xml).iterfind("devices/interface"):
        mac = interface.find("mac")
        if mac is not None and mac.get("address", "").lower() == address.lower():
            return tostring(interface, encoding="unicode")
    return None


def addresses_by_device(xml: str) -> Mapping[str, str]:
    """The MACs of its interfaces, by the names of their taps."""
    found = {}
    for interface in parsed(xml).iterfind("devices/interface"):
        mac, target = interface.find("mac"), interface.find("target")
        if mac is not None and target is not None:
            found[target.get("dev", "")] = mac.get("address", "")
    return found
