"""What the configuration says to a compute driver. It is read when it is asked for, because the contract has static methods."""

from collections.abc import Collection, Mapping
from typing import Any

from underlay.compute.capabilities import IMAGE_TYPE
from underlay.config import load_config
from underlay.config.document import Compute

_MIB_IN_GIB = 1024
_RATIOS = {"VCPU": "cpu", "MEMORY_MB": "ram", "DISK_GB": "disk"}


def configured_driver() -> str:
    """The name of the driver, empty when none is configured.

    Raises:
        ConfigError: here and below, as `load_config`.
    """
    return load_config().compute.compute_driver


def excluded_image_types() -> Collection[str]:
    """The image types that this host is not to be given."""
    return load_config().compute.image_type_exclude_list


def _check_image_type_exclude_list(capability: str, supported: bool) -> bool:
    """Whether an image type is supported and the configuration does not leave it out."""
    return supported and capability.removeprefix(IMAGE_TYPE) not in excluded_image_types()


def reserved_disk_gib(options: Compute | None = None) -> int:
    """GiB of disk that are the host's own, rounded up; options as in `allocation_ratios`."""
    options = load_config().compute if options is None else options
    return -(-options.reserved_host_disk_mb // _MIB_IN_GIB)


def allocation_ratios(inventory: Mapping[str, Mapping[str, Any]], *, options: Compute | None = None) -> dict[str, float]:
    """By resource class: the ratio that is set; else the initial one of a class without inventory, and the inventory's own.

    Args:
        options: of a host that is there already; None: what is configured.
    """
    options = load_config().compute if options is None else options
    return {
        resource: getattr(options, f"{name}_allocation_ratio") or _unset(resource, name, options, inventory)
        for resource, name in _RATIOS.items()
    }


def _unset(resource: str, name: str, options: object, inventory: Mapping[str, Mapping[str, Any]]) -> float:
    if resource in inventory:
        return float(inventory[resource]["allocation_ratio"])
    return float(getattr(options, f"initial_{name}_allocation_ratio"))
