"""Block devices as a driver gets them: plain mappings, made from the service's own rows.

A row (a block device mapping) is an object or a mapping with ``source_type``, ``destination_type``, ``guest_format``,
``device_name`` and so on; a field that is not there, or is not set, counts as None. Sizes in it are GiB, but MiB for swap.

Of swap there is normally one, and of ephemerals any number. A row with ``no_device`` is none at all.
A row with a ``tag`` has its mapping have it as well.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from underlay.compute.arguments import BlockDeviceMapping, DriverDisk

_VOLUME_SOURCES = ("volume", "snapshot", "image", "blank")
_ENCRYPTION = ("encrypted", "encryption_secret_uuid", "encryption_format", "encryption_options")


def convert_swap(block_device_mapping: Iterable[BlockDeviceMapping]) -> list[dict[str, Any]]:
    """The swap disks among the rows, in their order.

    Returns:
        ``device_name``, ``swap_size`` (MiB, 0 when unset) and ``disk_bus`` of each, and what its row says of encryption.
    """
    return _converted(block_device_mapping, _is_swap, _swap)


def convert_ephemerals(block_device_mapping: Iterable[BlockDeviceMapping]) -> list[dict[str, Any]]:
    """The ephemeral disks among the rows, in their order.

    Returns:
        ``device_name``, ``size`` (GiB, 0 when unset), ``disk_bus``, ``device_type`` and ``guest_format`` of each, and what its
        row says of encryption.
    """
    return _converted(block_device_mapping, _is_ephemeral, _ephemeral)


def convert_local_images(block_device_mapping: Iterable[BlockDeviceMapping]) -> list[dict[str, Any]]:
    """The disks among the rows that are made from an image on this host, in their order.

    Returns:
        As `convert_ephemerals`, with ``boot_index`` 0 and ``image_id``.
    """
    return _converted(block_device_mapping, _is_local_image, _image)


def convert_volumes(block_device_mapping: Iterable[BlockDeviceMapping]) -> list[dict[str, Any]]:
    """The volumes among the rows that are there already, in their order.

    Returns:
        ``connection_info`` (decoded, {} when unset), ``mount_device``, ``delete_on_termination``, ``guest_format``,
        ``device_type``, ``disk_bus``, ``boot_index``, ``attachment_id`` and ``volume_type`` of each.

    Raises:
        ValueError: a connection is no JSON.
    """
    return _converted(block_device_mapping, _is_volume_from("volume"), _volume)


def convert_snapshots(block_device_mapping: Iterable[BlockDeviceMapping]) -> list[dict[str, Any]]:
    """The volumes that are made from a snapshot; otherwise as `convert_volumes`."""
    return _converted(block_device_mapping, _is_volume_from("snapshot"), _volume)


def convert_images(block_device_mapping: Iterable[BlockDeviceMapping]) -> list[dict[str, Any]]:
    """The volumes that are made from an image; otherwise as `convert_volumes`."""
    return _converted(block_device_mapping, _is_volume_from("image"), _volume)


def convert_blanks(block_device_mapping: Iterable[BlockDeviceMapping]) -> list[dict[str, Any]]:
    """The volumes that are empty when they are made; otherwise as `convert_volumes`."""
    return _converted(block_device_mapping, _is_volume_from("blank"), _volume)


def convert_all_volumes(*volume_bdms: BlockDeviceMapping) -> list[dict[str, Any]]:
    """Every volume among these rows: first those that are there, then those from snapshots, from images, and empty ones."""
    return [volume for source in _VOLUME_SOURCES for volume in _converted(volume_bdms, _is_volume_from(source), _volume)]


def get_swap(transformed_list: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Take the one swap disk out of a list of swap disks: its last element, which leaves the list.

    Returns:
        None when the list is empty, or when something else than swap is in it, and then the list is as it was.
    """
    if not transformed_list or any("swap_size" not in device for device in transformed_list):
        return None
    return transformed_list.pop()


def legacy_block_devices(devices: Iterable[DriverDisk]) -> list[dict[str, Any]]:
    """The same devices in the shapes of drivers whose ``need_legacy_block_device_info`` is true.

    Returns:
        Of a swap disk its ``device_name`` and ``swap_size``; of an ephemeral ``device_name``, ``size``, ``num`` and
        ``virtual_name``, numbered from 0 within this list; of a volume ``connection_info``, ``mount_device`` and
        ``delete_on_termination``.
    """
    return list(_legacy(devices))


def _legacy(devices: Iterable[DriverDisk]) -> Iterator[dict[str, Any]]:
    number = 0
    for device in devices:
        if "swap_size" in device:
            yield {"device_name": device["device_name"], "swap_size": device["swap_size"]}
        elif "mount_device" in device:
            yield {key: device[key] for key in ("connection_info", "mount_device", "delete_on_termination")}
        else:
            named = {"device_name": device["device_name"], "size": device["size"]}
            yield {**named, "num": number, "virtual_name": f"ephemeral{number}"}
            number += 1


# ------------------------------------------------------------------------------------------------------------- which it is


def _converted(
    rows: Iterable[BlockDeviceMapping],
    wanted: Callable[[BlockDeviceMapping], bool],
    made: Callable[[BlockDeviceMapping], dict[str, Any]],
) -> list[dict[str, Any]]:
    return [made(row) | _tag(row) for row in rows if not _field(row, "no_device") and wanted(row)]


def _is_blank(row: BlockDeviceMapping) -> bool:
    return (_field(row, "source_type"), _field(row, "destination_type")) == ("blank", "local")


def _is_swap(row: BlockDeviceMapping) -> bool:
    return _is_blank(row) and bool(_field(row, "guest_format") == "swap")


def _is_ephemeral(row: BlockDeviceMapping) -> bool:
    return _is_blank(row) and bool(_field(row, "guest_format") != "swap")


def _is_local_image(row: BlockDeviceMapping) -> bool:
    return (_field(row, "source_type"), _field(row, "destination_type")) == ("image", "local")


def _is_volume_from(source: str) -> Callable[[BlockDeviceMapping], bool]:
    return lambda row: (_field(row, "source_type"), _field(row, "destination_type")) == (source, "volume")


# ------------------------------------------------------------------------------------------------------- what is made of it


def _swap(row: BlockDeviceMapping) -> dict[str, Any]:
    size = _field(row, "volume_size") or 0
    return {
        "device_name": _field(row, "device_name"),
        "swap_size": size,
        "disk_bus": _field(row, "disk_bus"),
        **_encryption(row),
    }


def _ephemeral(row: BlockDeviceMapping) -> dict[str, Any]:
    named = {name: _field(row, name) for name in ("device_name", "disk_bus", "device_type", "guest_format")}
    return {**named, "size": _field(row, "volume_size") or 0, **_encryption(row)}


def _image(row: BlockDeviceMapping) -> dict[str, Any]:
    return {**_ephemeral(row), "boot_index": 0, "image_id": _field(row, "image_id")}


def _volume(row: BlockDeviceMapping) -> dict[str, Any]:
    named = ("delete_on_termination", "guest_format", "device_type", "disk_bus", "boot_index", "attachment_id", "volume_type")
    return {
        **{name: _field(row, name) for name in named},
        "mount_device": _field(row, "device_name"),
        "connection_info": _connection(_field(row, "connection_info")),
    }


def _tag(row: BlockDeviceMapping) -> dict[str, Any]:
    """Nova's drivers look a tag up in its rows; a mapping without one has no such key, and so is as Nova's."""
    tag = _field(row, "tag")
    return {"tag": tag} if tag else {}


def _connection(text: object) -> dict[str, Any]:
    if isinstance(text, Mapping):
        return dict(text)
    return json.loads(text) if isinstance(text, str | bytes) else {}


def _encryption(row: BlockDeviceMapping) -> dict[str, Any]:
    """Rows of the older kind have no such fields, and neither have their devices."""
    return {name: _field(row, name) for name in _ENCRYPTION if _has(row, name)}


def _field(row: BlockDeviceMapping, name: str) -> Any:
    if isinstance(row, Mapping):
        return row.get(name)
    return getattr(row, name, None) if _has(row, name) else None


def _has(row: BlockDeviceMapping, name: str) -> bool:
    if isinstance(row, Mapping):
        return name in row
    # To ask a versioned object for a field that is not set is an attempt to load it.
    is_set = getattr(row, "obj_attr_is_set", None)
    if is_set is not None and name in getattr(row, "fields", ()):
        return bool(is_set(name))
    return hasattr(row, name)
