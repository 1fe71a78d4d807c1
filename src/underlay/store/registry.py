"""Nova's registry of the hosts that share an instances path: ``compute_nodes``, host to Unix time of its last pass.

Nova's manager counts the instances of every host whose stamp is younger than a day. Underlay puts its host's stamp there, under
Nova's lock, so that a Nova on another host goes on counting ours.
"""

import time
from pathlib import Path

import msgspec

from underlay import locks
from underlay.files import make_directory, read_regular, translated, write_in_place_of
from underlay.store.layout import Store

NAME = "compute_nodes"
_LOCK = "storage-registry-lock"
_MODE = 0o644


def path_beside(store: Store) -> Path | None:
    """Where the registry of a Nova beside this cache is, or None."""
    return store.root.parent / NAME if store.nova_locks is not None else None


def read(path: Path) -> dict[str, float] | None:
    """The stamps by host; empty without a registry, None when it cannot be read.

    Raises:
        OSError
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return {}
    if not content.strip():
        return {}
    try:
        return msgspec.json.decode(content, type=dict[str, float])
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def stamp(store: Store, host: str) -> None:
    """Note a pass of this host now. A registry that cannot be read is left alone.

    Raises:
        LockTimeout, CacheNotWritable, StorageFailed
    """
    _set(store, host, time.time())


def forget(store: Store, host: str) -> bool:
    """Drop a host's stamp; False when it had none.

    Raises:
        as `stamp`
    """
    return _set(store, host, None)


def _set(store: Store, host: str, at: float | None) -> bool:
    path = path_beside(store)
    if path is None or store.nova_locks is None:
        return False
    with translated(path):
        make_directory(store.nova_locks, 0o755)
        with locks.exclusive(store.nova_locks / f"{store.nova_lock_prefix}{_LOCK}", timeout=store.lock_timeout):
            stamps = read(path)
            if stamps is None or (at is None and host not in stamps):
                return False
            others = {other: stamp for other, stamp in stamps.items() if other != host}
            changed = others if at is None else others | {host: at}
            write_in_place_of(path, msgspec.json.encode(changed), mode=_MODE)  # crash: the old registry or the new one
    return True
