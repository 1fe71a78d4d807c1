"""An image is brought: into a cache, and from there to a path, with room made where there is none."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from underlay import hits, later
from underlay.errors import DigestMismatch, InsufficientSpace, NotCached
from underlay.hits import AS_THE_SOURCE_SAYS, Freshness
from underlay.model import Digest
from underlay.naming import CacheKind
from underlay.policy.form import check_want
from underlay.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay import checksumlist, delivery, room
    from underlay.cache import Cache, Ensured
    from underlay.checksumlist import ChecksumList
    from underlay.contracts import ImageSource
    from underlay.delivery import Delivered
    from underlay.host.parts import Parts
    from underlay.model import ImageRef
    from underlay.policy.form import Want
    from underlay.store import Store, eviction

    Expected = Digest | ChecksumList | None
else:
    checksumlist = later.module("underlay.checksumlist")
    delivery = later.module("underlay.delivery")
    eviction = later.module("underlay.store.eviction")
    room = later.module("underlay.room")

_DELIVERIES = 5
_ROOM_TRIES = 10  # others may take what was made for us, and then there is as much again to be had


def expected(parts: Parts, ref: ImageRef, checksum: str | Digest | None, signature: str | None) -> Expected:
    """The digest, or the list that has it, which an image must be of; None when nothing is asked.

    Raises:
        InvalidDigest, SignatureRefused, ConfigError: see `underlay.checksumlist.expected`.
    """
    if checksum is None and signature is None:
        return None
    return checksumlist.expected(ref, checksum, signature, config=parts.config, sources=parts.source, observer=parts.observer)


def verified(parts: Parts, ref: ImageRef, cache: Cache, want: Want, digest: Expected, holding: ExitStack) -> Ensured:
    """The image in a cache, kept until ``holding`` is closed.

    When it has another digest than a list says, the list may be stale, and is asked once more.
    """
    source, store = parts.source(ref.scheme), cache.store
    check_want(want, kind=store.kind, force_raw=store.force_raw)
    if digest is None or isinstance(digest, Digest):
        return _ensured(parts, ref, cache, source, replace(want, checksum=digest), holding)
    listed = checksumlist.ask(digest)
    try:
        return _ensured(parts, ref, cache, source, replace(want, checksum=listed.digest), holding)
    except DigestMismatch as error:
        listed = checksumlist.ask_again(digest, listed, error)
    return _ensured(parts, ref, cache, source, replace(want, checksum=listed.digest), holding)


def _ensured(parts: Parts, ref: ImageRef, cache: Cache, source: ImageSource, want: Want, holding: ExitStack) -> Ensured:
    ensure = partial(
        cache.ensure,
        ref,
        source,
        parts.observer,
        want=want,
        lease_seconds=parts.config.leases.get(cache.name),
        holding=holding,
        retries=parts.config.retries,
        freshness=_freshness(parts, ref, cache, source),
    )
    return with_room(parts, ensure, cache.store, ref)


def _freshness(parts: Parts, ref: ImageRef, cache: Cache, source: ImageSource) -> Freshness:
    """What is followed moves with a refresh, so what the last one found is served for a while."""
    follow = parts.config.follow
    is_followed = any(one.canonical == ref.canonical for one in follow.refs)
    if not is_followed or cache.name != parts.cache(follow.cache).name:
        return AS_THE_SOURCE_SAYS
    return Freshness(max_age=max(follow.max_age, source.revalidate_after))


def with_room(parts: Parts, ensure: Callable[[], Ensured], store: Store, ref: ImageRef) -> Ensured:
    """What ``ensure`` answers; room is made for it as often as others take what was made."""
    parts.make_directories()
    for _ in range(_ROOM_TRIES):
        try:
            return ensure()
        except InsufficientSpace as error:
            _make_room(parts, error, store.root, ref)
    return ensure()


def _make_room(parts: Parts, error: InsufficientSpace, path: Path, ref: ImageRef) -> None:
    spared = {(one.root, name) for one in parts.config.caches.values() for name in hits.names(one, ref)}
    room.make_room(parts.config, parts.known(None), error, path, spared=spared, observer=parts.observer)


def delivered(parts: Parts, ref: ImageRef, cache: Cache, want: Want, digest: Expected, path: Path) -> Delivered:
    """The image at a path, fetched first unless it is here.

    Raises:
        InvalidName, CacheMissing, CacheNotWritable: the path. As `verified`.
    """
    delivery.check_place(parts.config, path)
    for _ in range(_DELIVERIES - 1):
        with suppress(NotCached):  # replaced by a newer version since it was fetched
            return _delivered_once(parts, ref, cache, want, digest, path)
    return _delivered_once(parts, ref, cache, want, digest, path)


def _delivered_once(parts: Parts, ref: ImageRef, cache: Cache, want: Want, digest: Expected, path: Path) -> Delivered:
    store = cache.store
    with ExitStack() as holding:
        ensured = verified(parts, ref, cache, want, digest, holding)
        try:
            done = delivery.deliver(parts.config, store, ensured.image, path)
        except InsufficientSpace as error:  # where the copy goes, or in the cache for the copy's record
            is_in_cache = Path(error.where).is_relative_to(store.root)
            _make_room(parts, error, store.root if is_in_cache else path.parent, ref)
            done = delivery.deliver(parts.config, store, ensured.image, path)
    if ensured.no_store and store.kind is CacheKind.MASTERS:
        eviction.drop(store, ensured.image.name)
    return replace(done, came=ensured.reason)
