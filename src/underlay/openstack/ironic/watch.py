"""What the core tells while it works for Ironic: the log, and whether an image was on its way when something failed."""

import logging
import os

from underlay.model import Event, Level, Progress
from underlay.openstack.ironic.registry import LOG
from underlay.plan import Report

_LEVELS = {
    Level.DEBUG: logging.DEBUG,
    Level.INFO: logging.DEBUG,  # each step of a fetch
    Level.WARNING: logging.WARNING,
    Level.PROBLEM: logging.ERROR,
}
_AS_MEANT = frozenset({"no-inventory"})  # nodes are in no inventory


class Watch:
    """An observer that logs, for one request.

    Attributes:
        is_transferring: whether bytes of the image have been asked for.
    """

    def __init__(self) -> None:
        self.is_transferring = False

    def event(self, event: Event) -> None:
        """Log it."""
        self.is_transferring = self.is_transferring or event.code == "fetching"
        fields = " ".join(f"{name}={value}" for name, value in event.fields.items())
        LOG.log(_LEVELS[event.level], "%s (%s): %s", event.code, fields, event.detail or "done")

    def progress(self, progress: Progress) -> None:
        """Let it pass."""


def tell(report: Report) -> None:
    """Log what became of a cache's files, and why."""
    removed = set(report.removed)
    for verdict in report.verdicts:
        if verdict.path in removed:
            LOG.info("Removed %s: %s", verdict.path, verdict.reasons[0].detail)
    for problem in report.problems:
        if problem.code not in _AS_MEANT:
            LOG.warning("%s: %s (%s)", os.fspath(problem.path), problem.detail, problem.code)
