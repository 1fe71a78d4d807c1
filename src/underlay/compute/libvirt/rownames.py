"""Names for devices that have none, in a service's rows."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence

from underlay.compute.arguments import BlockDeviceMapping, ImageMeta, Instance
from underlay.compute.libvirt import devicenames
from underlay.compute.libvirt.diskplan import properties_of
from underlay.compute.libvirt.site import Site
from underlay.compute.metadata import field_of


def root_name(site: Site, image: ImageMeta, row: BlockDeviceMapping) -> str:
    """The name of a root device, with ``/dev/``.

    Raises:
        InvalidInput: the bus. TooManyDiskDevices
    """
    return f"/dev/{devicenames.next_name(_bus(image, row), (), prefix=site.options.disk_prefix)}"


def name_all(site: Site, instance: Instance, root: str, rows: Sequence[BlockDeviceMapping]) -> None:
    """Name those that have no name, in their places.

    Raises:
        InvalidInput, TooManyDiskDevices
    """
    taken = _taken(root, rows)
    for row in rows:
        if not _field(row, "device_name"):
            name = devicenames.next_name(_bus(instance.image_meta, row), taken, prefix=site.options.disk_prefix)
            taken.add(name)
            _set_name(row, f"/dev/{name}")


def further_name(site: Site, instance: Instance, rows: Sequence[BlockDeviceMapping], row: BlockDeviceMapping) -> str:
    """The name of one more device, with ``/dev/``.

    Raises:
        InvalidInput, TooManyDiskDevices
    """
    taken = _taken(field_of(instance, "root_device_name"), rows)
    bus = _bus(instance.image_meta, row)
    return f"/dev/{devicenames.next_name(bus, taken, prefix=site.options.disk_prefix)}"


def _bus(image: ImageMeta, row: BlockDeviceMapping) -> str:
    wanted = _field(row, "disk_bus") or properties_of(image).get("hw_disk_bus") or "virtio"
    return devicenames.check_bus(wanted, what="disk_bus")


def _taken(root: str | None, rows: Iterable[BlockDeviceMapping]) -> set[str]:
    names = (root, *(_field(row, "device_name") for row in rows))
    return {name.removeprefix("/dev/") for name in names if name}


def _field(row: BlockDeviceMapping, name: str) -> str | None:
    value: str | None = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
    return value


def _set_name(row: BlockDeviceMapping, name: str) -> None:
    if isinstance(row, MutableMapping):
        row["device_name"] = name
    else:
        row.device_name = name
