"""What is held for refs that are followed no more."""

from collections.abc import Iterator, Sequence

from underlay.contracts import Observer
from underlay.following.moves import Refreshed, tell
from underlay.following.versions import drop, holder_of, holders_of
from underlay.model import ImageRef, Lease
from underlay.policy.follow import plan_unfollow
from underlay.store import Store, leases


def unfollow(
    stores: Sequence[Store], followed: Sequence[tuple[Store, ImageRef]], observer: Observer, *, host: str
) -> list[Refreshed]:
    """Let go of what a host holds for refs that it follows no more, or not in that cache.

    Raises:
        CacheNotWritable, StorageFailed
    """
    left = []
    for one, store, pins in _not_followed(stores, followed, host):
        for pin in pins:
            drop(store, pin)
        left.append(one)
        tell(observer, one)
    return left


def look_unfollowed(stores: Sequence[Store], followed: Sequence[tuple[Store, ImageRef]], *, host: str) -> list[Refreshed]:
    """What `unfollow` would let go of. Changes nothing.

    Raises:
        CacheNotWritable, StorageFailed
    """
    return [one for one, _, _ in _not_followed(stores, followed, host)]


def _not_followed(
    stores: Sequence[Store], followed: Sequence[tuple[Store, ImageRef]], host: str
) -> Iterator[tuple[Refreshed, Store, list[Lease]]]:
    for store in stores:
        holders = {holder_of(ref.canonical, host=host) for where, ref in followed if where.root == store.root}
        by_holder: dict[str, list[Lease]] = {}
        for pin in leases.leases(store)[0]:
            if pin.holder.startswith(holders_of(host)) and pin.holder not in holders:
                by_holder.setdefault(pin.holder, []).append(pin)
        for holder, pins in by_holder.items():
            ref = next((ref for pin in pins for ref in pin.refs), holder.removeprefix(holders_of(host)))
            verdicts = plan_unfollow([name for pin in pins for name in pin.names])
            yield Refreshed(ref=ref, outcome="unfollowed", cache=store.root, versions=tuple(verdicts)), store, pins
