"""What a driver may write down about an instance beside the instance itself, for people who look at a host."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from underlay.compute.arguments import Instance, NetworkInfo
from underlay.version import __version__


@dataclass(frozen=True, slots=True)
class FlavorMeta:
    """The flavor: memory and swap in MiB, disks in GiB."""

    name: str
    flavorid: str
    memory_mb: int
    vcpus: int
    root_gb: int
    ephemeral_gb: int
    extra_specs: Mapping[str, str]
    swap: int


@dataclass(frozen=True, slots=True)
class ImageMeta:
    """The image: min_disk in GiB, min_ram in MiB."""

    id: str | None
    name: str | None
    container_format: str | None
    disk_format: str | None
    min_disk: int | None
    min_ram: int | None
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NovaInstanceMeta:
    """What the instance is called."""

    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class OwnerMeta:
    """Whose it is."""

    userid: str | None
    username: str
    projectid: str | None
    projectname: str


@dataclass(frozen=True, slots=True)
class InstanceDriverMetadata:
    """All of it.

    Attributes:
        root_type: ``image`` or ``volume``. root_id: the image that the instance was first made from.
        nova_package: what made it. creation_time: seconds since the epoch.
    """

    root_type: str
    root_id: str | None
    instance_meta: NovaInstanceMeta
    owner: OwnerMeta
    image: ImageMeta
    flavor: FlavorMeta
    network_info: NetworkInfo
    nova_package: str = f"underlay {__version__}"
    creation_time: float = field(default_factory=time.time)


def metadata_of(instance: Instance, network_info: NetworkInfo) -> InstanceDriverMetadata:
    """The metadata of an instance as it is now."""
    system = instance.system_metadata
    return InstanceDriverMetadata(
        root_type="image" if instance.image_ref else "volume",
        # A shelved instance has the image of its shelf; where it came from is kept beside.
        root_id=system.get("image_base_image_ref", instance.image_ref),
        instance_meta=NovaInstanceMeta(str(instance.display_name or instance.uuid), str(instance.uuid)),
        owner=OwnerMeta(
            userid=instance.user_id,
            username=system.get("owner_user_name", "N/A"),
            projectid=instance.project_id,
            projectname=system.get("owner_project_name", "N/A"),
        ),
        image=_image(instance),
        flavor=_flavor(instance.flavor),
        network_info=network_info,
    )


def _image(instance: Instance) -> ImageMeta:
    meta = instance.image_meta
    return ImageMeta(
        id=instance.image_ref,
        name=instance.system_metadata.get("image_name"),
        container_format=field_of(meta, "container_format"),
        disk_format=field_of(meta, "disk_format"),
        min_disk=field_of(meta, "min_disk"),
        min_ram=field_of(meta, "min_ram"),
        properties=_properties(meta),
    )


def _flavor(flavor: Any) -> FlavorMeta:
    return FlavorMeta(
        name=flavor.name,
        flavorid=flavor.flavorid,
        memory_mb=flavor.memory_mb,
        vcpus=flavor.vcpus,
        root_gb=flavor.root_gb,
        ephemeral_gb=flavor.ephemeral_gb,
        extra_specs=flavor.extra_specs,
        swap=flavor.swap,
    )


def field_of(record: Any, name: str) -> Any:
    """A field, or None: one of a versioned object may be there and not be set, and then it must not be asked for."""
    is_set, known = getattr(record, "obj_attr_is_set", None), getattr(record, "fields", None)
    if is_set is None or (known is not None and name not in known):  # it answers for its own fields only
        return getattr(record, name, None)
    return getattr(record, name, None) if is_set(name) else None


def _properties(meta: Any) -> Mapping[str, Any]:
    properties = meta.properties
    return properties if isinstance(properties, Mapping) else dict(properties.to_dict())
