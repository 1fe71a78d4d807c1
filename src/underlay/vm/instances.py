"""A virtual machine as the driver reads it: an instance, its flavor, its image, its interfaces and its block devices.

Frozen values with the attributes that `underlay.compute.libvirt` reads; what a compute service would say and nobody says here
is None.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from underlay.vm.record import VmInterface, VmRecord, kept_as


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFlavor:
    """A machine's size: memory and swap in MiB, disks in GiB."""

    memory_mb: int
    vcpus: int
    root_gb: int
    ephemeral_gb: int
    swap: int
    name: str = "vm"
    flavorid: str = "vm"
    extra_specs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmImage:
    """An image: what the driver fetches, or finds, it by; may carry credentials, so it is never printed or stored."""

    id: str = field(repr=False)
    properties: Mapping[str, str]
    min_disk: int = 0
    virtual_size: int | None = None
    disk_format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmInstance:
    """A machine.

    Attributes:
        image_ref: canonical; empty: of an image that records none. user_data: in base64, as services have it.
        key_data: a public key. domain_metadata: see `underlay.vm.record.kept_as`.
    """

    uuid: str
    name: str
    host: str
    flavor: VmFlavor
    image_ref: str
    image_meta: VmImage
    os_type: str
    domain_metadata: Mapping[str, str]
    config_drive: str = ""
    user_data: str | None = field(default=None, repr=False)
    key_data: str | None = None
    key_name: str | None = None
    architecture: str | None = None
    root_device_name: str | None = None
    kernel_id: str = ""
    ramdisk_id: str = ""
    user_id: str | None = None
    project_id: str | None = None
    availability_zone: str | None = None
    launched_at: Any = None
    vm_state: str | None = None
    task_state: str | None = None
    system_metadata: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def display_name(self) -> str:
        """As people call it, and its guest itself."""
        return self.name

    @property
    def hostname(self) -> str:
        """As its guest is to call itself."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveContent:
    """What only a new machine is told, on its config drive.

    Attributes:
        user_data: as cloud-init has it; may hold secrets. key: a public key of ssh.
    """

    config_drive: bool = True
    user_data: bytes | None = field(default=None, repr=False)
    key: str | None = None


def instance_of(
    record: VmRecord, *, uuid: str, name: str, host: str, image: str = "", data: DriveContent | None = None
) -> VmInstance:
    """The machine that a record is of.

    Args:
        image: by which the driver is to find the image; only needed when a disk is made of it.
    """
    data = data or DriveContent(config_drive=False)
    return VmInstance(
        uuid=uuid,
        name=name,
        host=host,
        flavor=VmFlavor(
            memory_mb=record.memory_mib,
            vcpus=record.vcpus,
            root_gb=record.root_gib,
            ephemeral_gb=sum(one.size_gib for one in record.ephemerals),
            swap=record.swap_mib,
        ),
        image_ref=record.image or "",
        image_meta=VmImage(id=image, properties=record.properties),
        domain_metadata=kept_as(record),
        os_type=record.os_type,
        config_drive="True" if data.config_drive else "",
        user_data=None if data.user_data is None else base64.b64encode(data.user_data).decode("ascii"),
        key_data=data.key,
        key_name=None if data.key is None else "key",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRemains:
    """What the removal of a machine reads of it, for one whose record nobody can read."""

    uuid: str
    name: str
    host: str
    task_state: str | None = None


def interfaces_of(record: VmRecord) -> list[dict[str, Any]]:
    """Its interfaces; whoever answers on the bridge gives their addresses."""
    return [_vif(one) for one in record.interfaces]


def _vif(interface: VmInterface) -> dict[str, Any]:
    subnets = [{"version": 4, "meta": {"dhcp_server": interface.bridge}}]  # without one a guest would configure no address
    network = {"id": interface.bridge, "bridge": interface.bridge, "label": interface.network or interface.bridge}
    return {
        "id": interface.id,
        "address": interface.address,
        "type": "bridge",
        "network": {**network, "subnets": subnets, "meta": {}},
    }


def block_devices_of(record: VmRecord) -> dict[str, Any]:
    """Its ephemeral disks and its swap disk, in this order behind the root disk."""
    ephemerals = [
        {"device_name": None, "size": one.size_gib, "disk_bus": None, "guest_format": None} for one in record.ephemerals
    ]
    behind = ascii_lowercase[(1 + len(ephemerals)) % len(ascii_lowercase)]
    swap = {"device_name": f"/dev/vd{behind}", "swap_size": record.swap_mib, "disk_bus": None}
    return {
        "root_device_name": None,
        "ephemerals": ephemerals,
        "swap": swap if record.swap_mib else None,
        "block_device_mapping": [],
    }
