"""``underlay du``: what the caches and the disks occupy."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from underlay import render
from underlay.cli.options import json_option, wide_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.errors import UnderlayError
from underlay.files import allocated_bytes, translated
from underlay.filesystems import free_bytes
from underlay.footprint import OTHER, Footprint, files_of, footprints
from underlay.host import Host
from underlay.naming import CacheKind
from underlay.store import Store
from underlay.store.eviction import freed_by_removal
from underlay.store.staging import allocated, ingests

_KINDS: Mapping[CacheKind, Sequence[str]] = {
    CacheKind.BASE: ("original", "resized", "swap", "ephemeral", "leftover", OTHER),
    CacheKind.MASTERS: ("master", "leftover", OTHER),
}
_NO_IMAGES = ("leftover", OTHER)


@click.command(short_help="Say what the caches and the disks occupy.")
@click.option("--images", "with_images", is_flag=True, help="Tell each file of the caches as well.")
@wide_option
@json_option
@click.pass_obj
def du(session: Session, with_images: bool, wide: bool, as_json: bool) -> None:  # noqa: FBT001
    """Say what the caches and the disks occupy, in bytes that are really allocated, kind by kind.

    What files share, by hard links or reflinks, is counted once where the file system tells: with the first cache that has
    it, then with the disks. SHARED says how much of it there is.
    """
    with session.host() as host:
        caches, disks = _footprints(host, with_images=with_images)
    if as_json:
        answer({"caches": caches, "disks": disks})
        return
    tables = [render.footprint_table(caches, disks)]
    if with_images:
        tables.append(render.image_footprint_table(caches, wide=wide))
    show(*tables, wide=wide)


def _footprints(host: Host, *, with_images: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    stores = {store.root: store for store in host.parts.stores()}
    named = [(name, store) for name, store in host.config.caches.items() if store.root in stores]
    files = {name: _files(store) for name, store in named}
    groups = {
        (name, kind): [path for one, path in files[name] if one == kind] for name, store in named for kind in _KINDS[store.kind]
    }
    disks = host.disks()
    occupied: dict[tuple[str, str], Footprint] = footprints(groups | {("", "disks"): [disk.path for disk in disks]})
    caches = []
    for name, store in named:
        kinds = [(kind, occupied[name, kind]) for kind in _KINDS[store.kind]]
        caches.append(_cache(host, name, store, kinds) | {"files": _each(files[name]) if with_images else None})
    of_disks = occupied["", "disks"]
    return caches, {
        "count": len(disks),
        "allocated": of_disks.allocated,
        "shared": of_disks.shared,
        "path": str(host.config.instances),
    }


def _files(store: Store) -> list[tuple[str, Path]]:
    with translated(store.root):
        return list(files_of(store))


def _cache(host: Host, name: str, store: Store, kinds: Sequence[tuple[str, Footprint]]) -> dict[str, Any]:
    with translated(store.root):
        return {
            "name": name,
            "kind": store.kind.value,
            "path": str(store.root),
            "own_file_system": _is_apart(store.root, host.config.instances),
            "images": sum(one.count for kind, one in kinds if kind not in _NO_IMAGES),
            "allocated": sum(one.allocated for _, one in kinds),
            "shared": sum(one.shared for _, one in kinds),
            "kinds": [
                {"kind": kind, "count": one.count, "allocated": one.allocated, "shared": one.shared} for kind, one in kinds
            ],
            "ingests": _ingests_allocated(store),
            "free": free_bytes(store.root),
        }


def _is_apart(root: Path, instances: Path) -> bool | None:
    """Whether a cache lies on another file system than the instances; None when there is no instances path."""
    try:
        return os.stat(root).st_dev != os.stat(instances).st_dev
    except FileNotFoundError:
        return None


def _each(files: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
    return [told for kind, path in files if (told := _one(kind, path))]


def _one(kind: str, path: Path) -> dict[str, Any] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    try:
        with translated(path):
            own = freed_by_removal(path)
    except UnderlayError:
        own = None
    return {
        "name": path.name,
        "kind": kind,
        "path": str(path),
        "allocated": allocated_bytes(status),
        "own": own,
        "links": status.st_nlink,
    }


def _ingests_allocated(store: Store) -> int | None:
    """Bytes of fetches in progress and of those that died; None for a user who may not look."""
    try:
        return sum(allocated(staging) for staging, _ in ingests(store))
    except PermissionError:
        return None
