"""``underlay refresh``."""

import click

from underlay import render
from underlay.cli.options import cache_option, dry_run_option, json_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session


@click.command(short_help="Have the newest versions of followed refs here ahead of need.")
@click.argument("refs", metavar="[REF...]", nargs=-1)
@cache_option
@click.option(
    "--keep",
    type=click.IntRange(0),
    metavar="N",
    help="Hold so many older versions beside the newest. Default: keep of the configuration.",
)
@dry_run_option
@json_option
@click.pass_context
def refresh(
    ctx: click.Context,
    refs: tuple[str, ...],
    cache: str | None,
    keep: int | None,
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Have the newest versions of followed refs here ahead of need, and hold them. One that fails does not keep the others.

    Without a REF: those that the configuration follows; what is held for others is let go. Each is moved (a newer version is
    here), current, last-good (a newer one could not be had; what was here stays held), error (nothing is here) or unfollowed.
    Nothing is removed: what is let go is a prune's to take. The exit status is that of the first that failed.

    \b
    underlay refresh
    underlay refresh https://example.org/debian-12.qcow2 --keep 2 --dry-run
    """
    session: Session = ctx.obj
    with session.host() as host:
        work = host.plan_refresh if dry_run else host.refresh
        done = work(refs or None, cache=cache, keep=keep)
    if as_json:
        answer({"dry_run": dry_run, "refs": [render.refreshed_json(one) for one in done]})
    else:
        show(render.refreshed_table(done))
    if failed := next((one.error for one in done if one.error), None):
        ctx.exit(failed.exit_code)
