"""``underlay pin``, ``unpin``, ``lease``, ``release`` and ``leases``: images that somebody keeps for a while, or for good."""

import getpass
import socket
from collections.abc import Sequence
from pathlib import Path

import click

from underlay import render
from underlay.cli.options import json_option, wide_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.host import Host
from underlay.model import Lease
from underlay.units import parse_duration

_holder_option = click.option("--holder", required=True, metavar="WHO", help="Who needs it, in a word or a sentence.")


@click.command(short_help="Keep an image until it is unpinned.")
@click.argument("image")
@_holder_option
@json_option
@click.pass_obj
def pin(session: Session, image: str, holder: str, as_json: bool) -> None:  # noqa: FBT001
    """Keep IMAGE until it is unpinned.

    IMAGE is a name (or its beginning), a ref, or a path. Never needs the network.

    \b
    underlay pin https://example.org/debian-12.qcow2 --holder "golden images"
    """
    with session.host() as host:
        taken = host.pin(image, holder=holder)
        _taken(host, taken, as_json=as_json)


@click.command(short_help="Let go of a pin.")
@click.argument("image")
@_holder_option
@json_option
@click.pass_obj
def unpin(session: Session, image: str, holder: str, as_json: bool) -> None:  # noqa: FBT001
    """Let go of WHO's pin of IMAGE."""
    with session.host() as host:
        before = host.leases()
        dropped = host.unpin(image, holder=holder)
    _released(before, dropped, as_json=as_json)


@click.command(short_help="Keep an image for a while.")
@click.argument("image")
@click.option("--for", "length", required=True, metavar="TIME", help="How long from now, such as 24h or 7d.")
@click.option("--holder", metavar="WHO", help="Who needs it. Default: this user at this host.")
@json_option
@click.pass_obj
def lease(session: Session, image: str, length: str, holder: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Keep IMAGE for so long from now.

    The same holder's lease of it is renewed, and never made shorter.

    \b
    underlay lease https://example.org/debian-12.qcow2 --for 24h --holder nightly-tests
    """
    with session.host() as host:
        taken = host.lease(image, holder=holder or _this_user(), seconds=parse_duration(length))
        _taken(host, taken, as_json=as_json)


@click.command(short_help="Let go of a lease.")
@click.argument("lease_or_image", metavar="LEASE-ID|IMAGE")
@click.option("--holder", metavar="WHO", help="Whose lease; needed with an image.")
@json_option
@click.pass_obj
def release(session: Session, lease_or_image: str, holder: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Let go of a lease: by its id as 'underlay leases' shows it, or by its image and --holder."""
    with session.host() as host:
        before = host.leases()
        dropped = host.release(lease_or_image, holder=holder)
    _released(before, dropped, as_json=as_json)


@click.command()
@wide_option
@json_option
@click.pass_obj
def leases(session: Session, wide: bool, as_json: bool) -> None:  # noqa: FBT001
    """List leases and pins. One that has ended keeps nothing; the next prune forgets it."""
    with session.host() as host:
        found = host.leases()
    if as_json:
        answer({"leases": [render.lease_json(one, root) for root, one in found]})
    else:
        show(render.lease_table(found, now=render.utc_now(), wide=wide), wide=wide)


def _this_user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError) as error:  # a user without a name
        raise click.UsageError("this user has no name: say who needs it with --holder") from error


def _taken(host: Host, taken: Sequence[Lease], *, as_json: bool) -> None:
    ids = {one.id for one in taken}
    found = [(root, one) for root, one in host.leases() if one.id in ids]
    if as_json:
        answer({"leases": [render.lease_json(one, root) for root, one in found]})
    else:
        show(render.lease_table(found, now=render.utc_now(), wide=False))


def _released(before: Sequence[tuple[Path, Lease]], dropped: Sequence[Lease], *, as_json: bool) -> None:
    found = [(root, one) for root, one in before if one in dropped]
    if as_json:
        answer({"released": [render.lease_json(one, root) for root, one in found]})
    else:
        show(render.released_text(found))
