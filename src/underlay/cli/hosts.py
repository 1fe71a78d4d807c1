"""``underlay hosts``: who shares the storage of the base caches, and what each of them has said."""

from collections.abc import Iterator
from typing import Any

import click

from underlay import render
from underlay.cli.options import json_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.files import translated
from underlay.host import Host
from underlay.naming import CacheKind, printable
from underlay.store import Store, hosts as host_uses, registry


@click.group(invoke_without_command=True, short_help="List the hosts that share a base cache, or retire one.")
@json_option
@click.pass_context
def hosts(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001
    """List the hosts that share a base cache: the declared, those that said what they use, and those of Nova's registry.

    Nothing of a shared cache goes before every declared host has said what it uses.
    """
    if ctx.invoked_subcommand is not None:
        return
    session: Session = ctx.obj
    with session.host() as host:
        found = [one for store in host.parts.stores() if store.kind is CacheKind.BASE for one in _hosts(host, store)]
    if as_json:
        answer({"hosts": found})
    else:
        show(render.hosts_table(found, now=render.utc_now()))


@hosts.command()
@click.argument("host")
@json_option
@click.pass_obj
def retire(session: Session, host: str, as_json: bool) -> None:  # noqa: FBT001
    """Forget what HOST uses. Only for a host that is gone for good, and its disks with it.

    Its images are kept for it until then, however long it is silent. Take it out of instances.hosts as well.
    """
    with session.host() as this:
        this.retire_host(host)
    if as_json:
        answer({"retired": host})
    else:
        show(f"{printable(host)} is forgotten")


def _hosts(host: Host, store: Store) -> Iterator[dict[str, Any]]:
    said = {use.host: use for use in host_uses.hosts(store)[0]}
    registered = _registered(store)
    declared = set(host.config.hosts)
    for name in sorted(said.keys() | registered | declared):
        use = said.get(name)
        yield {
            "host": name,
            "cache": str(store.root),
            "this": name == host.config.host,
            "declared": name in declared,
            "registered": name in registered,
            "said_at": use.at.isoformat(timespec="seconds") if use else None,
            "images": len(use.names) if use else None,
            "complete": use.complete if use else None,
        }


def _registered(store: Store) -> set[str]:
    path = registry.path_beside(store)
    if path is None:
        return set()
    with translated(path):
        return set(registry.read(path) or {})
