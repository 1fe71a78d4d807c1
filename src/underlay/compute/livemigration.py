"""What the two hosts of a live migration tell each other.

It begins on the destination, goes to the source and back, and each step answers with a new one that says more
(`dataclasses.replace`). What has not been said yet is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from underlay.model import Attachment


@dataclass(frozen=True, slots=True, kw_only=True)
class VIFMigrateData:
    """One interface on its new host.

    Attributes:
        port_id: of the network service. vif_details, profile: as in a VIF. source_vif: the VIF as it is on the source.
    """

    port_id: str
    vnic_type: str = "normal"
    vif_type: str | None = None
    vif_details: Mapping[str, Any] | None = None
    profile: Mapping[str, Any] | None = None
    host: str | None = None
    source_vif: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtLiveMigrateBDMInfo:
    """One volume as the destination will have it.

    Attributes:
        serial: the volume's id. bus, dev, type: of the device, say ``virtio``, ``vda``, ``disk``. connection_info: how the
            destination reaches it.
    """

    serial: str
    bus: str
    dev: str
    type: str
    format: str | None = None
    boot_index: int | None = None
    connection_info: Mapping[str, Any] | None = None
    encryption_secret_uuid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMigrateData:
    """What every driver says.

    Attributes:
        is_volume_backed: the root disk is a volume. migration: the service's own record.
        old_vol_attachment_ids: by volume id, to be put back when the migration fails.
        wait_for_vif_plugged: the destination waits until the network says that the interfaces are plugged.
        pci_dev_map_src_dst: PCI addresses of the source, and where their like are on the destination.
    """

    is_volume_backed: bool | None = None
    migration: Any = None
    old_vol_attachment_ids: Mapping[str, str] | None = None
    wait_for_vif_plugged: bool | None = None
    vifs: tuple[VIFMigrateData, ...] | None = None
    pci_dev_map_src_dst: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtLiveMigrateData(LiveMigrateData):
    """What a libvirt driver says besides.

    Attributes:
        filename: of the probe by which shared storage is found out. image_type: how disks are stored, say ``qcow2``.
        block_migration: disks are copied. disk_over_commit: the destination counts virtual instead of allocated sizes.
        disk_available_mb: MiB that the destination has for disks.
        is_shared_instance_path, is_shared_block_storage: what the hosts share.
        instance_relative_path: of the instance's directory below the instances path.
        graphics_listen_addr_vnc, graphics_listen_addr_spice, serial_listen_addr, serial_listen_ports: where its consoles
            listen on the destination.
        target_connect_addr: at which the source reaches the destination.
    """

    filename: str | None = None
    image_type: str | None = None
    block_migration: bool | None = None
    disk_over_commit: bool | None = None
    disk_available_mb: int | None = None
    is_shared_instance_path: bool | None = None
    is_shared_block_storage: bool | None = None
    instance_relative_path: str | None = None
    graphics_listen_addr_vnc: str | None = None
    graphics_listen_addr_spice: str | None = None
    serial_listen_addr: str | None = None
    serial_listen_ports: tuple[int, ...] | None = None
    bdms: tuple[LibvirtLiveMigrateBDMInfo, ...] | None = None
    target_connect_addr: str | None = None
    supported_perf_events: tuple[str, ...] | None = None
    dst_wants_file_backed_memory: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDiskMigrateData:
    """One local disk, as the source has it and as the destination will.

    Attributes:
        name: such as ``disk.swap``. path: on the source. format: there. size: bytes that the guest sees.
        allocated: bytes that it occupies on the source.
        base: the file name of the base image that it reads from; None: it stands alone. base_ref: the ref that it came from.
        base_digest: ``sha256:hex`` of the image as it was served; None: nobody has served it. base_stored: the digest of its
            stored form; None: it is not recorded.
        there, format_there: its path on the destination, and its format there.
        whole: the destination has no base of this content, so all that the guest sees has to be copied.
    """

    name: str
    path: str
    format: str
    size: int
    allocated: int
    base: str | None = None
    base_ref: str | None = None
    base_digest: str | None = None
    base_stored: str | None = None
    there: str | None = None
    format_there: str | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceMigrateData:
    """One interface on the destination, found by its address (MAC). device: the tap. bridge: None of a tap that is there."""

    address: str
    device: str
    bridge: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMigrateData:
    """One volume, as the guest has it on the source and as the destination opens it.

    Attributes:
        device, bus: in the guest. id: what its owner calls it, if that is known. kind: ``local`` or ``rbd``.
        source, format: what the source's QEMU has open, which is another file than the volume since a snapshot of it.
        size: bytes of a raw one that is a file or a device; None: they are not compared.
        is_written_above: the guest writes to a file that stands on the volume. shared: other guests may have it as well.
        there: how the destination opens it; None: it has not said yet.
    """

    device: str
    bus: str
    id: str | None
    kind: str
    source: str
    format: str
    size: int | None = None
    is_written_above: bool = False
    shared: bool = False
    there: Attachment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderlayLiveMigrateData(LibvirtLiveMigrateData):
    """What two of Underlay's libvirt drivers say besides.

    Attributes:
        host: the destination's name. libvirt, source_libvirt: the UUIDs of the two hosts as their libvirts have them.
        directory, directory_there: the instance's directory on the source and the destination.
        local_disks: each local disk that is copied. shared_disks: the source of each that both hosts reach, by its name.
        volumes: each volume. interfaces: each interface on the destination.
        config_drive: the content of the config drive, compressed (RFC 1950) and as base64; it may hold a password.
    """

    host: str | None = None
    libvirt: str | None = None
    source_libvirt: str | None = None
    directory: str | None = None
    directory_there: str | None = None
    local_disks: tuple[LocalDiskMigrateData, ...] = ()
    shared_disks: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[VolumeMigrateData, ...] = ()
    interfaces: tuple[InterfaceMigrateData, ...] = ()
    config_drive: str | None = field(default=None, repr=False)
