"""Names to adapters: schemes to sources, names to backends, kinds to inventories. Third parties add theirs by entry points.

The adapters that come with Underlay are imported without reading the installed packages' metadata, which costs more than the
rest of a short command together; only a name that is not ours makes us look there.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, cast

from underlay.contracts import DiskBackend, ImageSource, InstanceInventory
from underlay.errors import ConfigError, ExtraMissing, UnknownBackend, UnknownScheme

_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "az": "underlay.sources.objects.source:ObjectSource",
        "file": "underlay.sources.file:FileSource",
        "gs": "underlay.sources.objects.source:ObjectSource",
        "glance": "underlay.sources.glance:GlanceSource",
        "http": "underlay.sources.http:HttpSource",
        "https": "underlay.sources.http:HttpSource",
        "oci": "underlay.sources.oci.source:OciSource",
        "s3": "underlay.sources.objects.source:ObjectSource",
        "simplestreams": "underlay.sources.simplestreams:SimplestreamsSource",
    }
)
_DISKS: Mapping[str, str] = MappingProxyType(
    {
        "flat": "underlay.disks.flat:FlatBackend",
        "lvm": "underlay.disks.lvm:LvmBackend",
        "ploop": "underlay.disks.ploop:PloopBackend",
        "qcow2": "underlay.disks.qcow2:Qcow2Backend",
        "rbd": "underlay.disks.rbd:RbdBackend",
    }
)
_INVENTORIES: Mapping[str, str] = MappingProxyType(
    {
        "file": "underlay.inventory.file:FileInventory",
        "libvirt": "underlay.inventory.libvirt:LibvirtInventory",
        "openstack": "underlay.inventory.openstack:OpenstackInventory",
    }
)
_ALIASES: Mapping[str, str] = MappingProxyType({"raw": "flat"})  # Nova calls the flat backend by both names


def open_source(scheme: str, arguments: Mapping[str, Any]) -> ImageSource:
    """The source that serves a scheme, with its configured arguments. No I/O.

    Raises:
        UnknownScheme: the hint lists the known ones. ExtraMissing: its adapter needs something that is not installed.
    """
    location = _SOURCES.get(scheme) or _entry_points("underlay.sources").get(scheme)
    if location is None:
        known = ", ".join(sorted({*_SOURCES, *_entry_points("underlay.sources")}))
        raise UnknownScheme(f"no source serves {scheme!r} refs", hint=f"known schemes: {known}")
    return cast("ImageSource", _load(location)(**arguments))


def open_backend(name: str, arguments: Mapping[str, Mapping[str, Any]]) -> DiskBackend:
    """The disk backend of this name. No I/O.

    Args:
        arguments: those that are configured for each backend, by its name.

    Raises:
        UnknownBackend: the hint lists the known ones. ExtraMissing: its adapter needs something that is not installed.
        ConfigError: the adapter lacks an argument that it cannot do without.
    """
    name = _ALIASES.get(name, name)
    location = _DISKS.get(name) or _entry_points("underlay.disks").get(name)
    if location is None:
        known = ", ".join(sorted({"default", *_ALIASES, *known_backends()}))
        raise UnknownBackend(f"there is no disk backend {name!r}", hint=f"known backends: {known}")
    return cast("DiskBackend", _load(location)(**arguments.get(name, {})))


def known_backends() -> list[str]:
    """The names of all disk backends, those of third parties among them."""
    return sorted({*_DISKS, *_entry_points("underlay.disks")})


def open_inventory(text: str, *, host: str, hosts: Sequence[str]) -> InstanceInventory | None:
    """The inventory of instances that a configuration names as ``KIND:LOCATION``; None for ``none``. No I/O.

    Args:
        hosts: every host that shares the storage, ``host`` among them.

    Raises:
        ConfigError: the hint lists the known kinds. ExtraMissing: the adapter needs something that is not installed.
    """
    if text == "none":
        return None
    kind, colon, location = text.partition(":")
    adapter = _INVENTORIES.get(kind) or _entry_points("underlay.inventories").get(kind)
    if adapter is None or not colon:
        known = ", ".join(sorted({f"{one}:…" for one in (*_INVENTORIES, *_entry_points("underlay.inventories"))}))
        raise ConfigError(f"there is no inventory of instances {text!r}", hint=f"known inventories: none, {known}")
    return cast("InstanceInventory", _load(adapter)(location, host=host, hosts=hosts))


def _load(location: str) -> Any:
    module, _, attribute = location.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ExtraMissing(f"the adapter {location} cannot be loaded: {error}", hint="install what it needs") from error


def _entry_points(group: str) -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=group)}
