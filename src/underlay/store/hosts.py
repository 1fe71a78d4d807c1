"""What each host that shares a cache's storage needs of it: one file a host, written by that host's prune.

A file stays until the host is retired by hand: a host that is silent may only be switched off, and its disks still stand on the
images that it named.
"""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from underlay.errors import UnknownHost
from underlay.files import keep_directory, read_regular, sync_directory, translated, write_durably
from underlay.model import LAYOUT, Problem
from underlay.store.layout import Store
from underlay.store.locking import writing_records


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUse:
    """What one host needs of one cache.

    Attributes:
        machine: its machine id, so that two machines of one name are noticed.
        names: of the images that it uses. complete: whether it could tell them all.
    """

    layout: int
    host: str
    machine: str
    at: datetime
    names: tuple[str, ...]
    complete: bool


def record(store: Store, *, host: str, at: datetime, names: tuple[str, ...], complete: bool) -> None:
    """Say what this host uses, durably.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed, LockTimeout
    """
    path = store.paths.host(host)
    use = HostUse(layout=LAYOUT, host=host, machine=machine_id(), at=at, names=names, complete=complete)
    with writing_records(store), translated(path):
        keep_directory(path.parent, 0o2775)
        write_durably(path, msgspec.json.encode(use), mode=0o664)  # crash: what we said before, or what we say now


def hosts(store: Store) -> tuple[list[HostUse], list[Problem]]:
    """What every host has said, by name, and what cannot be read.

    Raises:
        CacheNotWritable, StorageFailed: the directory cannot be read.
    """
    found: list[HostUse] = []
    problems: list[Problem] = []
    with translated(store.paths.hosts):
        try:
            names = sorted(os.listdir(store.paths.hosts))
        except FileNotFoundError:
            return [], []
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                one = _read(store.paths.hosts / name)
                if isinstance(one, HostUse):
                    found.append(one)
                elif one is not None:
                    problems.append(one)
    return found, problems


def retire(store: Store, host: str) -> None:
    """Forget what a host used: it is gone, and so are its disks.

    Raises:
        UnknownHost, CacheNotWritable
    """
    path = store.paths.host(host)
    with translated(path):
        try:
            path.unlink()
        except FileNotFoundError as error:
            raise UnknownHost(f"no host {host!r} has said what it uses", hint="'underlay hosts' shows them") from error
        sync_directory(path.parent)


def machine_id() -> str:
    """This machine's id (machine-id(5)), empty where it has none."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read(path: Path) -> HostUse | Problem | None:
    try:
        use = msgspec.json.decode(read_regular(path), type=HostUse)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        return Problem("host-unreadable", path, f"{path} cannot be read: {error}")
    if use.layout != LAYOUT:
        return Problem("host-unreadable", path, f"{path} was not written by this version of Underlay")
    return use
