"""Applying a plan: uses are refreshed, and what is to go goes, each file under its locks and looked at twice more.

First in its place: is it the file that was judged, and does anybody need it now? Then it leaves the cache for ``trash/``, where
no name leads to it, and the same is asked once more; whoever opened it in between has it back. Several files are taken through
each step together, because looking at all instance directories costs the same for one as for many. What fails is reported, and
the rest goes on.
"""

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from underlay import locks
from underlay.config import Config
from underlay.contracts import Observer
from underlay.errors import InsufficientSpace, LockLost, PlanApplied, UnderlayError
from underlay.files import translated
from underlay.filesystems import free_bytes
from underlay.locks import Lock
from underlay.model import Event, Level, Problem, Reason
from underlay.naming import lock_name
from underlay.plan import IMAGE_KINDS, CachedFile, Inventory, Plan, Report, Rules, Usage, Verdict
from underlay.policy.prune import merge_usage, nanoseconds, refusal
from underlay.prune.observation import places_of
from underlay.store import Store, ballast, copies, eviction, hosts, images, leases, listing, locking, mounts, registry, roots
from underlay.usage.backing import BackingProbe, Places
from underlay.usage.copies import CopiesProbe
from underlay.usage.directories import look
from underlay.usage.leases import LeasesProbe
from underlay.usage.mounts import seen_roots
from underlay.usage.openfiles import OpenFilesProbe
from underlay.usage.shared import SharedProbe

_TOGETHER = 100  # files whose locks are held at a time: two descriptors each
_AHEAD_NS = 60 * 1_000_000_000  # a last use that lies further in the future was written by a wrong clock


@dataclass(frozen=True, slots=True)
class _Work:
    """A plan that is being applied, and what has come of it."""

    config: Config
    plan: Plan
    observer: Observer
    changed: dict[tuple[str, str], Verdict]
    problems: list[Problem]
    judged: Mapping[Path, Collection[str]]
    removed: list[Path] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)

    def keep(self, verdict: Verdict, reason: Reason) -> None:
        """What was to go stays after all."""
        self.changed[verdict.cache, verdict.file.name] = replace(verdict, removes=False, reasons=(reason,))
        self._tell("kept", verdict, reason, freed=None)

    def gone(self, verdict: Verdict, freed: int) -> None:
        """It is gone."""
        self.removed.append(verdict.path)
        self.freed.append(freed)
        self._tell("removed", verdict, verdict.reasons[0], freed=freed)

    def failed(self, verdict: Verdict, error: UnderlayError) -> None:
        """It could not be removed, and stays."""
        self.problems.append(Problem(error.code, verdict.path, error.message))
        self.keep(verdict, Reason("failed", error.message))

    def _tell(self, code: str, verdict: Verdict, reason: Reason, *, freed: int | None) -> None:
        fields = {"path": os.fspath(verdict.path), "reason": reason.code, "freed": freed}
        self.observer.event(Event(code=code, level=Level.INFO, detail=reason.detail, fields=fields))


def apply(config: Config, plan: Plan, observer: Observer) -> Report:
    """Do what a plan says, as far as it is still right.

    Raises:
        PlanApplied: it was applied before.
    """
    if not plan.once.acquire(blocking=False):
        raise PlanApplied(f"the plan {plan.id} was applied already", hint="make a new one: what it saw may have changed")
    names: dict[Path, set[str]] = {}
    if plan.whole:
        for verdict in plan.verdicts:
            names.setdefault(verdict.root, set()).add(verdict.file.name)
    work = _Work(config, plan, observer, {}, list(plan.problems), names)
    # In the order in which a reclaim takes: it stops as soon as it has enough.
    by_priority = sorted(config.caches.items(), key=lambda cache: -config.rules.get(cache[0], Rules()).priority)
    for name, store in by_priority:
        if store.root in plan.clocks:
            _apply_to(work, store, [verdict for verdict in plan.verdicts if verdict.cache == name])
    changed = work.changed
    return Report(
        plan=plan.id,
        verdicts=[changed.get((one.cache, one.file.name), one) if one.removes else one for one in plan.verdicts],
        removed=work.removed,
        freed=sum(work.freed),
        shortfall=_shortfall(plan),
        problems=work.problems,
    )


def _shortfall(plan: Plan) -> int:
    """Bytes that are missing from what was to be free; what others have freed or taken meanwhile is in it."""
    if plan.path is None:
        return 0
    with translated(plan.path):
        return max(0, plan.need - free_bytes(plan.path))


def _apply_to(work: _Work, store: Store, verdicts: Sequence[Verdict]) -> None:
    going = [verdict for verdict in verdicts if verdict.removes]
    try:
        try:
            _prepare(work, store, verdicts)
        except InsufficientSpace:
            if not ballast.throw_off(store.paths):
                raise
            _prepare(work, store, verdicts)
    except UnderlayError as error:
        # Without its records nothing of this cache goes: the next pass could not tell what was in use in this one.
        work.problems.append(Problem(error.code, store.root, error.message))
        for verdict in going:
            work.keep(verdict, Reason("failed", error.message))
        return
    for verdict in going:
        if _is_ingest(verdict.file):
            _remove_ingest(work, store, verdict)
    files = [verdict for verdict in going if not _is_ingest(verdict.file)]
    if work.plan.path is None:
        files.sort(key=lambda verdict: verdict.file.name)
        for start in range(0, len(files), _TOGETHER):
            _remove(work, store, files[start : start + _TOGETHER])
    else:
        for verdict in sorted(files, key=lambda verdict: verdict.file.used_ns):
            _remove_unless_enough(work, store, verdict)
    ballast.keep(store.paths)


def _prepare(work: _Work, store: Store, verdicts: Sequence[Verdict]) -> None:
    """Write down what the plan has seen, before anything goes."""
    store.prepare()
    eviction.recover(store)
    refresh(store, verdicts, at_ns=nanoseconds(work.plan.clocks[store.root]))
    _record(work, store, verdicts)
    _drop_expired(work, store)
    _forget_copies(work, store)


def accept_roots(config: Config, store: Store) -> None:
    """Note the directories of instances as they are now, whatever they were; those that are not configured are forgotten.

    Raises:
        CacheNotWritable, InsufficientSpace, StorageFailed
    """
    places = Places(config.instances, config.extra_roots, list(config.caches.values()))
    for directory in roots.noted(store):
        if os.fspath(directory) not in places.roots:
            roots.forget_noted(store, directory)
    sight = look(places.roots, skipped=places.skipped())
    mounts.remember(store, seen_roots(places.roots, sight.directories, sight.mounts()))


def refresh(store: Store, verdicts: Sequence[Verdict], *, at_ns: int) -> None:
    """Set the last use of every file in use to the plan's time, so that each has its whole grace when its last user goes.

    Raises:
        CacheNotWritable: a use cannot be recorded.
    """
    for verdict in verdicts:
        name = verdict.file.name
        if verdict.refresh and _is_due(verdict.file.used_ns, at_ns):
            with suppress(FileNotFoundError):
                newest = max(listing.marker_of(store, name), os.lstat(store.paths.image(name)).st_mtime_ns)
                if _is_due(newest, at_ns):
                    images.mark_used(store, name, at_ns=at_ns)


def _is_due(used_ns: int, at_ns: int) -> bool:
    """Whether a last use is set anew: an earlier one, or one that a wrong clock has put into the future."""
    return used_ns < at_ns or used_ns > time.time_ns() + _AHEAD_NS


def _record(work: _Work, store: Store, verdicts: Sequence[Verdict]) -> None:
    """What the next pass, and other hosts, are to know of this one."""
    config, plan = work.config, work.plan
    here = [unknown for unknown in plan.unknowns if unknown.root in (None, store.root)]
    if not any(unknown.code.startswith("root-") or unknown.code == "directory-unreadable" for unknown in here):
        mounts.remember(store, seen_roots(places_of(config).roots, plan.directories, plan.mounts))
    if config.hosts and plan.whole:
        names = tuple(verdict.file.name for verdict in verdicts if _is_used_here(verdict))
        is_complete = not any(unknown.keeps & IMAGE_KINDS and unknown.code not in _OF_OTHERS for unknown in here)
        at = plan.clocks[store.root]
        hosts.record(store, host=config.host, at=at, names=names, complete=is_complete)
    if store.nova_locks is not None and store.rival_lock is None:
        registry.stamp(store, config.host)


_OF_OTHERS = frozenset({"host-silent", "host-stale", "host-incomplete", "hosts-undeclared", "host-unreadable", "locks-local"})


def _is_used_here(verdict: Verdict) -> bool:
    """Whether this host needs the file: what only another host has said is that host's to say again."""
    return verdict.refresh and any(reason.code in _OUR_USES for reason in verdict.reasons)


# What this host itself was seen to need. Its leases lie in the cache, where every host finds them.
_OUR_USES = frozenset(
    {
        "instance-image",
        "instance-swap",
        "instance-ephemeral",
        "backing-file",
        "backing-name",
        "recorded-base",
        "open",
        "linked",
    }
)


def _drop_expired(work: _Work, store: Store) -> None:
    with suppress(UnderlayError):  # the next pass tries again
        # A plan for a time to come may say what would go then; the leases themselves end by this host's clock as well.
        leases.drop_ended(store, now=min(work.plan.clocks[store.root], datetime.now(UTC)))


def _forget_copies(work: _Work, store: Store) -> None:
    """Forget the copies that are gone, or other files by now."""
    home = next(iter(work.config.caches.values()))
    for copy in copies.copies(store)[0]:
        with suppress(OSError, UnderlayError), locks.try_exclusive(home.paths.disk_lock(Path(copy.path))) as lock:
            if lock is not None and copies.is_there(copy) is False:
                copies.forget(store, copy)


# ------------------------------------------------------------------------------------------------------------------- removing


def _is_ingest(file: CachedFile) -> bool:
    return "/" in file.name


def _remove_ingest(work: _Work, store: Store, verdict: Verdict) -> None:
    try:
        freed = eviction.remove_dead_ingest(store, verdict.file)
    except UnderlayError as error:
        work.failed(verdict, error)
        return
    if freed is None:
        work.keep(verdict, Reason("locked", "somebody works on it now, or has since it was judged"))
    else:
        work.gone(verdict, freed)


def _remove_unless_enough(work: _Work, store: Store, verdict: Verdict) -> None:
    """Remove a file for its room, unless there is room enough by now."""
    if _shortfall(work.plan) > 0:
        _remove(work, store, [verdict])
    else:
        work.keep(verdict, Reason("enough", "there is room enough without its removal"))


def _remove(work: _Work, store: Store, verdicts: Sequence[Verdict]) -> None:
    """Take some files through all steps, their locks held throughout."""
    with ExitStack() as stack:
        taken = {}
        locked_names: dict[str, list[Lock] | None] = {}  # an image and its leftovers have one lock
        for verdict in verdicts:
            key = lock_name(verdict.file.name)
            try:
                if key not in locked_names:
                    locked_names[key] = stack.enter_context(locking.try_exclusive(store, verdict.file.name))
            except UnderlayError as error:
                work.failed(verdict, error)
                continue
            held = locked_names[key]
            if held is None:
                work.keep(verdict, Reason("locked", "in use now: somebody holds its lock"))
            else:
                taken[verdict.file.name] = held
        locked = [verdict for verdict in verdicts if verdict.file.name in taken]
        try:
            trashed = [verdict for verdict in _still_unused(work, store, locked) if _trash(work, store, verdict, taken)]
            needed = _needed(work, store, trashed, in_trash=True)
            for verdict in trashed:
                _finish(work, store, verdict, needed.get(verdict.file.name))
        except BaseException:  # an interrupt: what it has not come to is as it was
            for verdict in locked:
                _return(store, verdict)
            raise


def _return(store: Store, verdict: Verdict) -> None:
    """Put a file back that may be in the trash, whatever has failed; if that fails too, the next pass does."""
    with suppress(UnderlayError):
        eviction.put_back(store, verdict.file.name)


def _still_unused(work: _Work, store: Store, verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
    unchanged = []
    for verdict in verdicts:
        try:
            with translated(verdict.path):
                found = listing.look(store, verdict.file.name)
        except UnderlayError as error:
            work.failed(verdict, error)
            continue
        if found is None:
            work.keep(verdict, Reason("gone", "somebody else has removed it"))
        elif found != verdict.file:
            work.keep(verdict, Reason("changed", "it was used or changed since it was judged"))
        else:
            unchanged.append(verdict)
    needed = _needed(work, store, unchanged, in_trash=False)
    for verdict in unchanged:
        if reason := needed.get(verdict.file.name):
            work.keep(verdict, reason)
        else:
            yield verdict


def _trash(work: _Work, store: Store, verdict: Verdict, taken: dict[str, list[Lock]]) -> bool:
    try:
        for lock in taken[verdict.file.name]:
            lock.confirm()
        eviction.trash(store, verdict.file.name)
    except LockLost:
        work.keep(verdict, Reason("locked", "in use now: somebody took its lock anew"))
        return False
    except UnderlayError as error:
        _return(store, verdict)
        work.failed(verdict, error)
        return False
    return True


def _finish(work: _Work, store: Store, verdict: Verdict, needed: Reason | None) -> None:
    """Remove a file in the trash for good, or return it."""
    name = verdict.file.name
    try:
        if needed is None and not eviction.is_same_trashed(verdict.file, eviction.trashed(store, verdict.file)):
            needed = Reason("changed", "it changed while it was on its way out")
        if needed is None:
            work.gone(verdict, eviction.destroy(store, name))
        elif eviction.put_back(store, name):
            work.keep(verdict, needed)
        else:
            detail = f"{store.paths.trashed(name)} is needed, and its name was taken meanwhile"
            work.problems.append(Problem("trash-left", store.paths.trashed(name), detail))
            work.keep(verdict, needed)
    except UnderlayError as error:
        _return(store, verdict)
        if os.path.lexists(verdict.path):
            work.failed(verdict, error)
        else:  # what failed is to make it last; it may be in the trash again after a crash
            work.problems.append(Problem(error.code, verdict.path, error.message))
            work.gone(verdict, 0)


def _needed(work: _Work, store: Store, verdicts: Sequence[Verdict], *, in_trash: bool) -> dict[str, Reason]:
    """Why files are kept after all, by name: what has changed since the plan's look is looked at again."""
    if not verdicts:
        return {}
    usage = _look_again(work, store, verdicts, in_trash=in_trash)
    found = usage.uses.get(store.root, {})
    unknowns = [unknown for unknown in usage.unknowns if unknown.root in (None, store.root)]
    reasons = {verdict.file.name: refusal(verdict.file, found.get(verdict.file.name, ()), unknowns) for verdict in verdicts}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _look_again(work: _Work, store: Store, verdicts: Sequence[Verdict], *, in_trash: bool) -> Usage:
    config, plan = work.config, work.plan
    seen = Inventory(
        cache=verdicts[0].cache,
        root=store.root,
        kind=store.kind,
        rules=config.rules.get(verdicts[0].cache, Rules()),
        files=[verdict.file for verdict in verdicts],
        versions={},
        free=0,
    )
    places = places_of(config, plan.records)
    paths = {
        (store.root, verdict.file.name): store.paths.trashed(verdict.file.name) if in_trash else verdict.path
        for verdict in verdicts
    }
    probes = (
        BackingProbe(places, again=plan.directories, files=plan.files, judged=work.judged),
        LeasesProbe([store], plan.clocks[store.root]),
        CopiesProbe([store]),
        SharedProbe([store], config.host, config.hosts, plan.clocks[store.root]),
        OpenFilesProbe(paths),
    )
    return merge_usage(probe.observe([seen]) for probe in probes)
