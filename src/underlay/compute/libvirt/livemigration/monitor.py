"""A move that is under way, looked after until it ends: how far it is, how long the guest may stand still, what was asked."""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from underlay.compute.errors import ComputeError, InstanceNotFound
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.livemigration import sights
from underlay.compute.libvirt.livemigration.moves import Move
from underlay.compute.libvirt.livemigration.pace import Pace
from underlay.config.libvirt import Moves as Options

_LOG = logging.getLogger(__name__)
_POLL = 0.25  # seconds between two looks
_TELL_EVERY = 30.0  # seconds between two lines for people; every look is one for debugging
_MIB = 1 << 20


@dataclass(slots=True)
class Watch:
    """What is remembered from one look to the next.

    Attributes:
        downtime: milliseconds that the guest may stand still, as libvirt was told. told_at: when people were told last.
        is_late: what is done about a move that takes too long has been done. is_forced: libvirt lets it complete.
    """

    downtime: int | None = None
    told_at: float = 0.0
    is_late: bool = False
    is_forced: bool = False


def watch(domain: Domain, move: Move, ended: threading.Event, pace: Pace, options: Options) -> None:
    """Look after a move until it has ended.

    Args:
        ended: set by the thread in which libvirt moves the guest, and which has told it what the pace begins with.
    """
    began, state = time.monotonic(), Watch(downtime=pace.downtime(0))
    while not ended.wait(_POLL):
        elapsed = time.monotonic() - began
        with suppress(InstanceNotFound):  # it has just left, and the other thread is about to say so
            try:
                _look(domain, move, pace, options, state, elapsed)
            except ComputeError as error:
                _LOG.debug("the migration of %s cannot be looked after at this moment: %s", domain.uuid, error)


def _look(domain: Domain, move: Move, pace: Pace, options: Options, state: Watch, elapsed: float) -> None:
    told = statistics(domain)
    if told is None:
        return
    _tell(domain.uuid, told, state, elapsed)
    if pace.timeout is not None and elapsed >= pace.timeout and not state.is_late:
        state.is_late = True
        _LOG.warning("the migration of %s takes longer than %g s: %s", domain.uuid, pace.timeout, options.timeout_action)
        (move.complete if options.timeout_action == "force_complete" else move.abort).set()
    if move.abort.is_set():
        end(domain)
    elif move.complete.is_set() and not state.is_forced:
        state.is_forced = _complete(domain, told, permit_post_copy=options.permit_post_copy)
    _allow(domain, pace.downtime(elapsed), state)


def statistics(domain: Domain) -> Mapping[str, Any] | None:
    """What libvirt counts of a guest that is being sent away; None when it is not.

    Raises:
        InstanceNotFound, HypervisorUnavailable, OperationFailed
    """
    return domain.ask(_sending)


def _sending(found: Any) -> Mapping[str, Any] | None:
    if sights.operation_of(found) != library().VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
        return None
    return dict(found.jobStats(0))


def end(domain: Domain) -> None:
    """End a move: the guest stays.

    Raises:
        OperationFailed: it has come too far for that. InstanceNotFound, HypervisorUnavailable
    """
    domain.ask(lambda found: found.abortJob())


def _complete(domain: Domain, told: Mapping[str, Any], *, permit_post_copy: bool) -> bool:
    """Let a move come to its end; whether that could be done already: memory can follow once it is being copied."""
    if not permit_post_copy:
        _LOG.info("the instance %s stands still until it has moved", domain.uuid)
        domain.pause()
        return True
    if not told.get("memory_total"):
        return False
    _LOG.info("the instance %s goes on at its destination, and its memory follows", domain.uuid)
    domain.ask(lambda found: found.migrateStartPostCopy(0))
    return True


def _allow(domain: Domain, milliseconds: int, state: Watch) -> None:
    if state.downtime != milliseconds:
        allow(domain, milliseconds)
        state.downtime = milliseconds


def allow(domain: Domain, milliseconds: int) -> None:
    """Say for how long the guest may stand still at the end, before it moves or while it does.

    Raises:
        InstanceNotFound, OperationFailed, HypervisorUnavailable
    """
    domain.ask(lambda found: found.migrateSetMaxDowntime(milliseconds, 0))
    _LOG.debug("the instance %s may stand still for %d ms", domain.uuid, milliseconds)


def _tell(uuid: str, told: Mapping[str, Any], state: Watch, elapsed: float) -> None:
    level = logging.DEBUG
    if elapsed - state.told_at >= _TELL_EVERY:
        level, state.told_at = logging.INFO, elapsed
    left = {what: told.get(f"{what}_remaining", 0) / _MIB for what in ("memory", "disk")}
    of = {what: told.get(f"{what}_total", 0) / _MIB for what in ("memory", "disk")}
    _LOG.log(
        level,
        "the instance %s has been moving for %.0f s: %.1f of %.1f MiB of memory and %.1f of %.1f MiB of disks are left",
        uuid,
        elapsed,
        left["memory"],
        of["memory"],
        left["disk"],
        of["disk"],
    )
