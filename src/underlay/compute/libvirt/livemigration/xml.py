"""A domain's XML as another host is to have it. What differs there: paths, images, addresses at which it listens, and taps."""

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, tostring

from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.guestxml import parsed
from underlay.compute.livemigration import (
    InterfaceMigrateData,
    LocalDiskMigrateData,
    UnderlayLiveMigrateData,
    VolumeMigrateData,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """What the destination has otherwise.

    Attributes:
        directories: the instance's, here and there. disks: by their paths here. volumes: by their devices; of one that is
            written above since a snapshot nothing is other there. interfaces: by their addresses.
        screens: the address at which they listen. serial: the address and the port of the serial line; None: as it is.
        shared: both hosts write to one file what the serial line says, so it is not begun anew.
    """

    directories: tuple[str, str]
    disks: Mapping[str, LocalDiskMigrateData]
    volumes: Mapping[str, VolumeMigrateData]
    interfaces: Mapping[str, InterfaceMigrateData]
    screens: str | None
    serial: tuple[str, int] | None
    shared: bool


def there_of(data: UnderlayLiveMigrateData) -> There:
    """What a destination has said."""
    has_line = data.serial_listen_addr is not None and data.serial_listen_ports
    return There(
        directories=(data.directory or "", data.directory_there or ""),
        disks={disk.path: disk for disk in data.local_disks},
        volumes={volume.device: volume for volume in data.volumes},
        interfaces={one.address.lower(): one for one in data.interfaces},
        screens=data.graphics_listen_addr_vnc,
        serial=(data.serial_listen_addr, data.serial_listen_ports[0])
        if has_line and data.serial_listen_addr and data.serial_listen_ports
        else None,
        shared=bool(data.is_shared_instance_path),
    )


def moved(xml: str, there: There) -> str:
    """The domain as the destination is to have it; the machine that its guest sees is the same.

    Raises:
        OperationFailed
    """
    domain = parsed(xml)
    for disk in domain.iterfind("devices/disk"):
        _move_disk(disk, there)
    for element in domain.iter():
        _move_paths(element, there.directories)
    for interface in domain.iterfind("devices/interface"):
        _move_interface(interface, there.interfaces)
    _move_lines(domain, there)
    if there.screens is not None:
        _move_screens(domain, there.screens)
    return tostring(domain, encoding="unicode")


def copied_devices(xml: str, data: UnderlayLiveMigrateData) -> dict[str, LocalDiskMigrateData]:
    """The disks that are copied, by the names of their devices."""
    disks = {disk.path: disk for disk in data.local_disks}
    found = {}
    for disk in parsed(xml).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and source.get("file") in disks:
            found[target.get("dev", "")] = disks[source.get("file", "")]
    return found


def has_backing(xml: str, device: str) -> bool:
    """Whether a disk of a domain that runs reads from another file."""
    chain = parsed(xml).find(f"devices/disk/target[@dev='{device}']/../backingStore/source")
    return chain is not None


def _move_disk(disk: Element, there: There) -> None:
    target = disk.find("target")
    volume = there.volumes.get(target.get("dev", "")) if target is not None else None
    if volume is not None and volume.is_written_above:
        return
    for chain in (*disk.findall("backingStore"), *disk.findall("mirror")):
        disk.remove(chain)  # the destination reads its own from the file's header
    if volume is not None and volume.there is not None:
        guestxml.reopen(disk, volume.there)
        return
    source, driver = disk.find("source"), disk.find("driver")
    if source is None or driver is None or (moves := there.disks.get(source.get("file", ""))) is None:
        return
    if moves.there is not None and moves.format_there is not None:
        source.set("file", moves.there)
        driver.set("type", moves.format_there)


def _move_paths(element: Element, directories: tuple[str, str]) -> None:
    """Files of the instance's directory: its config drive, its kernel, what its serial line says."""
    here, there = (f"{one}/" for one in directories)
    if element.tag in ("source", "log") and (path := element.get("file", "")).startswith(here):
        element.set("file", there + path.removeprefix(here))
    if element.tag in ("kernel", "initrd") and (element.text or "").startswith(here):
        element.text = there + str(element.text).removeprefix(here)


def _move_interface(interface: Element, moves: Mapping[str, InterfaceMigrateData]) -> None:
    mac = interface.find("mac")
    found = moves.get(mac.get("address", "").lower()) if mac is not None else None
    if found is None:
        return
    target, source = interface.find("target"), interface.find("source")
    if target is not None:
        target.set("dev", found.device)
    if source is not None and found.bridge is not None:
        source.set("bridge", found.bridge)


def _move_lines(domain: Element, there: There) -> None:
    for tag in ("serial", "console"):
        for line in domain.iterfind(f"devices/{tag}"):
            source, log = line.find("source"), line.find("log")
            if source is not None and line.get("type") == "tcp" and there.serial is not None:
                source.set("host", there.serial[0])
                source.set("service", str(there.serial[1]))
            if log is not None and there.shared:
                log.set("append", "on")


def _move_screens(domain: Element, address: str) -> None:
    for screen in domain.iterfind("devices/graphics[@type='vnc']"):
        screen.set("listen", address)
        screen.set("autoport", "yes")
        screen.set("port", "-1")
        for listens in screen.iterfind("listen[@type='address']"):
            listens.set("address", address)
