"""Instances from a JSON file, which any tool can write: ``file:PATH``, and ``--instances FILE`` of the command line.

It is a list of objects. ``uuid`` and ``name`` are required, null means absent, and a key that is not known is an error, because
a misspelt one would say that an image is not needed.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from underlay.errors import InvalidInventory, InventoryUnavailable
from underlay.files import open_regular
from underlay.model import Ephemeral, InstanceRecord

# A uuid or a name is a directory's name. Sizes are what Nova's database keeps, signed integers of 32 bits.
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
_NO_NAME = re.compile(r"[/\0]|\A\.{1,2}\Z")


class FileInventory:
    """The records of one file, whatever host they are on."""

    def __init__(self, location: str, *, host: str, hosts: Sequence[str]) -> None:
        self.path = Path(location)

    def instances(self) -> Sequence[InstanceRecord]:
        """Every record of the file.

        Raises:
            InventoryUnavailable, InvalidInventory: as `read_file`.
        """
        return read_file(self.path)


class _Ephemeral(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    size_gib: _Size
    guest_format: str | None = None


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    uuid: _Name
    name: _Name
    host: str | None = None
    image_ref: str | None = None
    kernel_id: str | None = None
    ramdisk_id: str | None = None
    vm_state: str | None = None
    task_state: str | None = None
    os_type: str | None = None
    swap_mib: _Size | list[_Size] | None = None
    ephemerals: list[_Ephemeral] | None = None


class _Who(msgspec.Struct):
    uuid: str


_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_RECORD = msgspec.json.Decoder(_Record)
_WHO = msgspec.json.Decoder(_Who)


def read_file(path: Path) -> Sequence[InstanceRecord]:
    """Every record of an instance file. Records are counted from 1 in messages.

    Raises:
        InventoryUnavailable: the file is missing or cannot be read.
        InvalidInventory: it is no plain file or no JSON list, a record is malformed or there twice; says which and which field.
    """
    records: list[InstanceRecord] = []
    numbers: dict[str, int] = {}
    for number, text in enumerate(_texts(path), start=1):
        record = _record(path, number, text)
        first = numbers.setdefault(record.uuid, number)
        if first != number:
            raise InvalidInventory(
                f"{path}: {_called(number, record.uuid)} has the uuid of record {first}", hint="list an instance once"
            )
        records.append(record)
    return records


def _texts(path: Path) -> list[msgspec.Raw]:
    content = _content(path)
    try:
        content.decode()
        return _LIST.decode(content)
    except UnicodeDecodeError as error:
        raise InvalidInventory(f"{path} is not UTF-8, from byte {error.start} on") from error
    except msgspec.ValidationError as error:
        raise InvalidInventory(f"{path} is no JSON list: {error}", hint="write a list of objects, [] for none") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInventory(f"{path} is not JSON: {error}") from error


def _content(path: Path) -> bytes:
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise InvalidInventory(f"{path} is not a plain file")
        with open(open_regular(target), "rb") as file:
            return file.read()
    except OSError as error:
        raise InventoryUnavailable(f"{path} cannot be read: {error.strerror}", hint="check the path and its modes") from error
    except ValueError as error:
        raise InventoryUnavailable(f"{str(path)!r} is no path: {error}") from error


def _record(path: Path, number: int, text: msgspec.Raw) -> InstanceRecord:
    try:
        record = _RECORD.decode(text)
        for field, name in (("uuid", record.uuid), ("name", record.name)):
            if _NO_NAME.search(name):
                raise InvalidInventory(f"{path}: {_called(number, record.uuid)}: {field} {name!r} is no name of a directory")
        return _instance(record)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInventory(f"{path}: {_called(number, _uuid(text))}: {_said(error)}") from error


def _instance(record: _Record) -> InstanceRecord:
    swaps = record.swap_mib if isinstance(record.swap_mib, list) else [record.swap_mib or 0]
    return InstanceRecord(
        uuid=record.uuid,
        name=record.name,
        host=record.host or None,
        image_ref=record.image_ref or None,
        kernel_id=record.kernel_id or None,
        ramdisk_id=record.ramdisk_id or None,
        vm_state=record.vm_state,
        task_state=record.task_state,
        os_type=record.os_type,
        swap_mib=tuple(size for size in swaps if size),
        ephemerals=tuple(
            Ephemeral(size_gib=one.size_gib, guest_format=one.guest_format) for one in record.ephemerals or () if one.size_gib
        ),
    )


def _uuid(text: msgspec.Raw) -> str | None:
    try:
        return _WHO.decode(text).uuid
    except (msgspec.DecodeError, RecursionError):
        return None


def _called(number: int, uuid: str | None) -> str:
    return f"record {number}" if uuid is None else f"record {number} (uuid {uuid!r})"


def _said(error: Exception) -> str:
    """The library's words, with the field's own name in place of its path."""
    return str(error).replace("`$.", "`")
