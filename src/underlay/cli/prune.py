"""``underlay prune``, ``evict`` and ``explain``: what goes, what stays, and why."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from underlay import render
from underlay.cli.options import dry_run_option, instances_option, json_option, now_option, records_of, wide_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.errors import CacheError, ImageInUse, InsufficientSpace
from underlay.plan import Plan, Report, Verdict
from underlay.units import parse_size

FAILURES = 3
"""Exit status when something that was to go could not be removed."""


@click.command(short_help="Remove what is old and nobody needs.")
@click.option("--cache", metavar="NAME", help="One cache of the configuration, instead of all of them.")
@instances_option
@now_option
@dry_run_option
@wide_option
@json_option
@click.pass_context
def prune(
    ctx: click.Context,
    cache: str | None,
    instances: Path | None,
    now: datetime | None,
    dry_run: bool,  # noqa: FBT001
    wide: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Remove from the caches what the rules call old and nobody needs.

    Who needs an image is asked of the instances, the backing chains of every disk, leases and pins, hard links, open files
    and the other hosts that share the storage. What cannot be told keeps files. The last use of everything in use is set to
    now, so each image has its whole grace when its last user goes.

    Exits with 3 when something that was to go could not be removed.

    \b
    underlay prune --dry-run
    underlay prune --cache base --instances instances.json
    """
    session: Session = ctx.obj
    with session.host() as host:
        plan = host.plan_prune(now=now, instances=records_of(instances), cache=cache)
        host.check_judged(plan)
        report = None if dry_run else host.apply(plan)
        where = host.config.origin or host.config.instances
    _tell(plan, report, where=where, wide=wide, as_json=as_json)
    if report is not None and any(_failed(verdict) for verdict in report.verdicts):
        ctx.exit(FAILURES)


@click.command(short_help="Free space now, by what nobody needs.")
@click.argument("size", metavar="BYTES")
@click.option(
    "--path",
    type=click.Path(path_type=Path, readable=False),
    required=True,
    metavar="DIR",
    help="A directory on the file system on which the space is wanted.",
)
@instances_option
@dry_run_option
@wide_option
@json_option
@click.pass_context
def reclaim(
    ctx: click.Context,
    size: str,
    path: Path,
    instances: Path | None,
    dry_run: bool,  # noqa: FBT001
    wide: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Remove what nobody needs until BYTES, such as 20GiB, are free on the file system of a directory.

    All caches that lie there give up their files: those of the highest priority first, the least recently used first. Bases
    keep their minimum ages. No more goes than is needed.

    Exits with 47 when there is not enough to be had.

    \b
    underlay reclaim 20GiB --path /var/lib/ironic
    """
    session: Session = ctx.obj
    with session.host() as host:
        plan = host.plan_reclaim(parse_size(size), path.absolute(), instances=records_of(instances))
        report = None if dry_run else host.apply(plan)
        where = host.config.origin or host.config.instances
    _tell(plan, report, where=where, wide=wide, as_json=as_json)
    if (plan.shortfall if report is None else report.shortfall) > 0:
        ctx.exit(InsufficientSpace.exit_code)


@click.command(short_help="Remove one image now, unless somebody needs it.")
@click.argument("image")
@instances_option
@dry_run_option
@wide_option
@json_option
@click.pass_obj
def evict(
    session: Session,
    image: str,
    instances: Path | None,
    dry_run: bool,  # noqa: FBT001
    wide: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Remove one IMAGE now, whatever its age, unless somebody needs it.

    IMAGE is a name (or its beginning, if no other begins so), a ref, or a path. A ref means all its versions; when one of
    them is needed, none goes.
    """
    with session.host() as host:
        plan = host.plan_evict(image, instances=records_of(instances))
        _refuse([verdict for verdict in plan.verdicts if not verdict.removes])
        report = None if dry_run else host.apply(plan)
        where = host.config.origin or host.config.instances
    if report is not None:
        _refuse([verdict for verdict in report.verdicts if not verdict.removes], removed=report.removed)
    _tell(plan, report, where=where, wide=wide, as_json=as_json)


@click.command(short_help="Say why an image is kept, or would go, and when.")
@click.argument("image")
@instances_option
@now_option
@json_option
@click.pass_obj
def explain(session: Session, image: str, instances: Path | None, now: datetime | None, as_json: bool) -> None:  # noqa: FBT001
    """Say why IMAGE is kept, or would go, and when. Changes nothing.

    IMAGE is a name (or its beginning), a ref, or a path in a cache, leftovers among them.
    """
    with session.host() as host:
        verdicts = host.explain(image, now=now, instances=records_of(instances))
    if as_json:
        answer({"explanations": [render.explanation_json(verdict) for verdict in verdicts]})
    else:
        show(*(render.explanation_tree(verdict, now=now or render.utc_now()) for verdict in verdicts))


def _tell(plan: Plan, report: Report | None, *, where: Path, wide: bool, as_json: bool) -> None:
    if as_json:
        answer(render.plan_json(plan, report, where=where))
    else:
        show(*render.plan_tables(plan, report, where=where, wide=wide), wide=wide)


def _failed(verdict: Verdict) -> bool:
    return any(reason.code == "failed" for reason in verdict.reasons)


def _refuse(kept: list[Verdict], *, removed: Sequence[Path] = ()) -> None:
    """Say that files are kept which were asked to go.

    Raises:
        ImageInUse, CacheError: one of them could not be removed.
    """
    if not kept:
        return
    told = "; ".join(f"{verdict.path} is kept: {', '.join(reason.detail for reason in verdict.reasons)}" for verdict in kept)
    gone = f"; removed: {', '.join(map(str, removed))}" if removed else ""
    if any(_failed(verdict) for verdict in kept):
        raise CacheError(told + gone)
    raise ImageInUse(told + gone, hint="'underlay explain' says who needs it, and what could not be told")
