"""What two hosts tell each other of a live migration, in Nova's versioned objects, by their attributes.

A service that speaks Nova's RPC carries ``nova.objects.LibvirtLiveMigrateData`` and nothing else, and writes to it what it
knows itself. An attribute of such an object may be there and not be set; then it must not be asked for. What Underlay's driver
says besides travels in one more entry of ``bdms``, the only field that carries free JSON: its ``serial`` is `OURS`, which no
volume has, so whoever looks for a volume there passes it over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

import msgspec

from underlay.compute.errors import MigrationPreCheckError
from underlay.compute.livemigration import (
    LibvirtLiveMigrateBDMInfo,
    LibvirtLiveMigrateData,
    UnderlayLiveMigrateData,
    VIFMigrateData,
)
from underlay.compute.metadata import field_of

OURS = "underlay"
"""The serial and the type of the entry of ``bdms`` that is no volume."""

_JSON = {"connection_info": "connection_info_json", "vif_details": "vif_details_json", "profile": "profile_json"}
_SERVICE_S = frozenset({"migration", "vifs", "old_vol_attachment_ids", "pci_dev_map_src_dst"})  # which no driver changes


def is_versioned(data: object) -> bool:
    """Whether it is one of Nova's versioned objects."""
    return hasattr(data, "obj_attr_is_set")


def read(data: Any) -> UnderlayLiveMigrateData:
    """What a versioned object says; what is not set is None.

    Raises:
        MigrationPreCheckError: what our driver has said cannot be read.
    """
    rows: Sequence[Any] = field_of(data, "bdms") or ()
    said = next((row for row in rows if field_of(row, "serial") == OURS), None)
    told = UnderlayLiveMigrateData() if said is None else _ours(_decoded(said, "connection_info"))
    bdms = tuple(_bdm(row) for row in rows if row is not said) if field_of(data, "bdms") is not None else None
    return replace(told, **{**_plain(data), "bdms": bdms, "vifs": _vifs(data)})


def write(told: UnderlayLiveMigrateData, data: Any) -> Any:
    """Write to a versioned object what a driver says; the same object. What is None, and what is the service's own, stays."""
    for name in _names(LibvirtLiveMigrateData) - _SERVICE_S - {"bdms"}:
        if (value := getattr(told, name)) is not None:
            setattr(data, name, list(value) if isinstance(value, tuple) else value)
    kind = getattr(import_module(type(data).__module__), LibvirtLiveMigrateBDMInfo.__name__)
    data.bdms = [*(_written(one, kind()) for one in told.bdms or ()), _said(told, kind())]
    return data


def _plain(data: Any) -> dict[str, Any]:
    return {name: _value(name, field_of(data, name)) for name in _names(LibvirtLiveMigrateData) - {"bdms", "vifs"}}


def _value(name: str, value: Any) -> Any:
    if name.startswith("graphics_listen_addr"):  # an address of netaddr's
        return None if value is None else str(value)
    return tuple(value) if isinstance(value, list) else value


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def _bdm(row: Any) -> LibvirtLiveMigrateBDMInfo:
    plain = {name: field_of(row, name) for name in _names(LibvirtLiveMigrateBDMInfo) - {"connection_info"}}
    return LibvirtLiveMigrateBDMInfo(**plain, connection_info=_decoded(row, "connection_info"))


def _vifs(data: Any) -> tuple[VIFMigrateData, ...] | None:
    rows = field_of(data, "vifs")
    return None if rows is None else tuple(map(_vif, rows))


def _vif(row: Any) -> VIFMigrateData:
    plain = {name: field_of(row, name) for name in ("port_id", "vif_type", "host", "source_vif")}
    decoded = {name: _decoded(row, name) for name in ("vif_details", "profile")}
    return VIFMigrateData(**plain, **decoded, vnic_type=field_of(row, "vnic_type") or "normal")


def _decoded(row: Any, name: str) -> Any:
    """What a field says that is text of JSON."""
    text = field_of(row, _JSON[name])
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise MigrationPreCheckError(reason=f"{_JSON[name]} of the data of the migration cannot be read: {error}") from error


def _written(one: LibvirtLiveMigrateBDMInfo, row: Any) -> Any:
    for name in _names(LibvirtLiveMigrateBDMInfo):
        if (value := getattr(one, name)) is not None:
            setattr(row, name, dict(value) if name == "connection_info" else value)
    return row


def _said(told: UnderlayLiveMigrateData, row: Any) -> Any:
    own = _names(UnderlayLiveMigrateData) - _names(LibvirtLiveMigrateData)
    says = {name: getattr(told, name) for name in own}
    return _written(
        LibvirtLiveMigrateBDMInfo(serial=OURS, bus="", dev="", type=OURS, connection_info=msgspec.to_builtins(says)), row
    )


def _ours(said: object) -> UnderlayLiveMigrateData:
    own = _names(UnderlayLiveMigrateData) - _names(LibvirtLiveMigrateData)
    told = {name: value for name, value in said.items() if name in own} if isinstance(said, Mapping) else {}
    try:
        return msgspec.convert(told, UnderlayLiveMigrateData)
    except msgspec.ValidationError as error:
        reason = f"what the other host's driver says of the migration makes no sense: {error}"
        raise MigrationPreCheckError(reason=reason) from error
