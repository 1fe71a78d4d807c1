"""``underlay fetch``."""

import click
from rich.text import Text

from underlay import render
from underlay.cli.options import cache_option, json_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.refs import parse_ref
from underlay.units import format_size


@click.command()
@click.argument("ref")
@cache_option
@click.option("--checksum", metavar="ALGO:HEX", help="Digest that the bytes as served must have, such as sha512:….")
@json_option
@click.pass_obj
def fetch(session: Session, ref: str, cache: str | None, checksum: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Make the image REF present in a cache: fetched once, verified, inspected, durable.

    REF is https://…, http://…, or file:///absolute/path. An image that is here already costs no transfer; a checksum is
    compared with the recorded digest.

    \b
    underlay fetch https://example.org/debian-12.qcow2 --checksum sha512:…
    """
    with session.host() as host:
        ensured = host.fetch(ref, checksum=checksum, cache=cache)
    image = ensured.image
    if as_json:
        reason = {"code": ensured.reason.code, "detail": ensured.reason.detail}
        answer({"image": render.image_json(image, ()), "reason": reason})
        return
    size = f"{format_size(image.allocated)} on disk, {format_size(image.virtual_size)} virtual"
    show(
        Text.assemble((ensured.reason.code, "bold green"), f" {parse_ref(ref)}: {ensured.reason.detail}"),
        Text(f"{image.path} ({image.format}, {size})"),
    )
