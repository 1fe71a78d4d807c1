"""The configuration: one TOML file, or the embedded default. The only reader of either, and of the environment."""

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from underlay.errors import ConfigError, InvalidName, InvalidSize
from underlay.naming import CacheKind, plain_name
from underlay.plan import Rules
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
        host: this host's name, as its inventory and the hosts that share its storage know it.
        hosts: every host that shares the instances path and its caches; empty when none does.
        inventory: where the records of instances come from, as ``KIND:LOCATION``, or ``none``.
        extra_roots: further directories whose files may be disks.
        rules: by which a cache's unused files go, by the cache's name. leases: seconds for which a fetch into a cache leases
            what it fetched, by the cache's name; not there: it does not.
    """

    origin: Path | None
    caches: Mapping[str, Store]
    sources: Mapping[str, Mapping[str, Any]]
    instances: Path
    use_cow_images: bool
    host: str = field(default_factory=socket.gethostname)
    hosts: tuple[str, ...] = ()
    inventory: str = "none"
    extra_roots: tuple[Path, ...] = ()
    rules: Mapping[str, Rules] = field(default_factory=dict)
    leases: Mapping[str, float] = field(default_factory=dict)
    default_ephemeral_format: str | None = None
    virt_mkfs: Mapping[str, str] = field(default_factory=dict)
    precache_concurrency: int = 1


def load_config(file: Path | None = None) -> Config:
    """The configuration in ``file``, else in ``$UNDERLAY_CONFIG``, the system's or the user's; else the embedded default.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key or a value of the wrong kind.
    """
    path = file or _named_file()
    if path is not None:
        text = _read(path)
        if text is None:
            raise ConfigError(f"{path} is not there", hint="make it, or leave --config and $UNDERLAY_CONFIG out")
        return parse_config(text, origin=path)
    for path in (SYSTEM_FILE, _user_file()):
        # One that is there and cannot be read is an error: other directories than the configured ones would surprise.
        if path is not None and (text := _read(path)) is not None:
            return parse_config(text, origin=path)
    return embedded_config(_data_directory())


def _read(path: Path) -> str | None:
    """The file's text; None when there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="name another with --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from error


def parse_config(text: str, *, origin: Path) -> Config:
    """The configuration in a TOML text; relative paths are refused, because a service has no directory to start from.

    Raises:
        ConfigError
    """
    try:
        document = msgspec.convert(tomllib.loads(text), _Document)
        return _config(document, origin)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {error}", hint="docs/reference/configuration.md lists every key") from error
    except _Wrong as error:
        raise ConfigError(f"{origin}: {error}", hint=error.hint) from error


class _Wrong(Exception):
    """A value that its key cannot have; `parse_config` adds the file's name."""

    def __init__(self, key: str, what: str, *, hint: str | None = None) -> None:
        super().__init__(f"{key}: {what}")
        self.hint = hint


def embedded_config(data: Path) -> Config:
    """The configuration of a host without one: everything below one directory, files of this host allowed."""
    document = _Document(
        instances=_Instances(path=os.fspath(data / "instances")),
        caches={
            "base": _Cache(kind=CacheKind.BASE, path=os.fspath(data / "base"), lease_on_fetch="7d"),
            "masters": _Cache(kind=CacheKind.MASTERS, path=os.fspath(data / "masters")),
        },
        sources=_Sources(file=_FileOptions(allowed_paths=["/"])),
    )
    try:
        return _config(document, None)
    except _Wrong as error:
        raise ConfigError(
            f"the data directory {data} cannot be used: {error}", hint="set XDG_DATA_HOME, or use --config"
        ) from error


_Count = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Instances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = "/var/lib/nova/instances"
    lock_prefix: str = "nova-"
    inventory: str = "none"
    hosts: list[str] = []
    extra_roots: list[str] = []


class _Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: CacheKind
    path: str
    force_raw_images: bool | None = None
    validation: bool = True
    virtual_size_limit: str | int = "10TiB"
    nova_locks: str | bool = True
    remove_unused_base_images: bool = True
    remove_unused_original_minimum_age_seconds: _Count = 86400
    remove_unused_resized_minimum_age_seconds: _Count = 3600
    leftover_minimum_age: str | int = "1d"
    keep_recent: str | int = "15min"
    ttl: str | int | None = None
    priority: int = 0
    max_size: str | int | None = None
    free_low: str | int | None = None
    free_high: str | int | None = None
    lease_on_fetch: str | int | None = None


class _HttpOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revalidate_after: str | int = "5min"
    stale_if_error: bool = True
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
    default_ephemeral_format: str | None = None
    virt_mkfs: list[str] = []


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str | None = None
    precache_concurrency: _Positive = 1
    instances: _Instances = _Instances()
    caches: dict[str, _Cache] = {}
    sources: _Sources = _Sources()
    disks: _Disks = _Disks()


def _config(document: _Document, origin: Path | None) -> Config:
    instances = _absolute(document.instances.path, "instances.path")
    caches = {_cache_name(name): _store(name, cache, document, instances) for name, cache in document.caches.items()}
    if not caches:
        raise _Wrong("caches", "no cache is configured", hint="add a table such as [caches.base]")
    _check_distinct(caches, instances)
    _check_locks(caches, [instances, *(Path(path) for path in document.instances.extra_roots)])
    http = document.sources.http
    http_arguments = {
        "revalidate_after": _with_unit(parse_duration, http.revalidate_after, "sources.http.revalidate_after"),
        "stale_if_error": http.stale_if_error,
        "connect_timeout": _positive(http.connect_timeout, "sources.http.connect_timeout"),
        "read_timeout": _positive(http.read_timeout, "sources.http.read_timeout"),
        "ca_file": None if http.ca_file is None else os.fspath(_absolute(http.ca_file, "sources.http.ca_file")),
    }
    allowed = tuple(_absolute(path, "sources.file.allowed_paths") for path in document.sources.file.allowed_paths)
    return Config(
        origin=origin,
        caches=caches,
        sources={"http": http_arguments, "https": http_arguments, "file": {"allowed_paths": allowed}},
        instances=instances,
        use_cow_images=document.disks.use_cow_images,
        host=_host(document.host or socket.gethostname(), "host"),
        hosts=tuple(_host(host, "instances.hosts") for host in document.instances.hosts),
        inventory=_inventory(document.instances.inventory),
        extra_roots=tuple(_absolute(path, "instances.extra_roots") for path in document.instances.extra_roots),
        rules={name: _rules(name, cache) for name, cache in document.caches.items()},
        leases={
            name: _positive(cache.lease_on_fetch, f"caches.{name}.lease_on_fetch")
            for name, cache in document.caches.items()
            if cache.lease_on_fetch is not None
        },
        default_ephemeral_format=document.disks.default_ephemeral_format or None,
        virt_mkfs=_commands(document.disks.virt_mkfs),
        precache_concurrency=document.precache_concurrency,
    )


def _rules(name: str, cache: _Cache) -> Rules:
    key = f"caches.{name}"
    low, high = (_optional_size(value, f"{key}.{word}") for value, word in _watermarks(cache))
    if (low is None) != (high is None) or (low is not None and high is not None and low > high):
        raise _Wrong(f"{key}.free_low", "the watermarks go together, the low one first", hint="set free_low and free_high")
    return Rules(
        remove_unused=cache.remove_unused_base_images,
        original_age=float(cache.remove_unused_original_minimum_age_seconds),
        resized_age=float(cache.remove_unused_resized_minimum_age_seconds),
        leftover_age=_with_unit(parse_duration, cache.leftover_minimum_age, f"{key}.leftover_minimum_age"),
        priority=cache.priority,
        ttl=None if cache.ttl is None else _positive(cache.ttl, f"{key}.ttl"),
        keep_recent=_with_unit(parse_duration, cache.keep_recent, f"{key}.keep_recent"),
        max_size=_optional_size(cache.max_size, f"{key}.max_size"),
        free_low=low,
        free_high=high,
    )


def _watermarks(cache: _Cache) -> tuple[tuple[str | int | None, str], ...]:
    return (cache.free_low, "free_low"), (cache.free_high, "free_high")


def _optional_size(value: str | int | None, key: str) -> int | None:
    return None if value is None else int(_with_unit(parse_size, value, key))


def _host(name: str, key: str) -> str:
    try:
        return plain_name(name, what="a host")
    except InvalidName as error:
        raise _Wrong(key, str(error), hint=error.hint) from error


def _inventory(text: str) -> str:
    if text != "none" and not re.fullmatch(r"[a-z][a-z0-9_-]*:.*", text):
        raise _Wrong(
            "instances.inventory", f"{text!r} names no inventory", hint="write file:PATH, libvirt:URI, openstack:CLOUD or none"
        )
    return text


def _commands(lines: list[str]) -> dict[str, str]:
    """Nova's ``virt_mkfs``: ``os_type=command`` each; a later one of the same system wins, as in Nova."""
    for line in lines:
        if "=" not in line:
            raise _Wrong("disks.virt_mkfs", f"{line!r} is no command", hint="write OS_TYPE=COMMAND")
    return {system: command for system, _, command in (line.partition("=") for line in lines)}


def _store(name: str, cache: _Cache, document: _Document, instances: Path) -> Store:
    root = _absolute(cache.path, f"caches.{name}.path")
    prefix = document.instances.lock_prefix
    if "/" in prefix or not prefix.isprintable():
        raise _Wrong("instances.lock_prefix", f"{prefix!r} is no beginning of a file name")
    # Nova forces raw by default, Ironic converts only when it is asked to.
    force_raw = cache.kind is CacheKind.BASE if cache.force_raw_images is None else cache.force_raw_images
    return Store(
        root=root,
        kind=cache.kind,
        force_raw=force_raw,
        validation=cache.validation,
        virtual_size_limit=int(_with_unit(parse_size, cache.virtual_size_limit, f"caches.{name}.virtual_size_limit")),
        nova_locks=_nova_locks(name, cache, root, instances),
        nova_lock_prefix=prefix,
    )


def _nova_locks(name: str, cache: _Cache, root: Path, instances: Path) -> Path | None:
    """Nova's lock directory: ``true`` finds it when the cache lies where Nova has its own, directly below the instances."""
    if isinstance(cache.nova_locks, str):
        return _absolute(cache.nova_locks, f"caches.{name}.nova_locks")
    # By real paths: a symlink on the way must not make us miss Nova's locks.
    beside_nova = cache.kind is CacheKind.BASE and os.path.realpath(root.parent) == os.path.realpath(instances)
    return instances / "locks" if cache.nova_locks and beside_nova else None


def _cache_name(name: str) -> str:
    try:
        return plain_name(name, what="a cache")
    except InvalidName as error:
        raise _Wrong("caches", str(error), hint=error.hint) from error


def _check_distinct(caches: Mapping[str, Store], instances: Path) -> None:
    """Each directory has one purpose: what lies in it is judged by one set of rules."""
    seen = {instances: "instances.path"}
    for name, store in caches.items():
        key = f"caches.{name}.path"
        if other := seen.get(store.root):
            raise _Wrong(key, f"{store.root} is {other} already", hint="give each a directory of its own")
        seen[store.root] = key


def _check_locks(caches: Mapping[str, Store], roots: Sequence[Path]) -> None:
    """Nova's lock directory is not looked through for disks, so it must hold none."""
    for name, store in caches.items():
        for root in (*roots, *(other.root for other in caches.values())):
            if store.nova_locks is not None and root.is_relative_to(store.nova_locks):
                raise _Wrong(f"caches.{name}.nova_locks", f"{store.nova_locks} holds {root}", hint="name Nova's lock directory")


def _absolute(text: str, key: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or text.startswith("//") or ".." in path.parts or re.search(r"[\x00-\x1f\x7f]", text):
        raise _Wrong(key, f"{text!r} is not a plain absolute path", hint="begin with '/', and leave '..' out")
    return path


_Parsed = TypeVar("_Parsed", int, float)


def _with_unit(parse: Callable[[str], _Parsed], value: str | int, key: str) -> _Parsed:
    try:
        return parse(str(value))  # a bare number has no unit, which the parsers say
    except InvalidSize as error:
        raise _Wrong(key, str(error), hint=error.hint) from error


def _positive(value: str | int, key: str) -> float:
    seconds = _with_unit(parse_duration, value, key)
    if seconds <= 0:
        raise _Wrong(key, f"{value!r} leaves no time at all")
    return seconds


def _named_file() -> Path | None:
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def _user_file() -> Path | None:
    directory = _user_directory("XDG_CONFIG_HOME", ".config")
    return directory / "underlay" / "underlay.toml" if directory else None


def _data_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/underlay")
    directory = _user_directory("XDG_DATA_HOME", ".local/share")
    if directory is None:
        raise ConfigError("this user has no home directory", hint="set HOME or XDG_DATA_HOME, or use --config")
    return directory / "underlay"


def _user_directory(variable: str, default: str) -> Path | None:
    """A base directory of the XDG specification, which has us ignore a relative one; None for a user without a home."""
    named = os.environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    try:
        return Path.home() / default
    except RuntimeError:
        return None
