"""One cache: make an image present, at the least cost that is honest.

In order: a hit that needs no network; a wait for somebody who is fetching it; a description that says it has not changed; an
ingest. The raw form of an image that is here as it was served is made from that. Which of them it was is part of the answer.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from underlay import hits, later
from underlay.contracts import ImageSource, Observer
from underlay.errors import (
    CacheError,
    CacheMissing,
    CacheNotWritable,
    ImageDamaged,
    LockError,
    NotCached,
    SourceChanged,
    SourceUnavailable,
)
from underlay.hits import AS_THE_SOURCE_SAYS, Ask, Found, Freshness, version_id
from underlay.model import BaseImage, Event, ImageRef, ImageVersion, Level, Reason
from underlay.policy.form import Want
from underlay.policy.retry import NO_RETRIES, Retries, Tries
from underlay.retrying import pause
from underlay.store import Store, images, leases, refs, staging as stagings
from underlay.store.images import Hold
from underlay.store.staging import Staging
from underlay.units import format_duration
from underlay.values import replace

if TYPE_CHECKING:
    from underlay import ingest as ingesting
else:
    ingesting = later.module("underlay.ingest")  # what is here already needs none

FETCHED = "underlay fetch"
"""Who holds the leases that a fetch takes by itself (``lease_on_fetch``)."""

ANYTHING = Want()
"""A want that any verified form of the image meets, as the cache keeps it."""

_TRIES = 3
_LEARN_WAIT = 1.0  # seconds; what cannot be learnt now is found out again the next time


class Ensured(msgspec.Struct, frozen=True):
    """An image that is present, and how it came to be: hit, fetched, made-raw, revalidated or source-unavailable.

    Attributes:
        no_store: its source asks that no copy be kept, so it answers this request only.
    """

    image: BaseImage
    reason: Reason
    no_store: bool = False


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """One configured cache.

    Attributes:
        neighbours: the host's other caches, which may share the file system's space.
    """

    name: str
    store: Store
    neighbours: Sequence[Store] = ()

    def ensure(
        self,
        ref: ImageRef,
        source: ImageSource,
        observer: Observer,
        *,
        want: Want = ANYTHING,
        lease_seconds: float | None = None,
        holding: ExitStack | None = None,
        retries: Retries = NO_RETRIES,
        freshness: Freshness = AS_THE_SOURCE_SAYS,
    ) -> Ensured:
        """Make the image present and mark it used. Safe from any number of threads and processes: one of them fetches.

        Args:
            want: what the image must be; on a hit it is told from what was recorded.
            lease_seconds: how long the image is leased to whoever fetched it; None: not at all.
            holding: keeps the image until it is closed; None: it may be evicted from the return on.
            retries: how often a source that fails is asked, and a transfer that breaks goes on.
            freshness: how old an answer of the source may be. A ref that fixes its version for ever needs none.

        Raises:
            SourceError, ImageRefused, CacheError, LockError, ToolError
        """
        self.store.prepare()
        with ExitStack() as ours:
            ask = Ask(
                store=self.store,
                ref=ref,
                source=source,
                observer=observer,
                want=want,
                holding=holding or ours,
                neighbours=self.neighbours,
                lease_seconds=lease_seconds,
                retries=retries,
                freshness=freshness,
            )
            for _ in range(_TRIES):
                ensured = _ensure(ask)
                if _use(ask, ensured):
                    _learn(ask, ensured.image)
                    observer.event(_event(ensured, ref))
                    return ensured
        raise NotCached(f"{ref} goes from {self.store.root} as soon as it is there", hint="something else removes files there")


def _ensure(ask: Ask) -> Ensured:
    asked_at = datetime.now(UTC)
    since = ask.freshness.since(ask.source, now=asked_at)
    found = hits.fresh(ask, checked_since=since)
    if found is not None and not found.converts:
        _sweep(ask, found.image)
        return Ensured(found.image, Reason("hit", "it is in the cache"))
    with stagings.turn(ask.store, ask.ref, ask.observer) as staging:
        ask = replace(ask, waits=True)
        # Whoever held the lock before us may have done the work since we asked.
        another = Reason("hit", "another fetch of it has just ended")
        ensured = _served(ask, staging, hits.fresh(ask, checked_since=since), another)
        if ensured is None and _is_unavailable(ask, since=asked_at):
            ensured = _stand_in(ask, staging, "another fetch of it has just found out")
        return ensured or _ask_source(ask, staging)


def _served(ask: Ask, staging: Staging, found: Found | None, reason: Reason) -> Ensured | None:
    """What was found, in the form that is asked for; None when that has gone before it could be converted."""
    if found is None:
        return None
    if not found.converts:
        _clear(staging)
        return Ensured(found.image, reason)
    image = ingesting.convert_kept(ask.order, staging, found.image, ask.observer)
    made = Reason("made-raw", "made from the image as it was served, which is in the cache")
    return None if image is None else Ensured(image, reason if reason.code == "source-unavailable" else made)


def _stand_in(ask: Ask, staging: Staging, why: str) -> Ensured | None:
    """The last that is known of an image whose source cannot be asked, if there is any and it may be served."""
    found = hits.last_known(ask)
    if found is None:
        return None
    reason = Reason("source-unavailable", f"the last verified image is served: {why}")
    ask.observer.event(Event(code=reason.code, level=Level.WARNING, detail=reason.detail, fields={"ref": str(ask.ref)}))
    return _served(ask, staging, found, reason)


def _use(ask: Ask, ensured: Ensured) -> bool:
    """Mark the image used under its lock; False when it is not there any more: evicted, replaced, or found to be damaged."""
    image = ensured.image
    try:
        images.keep_open(image.path, ask.holding)
        with images.held(ask.store, image.name) as hold:
            if version_id(hold.image) != version_id(image):
                return False
            images.mark_used(ask.store, image.name)
            if ask.lease_seconds is not None and not ensured.no_store:
                _lease(ask, hold, ask.lease_seconds)
    except (NotCached, CacheMissing, ImageDamaged):
        return False
    return True


def _lease(ask: Ask, hold: Hold, seconds: float) -> None:
    now = datetime.now(UTC)
    lease = leases.take(hold, holder=FETCHED, ref=ask.ref.canonical, now=now, expires=now + timedelta(seconds=seconds))
    detail = f"kept for {format_duration(seconds)}, until {lease.expires:%Y-%m-%d %H:%M} UTC"
    ask.observer.event(Event(code="leased", level=Level.INFO, detail=detail, fields={"ref": str(ask.ref), "lease": lease.id}))


def _learn(ask: Ask, image: BaseImage) -> None:
    """Record a digest that took reading or fetching to find out, so that the next who asks is answered at once."""
    checksum = ask.want.checksum
    if checksum is None or image.record is None or str(checksum) in image.record.digests:
        return
    with suppress(CacheError, LockError):
        store = replace(ask.store, lock_timeout=_LEARN_WAIT)
        images.learn_digest(store, image.name, checksum, version_id=image.record.version_id)


def _ask_source(ask: Ask, staging: Staging) -> Ensured:
    tries = Tries(ask.retries)
    while True:
        try:
            return _described(ask, staging)
        except SourceUnavailable as error:
            ensured = _stand_in(ask, staging, str(error))
            if ensured is None:
                raise
            with suppress(CacheNotWritable):
                refs.note_unavailable(ask.store, ask.ref, now=datetime.now(UTC))
            return ensured
        except SourceChanged as error:  # it is another version by now, which is described and fetched from its beginning
            pause(tries, error, what=str(ask.ref), reached=0, observer=ask.observer)


def _described(ask: Ask, staging: Staging) -> Ensured:
    known = hits.validators(ask)
    version = _describe(ask, known)
    revalidated = Reason("revalidated", "its source says that it has not changed")
    if ensured := _served(ask, staging, hits.unchanged(ask, version), revalidated):
        return ensured
    if version.validator in known and version.size is None:  # the validator may be all that the answer told
        version = _describe(ask, ())
    image = ingesting.ingest(replace(ask.order, version=version), staging, ask.observer)
    return Ensured(image, Reason("fetched", "from its source"), no_store=version.no_store)


def _describe(ask: Ask, known: Sequence[str]) -> ImageVersion:
    """What the source says; where nothing can stand in for its answer, it is asked again when it fails."""
    tries = Tries(ask.retries)
    while True:
        try:
            return ask.source.describe(ask.ref, known=known)
        except SourceUnavailable as error:
            if hits.last_known(ask) is not None:
                raise
            pause(tries, error, what=str(ask.ref), reached=0, observer=ask.observer)


def _is_unavailable(ask: Ask, *, since: datetime) -> bool:
    """Whether somebody has asked the source in vain since then; asking again would only take as long once more."""
    record = refs.recall(ask.store, ask.ref)
    return record is not None and record.unavailable_at is not None and since <= record.unavailable_at <= datetime.now(UTC)


def _clear(staging: Staging) -> None:
    """Remove what a dead ingest of an image that is here left; who may not leaves it to a sweep."""
    with suppress(CacheNotWritable):
        stagings.discard(staging)


def _sweep(ask: Ask, image: BaseImage) -> None:
    """Remove what a process left that died as it published this image; a download that is still of use stays."""
    with stagings.left(ask.store, ask.ref) as staging:
        if staging is not None and not _is_of_use(staging, image):
            _clear(staging)


def _is_of_use(staging: Staging, image: BaseImage) -> bool:
    """Whether what is left may yet become an image: of another version, or in raw form."""
    journal, partial = stagings.kept(staging), stagings.partial(staging)
    if journal is not None:
        return journal.version_id != version_id(image) or image.format != "raw"
    return partial is not None and (partial.version_id is None or partial.version_id != version_id(image))


def _event(ensured: Ensured, ref: ImageRef) -> Event:
    fields = {"ref": str(ref), "name": ensured.image.name}
    return Event(code=ensured.reason.code, level=Level.DEBUG, detail=ensured.reason.detail, fields=fields)
