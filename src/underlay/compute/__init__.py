"""The contract between a compute service and a hypervisor: `ComputeDriver`, what it speaks in, and how a driver is found.

Names, signatures, shapes and errors are those that Nova's compute service uses, so what is written for its drivers fits.
docs/reference/compute.md has every method. The names below are imported on first use.
"""

from typing import TYPE_CHECKING

from underlay.later import exports

if TYPE_CHECKING:
    from underlay.compute.blockdevices import (
        block_device_info_get_encrypted_disks,
        block_device_info_get_ephemerals,
        block_device_info_get_image,
        block_device_info_get_mapping,
        block_device_info_get_root_device,
        block_device_info_get_swap,
        get_block_device_info,
        swap_is_usable,
    )
    from underlay.compute.devices import (
        convert_all_volumes,
        convert_blanks,
        convert_ephemerals,
        convert_images,
        convert_local_images,
        convert_snapshots,
        convert_swap,
        convert_volumes,
        get_swap,
        legacy_block_devices,
    )
    from underlay.compute.driver import ComputeDriver
    from underlay.compute.errors import ComputeError, DriverNotLoaded
    from underlay.compute.events import Event, InstanceEvent, LifecycleEvent
    from underlay.compute.loader import is_xenapi, load_compute_driver
    from underlay.compute.providers import ProviderTree
    from underlay.compute.states import InstanceInfo

__all__ = [
    "ComputeDriver",
    "ComputeError",
    "DriverNotLoaded",
    "Event",
    "InstanceEvent",
    "InstanceInfo",
    "LifecycleEvent",
    "ProviderTree",
    "block_device_info_get_encrypted_disks",
    "block_device_info_get_ephemerals",
    "block_device_info_get_image",
    "block_device_info_get_mapping",
    "block_device_info_get_root_device",
    "block_device_info_get_swap",
    "convert_all_volumes",
    "convert_blanks",
    "convert_ephemerals",
    "convert_images",
    "convert_local_images",
    "convert_snapshots",
    "convert_swap",
    "convert_volumes",
    "get_block_device_info",
    "get_swap",
    "is_xenapi",
    "legacy_block_devices",
    "load_compute_driver",
    "swap_is_usable",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "underlay.compute.blockdevices": [
            "block_device_info_get_encrypted_disks",
            "block_device_info_get_ephemerals",
            "block_device_info_get_image",
            "block_device_info_get_mapping",
            "block_device_info_get_root_device",
            "block_device_info_get_swap",
            "get_block_device_info",
            "swap_is_usable",
        ],
        "underlay.compute.devices": [
            "convert_all_volumes",
            "convert_blanks",
            "convert_ephemerals",
            "convert_images",
            "convert_local_images",
            "convert_snapshots",
            "convert_swap",
            "convert_volumes",
            "get_swap",
            "legacy_block_devices",
        ],
        "underlay.compute.driver": ["ComputeDriver"],
        "underlay.compute.errors": ["ComputeError", "DriverNotLoaded"],
        "underlay.compute.events": ["Event", "InstanceEvent", "LifecycleEvent"],
        "underlay.compute.loader": ["is_xenapi", "load_compute_driver"],
        "underlay.compute.providers": ["ProviderTree"],
        "underlay.compute.states": ["InstanceInfo"],
    },
)
