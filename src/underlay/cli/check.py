"""``underlay check``."""

import click

from underlay import render
from underlay.check import check_host
from underlay.cli.options import json_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.model import Level

FINDINGS = 3
"""Exit status when the check found a problem."""


@click.command(short_help="Look this host over and change nothing.")
@click.option(
    "--accept", is_flag=True, help="First note the directories of instances as they are now, as right: moved, or empty."
)
@json_option
@click.pass_context
def check(ctx: click.Context, accept: bool, as_json: bool) -> None:  # noqa: FBT001
    """Look this host over and change nothing: layout, owners, locks, attributes, space, rivals, and what a prune would do.

    The first thing to run on directories that exist already. Exits with 3 when it finds a problem; warnings alone are no
    failure.
    """
    session: Session = ctx.obj
    with session.host() as host:
        if accept:
            host.accept()
        findings = check_host(host.config)
    if as_json:
        answer({"findings": [render.finding_json(finding) for finding in findings]})
    else:
        show(render.findings_table(findings))
    if any(finding.level is Level.PROBLEM for finding in findings):
        ctx.exit(FINDINGS)
