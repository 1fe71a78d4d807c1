"""``underlay list`` and ``show``: what is here, from where, and used by whom."""

from collections import Counter
from pathlib import Path

import click

from underlay import render
from underlay.cli.options import cache_option, json_option, wide_option
from underlay.cli.output import answer, show as show_things
from underlay.cli.session import Session
from underlay.host import Host
from underlay.model import BaseImage, InstanceDisk, Lease


@click.command("list")
@cache_option
@wide_option
@json_option
@click.pass_obj
def list_images(session: Session, cache: str | None, wide: bool, as_json: bool) -> None:  # noqa: FBT001
    """List the images in the caches."""
    with session.host() as host:
        found, problems = host.images(cache=cache)
        disks, leases = host.disks(), living_leases(host)
    if as_json:
        listed = [render.image_json(image, _made_from(image, disks), leases_of(image, leases)) for image in found]
        answer({"images": listed, "problems": [render.problem_json(problem) for problem in problems]})
        return
    users = Counter(str(disk.base_path) for disk in disks)
    users.update(str(root / name) for root, lease in leases for name in lease.names)
    table = render.image_table(found, users, now=render.utc_now(), wide=wide)
    show_things(table, *(render.problem_text(problem) for problem in problems), wide=wide)


@click.command(short_help="Show one image and who uses it.")
@click.argument("image")
@json_option
@click.pass_obj
def show(session: Session, image: str, as_json: bool) -> None:  # noqa: FBT001
    """Show one IMAGE: a name (or its beginning), a ref, or a path; with its disks, leases and pins. Never needs the network."""
    with session.host() as host:
        found = host.look(image)
        disks, leases = host.disks(), living_leases(host)
    users = [(one, _made_from(one, disks), leases_of(one, leases)) for one in found]
    if as_json:
        answer({"images": [render.image_json(*one) for one in users]})
    else:
        show_things(*(render.image_tree(*one, now=render.utc_now()) for one in users))


def _made_from(image: BaseImage, disks: list[InstanceDisk]) -> list[InstanceDisk]:
    return [disk for disk in disks if disk.base_path == image.path]


def living_leases(host: Host) -> list[tuple[Path, Lease]]:
    """The leases and pins that have not ended, with the cache that each is in."""
    now = render.utc_now()
    return [(root, lease) for root, lease in host.leases() if lease.holds_at(now)]


def leases_of(image: BaseImage, leases: list[tuple[Path, Lease]]) -> list[Lease]:
    """Those that keep an image."""
    return [lease for root, lease in leases if root == image.cache and image.name in lease.names]
