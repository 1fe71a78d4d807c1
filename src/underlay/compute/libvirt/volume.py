"""A volume as its owner says how it is reached: what is in a connection, checked. Pure.

A volume is somebody else's. It is attached and let go of; what is on it is never looked at, and its format is never guessed:
it is raw, unless the connection says ``format`` qcow2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import Any
from uuid import UUID

from underlay.compute.arguments import ConnectionInfo
from underlay.compute.errors import InvalidInput, NotSupported, VolumeDriverNotFound

LOCAL, RBD = "local", "rbd"
_FORMATS = frozenset({"raw", "qcow2"})
_MODES = MappingProxyType({"rw": False, "ro": True})
_IMAGE_PARTS = (2, 3)  # pool/image, or pool/namespace/image
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume.

    Attributes:
        kind: ``local`` or ``rbd``. id: what its owner calls it, if that is known.
        source: the path of a local one, ``pool/image`` of one in Ceph. format: raw or qcow2.
        read_only: the guest may not write to it. discard: what the guest gives up is given back.
        shared: other instances may have it at the same time.
        servers: Ceph's monitors with their ports; none: as the host is configured. user, secret: who asks, and the UUID of
            libvirt's secret that has the key.
    """

    kind: str
    id: str | None
    source: str
    format: str = "raw"
    read_only: bool = False
    discard: bool = False
    shared: bool = False
    servers: tuple[tuple[str, int], ...] = ()
    user: str | None = None
    secret: str | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.id or self.source


def volume_of(connection: ConnectionInfo, *, own: Mapping[str, Any] | None = None) -> Volume:
    """The volume that a connection leads to.

    Args:
        own: ``user`` and ``secret`` of this host's own Ceph, for a connection that names a user and no secret.

    Raises:
        VolumeDriverNotFound: another kind. NotSupported: it is encrypted, or shared and not raw.
        InvalidInput: something is missing, or cannot be meant.
    """
    if not (_is_mapping(connection) and _is_mapping(connection.get("data") or {})):
        raise InvalidInput(reason="nobody says how the volume is reached: its connection_info is none")
    kind = connection.get("driver_volume_type")
    if kind not in (LOCAL, RBD):
        raise VolumeDriverNotFound(driver_type=str(kind))
    told: Mapping[str, Any] = connection.get("data") or {}
    if told.get("encrypted"):
        raise NotSupported("encrypted volumes are not attached here: nothing decrypts them")
    told_id, shared = connection.get("serial") or told.get("volume_id"), bool(connection.get("multiattach"))
    where = _local(told) if kind == LOCAL else _rbd(told, own or {})
    if shared and where.get("format", "raw") != "raw":  # whoever writes changes what the others remember of its tables
        raise NotSupported("a volume that several instances have is raw: no other format can be written by several")
    return Volume(
        kind=kind,
        id=None if told_id is None else str(told_id),
        read_only=_chosen(told, "access_mode", _MODES, "rw"),
        discard=told.get("discard") is True,
        shared=shared,
        **where,
    )


def _is_mapping(told: object) -> bool:
    return isinstance(told, Mapping)


def _local(told: Mapping[str, Any]) -> dict[str, Any]:
    path, disk_format = told.get("device_path"), told.get("format") or "raw"
    if not isinstance(path, str) or not path:
        raise InvalidInput(reason="a local volume has no device_path")
    if not path.startswith("/") or path.startswith("//") or ".." in PurePath(path).parts or not path.isprintable():
        raise InvalidInput(reason=f"the volume's device_path {path!r} is not a plain absolute path")
    if disk_format not in _FORMATS:
        raise InvalidInput(reason=f"the volume's format is {disk_format!r}: it is raw, or qcow2")
    return {"source": path, "format": disk_format}


def _rbd(told: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    name = told.get("name")
    if not isinstance(name, str) or not name.isprintable() or not _is_image(name):
        raise InvalidInput(reason=f"the volume's name {name!r} is not POOL/IMAGE")
    where: dict[str, Any] = {"source": name, "servers": _servers(told)}
    if not told.get("auth_enabled"):
        return where
    user, secret = told.get("auth_username"), told.get("secret_uuid")
    if secret is None:  # the storage's service did not say, so it is this host's own Ceph that is meant
        user, secret = own.get("user") or user, own.get("secret")
    if not user or secret is None:
        raise InvalidInput(reason="the volume wants its user to be known, and names no user or no secret_uuid")
    return {**where, "user": str(user), "secret": _uuid(secret)}


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return len(parts) in _IMAGE_PARTS and all(parts) and "@" not in name


def _servers(told: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    hosts, ports = told.get("hosts") or (), told.get("ports") or ()
    if len(hosts) != len(ports):
        raise InvalidInput(reason=f"the volume has {len(hosts)} hosts and {len(ports)} ports")
    return tuple((_host(host), _port(port)) for host, port in zip(hosts, ports, strict=True))


def _host(host: object) -> str:
    text = str(host).removeprefix("[").removesuffix("]")  # libvirt wants an IPv6 address bare
    if not text or not text.isprintable() or "/" in text:
        raise InvalidInput(reason=f"the volume's host {host!r} is none")
    return text


def _port(port: object) -> int:
    text = str(port)
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= _HIGHEST_PORT):
        raise InvalidInput(reason=f"the volume's port {port!r} is none")
    return int(text)


def _uuid(text: object) -> str:
    try:
        return str(UUID(str(text)))
    except ValueError as error:
        raise InvalidInput(reason="the volume's secret_uuid is no UUID of a secret of libvirt's") from error


def _chosen(told: Mapping[str, Any], key: str, meanings: Mapping[str, bool], default: str) -> bool:
    value = told.get(key) or default
    if value not in meanings:
        raise InvalidInput(reason=f"the volume's {key} is {value!r}: known are {', '.join(meanings)}")
    return meanings[value]
