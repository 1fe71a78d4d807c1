"""The driver: each theme of the contract, on one site."""

from typing import Any

from underlay.compute.capabilities import no_capabilities
from underlay.compute.driver import ComputeDriver
from underlay.compute.libvirt.contract.diagnosis import LibvirtDiagnosis
from underlay.compute.libvirt.contract.images import LibvirtImages
from underlay.compute.libvirt.contract.lifecycle import LibvirtLifeCycle
from underlay.compute.libvirt.contract.livemigration import LibvirtLiveMigration
from underlay.compute.libvirt.contract.networks import LibvirtNetworks
from underlay.compute.libvirt.contract.power import LibvirtPower
from underlay.compute.libvirt.contract.resize import LibvirtResize
from underlay.compute.libvirt.contract.resources import LibvirtResources
from underlay.compute.libvirt.contract.sharedstorage import LibvirtSharedStorage
from underlay.compute.libvirt.contract.volumes import LibvirtVolumes
from underlay.compute.libvirt.livemigration.moves import Moves
from underlay.host import Host

_CAN = (
    "has_imagecache",
    "supports_attach_interface",
    "supports_device_tagging",
    "supports_tagged_attach_interface",
    "supports_tagged_attach_volume",
    "supports_extend_volume",
    "supports_multiattach",
    *(f"supports_image_type_{one}" for one in ("aki", "ami", "ari", "iso", "raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")),
)


class LibvirtDriver(
    LibvirtLifeCycle,
    LibvirtPower,
    LibvirtVolumes,
    LibvirtNetworks,
    LibvirtDiagnosis,
    LibvirtResize,
    LibvirtLiveMigration,
    LibvirtSharedStorage,
    LibvirtResources,
    LibvirtImages,
    ComputeDriver,
):
    """Instances on this host's libvirt. Safe to share between threads.

    Args:
        host: whose caches and configuration it goes by; None: what is configured when `init_host` is called.
    """

    def __init__(self, virtapi: Any, *, host: Host | None = None) -> None:
        super().__init__(virtapi)
        self.underlay = host
        self.moves = Moves()
        self.capabilities = no_capabilities() | dict.fromkeys(_CAN, True)
