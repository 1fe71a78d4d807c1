"""``underlay scrub``."""

from collections.abc import Sequence
from pathlib import Path

import click

from underlay import render
from underlay.cli.options import dry_run_option, instances_option, json_option, records_of, wide_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.policy.scrub import ScrubVerdict
from underlay.scrub import ScrubReport
from underlay.units import parse_duration, parse_size


@click.command(short_help="Read images again and verify their content.")
@click.argument("images", metavar="[IMAGE...]", nargs=-1)
@click.option("--cache", metavar="NAME", help="One cache of the configuration, instead of all of them.")
@click.option("--rate", metavar="SIZE", help="Read so much a second at most, such as 100MiB.")
@click.option("--time", "length", metavar="TIME", help="Stop after so long, such as 2h; the next scrub goes on from there.")
@click.option("--older-than", "age", metavar="TIME", default="0s", help="Leave out what was looked at since, such as 30d.")
@click.option("--refetch/--no-refetch", default=True, show_default=True, help="Fetch damaged images again.")
@instances_option
@dry_run_option
@wide_option
@json_option
@click.pass_context
def scrub(
    ctx: click.Context,
    images: tuple[str, ...],
    cache: str | None,
    rate: str | None,
    length: str | None,
    age: str,
    refetch: bool,  # noqa: FBT001
    instances: Path | None,
    dry_run: bool,  # noqa: FBT001
    wide: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Read images again from their medium and hold them against the digests that they were published with.

    IMAGE is a name (or its beginning), a ref, or a path; without one, all images are read, those first whose last reading is
    longest ago. Nobody has to wait for a scrub, and the pages that guests are served from stay in memory.

    An image that is damaged, by two readings, is never served again. It stays where it is for the disks that stand on it,
    which are named. If its source still has the same bytes they are fetched again and take its place. One that cannot be
    scrubbed does not keep the others.

    Exits with 35 when an image is damaged, whether it could be fetched again or not, and with 48 when two readings of one
    contradict each other.

    \b
    underlay scrub --time 2h --rate 200MiB --older-than 30d
    underlay scrub https://example.org/debian-12.qcow2
    """
    session: Session = ctx.obj
    seconds = None if length is None else parse_duration(length)
    speed = None if rate is None else parse_size(rate)
    older_than = parse_duration(age)
    if dry_run:
        with session.host() as host:
            plan = host.plan_scrub(images, cache=cache, older_than=older_than)
        _tell_plan(plan, wide=wide, as_json=as_json)
        return
    with session.host() as host:
        report = host.scrub(
            images,
            cache=cache,
            rate=speed,
            seconds=seconds,
            older_than=older_than,
            refetch=refetch,
            instances=records_of(instances),
        )
    _tell(report, wide=wide, as_json=as_json)
    ctx.exit(report.exit_code)


def _tell_plan(plan: Sequence[ScrubVerdict], *, wide: bool, as_json: bool) -> None:
    if as_json:
        answer(render.scrub_plan_json(plan))
    else:
        show(*render.scrub_plan_tables(plan, now=render.utc_now(), wide=wide), wide=wide)


def _tell(report: ScrubReport, *, wide: bool, as_json: bool) -> None:
    if as_json:
        answer(render.scrub_json(report))
    else:
        show(*render.scrub_tables(report, wide=wide), wide=wide)
