"""The configuration: one TOML file, or the embedded default. The only reader of either, and of the environment."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from underlay.errors import ConfigError, InvalidName, InvalidSize
from underlay.naming import CacheKind, plain_name
from underlay.store import Store
from underlay.units import parse_duration, parse_size

SYSTEM_FILE = Path("/etc/underlay/underlay.toml")
VARIABLE = "UNDERLAY_CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What this host's Underlay works with.

    Attributes:
        origin: the file that it was read from; None for the embedded default, whose directories are made on first use.
        caches: by name; the first is used when none is named.
        sources: for each scheme, the arguments of its source.
        instances: the directory that holds a directory for each instance.
    """

    origin: Path | None
    caches: Mapping[str, Store]
    sources: Mapping[str, Mapping[str, Any]]
    instances: Path
    use_cow_images: bool


def load_config(file: Path | None = None) -> Config:
    """The configuration in ``file``, else in ``$UNDERLAY_CONFIG``, the system's or the user's; else the embedded default.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key or a value of the wrong kind.
    """
    path = file or _first_file()
    if path is None:
        return embedded_config(_data_directory())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse_config(text, origin=path)


def parse_config(text: str, *, origin: Path) -> Config:
    """The configuration in a TOML text; relative paths are refused, because a service has no directory to start from.

    Raises:
        ConfigError
    """
    try:
        document = msgspec.convert(tomllib.loads(text), _Document)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {error}", hint="docs/reference/configuration.md lists every key") from error
    try:
        return _config(document, origin)
    except (InvalidSize, InvalidName) as error:
        raise ConfigError(f"{origin}: {error}", hint=error.hint) from error


def embedded_config(data: Path) -> Config:
    """The configuration of a host without one: everything below one directory, files of this host allowed."""
    document = _Document(
        instances=_Instances(path=os.fspath(data / "instances")),
        caches={
            "base": _Cache(kind=CacheKind.BASE, path=os.fspath(data / "base")),
            "masters": _Cache(kind=CacheKind.MASTERS, path=os.fspath(data / "masters")),
        },
        sources=_Sources(file=_FileOptions(allowed_paths=["/"])),
    )
    return _config(document, None)


class _Instances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = "/var/lib/nova/instances"
    lock_prefix: str = "nova-"


class _Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: CacheKind
    path: str
    force_raw_images: bool | None = None
    validation: bool = True
    virtual_size_limit: str | int = "10TiB"
    nova_locks: str | bool = True


class _HttpOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revalidate_after: str | int = "5min"
    connect_timeout: str | int = "10s"
    read_timeout: str | int = "60s"
    ca_file: str | None = None


class _FileOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allowed_paths: list[str] = []


class _Sources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    http: _HttpOptions = _HttpOptions()
    file: _FileOptions = _FileOptions()


class _Disks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    use_cow_images: bool = True


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instances: _Instances = _Instances()
    caches: dict[str, _Cache] = {}
    sources: _Sources = _Sources()
    disks: _Disks = _Disks()


def _config(document: _Document, origin: Path | None) -> Config:
    instances = _absolute(document.instances.path, "instances.path", origin)
    caches = {
        plain_name(name, what="a cache"): _store(name, cache, document, instances, origin)
        for name, cache in document.caches.items()
    }
    if not caches:
        raise ConfigError(f"{origin}: no cache is configured", hint="add a table such as [caches.base]")
    http = document.sources.http
    http_arguments = {
        "revalidate_after": parse_duration(_text(http.revalidate_after)),
        "connect_timeout": parse_duration(_text(http.connect_timeout)),
        "read_timeout": parse_duration(_text(http.read_timeout)),
        "ca_file": http.ca_file,
    }
    allowed = tuple(_absolute(path, "sources.file.allowed_paths", origin) for path in document.sources.file.allowed_paths)
    return Config(
        origin=origin,
        caches=caches,
        sources={"http": http_arguments, "https": http_arguments, "file": {"allowed_paths": allowed}},
        instances=instances,
        use_cow_images=document.disks.use_cow_images,
    )


def _store(name: str, cache: _Cache, document: _Document, instances: Path, origin: Path | None) -> Store:
    root = _absolute(cache.path, f"caches.{name}.path", origin)
    # Nova forces raw by default, Ironic converts only when it is asked to.
    force_raw = cache.kind is CacheKind.BASE if cache.force_raw_images is None else cache.force_raw_images
    return Store(
        root=root,
        kind=cache.kind,
        force_raw=force_raw,
        validation=cache.validation,
        virtual_size_limit=parse_size(_text(cache.virtual_size_limit)),
        nova_locks=_nova_locks(name, cache, root, instances, origin),
        nova_lock_prefix=document.instances.lock_prefix,
    )


def _nova_locks(name: str, cache: _Cache, root: Path, instances: Path, origin: Path | None) -> Path | None:
    """Nova's lock directory: ``true`` finds it when the cache lies where Nova has its own, directly below the instances."""
    if isinstance(cache.nova_locks, str):
        return _absolute(cache.nova_locks, f"caches.{name}.nova_locks", origin)
    beside_nova = cache.kind is CacheKind.BASE and root.parent == instances
    return instances / "locks" if cache.nova_locks and beside_nova else None


def _absolute(text: str, key: str, origin: Path | None) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or re.search(r"[\x00-\x1f]", text):
        raise ConfigError(f"{origin}: {key} is {text!r}, not a plain absolute path")
    return path


def _text(value: str | int) -> str:
    return str(value)  # a bare number has no unit, which the parsers say


def _first_file() -> Path | None:
    if named := os.environ.get(VARIABLE):
        return Path(named)
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "underlay" / "underlay.toml"
    return next((path for path in (SYSTEM_FILE, user) if path.is_file()), None)


def _data_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/underlay")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "underlay"
