"""How tagged devices are written down, in an instance's ``device_metadata``, as often as libvirt may have moved them.

The driver makes the records, and the service keeps them: nothing is saved here.
"""

import logging
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import Any

from underlay.compute.arguments import Instance, NetworkInfo, Vif
from underlay.compute.devicemetadata import InstanceDeviceMetadata
from underlay.compute.errors import ComputeError
from underlay.compute.libvirt.devicerecords import Tags, records_of, tags_of_disks, tags_of_records, tags_of_rows, tags_of_vifs
from underlay.compute.libvirt.guest import Guest, GuestDisk
from underlay.compute.libvirt.site import Site
from underlay.compute.metadata import field_of

_LOG = logging.getLogger(__name__)


def known(instance: Instance, vifs: Iterable[Vif] = (), disks: Iterable[GuestDisk] = ()) -> Tags:
    """All that is known of the tags of an instance: by its earlier records, by its service's own, and by what is told now.

    Args:
        vifs, disks: that it is to have.
    """
    earlier = tags_of_records(field_of(instance, "device_metadata"))
    return earlier | _kept(instance) | tags_of_vifs(vifs) | tags_of_disks(disks)


def write_down(site: Site, instance: Instance, guest: Guest, network_info: NetworkInfo | None) -> None:
    """Record the devices of a guest that libvirt has just been told of, where it will find them when it starts.

    Raises:
        InstanceNotFound, HypervisorUnavailable, OperationFailed
    """
    _set(instance, records(site, instance, guest, network_info))


def records(
    site: Site, instance: Instance, guest: Guest, network_info: NetworkInfo | None, *, is_rescue: bool = False
) -> InstanceDeviceMetadata | None:
    """What `write_down` writes, for which libvirt is not asked when nothing is tagged; nothing is changed.

    Args:
        is_rescue: disks are other devices than they are called at other times.

    Raises:
        as `write_down`
    """
    tags = known(instance, network_info or (), guest.disks)
    if is_rescue:
        tags = replace(tags, disks=tags_of_disks(guest.disks).disks)
    return records_of(site.domain(instance).xml(inactive=True), tags) if tags else None


def write_down_change(site: Site, instance: Instance, tags: Tags) -> None:
    """Record the devices of an instance that was given one or has lost one. That is done, so a failure here is a warning."""
    try:
        domain = site.domain(instance)
        _set(instance, records_of(domain.running_xml() or domain.xml(inactive=True), tags) if tags else None)
    except ComputeError as error:
        _LOG.warning("where the tagged devices of the instance %s are is not known: %s", instance.uuid, error)


def _kept(instance: Instance) -> Tags:
    """What a service keeps itself: its rows of block devices, as Nova's instances give them, and its interfaces."""
    rows, interfaces = getattr(instance, "get_bdms", tuple), getattr(instance, "get_network_info", tuple)
    return tags_of_rows(rows() or ()) | tags_of_vifs(interfaces() or ())


def _set(instance: Instance, found: InstanceDeviceMetadata | None) -> None:
    if hasattr(instance, "obj_attr_is_set"):
        instance.device_metadata = _as_novas(found)
    elif found != field_of(instance, "device_metadata"):  # a record that keeps nothing of devices need not take any
        instance.device_metadata = found


def _as_novas(record: Any) -> Any:
    """The same record as an object of Nova's, which takes nothing else; what is not known is not set."""
    if isinstance(record, tuple):
        return [_as_novas(one) for one in record]
    if not is_dataclass(record):
        return record
    known_fields = {one.name: getattr(record, one.name) for one in fields(record)}
    made = {name: _as_novas(value) for name, value in known_fields.items() if value is not None}
    return getattr(import_module("nova.objects"), type(record).__name__)(**made)
