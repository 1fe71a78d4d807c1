"""``underlay precache``."""

import click

from underlay import render
from underlay.cli.options import cache_option, json_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session


@click.command(short_help="Make images present before they are needed.")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@cache_option
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="How many at once. Default: precache_concurrency.")
@json_option
@click.pass_context
def precache(ctx: click.Context, refs: tuple[str, ...], cache: str | None, jobs: int | None, as_json: bool) -> None:  # noqa: FBT001
    """Make images present before they are needed, several at once. One that fails does not keep the others.

    Each image is cached (it was fetched), existing, unsupported (no source serves it) or error. The exit status is that of
    the first that failed.

    \b
    underlay precache https://example.org/debian-12.qcow2 file:///srv/images/tiny.raw --jobs 2
    """
    session: Session = ctx.obj
    with session.host() as host:
        host.parts.cache(cache)  # a cache that there is not fails no image, but the command
        images = host.precache(refs, cache=cache, jobs=jobs)
    if as_json:
        answer({"images": [render.precached_json(one) for one in images]})
    else:
        show(render.precached_table(images))
    if failed := next((one.error for one in images if one.error), None):
        ctx.exit(failed.exit_code)
