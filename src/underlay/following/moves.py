"""A refresh of followed refs: the newest version is brought, and then the holds move to it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from underlay import hits, threads
from underlay.cache import Ensured
from underlay.contracts import Observer
from underlay.errors import SourceRefused, UnderlayError
from underlay.following.versions import Following, drop, look_at, newest, pins, versions
from underlay.hits import Ask
from underlay.model import BaseImage, Event, ImageRef, Level
from underlay.naming import CacheKind
from underlay.policy.follow import FollowedVersion, HoldVerdict, plan_holds
from underlay.policy.form import Want
from underlay.refs import parse_ref, shown
from underlay.store import images, leases

_LEVELS = MappingProxyType({"moved": Level.INFO, "unfollowed": Level.INFO, "last-good": Level.WARNING, "error": Level.WARNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What came of one followed ref, or would come of it.

    Attributes:
        cache: the directory that holds it; None when it did not come so far.
        outcome: moved (a newer version is here), current (there is none), last-good (the newer one could not be had, and what
            was here is held), error (nothing is here), unfollowed (it is followed no more).
        before, after: the version ids of the newest version that was here and that is; None: none, or nothing tells.
        image: the newest version's.
        versions: which are held and which were let go, newest first.
        error: why it is last-good or error.
    """

    ref: str
    outcome: str
    cache: Path | None = None
    before: str | None = None
    after: str | None = None
    image: BaseImage | None = None
    versions: tuple[HoldVerdict, ...] = ()
    error: UnderlayError | None = None


def refresh(following: Following, fetch: Callable[[ExitStack], Ensured]) -> Refreshed:
    """Have the newest version here and held; when it cannot be had, the last good one stays held.

    Args:
        fetch: brings the image, and keeps it until the stack is closed.
    """
    before: str | None = None
    try:
        following.store.prepare()
        before = newest(versions(following)).id
        with ExitStack() as holding:
            error = _error_of(following, fetch, holding)
            refreshed = _outcome(following, before, _hold(following), error)
    except UnderlayError as error:
        refreshed = Refreshed(ref=str(following.ref), outcome="error", cache=following.store.root, before=before, error=error)
    tell(following.observer, refreshed)
    return refreshed


def look(following: Following) -> Refreshed:
    """What a refresh would do now, as far as the source's description tells. Changes nothing."""
    seen = versions(following)
    before = newest(seen).id
    error: UnderlayError | None = None
    try:
        seen = _with_described(following, seen)
    except UnderlayError as failure:
        error = failure
    return _outcome(following, before, plan_holds(seen, keep=following.keep), error)


def each(refs: Sequence[str | ImageRef], work: Callable[[ImageRef], Refreshed], *, jobs: int) -> list[Refreshed]:
    """The work on each ref, ``jobs`` at once, in their order and on none twice; one that fails does not keep the others."""
    return threads.each(lambda ref: _each(ref, work), {str(ref): ref for ref in refs}.values(), threads=max(1, jobs))


def _each(ref: str | ImageRef, work: Callable[[ImageRef], Refreshed]) -> Refreshed:
    told = shown(str(ref))
    try:
        ref = parse_ref(ref) if isinstance(ref, str) else ref
        told = str(ref)
        return work(ref)
    except UnderlayError as error:
        return Refreshed(ref=told, outcome="error", error=error)


def _error_of(following: Following, fetch: Callable[[ExitStack], Ensured], holding: ExitStack) -> UnderlayError | None:
    """Why the newest version could not be had; None: it is here, and kept until ``holding`` is closed."""
    try:
        ensured = fetch(holding)
    except UnderlayError as error:
        return error
    return _kept_by_nobody(following.ref) if ensured.no_store else None


def _kept_by_nobody(ref: ImageRef) -> SourceRefused:
    return SourceRefused(
        f"{ref}: its source asks that nobody keep a copy", hint="fetch it when it is needed, and do not follow it"
    )


def _with_described(following: Following, seen: Sequence[FollowedVersion]) -> list[FollowedVersion]:
    """The versions as they would be after a fetch of what the source describes.

    Raises:
        SourceError
    """
    source, ref = following.source, following.ref
    if source.fixed_id(ref) is not None and newest(seen).is_here:
        return list(seen)
    with ExitStack() as holding:
        ask = Ask(store=following.store, ref=ref, source=source, observer=following.observer, want=Want(), holding=holding)
        version = source.describe(ref, known=hits.validators(ask))
        version_id, found = hits.described(ask, version)
    if version.no_store:
        raise _kept_by_nobody(ref)
    if found is None:
        comes = FollowedVersion(id=version_id, is_here=True)
        return [comes] if following.store.kind is CacheKind.MASTERS else [*seen, comes]
    is_here = FollowedVersion(id=version_id, is_here=True, name=found.image.name)
    return [*(one for one in seen if one.id != version_id), next((one for one in seen if one.id == version_id), is_here)]


def _hold(following: Following) -> list[HoldVerdict]:
    """Pin what is to be held, and only then let go of the rest.

    Raises:
        NotCached: what is to be held went meanwhile; nothing is let go. CacheNotWritable, LockTimeout, LockLost
    """
    verdicts = plan_holds(versions(following), keep=following.keep)
    wanted = {one.version.name for one in verdicts if one.holds and one.version.name is not None}
    held = pins(following)
    for name in wanted - {name for pin in held for name in pin.names}:
        with images.held(following.store, name) as hold:
            now = datetime.now(UTC)
            leases.take(hold, holder=following.holder, ref=following.ref.canonical, now=now, expires=None)
    for pin in held:
        if not wanted.intersection(pin.names):
            drop(following.store, pin)
    return verdicts


def _outcome(
    following: Following, before: str | None, verdicts: Sequence[HoldVerdict], error: UnderlayError | None
) -> Refreshed:
    now = next((one.version for one in verdicts if one.holds), FollowedVersion(id=None))
    if error is None:
        outcome = "current" if before == now.id and before is not None else "moved"
    else:
        outcome = "last-good" if now.is_here else "error"
    return Refreshed(
        ref=str(following.ref),
        outcome=outcome,
        cache=following.store.root,
        before=before,
        after=now.id,
        image=look_at(following.store, now.name) if now.name else None,
        versions=tuple(verdicts),
        error=error,
    )


def tell(observer: Observer, one: Refreshed) -> None:
    """One event for each ref, with the outcome as its code."""
    held = sum(verdict.holds for verdict in one.versions)
    detail = one.error.message if one.error else f"{held} held, {len(one.versions) - held} let go"
    level = _LEVELS.get(one.outcome, Level.DEBUG)
    observer.event(Event(code=one.outcome, level=level, detail=detail, fields={"ref": one.ref, "version": one.after}))
