"""One cache: make an image present, at the least cost that is honest.

In order: a hit that needs no network; a wait for somebody who is fetching it; a description that says it has not changed; an
ingest. Which of them it was is part of the answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from underlay.contracts import BackendTraits, ImageSource, Observer
from underlay.errors import CacheError, CacheMissing, CacheNotWritable, DigestMismatch, LockError, NotCached, SourceUnavailable
from underlay.ingest import Order, ingest
from underlay.model import BaseImage, Digest, Event, ImageRef, ImageVersion, Level, Reason
from underlay.naming import CacheKind, candidate_names
from underlay.store import Store, images, leases, refs, staging as stagings
from underlay.store.images import Hold
from underlay.store.staging import Journal, Staging
from underlay.units import format_duration

FETCHED = "underlay fetch"
"""Who holds the leases that a fetch takes by itself (``lease_on_fetch``)."""

_TRIES = 3
_LEARN_WAIT = 1.0  # seconds; what cannot be learnt now is found out again the next time


@dataclass(frozen=True, slots=True)
class Ensured:
    """An image that is present, and how it came to be: hit, fetched, revalidated or source-unavailable."""

    image: BaseImage
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
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
        checksum: Digest | None = None,
        traits: BackendTraits | None = None,
        lease_seconds: float | None = None,
    ) -> Ensured:
        """Make the image present and mark it used. Safe from any number of threads and processes: one of them fetches.

        Args:
            checksum: of the bytes as served; compared with the recorded digest on a hit.
            traits: of the backend that the image is for; one that needs raw images gets one.
            lease_seconds: how long the image is leased to whoever fetched it; None: not at all.

        Raises:
            SourceError, ImageRefused, CacheError, LockError, ToolError
        """
        self.store.prepare()
        ask = _Ask(self, ref, source, observer, checksum, traits, lease_seconds)
        for _ in range(_TRIES):
            ensured = _ensure(ask)
            if _use(ask, ensured.image):
                _learn(ask, ensured.image)
                observer.event(_event(ensured, ref))
                return ensured
        raise NotCached(f"{ref} goes from {self.store.root} as soon as it is there", hint="something else removes files there")


@dataclass(frozen=True, slots=True)
class _Ask:
    cache: Cache
    ref: ImageRef
    source: ImageSource
    observer: Observer
    checksum: Digest | None
    traits: BackendTraits | None
    lease_seconds: float | None

    @property
    def store(self) -> Store:
        return self.cache.store

    @property
    def raw_only(self) -> bool:
        return self.store.force_raw or (self.traits is not None and self.traits.needs_raw)


def _ensure(ask: _Ask) -> Ensured:
    asked_at = datetime.now(UTC)
    if image := _fresh(ask, checked_since=asked_at - _revalidate_after(ask.source)):
        _sweep(ask, image)
        return Ensured(image, Reason("hit", "it is in the cache"))
    with stagings.turn(ask.store, ask.ref, ask.observer) as staging:
        # Whoever held the lock before us may have done the work since we asked.
        if image := _fresh(ask, checked_since=asked_at):
            _clear(staging)
            return Ensured(image, Reason("hit", "another fetch of it has just ended"))
        if _is_unavailable(ask, since=asked_at) and (image := _last_known(ask)):
            return _unavailable(ask, image, "another fetch of it has just found out")
        return _ask_source(ask, staging)


def _use(ask: _Ask, image: BaseImage) -> bool:
    """Mark the image used under its lock; False when it was evicted since we looked, or replaced by another version."""
    try:
        with images.held(ask.store, image.name) as hold:
            if _version_id(hold.image) != _version_id(image):
                return False
            images.mark_used(ask.store, image.name)
            if ask.lease_seconds is not None:
                _lease(ask, hold, ask.lease_seconds)
    except NotCached:
        return False
    return True


def _lease(ask: _Ask, hold: Hold, seconds: float) -> None:
    now = datetime.now(UTC)
    lease = leases.take(hold, holder=FETCHED, ref=ask.ref.canonical, now=now, expires=now + timedelta(seconds=seconds))
    detail = f"kept for {format_duration(seconds)}, until {lease.expires:%Y-%m-%d %H:%M} UTC"
    ask.observer.event(Event(code="leased", level=Level.INFO, detail=detail, fields={"ref": str(ask.ref), "lease": lease.id}))


def _version_id(image: BaseImage) -> str | None:
    return None if image.record is None else image.record.version_id


def _learn(ask: _Ask, image: BaseImage) -> None:
    """Record a digest that took reading or fetching to find out, so that the next who asks is answered at once."""
    if ask.checksum is None or image.record is None or str(ask.checksum) in image.record.digests:
        return
    with suppress(CacheError, LockError):
        store = replace(ask.store, lock_timeout=_LEARN_WAIT)
        images.learn_digest(store, image.name, ask.checksum, version_id=image.record.version_id)


def _revalidate_after(source: ImageSource) -> timedelta:
    return timedelta(seconds=min(source.revalidate_after, 10 * 365 * 86400))


def _fresh(ask: _Ask, *, checked_since: datetime) -> BaseImage | None:
    """The image when it can be served without asking its source."""
    for version_id in _known_ids(ask, checked_since):
        image = _find(ask, version_id)
        if image is not None and _has_digest(ask, image):
            return image
    return None


def _known_ids(ask: _Ask, checked_since: datetime) -> Iterator[str]:
    """Version ids that answer the request for certain: fixed by the ref, by the checksum, or by a recent description."""
    if fixed := ask.source.fixed_id(ask.ref):
        yield fixed
    if ask.checksum is not None and ask.checksum.algorithm == "sha256":
        yield ask.source.version_id(ask.ref, ask.checksum.hex)
    record = refs.recall(ask.store, ask.ref)
    # A time to come was written before the clock was set back.
    if record is not None and checked_since <= record.checked_at <= datetime.now(UTC):
        yield record.newest.id


def _find(ask: _Ask, version_id: str) -> BaseImage | None:
    for name in candidate_names(version_id, ref=ask.ref, kind=ask.store.kind, raw_only=ask.raw_only):
        image = images.find(ask.store, name)
        if image is None or (ask.raw_only and image.format != "raw"):
            continue
        if _is_version(ask, image, version_id):
            return image
    return None


def _is_version(ask: _Ask, image: BaseImage, version_id: str) -> bool:
    """Whether the image is this version: by its record, whatever its name; without one, by a name that tells the version."""
    if image.record is not None:
        return image.record.version_id == version_id
    return ask.store.kind is CacheKind.BASE or ask.source.fixed_id(ask.ref) is not None


def _has_digest(ask: _Ask, image: BaseImage) -> bool | None:
    """Whether the image is the one that the checksum means; None when that cannot be told from what is stored."""
    if ask.checksum is None:
        return True
    try:
        found = images.digest_of(ask.store, image, ask.checksum.algorithm)
    except CacheMissing:  # evicted since we looked
        return None
    # Nothing says of an unrecorded image whether its bytes are as served, so only a match tells.
    unknown = found is None or (image.record is None and found != ask.checksum)
    return None if unknown else found == ask.checksum


def _ask_source(ask: _Ask, staging: Staging) -> Ensured:
    try:
        return _describe(ask, staging)
    except SourceUnavailable as error:
        image = _last_known(ask)
        if image is None:
            raise
        with suppress(CacheNotWritable):
            refs.note_unavailable(ask.store, ask.ref, now=datetime.now(UTC))
        return _unavailable(ask, image, str(error))


def _describe(ask: _Ask, staging: Staging) -> Ensured:
    version = ask.source.describe(ask.ref)
    if image := _unchanged(ask, version):
        _clear(staging)
        return Ensured(image, Reason("revalidated", "its source says that it has not changed"))
    order = Order(
        store=ask.store,
        source=ask.source,
        version=version,
        checksum=ask.checksum,
        traits=ask.traits,
        neighbours=ask.cache.neighbours,
    )
    return Ensured(ingest(order, staging, ask.observer), Reason("fetched", "from its source"))


def _is_unavailable(ask: _Ask, *, since: datetime) -> bool:
    """Whether somebody has asked the source in vain since then; asking again would only take as long once more."""
    record = refs.recall(ask.store, ask.ref)
    return record is not None and record.unavailable_at is not None and since <= record.unavailable_at <= datetime.now(UTC)


def _unavailable(ask: _Ask, image: BaseImage, why: str) -> Ensured:
    reason = Reason("source-unavailable", f"the last verified image is served: {why}")
    ask.observer.event(Event(code=reason.code, level=Level.WARNING, detail=reason.detail, fields={"ref": str(ask.ref)}))
    return Ensured(image, reason)


def _clear(staging: Staging) -> None:
    """Remove what a dead ingest of an image that is here left; who may not leaves it to a sweep."""
    with suppress(CacheNotWritable):
        stagings.discard(staging)


def _sweep(ask: _Ask, image: BaseImage) -> None:
    """Remove what a process left that died as it published this image; a download that is still of use stays."""
    with stagings.left(ask.store, ask.ref) as staging:
        if staging is not None and not _is_of_use(stagings.kept(staging), image):
            _clear(staging)


def _is_of_use(journal: Journal | None, image: BaseImage) -> bool:
    """Whether a verified download may yet become an image: of another version, or in raw form."""
    return journal is not None and (journal.version_id != _version_id(image) or image.format != "raw")


def _last_known(ask: _Ask) -> BaseImage | None:
    """The newest image that the ref has meant and that is here."""
    record = refs.recall(ask.store, ask.ref)
    for seen in reversed(record.versions if record is not None else ()):
        image = _find(ask, seen.id)
        if image is not None and _has_digest(ask, image):
            return image
    return None


def _unchanged(ask: _Ask, version: ImageVersion) -> BaseImage | None:
    """The cached image when the description means it, or None when it has to be fetched.

    Raises:
        DigestMismatch: it is the image, and it does not have the checksum.
    """
    record = refs.recall(ask.store, ask.ref)
    seen = record.meant_by(version.validator) if record is not None else None
    version_id = version.id or (seen.id if seen else None)
    image = _find(ask, version_id) if version_id else None
    if image is None or version_id is None:
        return None
    matches = _has_digest(ask, image)
    if matches is None:
        return None
    if not matches:
        assert ask.checksum is not None
        actual = images.digest_of(ask.store, image, ask.checksum.algorithm)
        raise DigestMismatch(str(ask.ref), expected=str(ask.checksum), actual=str(actual))
    with suppress(CacheNotWritable):  # a user of the image who may not write here asks again each time
        refs.remember(ask.store, ask.ref, version_id, validator=version.validator, now=datetime.now(UTC))
    return image


def _event(ensured: Ensured, ref: ImageRef) -> Event:
    fields = {"ref": str(ref), "name": ensured.image.name}
    return Event(code=ensured.reason.code, level=Level.DEBUG, detail=ensured.reason.detail, fields=fields)
