"""Pins and leases on what is in the caches: taken under the image's lock, let go by their holder or by their id."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from underlay import lookup
from underlay.errors import InvalidName, InvalidSize, LeaseNotFound
from underlay.model import Lease, Problem
from underlay.refs import is_ref, parse_ref
from underlay.store import Store, images, leases

_LONGEST = 100 * 365 * 86400.0  # seconds


def pin(stores: Sequence[Store], text: str, *, holder: str) -> list[Lease]:
    """Keep the images that a text means until they are released.

    Raises:
        NotCached, InvalidRef, InvalidName: the holder. CacheNotWritable, LockTimeout, LockLost
    """
    return _take(stores, text, holder, None)


def lease(stores: Sequence[Store], text: str, *, holder: str, seconds: float) -> list[Lease]:
    """Keep the images that a text means for so long from now; a lease is renewed, and never made shorter.

    Raises:
        as `pin`; InvalidSize: no time at all.
    """
    if not 0 < seconds <= _LONGEST:
        raise InvalidSize(f"a lease of {seconds:g} s cannot be", hint="use a time such as 24h, or pin the image")
    return _take(stores, text, holder, datetime.now(UTC) + timedelta(seconds=seconds))


def release(stores: Sequence[Store], text: str, *, holder: str | None) -> list[Lease]:
    """Let go of a lease or pin by its id, or of the leases that a holder has of what a text means.

    Raises:
        LeaseNotFound, CacheNotWritable
    """
    meant = [one for one in _meant(stores, text, holder) if one[1].expires or one[1].id == text]
    return _dropped(meant, text, holder, what="lease")


def unpin(stores: Sequence[Store], text: str, *, holder: str) -> list[Lease]:
    """Let go of the pins that a holder has of what a text means.

    Raises:
        LeaseNotFound, CacheNotWritable
    """
    return _dropped([one for one in _meant(stores, text, holder) if one[1].expires is None], text, holder, what="pin")


def all_leases(stores: Sequence[Store]) -> tuple[list[tuple[Store, Lease]], list[Problem]]:
    """Every pin and lease with its cache, those that have ended among them, and what cannot be read as one.

    Raises:
        CacheNotWritable, StorageFailed
    """
    found: list[tuple[Store, Lease]] = []
    problems: list[Problem] = []
    for store in stores:
        of_store, wrong = leases.leases(store)
        found += [(store, one) for one in of_store]
        problems += wrong
    return found, problems


def _take(stores: Sequence[Store], text: str, holder: str, expires: datetime | None) -> list[Lease]:
    _check_is_no_follower(holder)
    ref = parse_ref(text).canonical if is_ref(text) else None
    by_root = {store.root: store for store in stores}
    taken = []
    for image in lookup.find(stores, text):
        store = by_root[image.cache]
        store.prepare()
        with images.held(store, image.name) as hold:
            now = datetime.now(UTC)
            taken.append(leases.take(hold, holder=holder, ref=ref or image.ref, now=now, expires=expires))
    return taken


def _check_is_no_follower(holder: str) -> None:
    """A refresh lets go of whatever such a holder has of refs that are followed no more, so nobody else may take its name."""
    if holder.startswith(leases.FOLLOWERS):
        told = f"{holder!r} cannot be a holder: names that begin with {leases.FOLLOWERS!r} are those of refs that are followed"
        raise InvalidName(told, hint="use another name, or let 'underlay refresh' follow the ref")


def _meant(stores: Sequence[Store], text: str, holder: str | None) -> list[tuple[Store, Lease]]:
    """The leases that are meant by their id, or by their holder and one of their images."""
    return [
        (store, one)
        for store, one in all_leases(stores)[0]
        if holder in (None, one.holder) and (one.id == text or (holder is not None and lookup.is_leased(store, one, text)))
    ]


def _dropped(meant: Sequence[tuple[Store, Lease]], text: str, holder: str | None, *, what: str) -> list[Lease]:
    """Let go of these.

    Raises:
        LeaseNotFound: there are none. CacheNotWritable
    """
    if not meant:
        whose = f" of {holder}" if holder else ""
        hint = "'underlay leases' shows them" if holder else "name its id as 'underlay leases' shows it, or the holder as well"
        raise LeaseNotFound(f"there is no {what} {text!r}{whose}", hint=hint)
    for store, lease in meant:
        leases.drop(store, lease.id)
    return [lease for _, lease in meant]
