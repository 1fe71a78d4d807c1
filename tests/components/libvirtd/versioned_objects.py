"""Objects whose attributes may be there and not be set, as those that Nova carries between hosts.

Those of Nova itself are read and written in `tests/components/nova`, where there is no libvirt.
"""

import json
from dataclasses import fields
from typing import Any

from underlay.compute import livemigration


class _Versioned:
    FIELDS: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._set: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.FIELDS:
            raise AttributeError(name)
        if name not in self._set:
            raise NotImplementedError(f"Cannot load '{name}' in the base class")
        return self._set[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.FIELDS:
            self._set[name] = value
        else:
            super().__setattr__(name, value)

    def obj_attr_is_set(self, name: str) -> bool:
        if name not in self.FIELDS:
            raise ValueError(f"{name} is no valid attribute")
        return name in self._set


class LibvirtLiveMigrateBDMInfo(_Versioned):
    FIELDS = frozenset(
        {"serial", "bus", "dev", "type", "format", "boot_index", "connection_info_json", "encryption_secret_uuid"}
    )

    @property
    def connection_info(self) -> Any:
        return json.loads(self.connection_info_json)

    @connection_info.setter
    def connection_info(self, told: Any) -> None:
        self.connection_info_json = json.dumps(told)


class LibvirtLiveMigrateData(_Versioned):
    FIELDS = frozenset(field.name for field in fields(livemigration.LibvirtLiveMigrateData))
