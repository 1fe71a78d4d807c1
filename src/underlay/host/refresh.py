"""Followed refs are moved to their newest versions ahead of need, each by an ensure that asks its source now."""

from collections.abc import Callable, Sequence
from functools import partial

from underlay import following
from underlay.cache import Cache
from underlay.following import Following, Refreshed
from underlay.hits import ASKED_NOW
from underlay.host import bring
from underlay.host.parts import Parts
from underlay.model import ImageRef
from underlay.store import Store


def refresh(parts: Parts, refs: Sequence[str | ImageRef] | None, *, cache: str | None, keep: int | None) -> list[Refreshed]:
    """See `underlay.host.Host.refresh`."""
    chosen = parts.cache(cache or parts.config.follow.cache)
    done = _each(parts, refs, lambda ref: _refreshed(parts, ref, chosen, keep))
    if refs is not None:
        return done
    stores, followed = parts.stores(cache), _followed(parts, chosen)
    return done + following.unfollow(stores, followed, parts.observer, host=parts.config.host)


def plan(parts: Parts, refs: Sequence[str | ImageRef] | None, *, cache: str | None, keep: int | None) -> list[Refreshed]:
    """See `underlay.host.Host.plan_refresh`."""
    chosen = parts.cache(cache or parts.config.follow.cache)
    done = _each(parts, refs, lambda ref: following.look(_following(parts, ref, chosen, keep)))
    if refs is not None:
        return done
    return done + following.look_unfollowed(parts.stores(cache), _followed(parts, chosen), host=parts.config.host)


def _followed(parts: Parts, cache: Cache) -> list[tuple[Store, ImageRef]]:
    return [(cache.store, ref) for ref in parts.config.follow.refs]


def _each(parts: Parts, refs: Sequence[str | ImageRef] | None, work: Callable[[ImageRef], Refreshed]) -> list[Refreshed]:
    wanted = parts.config.follow.refs if refs is None else refs
    return following.each(wanted, work, jobs=parts.config.precache_concurrency)


def _refreshed(parts: Parts, ref: ImageRef, cache: Cache, keep: int | None) -> Refreshed:
    followed, retries = _following(parts, ref, cache, keep), parts.config.retries
    ensure = partial(cache.ensure, ref, followed.source, parts.observer, retries=retries, freshness=ASKED_NOW)
    return following.refresh(
        followed, lambda holding: bring.with_room(parts, partial(ensure, holding=holding), cache.store, ref)
    )


def _following(parts: Parts, ref: ImageRef, cache: Cache, keep: int | None) -> Following:
    return Following(
        host=parts.config.host,
        ref=ref,
        store=cache.store,
        source=parts.source(ref.scheme),
        observer=parts.observer,
        keep=parts.config.follow.keep if keep is None else keep,
    )
