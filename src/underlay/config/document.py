"""The configuration file as it is written: its tables, keys and defaults, and nothing of what they mean."""

from typing import Annotated

import msgspec

from underlay.config.disks import DisksTable
from underlay.config.follow import FollowTable
from underlay.config.libvirt import LibvirtTable
from underlay.config.sources import SourceTables
from underlay.naming import CacheKind

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Instances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where instances and their disks are, and who knows them."""

    path: str = "/var/lib/nova/instances"
    lock_prefix: str = "nova-"
    inventory: str = "none"
    hosts: list[str] = []
    extra_roots: list[str] = []


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cache."""

    kind: CacheKind
    path: str
    force_raw_images: bool | None = None
    validation: bool = True
    virtual_size_limit: str | int = "10TiB"
    nova_locks: str | bool = True
    remove_unused_base_images: bool = True
    remove_unused_original_minimum_age_seconds: _Count = 86400
    remove_unused_resized_minimum_age_seconds: _Count = 3600
    leftover_minimum_age: str | int = "1d"
    keep_recent: str | int = "15min"
    ttl: str | int | None = None
    priority: int = 0
    max_size: str | int | None = None
    free_low: str | int | None = None
    free_high: str | int | None = None
    lease_on_fetch: str | int | None = None


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of a transfer that breaks."""

    attempts: _Positive = 4
    first_wait: str | int = "0.5s"
    longest_wait: str | int = "30s"


class Checksums(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose lists of checksums are believed."""

    keyrings: list[str] = []
    require_signature: bool = True


_Ratio = Annotated[float, msgspec.Meta(ge=0)]


class Compute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a compute driver is to go by. A ratio of 0 is one that is not set."""

    compute_driver: str = ""
    cpu_allocation_ratio: _Ratio | None = None
    ram_allocation_ratio: _Ratio | None = None
    disk_allocation_ratio: _Ratio | None = None
    initial_cpu_allocation_ratio: _Ratio = 4.0
    initial_ram_allocation_ratio: _Ratio = 1.0
    initial_disk_allocation_ratio: _Ratio = 1.0
    reserved_host_cpus: _Count = 0
    reserved_host_memory_mb: _Count = 512
    reserved_host_disk_mb: _Count = 0
    image_type_exclude_list: list[str] = []


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    host: str | None = None
    precache_concurrency: _Positive = 1
    instances: Instances = Instances()
    caches: dict[str, Cache] = {}
    sources: SourceTables = SourceTables()
    transfer: Transfer = Transfer()
    checksums: Checksums = Checksums()
    disks: DisksTable = DisksTable()
    follow: FollowTable = FollowTable()
    compute: Compute = Compute()
    libvirt: LibvirtTable = LibvirtTable()
