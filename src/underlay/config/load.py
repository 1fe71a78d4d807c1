"""Which file is the configuration, and what a whole one means."""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from underlay.config import environment, values
from underlay.config.disks import backend_arguments
from underlay.config.document import Cache, Compute, Document, Instances, Transfer
from underlay.config.follow import Follow, follow_of
from underlay.config.libvirt import Libvirt, LibvirtTable, libvirt_of
from underlay.config.sources import FileTable, SourceTables, arguments_of, web_of
from underlay.config.values import WrongValue
from underlay.errors import ConfigError
from underlay.naming import CacheKind
from underlay.plan import Rules
from underlay.policy.retry import NO_RETRIES, Retries
from underlay.store import Store
from underlay.values import replace
from underlay.web import Web

SYSTEM_FILE = Path("/etc/underlay/underlay.toml")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What this host's Underlay works with.

    Attributes:
        origin: the file that it was read from; None for the embedded default, whose directories are made on first use.
        caches: by name; the first is used when none is named.
        sources: for each scheme, the arguments of its source. web: the client for everything else that is on the web.
        keyrings: files of the public keys by which lists of checksums are to be signed.
        require_signature: with keyrings, a list without a signature is refused.
        disks: for each backend that has options, the arguments of its adapter.
        instances: the directory that holds a directory for each instance.
        host: this host's name, as its inventory and the hosts that share its storage know it.
        hosts: every host that shares the instances path and its caches; empty when none does.
        inventory: where the records of instances come from, as ``KIND:LOCATION``, or ``none``.
        extra_roots: further directories whose files may be disks.
        retries: how often a source that fails is asked, and a transfer that breaks goes on.
        rules: by which a cache's unused files go, by the cache's name. leases: seconds for which a fetch into a cache leases
            what it fetched, by the cache's name; not there: it does not.
        command_line_reads_files: a command may fetch every file that its user can read: see `for_command_line`.
        configured_sources: the tables below ``[sources]`` that are written.
        follow: the refs whose newest versions a refresh brings.
        compute: what a compute driver is to go by. libvirt: what that of libvirt is to go by beside.
    """

    origin: Path | None
    caches: Mapping[str, Store]
    sources: Mapping[str, Mapping[str, Any]]
    instances: Path
    use_cow_images: bool
    disks: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=dict)
    web: Web = msgspec.field(default_factory=Web)
    retries: Retries = NO_RETRIES
    keyrings: tuple[Path, ...] = ()
    require_signature: bool = True
    host: str = msgspec.field(default_factory=lambda: os.uname().nodename)
    hosts: tuple[str, ...] = ()
    inventory: str = "none"
    extra_roots: tuple[Path, ...] = ()
    rules: Mapping[str, Rules] = msgspec.field(default_factory=dict)
    leases: Mapping[str, float] = msgspec.field(default_factory=dict)
    default_ephemeral_format: str | None = None
    virt_mkfs: Mapping[str, str] = msgspec.field(default_factory=dict)
    precache_concurrency: int = 1
    command_line_reads_files: bool = True
    configured_sources: frozenset[str] = frozenset()
    follow: Follow = msgspec.field(default_factory=Follow)
    compute: Compute = Compute()
    libvirt: Libvirt = msgspec.field(default_factory=lambda: libvirt_of(LibvirtTable()))


def load_config(file: Path | None = None) -> Config:
    """The configuration in ``file``, else in ``$UNDERLAY_CONFIG``, the system's or the user's; else the embedded default.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key or a value of the wrong kind.
    """
    path = file or environment.named_file()
    if path is not None:
        text = _read(path)
        if text is None:
            raise ConfigError(f"{path} is not there", hint="make it, or leave --config and $UNDERLAY_CONFIG out")
        return parse_config(text, origin=path)
    for path in (SYSTEM_FILE, environment.user_file()):
        # One that is there and cannot be read is an error: other directories than the configured ones would surprise.
        if path is not None and (text := _read(path)) is not None:
            return parse_config(text, origin=path)
    return embedded_config(environment.storage_directory())


def for_command_line(config: Config) -> Config:
    """The same for a command that a user runs: who can read a file may have it fetched, unless the configuration forbids it.

    A service works for others than its user, so it keeps to the allowed paths.
    """
    if not config.command_line_reads_files:
        return config
    files = config.sources["file"]
    allowed = (*files["allowed_paths"], Path("/"))
    return replace(config, sources={**config.sources, "file": {**files, "allowed_paths": allowed}})


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
        tables = tomllib.loads(text)
        document = msgspec.convert(tables, Document)
        return replace(_config(document, origin), configured_sources=frozenset(tables.get("sources", {})))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {error}", hint="docs/reference/configuration.md lists every key") from error
    except WrongValue as error:
        raise ConfigError(f"{origin}: {error}", hint=error.hint) from error


def embedded_config(data: Path) -> Config:
    """The configuration of a host without one: everything below one directory, files of this host allowed."""
    document = Document(
        instances=Instances(path=os.fspath(data / "instances")),
        caches={
            "base": Cache(kind=CacheKind.BASE, path=os.fspath(data / "base"), lease_on_fetch="7d"),
            "masters": Cache(kind=CacheKind.MASTERS, path=os.fspath(data / "masters")),
        },
        sources=SourceTables(file=FileTable(allowed_paths=["/"])),
    )
    try:
        return _config(document, None)
    except WrongValue as error:
        raise ConfigError(
            f"the data directory {data} cannot be used: {error}", hint="set XDG_DATA_HOME, or use --config"
        ) from error


def _config(document: Document, origin: Path | None) -> Config:
    instances = values.absolute(document.instances.path, "instances.path")
    caches = {
        values.name(name, "caches", what="a cache"): _store(name, cache, document, instances)
        for name, cache in document.caches.items()
    }
    if not caches:
        raise WrongValue("caches", "no cache is configured", hint="add a table such as [caches.base]")
    _check_distinct(caches, instances)
    _check_locks(caches, [instances, *(Path(path) for path in document.instances.extra_roots)])
    web = web_of(document.sources.http)
    host = values.name(document.host or os.uname().nodename, "host", what="a host")
    return Config(
        origin=origin,
        caches=caches,
        sources=arguments_of(document.sources, web),
        web=web,
        retries=_retries(document.transfer),
        keyrings=tuple(values.absolute(path, "checksums.keyrings") for path in document.checksums.keyrings),
        require_signature=document.checksums.require_signature,
        instances=instances,
        use_cow_images=document.disks.use_cow_images,
        disks=backend_arguments(document.disks, host=host),
        host=host,
        hosts=tuple(values.name(host, "instances.hosts", what="a host") for host in document.instances.hosts),
        inventory=_inventory(document.instances.inventory),
        extra_roots=tuple(values.absolute(path, "instances.extra_roots") for path in document.instances.extra_roots),
        rules={name: _rules(name, cache) for name, cache in document.caches.items()},
        leases={
            name: values.positive(cache.lease_on_fetch, f"caches.{name}.lease_on_fetch")
            for name, cache in document.caches.items()
            if cache.lease_on_fetch is not None
        },
        default_ephemeral_format=document.disks.default_ephemeral_format or None,
        virt_mkfs=_commands(document.disks.virt_mkfs),
        precache_concurrency=document.precache_concurrency,
        command_line_reads_files=document.sources.file.command_line,
        follow=follow_of(document.follow, caches),
        compute=document.compute,
        libvirt=libvirt_of(document.libvirt),
    )


def _retries(transfer: Transfer) -> Retries:
    first = values.duration(transfer.first_wait, "transfer.first_wait")
    longest = values.duration(transfer.longest_wait, "transfer.longest_wait")
    if first > longest:
        raise WrongValue("transfer.first_wait", "the first pause is longer than the longest", hint="raise longest_wait")
    return Retries(attempts=transfer.attempts, first_wait=first, longest_wait=longest)


def _rules(name: str, cache: Cache) -> Rules:
    key = f"caches.{name}"
    low, high = (values.optional_size(value, f"{key}.{word}") for value, word in _watermarks(cache))
    if (low is None) != (high is None) or (low is not None and high is not None and low > high):
        raise WrongValue(f"{key}.free_low", "the watermarks go together, the low one first", hint="set free_low and free_high")
    return Rules(
        remove_unused=cache.remove_unused_base_images,
        original_age=float(cache.remove_unused_original_minimum_age_seconds),
        resized_age=float(cache.remove_unused_resized_minimum_age_seconds),
        leftover_age=values.duration(cache.leftover_minimum_age, f"{key}.leftover_minimum_age"),
        priority=cache.priority,
        ttl=None if cache.ttl is None else values.positive(cache.ttl, f"{key}.ttl"),
        keep_recent=values.duration(cache.keep_recent, f"{key}.keep_recent"),
        max_size=values.optional_size(cache.max_size, f"{key}.max_size"),
        free_low=low,
        free_high=high,
    )


def _watermarks(cache: Cache) -> tuple[tuple[str | int | None, str], ...]:
    return (cache.free_low, "free_low"), (cache.free_high, "free_high")


def _inventory(text: str) -> str:
    if text != "none" and not re.fullmatch(r"[a-z][a-z0-9_-]*:.*", text):
        raise WrongValue(
            "instances.inventory", f"{text!r} names no inventory", hint="write file:PATH, libvirt:URI, openstack:CLOUD or none"
        )
    return text


def _commands(lines: list[str]) -> dict[str, str]:
    """Nova's ``virt_mkfs``: ``os_type=command`` each; a later one of the same system wins, as in Nova."""
    for line in lines:
        if "=" not in line:
            raise WrongValue("disks.virt_mkfs", f"{line!r} is no command", hint="write OS_TYPE=COMMAND")
    return {system: command for system, _, command in (line.partition("=") for line in lines)}


def _store(name: str, cache: Cache, document: Document, instances: Path) -> Store:
    root = values.absolute(cache.path, f"caches.{name}.path")
    prefix = document.instances.lock_prefix
    if "/" in prefix or not prefix.isprintable():
        raise WrongValue("instances.lock_prefix", f"{prefix!r} is no beginning of a file name")
    # Nova forces raw by default, Ironic converts only when it is asked to.
    force_raw = cache.kind is CacheKind.BASE if cache.force_raw_images is None else cache.force_raw_images
    return Store(
        root=root,
        kind=cache.kind,
        force_raw=force_raw,
        validation=cache.validation,
        virtual_size_limit=values.size(cache.virtual_size_limit, f"caches.{name}.virtual_size_limit"),
        nova_locks=_nova_locks(name, cache, root, instances),
        nova_lock_prefix=prefix,
    )


def _nova_locks(name: str, cache: Cache, root: Path, instances: Path) -> Path | None:
    """Nova's lock directory: ``true`` finds it when the cache lies where Nova has its own, directly below the instances."""
    if isinstance(cache.nova_locks, str):
        return values.absolute(cache.nova_locks, f"caches.{name}.nova_locks")
    # By real paths: a symlink on the way must not make us miss Nova's locks.
    beside_nova = cache.kind is CacheKind.BASE and os.path.realpath(root.parent) == os.path.realpath(instances)
    return instances / "locks" if cache.nova_locks and beside_nova else None


def _check_distinct(caches: Mapping[str, Store], instances: Path) -> None:
    """Each directory has one purpose: what lies in it is judged by one set of rules."""
    seen = {instances: "instances.path"}
    for name, store in caches.items():
        key = f"caches.{name}.path"
        if other := seen.get(store.root):
            raise WrongValue(key, f"{store.root} is {other} already", hint="give each a directory of its own")
        seen[store.root] = key


def _check_locks(caches: Mapping[str, Store], roots: Sequence[Path]) -> None:
    """Nova's lock directory is not looked through for disks, so it must hold none."""
    for name, store in caches.items():
        for root in (*roots, *(other.root for other in caches.values())):
            if store.nova_locks is not None and root.is_relative_to(store.nova_locks):
                raise WrongValue(
                    f"caches.{name}.nova_locks", f"{store.nova_locks} holds {root}", hint="name Nova's lock directory"
                )
