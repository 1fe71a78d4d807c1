"""What a driver can do, as data, and how placement calls it."""

from collections.abc import Collection, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from underlay.errors import ExtraMissing

IMAGE_TYPES = ("aki", "ami", "ari", "iso", "qcow2", "raw", "vdi", "vhd", "vhdx", "vmdk", "ploop")

IMAGE_TYPE = "supports_image_type_"
"""What the capability of each image type begins with."""

_WITHOUT_TRAIT = ("has_imagecache", "supports_evacuate", "supports_pcpus", "supports_vtpm")

TRAITS: Mapping[str, str] = MappingProxyType(
    {
        "supports_migrate_to_same_host": "COMPUTE_SAME_HOST_COLD_MIGRATE",
        "supports_attach_interface": "COMPUTE_NET_ATTACH_INTERFACE",
        "supports_device_tagging": "COMPUTE_DEVICE_TAGGING",
        "supports_tagged_attach_interface": "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG",
        "supports_tagged_attach_volume": "COMPUTE_VOLUME_ATTACH_WITH_TAG",
        "supports_extend_volume": "COMPUTE_VOLUME_EXTEND",
        "supports_multiattach": "COMPUTE_VOLUME_MULTI_ATTACH",
        "supports_trusted_certs": "COMPUTE_TRUSTED_CERTS",
        "supports_accelerators": "COMPUTE_ACCELERATORS",
        "supports_bfv_rescue": "COMPUTE_RESCUE_BFV",
        "supports_secure_boot": "COMPUTE_SECURITY_UEFI_SECURE_BOOT",
        "supports_socket_pci_numa_affinity": "COMPUTE_SOCKET_PCI_NUMA_AFFINITY",
        "supports_remote_managed_ports": "COMPUTE_REMOTE_MANAGED_PORTS",
        "supports_address_space_passthrough": "COMPUTE_ADDRESS_SPACE_PASSTHROUGH",
        "supports_address_space_emulated": "COMPUTE_ADDRESS_SPACE_EMULATED",
        "supports_virtio_fs": "COMPUTE_STORAGE_VIRTIO_FS",
        "supports_mem_backing_file": "COMPUTE_MEM_BACKING_FILE",
        "supports_ephemeral_encryption": "COMPUTE_EPHEMERAL_ENCRYPTION",
        "supports_ephemeral_encryption_luks": "COMPUTE_EPHEMERAL_ENCRYPTION_LUKS",
        "supports_ephemeral_encryption_plain": "COMPUTE_EPHEMERAL_ENCRYPTION_PLAIN",
        **{f"{IMAGE_TYPE}{one}": f"COMPUTE_IMAGE_TYPE_{one.upper()}" for one in IMAGE_TYPES},
    }
)
"""The attribute of os_traits for each capability that has one; a capability that is not here has no trait."""


def no_capabilities() -> dict[str, bool]:
    """A new mapping in which nothing is supported: every capability of the contract, each False."""
    return dict.fromkeys([*_WITHOUT_TRAIT, *TRAITS], False)


def traits_of(capabilities: Mapping[str, bool], *, excluded_image_types: Collection[str] = ()) -> dict[str, bool]:
    """The traits of these capabilities, each with whether it is supported.

    Args:
        excluded_image_types: those that a host's configuration wants to be given nowhere, whatever the driver can.

    Raises:
        ExtraMissing: os-traits is not installed.
    """
    traits = _os_traits()
    excluded = {f"{IMAGE_TYPE}{one}" for one in excluded_image_types}
    return {
        getattr(traits, TRAITS[capability]): supported and capability not in excluded
        for capability, supported in capabilities.items()
        if capability in TRAITS
    }


def known_traits(prefix: str) -> list[str]:
    """The traits that placement knows whose names begin so.

    Raises:
        ExtraMissing: os-traits is not installed.
    """
    found: list[str] = _os_traits().get_traits(prefix)
    return found


def _os_traits() -> Any:
    try:
        return import_module("os_traits")
    except ImportError as error:
        raise ExtraMissing("os-traits is not installed", hint="pip install 'underlay[compute]'") from error
