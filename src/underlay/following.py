"""Following refs: the newest version is here ahead of need, and pins hold it and some older ones.

The pins of a ref have a holder of its own. They move only once a new version is published: it is pinned first, and what is
older than what is kept is let go after that, so that a prune may take it. Nothing is removed here.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from underlay import hits
from underlay.cache import Ensured
from underlay.contracts import ImageSource, Observer
from underlay.errors import ImageRefused, LeaseNotFound, NotAnImage, SourceRefused, UnderlayError
from underlay.hits import Ask
from underlay.model import BaseImage, Event, ImageRef, Lease, Level
from underlay.naming import CacheKind, candidate_names
from underlay.policy.follow import FollowedVersion, HoldVerdict, plan_holds, plan_unfollow
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.store import Store, images, leases, refs

_HOLDER = "follow:"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A ref that is followed in one cache.

    Attributes:
        keep: how many older versions are held beside the newest.
    """

    ref: ImageRef
    store: Store
    source: ImageSource
    observer: Observer
    keep: int

    @property
    def holder(self) -> str:
        """Who holds its versions."""
        return holder_of(self.ref.canonical)


def holder_of(canonical: str) -> str:
    """The holder of a followed ref's pins: its canonical spelling, or its digest where that is no name for a holder."""
    plain = f"{_HOLDER}{canonical}"
    if plain.isprintable() and len(plain) <= leases.LONGEST_HOLDER:
        return plain
    return f"{_HOLDER}sha256:{hashlib.sha256(canonical.encode(errors='surrogateescape')).hexdigest()}"


def refresh(following: Following, fetch: Callable[[ExitStack], Ensured]) -> Refreshed:
    """Have the newest version here and held; when it cannot be had, the last good one stays held.

    Args:
        fetch: brings the image, and keeps it until the stack is closed.
    """
    before: str | None = None
    try:
        following.store.prepare()
        before = _newest(versions(following)).id
        with ExitStack() as holding:
            error = _error_of(following, fetch, holding)
            refreshed = _outcome(following, before, _hold(following), error)
    except UnderlayError as error:
        refreshed = Refreshed(ref=str(following.ref), outcome="error", cache=following.store.root, before=before, error=error)
    _tell(following.observer, refreshed)
    return refreshed


def each(refs: Sequence[str | ImageRef], work: Callable[[ImageRef], Refreshed], *, jobs: int) -> list[Refreshed]:
    """The work on each ref, ``jobs`` at once, in their order and on none twice; one that fails does not keep the others."""
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        return list(pool.map(lambda ref: _each(ref, work), {str(ref): ref for ref in refs}.values()))


def _each(ref: str | ImageRef, work: Callable[[ImageRef], Refreshed]) -> Refreshed:
    told = str(ref)
    try:
        ref = parse_ref(ref) if isinstance(ref, str) else ref
        told = str(ref)  # without credentials
        return work(ref)
    except UnderlayError as error:
        return Refreshed(ref=told, outcome="error", error=error)


def look(following: Following) -> Refreshed:
    """What a refresh would do now, as far as the source's description tells. Changes nothing."""
    seen = versions(following)
    before = _newest(seen).id
    error: UnderlayError | None = None
    try:
        seen = _with_described(following, seen)
    except UnderlayError as failure:
        error = failure
    return _outcome(following, before, plan_holds(seen, keep=following.keep), error)


def unfollow(stores: Sequence[Store], followed: Sequence[tuple[Store, ImageRef]], observer: Observer) -> list[Refreshed]:
    """Let go of what is held for refs that are followed no more, or not in that cache.

    Raises:
        CacheNotWritable, StorageFailed
    """
    left = []
    for one, store, pins in _not_followed(stores, followed):
        for pin in pins:
            _drop(store, pin)
        left.append(one)
        _tell(observer, one)
    return left


def look_unfollowed(stores: Sequence[Store], followed: Sequence[tuple[Store, ImageRef]]) -> list[Refreshed]:
    """What `unfollow` would let go of. Changes nothing.

    Raises:
        CacheNotWritable, StorageFailed
    """
    return [one for one, _, _ in _not_followed(stores, followed)]


def _not_followed(
    stores: Sequence[Store], followed: Sequence[tuple[Store, ImageRef]]
) -> Iterator[tuple[Refreshed, Store, list[Lease]]]:
    for store in stores:
        holders = {holder_of(ref.canonical) for where, ref in followed if where.root == store.root}
        by_holder: dict[str, list[Lease]] = {}
        for pin in leases.leases(store)[0]:
            if pin.holder.startswith(_HOLDER) and pin.holder not in holders:
                by_holder.setdefault(pin.holder, []).append(pin)
        for holder, pins in by_holder.items():
            ref = next((ref for pin in pins for ref in pin.refs), holder.removeprefix(_HOLDER))
            verdicts = plan_unfollow([name for pin in pins for name in pin.names])
            yield Refreshed(ref=ref, outcome="unfollowed", cache=store.root, versions=tuple(verdicts)), store, pins


def versions(following: Following) -> list[FollowedVersion]:
    """What the ref has meant, newest last, with what is here of each and what is held for it."""
    store, ref = following.store, following.ref
    # The pins are read first: a version is remembered before it is pinned, so each pin read has its version in the record.
    pinned = [name for pin in _pins(following) for name in pin.names]
    record = refs.recall(store, ref)
    ids = [seen.id for seen in record.versions] if record else []
    ids = ids[:-1] if record and record.no_store else ids  # of the newest, nobody is to keep a copy
    if (fixed := following.source.fixed_id(ref)) is not None:
        ids = [*(one for one in ids if one != fixed), fixed]
    here = {version_id: _name(following, version_id) for version_id in ids}
    named = {name for name in here.values() if name is not None}
    others = [name for name in pinned if name not in named]
    seen = [_version(following, one, here[one], [name for name in pinned if name == here[one]], others) for one in ids]
    claimed = {name for version in seen for name in version.held}
    # Of what is held and was forgotten, nothing tells its place but that it is older than what is remembered.
    return [*(_forgotten(following, name) for name in others if name not in claimed), *seen]


def _version(
    following: Following, version_id: str, name: str | None, own: Sequence[str], others: Sequence[str]
) -> FollowedVersion:
    """A version with the names that are held for it: its image's, and in a base cache those of its other forms."""
    forms = () if following.store.kind is CacheKind.MASTERS and name is None else _names(following, version_id)
    return FollowedVersion(
        id=version_id, is_here=name is not None, name=name, held=(*own, *(other for other in others if other in forms))
    )


def _forgotten(following: Following, name: str) -> FollowedVersion:
    image = _look(following.store, name)
    if image is None:
        return FollowedVersion(id=None, held=(name,))
    return FollowedVersion(id=hits.version_id(image), is_here=True, name=name, held=(name,))


def _names(following: Following, version_id: str) -> Sequence[str]:
    """The names that a version may have, best first: those of the form that the cache keeps."""
    store = following.store
    raw_first = Want().raw_only(force_raw=store.force_raw)
    best = candidate_names(version_id, ref=following.ref, kind=store.kind, raw_only=raw_first)
    return [*best, *candidate_names(version_id, ref=following.ref, kind=store.kind, raw_only=False)]


def _name(following: Following, version_id: str) -> str | None:
    """The name of the image that is here of a version, or None."""
    is_told_by_name = following.store.kind is CacheKind.BASE or following.source.fixed_id(following.ref) is not None
    for name in _names(following, version_id):
        image = _look(following.store, name)
        if image is not None and (is_told_by_name if image.record is None else image.record.version_id == version_id):
            return name
    return None


def _look(store: Store, name: str) -> BaseImage | None:
    """The image of this name; one that no fetch would serve is none."""
    with suppress(ImageRefused, NotAnImage):
        return images.find_unchanged(store, name)
    return None


def _pins(following: Following) -> list[Lease]:
    """What is held for the ref, the longest held first."""
    found = [pin for pin in leases.leases(following.store)[0] if pin.holder == following.holder]
    return sorted(found, key=lambda pin: pin.made_at)


def _newest(seen: Sequence[FollowedVersion]) -> FollowedVersion:
    """The newest version that is here; one of nothing when none is."""
    return next((version for version in reversed(seen) if version.is_here), FollowedVersion(id=None))


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
    if source.fixed_id(ref) is not None and _newest(seen).is_here:
        return list(seen)
    with ExitStack() as holding:
        ask = Ask(store=following.store, ref=ref, source=source, observer=following.observer, want=Want(), holding=holding)
        version = source.describe(ref, known=hits.validators(ask))
        version_id, found = hits.described(ask, version)
    if version.no_store:
        raise _kept_by_nobody(ref)
    is_new = found is None
    older = [one for one in seen if is_new or one.id != version_id]
    newest = FollowedVersion(id=version_id, is_here=True) if is_new else next(one for one in seen if one.id == version_id)
    is_replaced = is_new and following.store.kind is CacheKind.MASTERS
    return [newest] if is_replaced else [*older, newest]


def _hold(following: Following) -> list[HoldVerdict]:
    """Pin what is to be held, and only then let go of the rest.

    Raises:
        NotCached: what is to be held went meanwhile; nothing is let go. CacheNotWritable, LockTimeout, LockLost
    """
    verdicts = plan_holds(versions(following), keep=following.keep)
    wanted = {one.version.name for one in verdicts if one.holds and one.version.name is not None}
    pins = _pins(following)
    for name in wanted - {name for pin in pins for name in pin.names}:
        with images.held(following.store, name) as hold:
            now = datetime.now(UTC)
            leases.take(hold, holder=following.holder, ref=following.ref.canonical, now=now, expires=None)
    for pin in pins:
        if not wanted.intersection(pin.names):
            _drop(following.store, pin)
    return verdicts


def _drop(store: Store, pin: Lease) -> None:
    with suppress(LeaseNotFound):  # somebody else let go of it
        leases.drop(store, pin.id)


def _outcome(
    following: Following, before: str | None, verdicts: Sequence[HoldVerdict], error: UnderlayError | None
) -> Refreshed:
    newest = next((one.version for one in verdicts if one.holds), FollowedVersion(id=None))
    if error is None:
        outcome = "current" if before == newest.id and before is not None else "moved"
    else:
        outcome = "last-good" if newest.is_here else "error"
    return Refreshed(
        ref=str(following.ref),
        outcome=outcome,
        cache=following.store.root,
        before=before,
        after=newest.id,
        image=_look(following.store, newest.name) if newest.name else None,
        versions=tuple(verdicts),
        error=error,
    )


def _tell(observer: Observer, one: Refreshed) -> None:
    """One event for each ref, with the outcome as its code."""
    held = sum(verdict.holds for verdict in one.versions)
    detail = one.error.message if one.error else f"{held} held, {len(one.versions) - held} let go"
    level = _LEVELS.get(one.outcome, Level.DEBUG)
    observer.event(Event(code=one.outcome, level=level, detail=detail, fields={"ref": one.ref, "version": one.after}))
