"""What a service asks about volumes: who wants to reach them, and how much they have been used."""

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from underlay.compute.arguments import BlockDeviceMapping, Instance
from underlay.compute.errors import InstanceNotFound
from underlay.compute.libvirt import attacheddisks
from underlay.compute.libvirt.counters import DiskCounters, counters_of
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.compute.libvirt.hostaddress import own_address
from underlay.compute.libvirt.site import Site

_INITIATOR = Path("/etc/iscsi/initiatorname.iscsi")  # where open-iscsi keeps it


def connector(site: Site) -> dict[str, Any]:
    """Who this host is to a storage."""
    return connector_of(site.name, address=own_address(site.options), initiator_file=_INITIATOR)


def connector_of(host: str, *, address: str, initiator_file: Path) -> dict[str, Any]:
    """Who a host is to a storage; it has an iSCSI initiator if a file names one."""
    return {
        "ip": address,
        "initiator": _initiator(initiator_file),
        "host": host,
        "multipath": False,
        "platform": platform.machine(),
        "os_type": sys.platform,
        "do_local_attach": False,
    }


def usage(site: Site, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The counters of each volume; one without any, or that is not attached, is left out.

    Args:
        asked: for each instance ``instance`` and ``instance_bdms``, its volumes' rows.
    """
    return [told for one in asked for told in _of_instance(site, one["instance"], one["instance_bdms"])]


def _of_instance(site: Site, instance: Instance, rows: Sequence[BlockDeviceMapping]) -> Iterator[dict[str, Any]]:
    domain = site.domain(instance)
    try:
        counted = {disk.device: disk for disk in counters_of(domain.statistics()).disks}
        lasting = DomainDisks(domain).lasting()
    except InstanceNotFound:
        return
    for row in rows:
        volume_id, name = _field(row, "volume_id"), (_field(row, "device_name") or "").removeprefix("/dev/")
        nameless = (disk for disk in lasting if disk.device == name and disk.serial is None)
        attached = attacheddisks.with_id(volume_id, lasting) or next(nameless, None)
        found = None if attached is None else counted.get(attached.device)
        if found is not None and (told := _counters(found)) is not None:
            yield {"volume": volume_id, "instance": instance, **told}


def _counters(disk: DiskCounters) -> dict[str, int] | None:
    told = {
        "rd_req": disk.read_requests,
        "rd_bytes": disk.read_bytes,
        "wr_req": disk.write_requests,
        "wr_bytes": disk.write_bytes,
    }
    known = {name: value for name, value in told.items() if value is not None}
    return known if len(known) == len(told) else None


def _field(row: BlockDeviceMapping, name: str) -> Any:
    return row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)


def _initiator(path: Path) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    names = (line.partition("=")[2].strip() for line in lines if line.strip().startswith("InitiatorName="))
    return next(filter(None, names), None)
