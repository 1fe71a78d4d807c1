"""What a compute service passes to its driver: its own objects, of which a driver reads attributes and nothing else.

The names stand in the signatures of the contract, so that a reader knows what is meant. They are no classes of ours: Nova's
objects are accepted as they are, and so is anything else with the same attributes. The tables of docs/reference/compute.md say
which attributes those are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Context: TypeAlias = Any
"""Who asks. A driver hands it back to the service, and looks into nothing of it."""

Instance: TypeAlias = Any
"""A virtual machine's record: ``uuid``, ``name``, ``host``, ``flavor``, ``image_ref``, ``system_metadata``, ``get(name)`` …"""

Flavor: TypeAlias = Any
"""An instance's size: ``memory_mb``, ``swap`` (MiB), ``vcpus``, ``root_gb``, ``ephemeral_gb`` (GiB), ``extra_specs`` …"""

ImageMeta: TypeAlias = Any
"""An image's record: ``id``, ``disk_format``, ``size`` (bytes), ``min_disk`` (GiB), ``min_ram`` (MiB), ``properties`` …"""

Migration: TypeAlias = Any
"""A move or a resize: ``source_compute``, ``dest_compute``, ``migration_type``, ``status``, the two flavors' ids."""

MigrateData: TypeAlias = Any
"""What two hosts tell each other about a live migration: see `underlay.compute.livemigration`."""

Vif: TypeAlias = Mapping[str, Any]
"""One virtual interface: ``id``, ``address`` (MAC), ``type``, ``network``, ``devname``, ``details`` …"""

NetworkInfo: TypeAlias = Sequence[Vif]
"""All virtual interfaces of an instance, in order. Touching it may wait for their allocation, and raise what that raised."""

BlockDeviceInfo: TypeAlias = Mapping[str, Any]
"""What `underlay.compute.blockdevices.get_block_device_info` makes."""

BlockDeviceMapping: TypeAlias = Any
"""One row of what an instance's devices are made from: ``source_type``, ``destination_type``, ``device_name`` …"""

ConnectionInfo: TypeAlias = Mapping[str, Any]
"""How a volume is reached: ``driver_volume_type``, ``data``, ``serial``, perhaps ``multiattach``."""

Allocations: TypeAlias = Mapping[str, Any]
"""What placement has given: by the UUID of a resource provider, its ``generation`` and the ``resources`` by class."""

AccelInfo: TypeAlias = Sequence[Mapping[str, Any]]
"""Accelerators that are bound to an instance, one mapping each."""

ShareInfo: TypeAlias = Any
"""File shares that an instance mounts."""

DriverDisk: TypeAlias = Mapping[str, Any]
"""One of the mappings of `underlay.compute.devices`."""


def refuse_other_than_instance(instance: Instance, *, method: str) -> None:
    """Refuse what is no instance where an older and a newer caller put different things into one place.

    Raises:
        TypeError: it has no uuid.
    """
    if getattr(instance, "uuid", None) is None:
        raise TypeError(
            f"{method}(instance, network_info) was given {type(instance).__name__} as its instance, which has no uuid; "
            "a caller that passes the context first needs to leave it out"
        )
