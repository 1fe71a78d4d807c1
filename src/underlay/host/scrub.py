"""The images of this host's caches are read again, and the damaged ones fetched again where their sources still have them."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from underlay import lookup
from underlay.cache import Cache
from underlay.errors import InvalidSize, UnderlayError
from underlay.hits import ASKED_NOW
from underlay.host import bring
from underlay.host.parts import Parts
from underlay.model import BaseImage, ImageRecord, InstanceRecord, Problem, Reason
from underlay.policy.scrub import ScrubSubject, ScrubVerdict, plan_scrub
from underlay.refs import parse_ref
from underlay.scrub import repair
from underlay.scrub.outcome import ScrubReport
from underlay.scrub.pace import Pace
from underlay.scrub.passes import ScrubOrder, scrub as scrub_images
from underlay.store import Store, images, scrubs

_BROUGHT = frozenset({"fetched", "made-raw"})  # by us; of a hit it was somebody else, who wants it


def plan(parts: Parts, texts: Sequence[str], *, cache: str | None, older_than: float) -> list[ScrubVerdict]:
    """See `underlay.host.Host.plan_scrub`."""
    verdicts, problems = _planned(parts, texts, cache=cache, older_than=older_than)
    parts.tell(problems)
    return verdicts


def scrub(
    parts: Parts,
    texts: Sequence[str],
    *,
    cache: str | None,
    rate: int | None,
    seconds: float | None,
    older_than: float,
    refetch: bool,
    instances: Sequence[InstanceRecord] | None,
) -> ScrubReport:
    """See `underlay.host.Host.scrub`."""
    pace = _pace(rate, seconds)
    verdicts, problems = _planned(parts, texts, cache=cache, older_than=older_than)
    order = ScrubOrder(
        stores={store.root: store for store in parts.config.caches.values()},
        pace=pace,
        observer=parts.observer,
        users=lambda subject: repair.users_of(parts.config, parts.known(instances), subject),
        repair=partial(_fetched_again, parts) if refetch else None,
    )
    return scrub_images(order, verdicts, problems)


def _planned(
    parts: Parts, texts: Sequence[str], *, cache: str | None, older_than: float
) -> tuple[list[ScrubVerdict], list[Problem]]:
    if not 0 <= older_than < math.inf:
        raise InvalidSize(f"an age of {older_than:g} s cannot be", hint="use a time such as 30d")
    names = {store.root: name for name, store in parts.config.caches.items()}
    stores = parts.stores(cache)
    found: list[ScrubSubject] = []
    problems: list[Problem] = []
    for store in stores:
        subjects, wrong = scrubs.subjects(store, names[store.root])
        found += subjects
        problems += wrong
    if texts:
        meant = {one.path: one for text in texts for one in lookup.subjects_meant(stores, found, text)}
        found = list(meant.values())
    return plan_scrub(found, older_than=older_than, now=datetime.now(UTC)), problems


def _pace(rate: int | None, seconds: float | None) -> Pace:
    if rate is not None and rate <= 0:
        raise InvalidSize(f"a rate of {rate} bytes a second cannot be", hint="use a size such as 100MiB")
    if seconds is not None and not 0 < seconds < math.inf:
        raise InvalidSize(f"a scrub of {seconds:g} s cannot be", hint="use a time such as 2h")
    until = math.inf if seconds is None else time.monotonic() + seconds
    return Pace(rate=math.inf if rate is None else rate, until=until)


def _fetched_again(parts: Parts, subject: ScrubSubject, users: tuple[Reason, ...]) -> Reason:
    """Bring a damaged image again, and say what came of it. Whatever fails leaves things as they were."""
    store = parts.config.caches[subject.cache]
    try:
        image = images.look(store, subject.name)
        if image is None or image.damage is None:
            return Reason("not-needed", "somebody has removed it or brought it again")
        if image.record is None:
            return Reason("unrecorded", "nothing tells where it came from")
        return _brought(parts, parts.cache(subject.cache), image, image.record, is_needed=bool(users))
    except UnderlayError as error:
        return repair.failed(error)


def _keep_age(store: Store, before: BaseImage) -> None:
    """Let the image be as old as the one whose place it takes: it was mended, which is no use of it."""
    used_ns = (before.last_used - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    with suppress(UnderlayError), images.held(store, before.name):
        images.mark_used(store, before.name, at_ns=used_ns)


def _brought(parts: Parts, cache: Cache, image: BaseImage, record: ImageRecord, *, is_needed: bool) -> Reason:
    """Bring it; other images go for it only where somebody needs it."""
    ref = parse_ref(record.ref)
    source = parts.source(ref.scheme)
    if (obstacle := repair.obstacle(source, cache.store, record)) is not None:
        return obstacle
    want = repair.want_of(image.name, record, kind=cache.store.kind)
    with ExitStack() as holding:
        ensure = partial(
            cache.ensure,
            ref,
            source,
            parts.observer,
            want=want,
            holding=holding,
            retries=parts.config.retries,
            freshness=ASKED_NOW,
        )
        ensured = bring.with_room(parts, ensure, cache.store, ref) if is_needed else ensure()
    if ensured.image.name != image.name:
        return Reason("refetch-failed", f"it came as {ensured.image.name}")
    if not is_needed and ensured.reason.code in _BROUGHT:
        _keep_age(cache.store, image)
    return Reason("refetched", f"the same bytes are here again ({ensured.reason.detail})")
