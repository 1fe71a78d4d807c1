"""Which image in a cache answers a request: told from the records alone, or by what its source says now.

An image answers when it is the version that the ref means and has the checksum, the format and the form that are asked for. One
that lacks the form only, because raw is wanted and it is kept as it was served, is found as well: the answer is made from it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta

import msgspec

from underlay.contracts import ImageSource, Observer
from underlay.errors import CacheMissing, CacheNotWritable, DigestMismatch, FormatMismatch, InsufficientSpace
from underlay.model import BaseImage, ImageRef, ImageVersion
from underlay.naming import CacheKind, candidate_names
from underlay.order import Order
from underlay.policy.form import Want, fits, has_format, is_inspected, may_be_converted
from underlay.policy.retry import NO_RETRIES, Retries
from underlay.store import Store, images, locking, refs
from underlay.store.refs import RefRecord
from underlay.values import replace

_LONGEST_AGE = 10 * 365 * 86400.0  # seconds; further back than any answer that we know of


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    """How old an answer of the source may be (RFC 9111, 5.2.1.1), and what is served in place of one.

    Attributes:
        max_age: seconds for which a former answer holds; 0: the source is asked now; None: as the source says.
        stands_in: whether the last verified image may be served when the source cannot be asked, if the source allows it.
    """

    max_age: float | None = None
    stands_in: bool = True

    def since(self, source: ImageSource, *, now: datetime) -> datetime:
        """The moment from which on an answer is young enough."""
        age = source.revalidate_after if self.max_age is None else self.max_age
        return now - timedelta(seconds=min(age, _LONGEST_AGE))


AS_THE_SOURCE_SAYS = Freshness()
ASKED_NOW = Freshness(max_age=0, stands_in=False)
"""The source is asked, and if that fails it is an error."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request to one cache.

    Attributes:
        holding: keeps the image that answers from eviction, until it is closed.
        neighbours: the host's other caches.
        lease_seconds: how long the image is leased to who asks, or None.
        waits: whether to wait for an image that is on its way out: it may come back.
        retries: how often a source that fails is asked, and a transfer that breaks goes on.
        freshness: how old an answer of the source may be.
    """

    store: Store
    ref: ImageRef
    source: ImageSource
    observer: Observer
    want: Want
    holding: ExitStack
    neighbours: Sequence[Store] = ()
    lease_seconds: float | None = None
    waits: bool = False
    retries: Retries = NO_RETRIES
    freshness: Freshness = AS_THE_SOURCE_SAYS

    @property
    def stands_in(self) -> bool:
        """Whether the last verified image may be served in place of an answer of the source."""
        return self.source.stale_if_error and self.freshness.stands_in

    @property
    def order(self) -> Order:
        """What an ingest is to bring, before anything is known of it."""
        return Order(
            store=self.store,
            source=self.source,
            version=ImageVersion(ref=self.ref),
            want=self.want,
            neighbours=self.neighbours,
            holding=self.holding,
            retries=self.retries,
        )


class Found(msgspec.Struct, frozen=True):
    """An image that answers.

    Attributes:
        converts: its raw form is what is asked for, and has to be made from it.
    """

    image: BaseImage
    converts: bool = False


def fresh(ask: Ask, *, checked_since: datetime) -> Found | None:
    """What can be served without asking the source."""
    for version_id in _known_ids(ask, checked_since):
        found = _find(ask, version_id)
        if found is not None and _is_asked_for(ask, found.image):
            return found
    return None


def last_known(ask: Ask) -> Found | None:
    """What the ref has meant last of what is here, when the source lets it stand in."""
    record = refs.recall(ask.store, ask.ref)
    if record is None or record.no_store or not ask.stands_in:
        return None
    for seen in reversed(record.versions):
        found = _find(ask, seen.id)
        if found is not None and _is_asked_for(ask, found.image):
            return found
    return None


def validators(ask: Ask) -> Sequence[str]:
    """The validators of the newest version that the ref has meant, when it is here."""
    record = refs.recall(ask.store, ask.ref)
    if record is None or record.no_store or _find(ask, record.newest.id) is None:
        return ()
    return record.newest.validators


def unchanged(ask: Ask, version: ImageVersion) -> Found | None:
    """What is here of the version that the source describes, and note that it was asked; None when it has to be fetched.

    Raises:
        DigestMismatch, FormatMismatch: it is here, and it is not what was asked for.
    """
    version_id, found = described(ask, version)
    if found is None or version_id is None:
        return None
    matches = _is_asked_for(_labelled(ask, version), found.image)
    if matches is None:
        return None
    if not matches:
        raise _mismatch(ask, found.image)
    # Who may not write here, or finds no room for it, asks again each time.
    with suppress(CacheNotWritable, InsufficientSpace):
        refs.remember(ask.store, ask.ref, version_id, validator=version.validator, now=datetime.now(UTC))
    return found


def described(ask: Ask, version: ImageVersion) -> tuple[str | None, Found | None]:
    """The id of the version that the source describes, as far as it is known, and what is here of it. Changes nothing."""
    if version.no_store:
        return version.id, None
    version_id = version.id or _meant(refs.recall(ask.store, ask.ref), version.validator)
    return version_id, _find(ask, version_id) if version_id else None


def _labelled(ask: Ask, version: ImageVersion) -> Ask:
    """The request with the format that the source says, unless it says one itself."""
    return replace(ask, want=replace(ask.want, disk_format=ask.want.disk_format or version.disk_format))


def names(store: Store, ref: ImageRef) -> set[str]:
    """The names that what the ref means, or has meant, may have in a cache."""
    record = refs.recall(store, ref)
    ids = {ref.location, *(seen.id for seen in (record.versions if record else ()))}
    return {name for one in ids for name in candidate_names(one, ref=ref, kind=store.kind, raw_only=False)}


def version_id(image: BaseImage) -> str | None:
    """The version that an image records, or None."""
    return None if image.record is None else image.record.version_id


def _meant(record: RefRecord | None, validator: str | None) -> str | None:
    seen = record.meant_by(validator) if record is not None else None
    return seen.id if seen else None


def _known_ids(ask: Ask, checked_since: datetime) -> Iterator[str]:
    """Version ids that answer the request for certain: fixed by the ref, by the checksum, or by a recent description."""
    if fixed := ask.source.fixed_id(ask.ref):
        yield fixed
    record = refs.recall(ask.store, ask.ref)
    if record is not None and record.no_store:
        return
    if ask.want.checksum is not None and ask.want.checksum.algorithm == "sha256":
        yield ask.source.version_id(ask.ref, ask.want.checksum.hex)
    # A time to come was written before the clock was set back.
    if record is not None and checked_since <= record.checked_at <= datetime.now(UTC):
        yield record.newest.id


def _find(ask: Ask, wanted_id: str) -> Found | None:
    """The image of this version: in the form that is asked for, else as it was served when raw is wanted."""
    kind, force_raw = ask.store.kind, ask.store.force_raw
    raw_only = ask.want.raw_only(force_raw=force_raw)
    for name in candidate_names(wanted_id, ref=ask.ref, kind=kind, raw_only=raw_only):
        image = _look(ask, name)
        if image is None or not fits(image, ask.want, kind=kind, force_raw=force_raw):
            continue
        if _is_version(ask, image, wanted_id):
            return Found(image)
    return _find_served(ask, wanted_id) if raw_only else None


def _look(ask: Ask, name: str) -> BaseImage | None:
    if not ask.waits:
        return images.find_unchanged(ask.store, name)
    with locking.shared(ask.store, name):
        return images.find_unchanged(ask.store, name)


def _find_served(ask: Ask, wanted_id: str) -> Found | None:
    """The image of this version as it was served, if it was inspected, so that it may be opened to be converted."""
    for name in candidate_names(wanted_id, ref=ask.ref, kind=ask.store.kind, raw_only=False):
        image = _look(ask, name)
        if image is not None and image.format != "raw" and version_id(image) == wanted_id and may_be_converted(image):
            return Found(image, converts=True)
    return None


def _is_version(ask: Ask, image: BaseImage, wanted_id: str) -> bool:
    """Whether the image is this version: by its record, whatever its name; without one, by a name that tells the version."""
    if image.record is not None:
        return image.record.version_id == wanted_id
    return ask.store.kind is CacheKind.BASE or ask.source.fixed_id(ask.ref) is not None


def _is_asked_for(ask: Ask, image: BaseImage) -> bool | None:
    """Whether the image has the checksum and the format that are asked for; None when what is stored does not tell."""
    told = (_is_inspected(ask, image), _has_format(ask, image), _has_digest(ask, image))
    if False in told:
        return False
    return None if None in told else True


def _is_inspected(ask: Ask, image: BaseImage) -> bool | None:
    """Whether the image passed the rules that this request has; None when it came by one to which none applied."""
    if ask.order.exempt or image.record is None or is_inspected(image):
        return True
    # A source that fixes an image by its ref has labelled it for ever.
    is_kernel = image.served_format is not None and ask.source.fixed_id(ask.ref) is not None
    return True if is_kernel and ask.want.disk_format is None and not ask.want.raw else None


def _has_format(ask: Ask, image: BaseImage) -> bool | None:
    return True if ask.order.exempt else has_format(image, ask.want.disk_format)


def _has_digest(ask: Ask, image: BaseImage) -> bool | None:
    checksum = ask.want.checksum
    if checksum is None:
        return True
    try:
        found = images.digest_of(ask.store, image, checksum.algorithm)
    except CacheMissing:  # evicted since we looked
        return None
    # Nothing says of an unrecorded image whether its bytes are as served, so only a match tells.
    unknown = found is None or (image.record is None and found != checksum)
    return None if unknown else found == checksum


def _mismatch(ask: Ask, image: BaseImage) -> DigestMismatch | FormatMismatch:
    if _has_format(ask, image) is False:
        what = f"{ask.ref} was asked for as {ask.want.disk_format}, but its content is {image.served_format}"
        return FormatMismatch(what, hint="ask for the format that it has")
    assert ask.want.checksum is not None
    actual = images.digest_of(ask.store, image, ask.want.checksum.algorithm)
    return DigestMismatch(str(ask.ref), expected=str(ask.want.checksum), actual=str(actual))
