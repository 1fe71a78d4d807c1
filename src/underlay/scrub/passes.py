"""A scrub: the images of some caches, one after the other, oldest reading first, for as long as there is time."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from underlay import locks
from underlay.contracts import Observer
from underlay.errors import LockTimeout, UnderlayError
from underlay.files import translated
from underlay.model import Event, Level, Problem, Reason
from underlay.policy.scrub import ScrubSubject, ScrubVerdict
from underlay.scrub.outcome import Scrubbed, ScrubReport
from underlay.scrub.pace import Pace
from underlay.scrub.verify import Meter, to_read, verify
from underlay.store import Store, scrubs

_LEVELS = {
    "sound": Level.DEBUG,
    "readable": Level.DEBUG,
    "damaged": Level.PROBLEM,
    "unsteady": Level.PROBLEM,
    "failed": Level.PROBLEM,
}
_OPEN = frozenset({"open", "open-unknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubOrder:
    """What a scrub is to do.

    Attributes:
        stores: the caches by directory. pace: how fast, and for how long.
        users: who needs a damaged image. repair: brings it again for these users, and says what came of that; None: nothing
            is brought.
    """

    stores: dict[Path, Store]
    pace: Pace
    observer: Observer
    users: Callable[[ScrubSubject], tuple[Reason, ...]]
    repair: Callable[[ScrubSubject, tuple[Reason, ...]], Reason] | None


def scrub(order: ScrubOrder, verdicts: Sequence[ScrubVerdict], problems: Sequence[Problem]) -> ScrubReport:
    """Read the images that a plan names, in its order. One that fails does not keep the others.

    Holds each cache's scrub lock meanwhile, which is never waited for, so one scrub at a time reads a cache.
    """
    begun, wanted = time.monotonic(), [verdict for verdict in verdicts if verdict.scrubs]
    with ExitStack() as stack:
        taken, errors = _taken(order, stack, {verdict.subject.root for verdict in wanted})
        mine = [verdict for verdict in wanted if verdict.subject.root in taken]
        total = sum(to_read(verdict.subject) for verdict in mine)
        meter = Meter(order.observer, f"{len(mine)} image{'' if len(mine) == 1 else 's'}", total)
        images = list(_each(order, mine, meter))
    come_to = {one.subject.path for one in images}
    return ScrubReport(
        images=images,
        left=[verdict for verdict in verdicts if verdict.subject.path not in come_to],
        problems=[*problems, *(Problem(error.code, root, error.message) for root, error in errors)],
        read=sum(one.read for one in images),
        seconds=time.monotonic() - begun,
        errors=[error for _, error in errors],
    )


def _taken(order: ScrubOrder, stack: ExitStack, roots: set[Path]) -> tuple[set[Path], list[tuple[Path, UnderlayError]]]:
    """The caches that are ours to scrub now, and why the others are not."""
    taken, errors = set(), list[tuple[Path, UnderlayError]]()
    for root in sorted(roots):
        store = order.stores[root]
        try:
            store.prepare()
            with translated(store.paths.scrub_lock):
                lock = stack.enter_context(locks.try_exclusive(store.paths.scrub_lock))
            if lock is None:
                raise LockTimeout(f"another scrub reads the images of {root}", hint="let it end, or stop it")
            scrubs.sweep(store)
        except UnderlayError as error:
            errors.append((root, error))
        else:
            taken.add(root)
    return taken, errors


def _each(order: ScrubOrder, verdicts: Sequence[ScrubVerdict], meter: Meter) -> Iterator[Scrubbed]:
    for verdict in verdicts:
        if order.pace.is_over:
            return
        subject = verdict.subject
        scrubbed = verify(order.stores[subject.root], subject, order.pace, meter, order.observer)
        if scrubbed.outcome != "stopped":
            meter.finish(subject)
        if scrubbed.outcome == "damaged":
            scrubbed = _looked_after(order, scrubbed)
        _tell(order.observer, scrubbed)
        yield scrubbed


def _looked_after(order: ScrubOrder, scrubbed: Scrubbed) -> Scrubbed:
    """A damaged image with its users, who are looked for before another file has its name, and with what it could be done."""
    users = order.users(scrubbed.subject)
    repair = _repaired(order, scrubbed, users)
    if repair.code == "refetched" and any(user.code in _OPEN for user in users):
        repair = Reason(repair.code, f"{repair.detail}; who has the damaged file open reads it until it is closed")
    return replace(scrubbed, users=users, repair=repair)


def _repaired(order: ScrubOrder, scrubbed: Scrubbed, users: tuple[Reason, ...]) -> Reason:
    if order.repair is None:
        return Reason("not-asked", "it was not to be fetched again")
    if scrubbed.error is not None and scrubbed.subject.damage is None:  # nothing takes the place of what counts as sound
        return Reason("not-noted", "it is fetched again once its damage is noted")
    return order.repair(scrubbed.subject, users)


def _tell(observer: Observer, one: Scrubbed) -> None:
    told = [one.detail, *(f"{user.code} {user.detail}" for user in one.users)]
    if one.repair is not None:
        told.append(one.repair.detail)
    fields = {"name": one.subject.name, "path": os.fspath(one.subject.path), "ref": one.subject.ref}
    level = _LEVELS.get(one.outcome, Level.INFO)
    observer.event(Event(code=one.outcome, level=level, detail="; ".join(told), fields=fields))
