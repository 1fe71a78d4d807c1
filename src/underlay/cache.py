"""One cache: make an image present, at the least cost that is honest.

In order: a hit that needs no network; a wait for somebody who is fetching it; a description that says it has not changed; an
ingest. Which of them it was is part of the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from underlay.contracts import BackendTraits, ImageSource, Observer
from underlay.errors import DigestMismatch, NotCached, SourceUnavailable
from underlay.ingest import Order, ingest
from underlay.model import BaseImage, Digest, Event, ImageRef, ImageVersion, Level, Reason
from underlay.naming import CacheKind, candidate_names
from underlay.store import Store, images, refs, staging as stagings
from underlay.store.staging import Staging

_TRIES = 3


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
    ) -> Ensured:
        """Make the image present and mark it used. Safe from any number of threads and processes: one of them fetches.

        Args:
            checksum: of the bytes as served; compared with the recorded digest on a hit.
            traits: of the backend that the image is for; one that needs raw images gets one.

        Raises:
            SourceError, ImageRefused, CacheError, LockError, ToolError
        """
        self.store.prepare()
        ask = _Ask(self, ref, source, observer, checksum, traits)
        for attempt in range(1, _TRIES + 1):
            ensured = _ensure(ask)
            try:
                with images.held(self.store, ensured.image.name):
                    images.mark_used(self.store, ensured.image.name)
            except NotCached:  # evicted between our look and our mark
                if attempt == _TRIES:
                    raise
            else:
                observer.event(_event(ensured, ref))
                return ensured
        raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class _Ask:
    cache: Cache
    ref: ImageRef
    source: ImageSource
    observer: Observer
    checksum: Digest | None
    traits: BackendTraits | None

    @property
    def store(self) -> Store:
        return self.cache.store

    @property
    def raw_only(self) -> bool:
        return self.store.force_raw or (self.traits is not None and self.traits.needs_raw)


def _ensure(ask: _Ask) -> Ensured:
    asked_at = datetime.now(UTC)
    if image := _fresh(ask, checked_since=asked_at - _revalidate_after(ask.source)):
        return Ensured(image, Reason("hit", "it is in the cache"))
    with stagings.turn(ask.store, ask.ref, ask.observer) as staging:
        # Whoever held the lock before us may have done the work since we asked.
        if image := _fresh(ask, checked_since=asked_at):
            return Ensured(image, Reason("hit", "another fetch of it has just ended"))
        return _ask_source(ask, staging)


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
    if record is not None and record.checked_at >= checked_since:
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
    found = images.digest_of(ask.store, image, ask.checksum.algorithm)
    return None if found is None else found == ask.checksum


def _ask_source(ask: _Ask, staging: Staging) -> Ensured:
    try:
        version = ask.source.describe(ask.ref)
    except SourceUnavailable as error:
        if image := _last_known(ask):
            reason = Reason("source-unavailable", f"the last verified image is served: {error}")
            ask.observer.event(Event(code=reason.code, level=Level.WARNING, detail=reason.detail, fields={"ref": str(ask.ref)}))
            return Ensured(image, reason)
        raise
    if image := _unchanged(ask, version):
        return Ensured(image, Reason("revalidated", "its source says that it has not changed"))
    order = Order(
        store=ask.store,
        source=ask.source,
        version=version,
        checksum=ask.checksum,
        traits=ask.traits,
        neighbours=ask.cache.neighbours,
    )
    image = ingest(order, staging, ask.observer)
    if ask.checksum is not None and _has_digest(ask, image) is None:
        images.learn_digest(ask.store, image.name, ask.checksum)
    return Ensured(image, Reason("fetched", "it was not in the cache"))


def _last_known(ask: _Ask) -> BaseImage | None:
    record = refs.recall(ask.store, ask.ref)
    image = _find(ask, record.newest.id) if record is not None else None
    return image if image is not None and _has_digest(ask, image) else None


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
    refs.remember(ask.store, ask.ref, version_id, validator=version.validator, now=datetime.now(UTC))
    return image


def _event(ensured: Ensured, ref: ImageRef) -> Event:
    fields = {"ref": str(ref), "name": ensured.image.name}
    return Event(code=ensured.reason.code, level=Level.DEBUG, detail=ensured.reason.detail, fields=fields)
