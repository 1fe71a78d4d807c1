"""Records of instances, images and interfaces with what a driver reads of them, for whoever has no compute service at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from underlay.compute import states


@dataclass(slots=True, kw_only=True)
class FakeFlavor:
    """An instance's size: memory and swap in MiB, disks in GiB."""

    id: int = 1
    name: str = "small"
    flavorid: str = "1"
    memory_mb: int = 64
    vcpus: int = 1
    root_gb: int = 1
    ephemeral_gb: int = 0
    swap: int = 0
    extra_specs: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class FakeImage:
    """An image's record: sizes in bytes, but min_disk in GiB and min_ram in MiB."""

    id: str = field(default_factory=lambda: str(uuid4()))
    name: str = "image"
    status: str = "active"
    visibility: str = "public"
    protected: bool = False
    checksum: str | None = None
    owner: str | None = None
    size: int = 1 << 20
    virtual_size: int | None = None
    container_format: str = "bare"
    disk_format: str = "qcow2"
    created_at: Any = None
    updated_at: Any = None
    tags: list[str] = field(default_factory=list)
    direct_url: str | None = None
    min_ram: int = 0
    min_disk: int = 0
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class FakeInstance:
    """An instance's record, whose changes are kept in this process."""

    uuid: str = field(default_factory=lambda: str(uuid4()))
    id: int = 1
    name: str = ""
    host: str = "node1"
    node: str = "node1"
    project_id: str = "project"
    user_id: str = "user"
    display_name: str = "guest"
    availability_zone: str | None = None
    image_ref: str = ""
    kernel_id: str = ""
    ramdisk_id: str = ""
    os_type: str | None = "linux"
    vm_mode: str | None = None
    architecture: str | None = "x86_64"
    root_device_name: str | None = "/dev/vda"
    default_ephemeral_device: str | None = None
    default_swap_device: str | None = None
    config_drive: str = ""
    key_data: str | None = None
    vm_state: str = "building"
    task_state: str | None = None
    power_state: int = states.NOSTATE
    deleted: bool = False
    cleaned: bool = False
    launched_at: Any = None
    updated_at: Any = None
    flavor: FakeFlavor = field(default_factory=FakeFlavor)
    old_flavor: FakeFlavor | None = None
    new_flavor: FakeFlavor | None = None
    image_meta: FakeImage = field(default_factory=FakeImage)
    system_metadata: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    network_info: Sequence[Mapping[str, Any]] = ()
    bdms: Sequence[Any] = ()
    trusted_certs: Any = None
    numa_topology: Any = None
    device_metadata: Any = None
    migration_context: Any = None

    def __post_init__(self) -> None:
        self.name = self.name or f"instance-{self.uuid[:8]}"

    def get(self, name: str, default: Any = None) -> Any:
        """One of the fields by name."""
        return getattr(self, name, default)

    def get_network_info(self) -> Sequence[Mapping[str, Any]]:
        """Its interfaces."""
        return self.network_info

    def get_bdms(self) -> Sequence[Any]:
        """The service's rows of its block devices."""
        return self.bdms

    def save(self, expected_task_state: Any = None) -> None:
        """Keep the changes, which are kept already.

        Args:
            expected_task_state: one or several, of which the service would want the old task state to be one.
        """


@dataclass(slots=True, kw_only=True)
class FakeMigration:
    """A move's record."""

    id: int = 1
    uuid: str = field(default_factory=lambda: str(uuid4()))
    source_compute: str = "node1"
    dest_compute: str = "node1"
    migration_type: str = "resize"
    status: str = "migrating"
    old_instance_type_id: int | None = None
    new_instance_type_id: int | None = None


def fake_vif(number: int = 0, *, kind: str = "bridge", bridge: str = "br0") -> dict[str, Any]:
    """A virtual interface, whose MAC is of QEMU's block and ends with the number."""
    identity = str(uuid4())
    return {
        "id": identity,
        "address": f"52:54:00:00:{number >> 8 & 255:02x}:{number & 255:02x}",
        "type": kind,
        "network": {"id": str(uuid4()), "bridge": bridge, "label": "net", "subnets": [], "meta": {}},
        "details": {},
        "devname": f"tap{identity[:11]}",
        "ovs_interfaceid": None,
        "active": True,
        "vnic_type": "normal",
        "profile": {},
        "preserve_on_delete": False,
        "delegate_create": True,
    }
