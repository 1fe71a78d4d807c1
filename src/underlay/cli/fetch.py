"""``underlay fetch``."""

from pathlib import Path

import click
from rich.text import Text

from underlay import render
from underlay.cache import FETCHED
from underlay.cli.look import leases_of, living_leases
from underlay.cli.options import cache_option, checksum_option, json_option, signature_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.model import Reason
from underlay.refs import parse_ref
from underlay.units import format_size


@click.command(short_help="Make an image present in a cache.")
@click.argument("ref")
@cache_option
@checksum_option
@signature_option
@click.option(
    "--to",
    "path",
    type=click.Path(path_type=Path, readable=False),
    metavar="PATH",
    help="Put it there: a hard link, or a copy.",
)
@click.option("--raw/--as-served", default=None, help="In raw form, or byte for byte as served; else as the cache keeps it.")
@click.option("--disk-format", metavar="FORMAT", help="What the bytes as served must be, such as qcow2 or raw.")
@json_option
@click.pass_obj
def fetch(
    session: Session,
    ref: str,
    cache: str | None,
    checksum: str | None,
    signature: str | None,
    path: Path | None,
    raw: bool | None,  # noqa: FBT001
    disk_format: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make the image REF present in a cache: fetched once, verified, inspected, durable.

    REF is https://…, http://…, or file:///absolute/path. An image that is here already costs no transfer; a checksum is
    compared with the recorded digest.

    The checksum may be a list that the publisher publishes, such as SHA256SUMS: the one of REF's file name is taken. With
    keyrings in the configuration the list must be signed by one of their keys.

    With --to the image is at PATH afterwards, from the configuration's first cache of masters unless --cache names another:
    as a hard link, or as a copy where no link can be. What was there is replaced in one step.

    When the file system has no room, what nobody needs goes first, as by 'underlay reclaim', but nothing of this image.

    \b
    underlay fetch https://example.org/debian-12.qcow2 --checksum sha512:…
    underlay fetch https://example.org/debian-12.qcow2 --checksum https://example.org/SHA512SUMS
    underlay fetch https://example.org/debian-12.qcow2 --to /var/lib/ironic/images/node-1/disk
    """
    with session.host() as host:
        if path is None:
            ensured = host.fetch(ref, checksum=checksum, signature=signature, cache=cache, raw=raw, disk_format=disk_format)
            delivered = None
            image, came = ensured.image, ensured.reason
        else:
            place = path.absolute()
            delivered = host.deliver(
                ref, place, checksum=checksum, signature=signature, cache=cache, raw=raw, disk_format=disk_format
            )
            image, came = delivered.image, delivered.came or delivered.reason
        leases = leases_of(image, living_leases(host))
    if as_json:
        told = {"image": render.image_json(image, (), leases), "reason": _reason(came)}
        if delivered is not None:
            told["delivered"] = {"path": str(delivered.path), "reason": _reason(delivered.reason)}
        answer(told)
        return
    size = f"{format_size(image.allocated)} on disk, {format_size(image.virtual_size)} virtual"
    show(
        Text.assemble((came.code, "bold green"), f" {parse_ref(ref)}: {came.detail}"),
        Text(f"{image.path} ({image.format}, {size})"),
        *([] if delivered is None else [Text(f"{delivered.reason.code} {delivered.path}: {delivered.reason.detail}")]),
        *(Text(f"kept until {lease.expires:%Y-%m-%d %H:%M} UTC by {lease.id}") for lease in leases if lease.holder == FETCHED),
    )


def _reason(reason: Reason) -> dict[str, str]:
    return {"code": reason.code, "detail": reason.detail}
