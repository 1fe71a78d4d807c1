"""``underlay list``, ``show`` and ``du``: what is here, from where, used by whom, and how big."""

from collections import Counter
from typing import Any

import click

from underlay import render
from underlay.cli.options import cache_option, json_option, wide_option
from underlay.cli.output import answer, show as show_things
from underlay.cli.session import Session
from underlay.files import free_bytes, translated
from underlay.model import BaseImage, InstanceDisk
from underlay.store import Store, images
from underlay.store.staging import allocated, ingests


@click.command("list")
@cache_option
@wide_option
@json_option
@click.pass_obj
def list_images(session: Session, cache: str | None, wide: bool, as_json: bool) -> None:  # noqa: FBT001
    """List the images in the caches."""
    with session.host() as host:
        found, problems = host.images(cache=cache)
        disks = host.disks()
    if as_json:
        listed = [render.image_json(image, _made_from(image, disks)) for image in found]
        answer({"images": listed, "problems": [render.problem_json(problem) for problem in problems]})
        return
    users = Counter(str(disk.base_path) for disk in disks)
    table = render.image_table(found, users, now=render.utc_now(), wide=wide)
    show_things(table, *(render.problem_text(problem) for problem in problems), wide=wide)


@click.command()
@click.argument("image")
@json_option
@click.pass_obj
def show(session: Session, image: str, as_json: bool) -> None:  # noqa: FBT001
    """Show one IMAGE: a name (or its beginning), a ref, or a path. Never needs the network."""
    with session.host() as host:
        found = host.find(image)
        disks = host.disks()
    if as_json:
        answer({"images": [render.image_json(one, _made_from(one, disks)) for one in found]})
    else:
        show_things(*(render.image_tree(one, _made_from(one, disks), now=render.utc_now()) for one in found))


@click.command()
@json_option
@click.pass_obj
def du(session: Session, as_json: bool) -> None:  # noqa: FBT001
    """Say what the caches and the disks occupy, in bytes that are really allocated."""
    with session.host() as host:
        stores = {store.root: store for store in host.stores()}
        caches = [_cache_usage(name, store) for name, store in host.config.caches.items() if store.root in stores]
        disks = host.disks()
        totals = {"count": len(disks), "allocated": sum(disk.allocated for disk in disks), "path": str(host.config.instances)}
    if as_json:
        answer({"caches": caches, "disks": totals})
    else:
        show_things(render.usage_table(caches, totals))


def _cache_usage(name: str, store: Store) -> dict[str, Any]:
    found, _ = images.images(store)
    with translated(store.root):
        return {
            "name": name,
            "kind": store.kind.value,
            "path": str(store.root),
            "images": len(found),
            "allocated": sum(image.allocated for image in found),
            "ingests": _ingests_allocated(store),
            "free": free_bytes(store.root),
        }


def _ingests_allocated(store: Store) -> int | None:
    """Bytes of fetches in progress and of those that died; None for a user who may not look."""
    try:
        return sum(allocated(staging) for staging, _ in ingests(store))
    except PermissionError:
        return None


def _made_from(image: BaseImage, disks: list[InstanceDisk]) -> list[InstanceDisk]:
    return [disk for disk in disks if disk.base_path == image.path]
