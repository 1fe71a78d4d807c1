"""What a followed ref has meant: which of its versions are here, and which are held for it."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from underlay import hits
from underlay.contracts import ImageSource, Observer
from underlay.errors import ImageRefused, LeaseNotFound, NotAnImage
from underlay.model import BaseImage, ImageRef, Lease
from underlay.naming import CacheKind, candidate_names
from underlay.policy.follow import FollowedVersion
from underlay.policy.form import Want
from underlay.store import Store, images, leases, refs


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A ref that is followed in one cache.

    Attributes:
        host: that follows it: others may share the cache, and follow other refs.
        keep: how many older versions are held beside the newest.
    """

    host: str
    ref: ImageRef
    store: Store
    source: ImageSource
    observer: Observer
    keep: int

    @property
    def holder(self) -> str:
        """Who holds its versions."""
        return holder_of(self.ref.canonical, host=self.host)


def holders_of(host: str) -> str:
    """What the holders of a host's followed refs begin with."""
    return f"{leases.FOLLOWERS}{host}:"


def holder_of(canonical: str, *, host: str) -> str:
    """The holder of a followed ref's pins: by its canonical spelling, or by its digest where that is no name for a holder."""
    plain = f"{holders_of(host)}{canonical}"
    if plain.isprintable() and len(plain) <= leases.LONGEST_HOLDER:
        return plain
    return f"{holders_of(host)}sha256:{hashlib.sha256(canonical.encode(errors='surrogateescape')).hexdigest()}"


def versions(following: Following) -> list[FollowedVersion]:
    """What the ref has meant, newest last, with what is here of each and what is held for it."""
    store, ref = following.store, following.ref
    # The pins are read first: a version is remembered before it is pinned, so each pin read has its version in the record.
    pinned = [name for pin in pins(following) for name in pin.names]
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
    image = look_at(following.store, name)
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
        image = look_at(following.store, name)
        if image is not None and (is_told_by_name if image.record is None else image.record.version_id == version_id):
            return name
    return None


def look_at(store: Store, name: str) -> BaseImage | None:
    """The image of this name; one that no fetch would serve is none."""
    with suppress(ImageRefused, NotAnImage):
        return images.find_unchanged(store, name)
    return None


def pins(following: Following) -> list[Lease]:
    """What is held for the ref, the longest held first."""
    found = [pin for pin in leases.leases(following.store)[0] if pin.holder == following.holder]
    return sorted(found, key=lambda pin: pin.made_at)


def newest(seen: Sequence[FollowedVersion]) -> FollowedVersion:
    """The newest version that is here; one of nothing when none is."""
    return next((version for version in reversed(seen) if version.is_here), FollowedVersion(id=None))


def drop(store: Store, pin: Lease) -> None:
    """Let go of a pin, if it is still there.

    Raises:
        CacheNotWritable
    """
    with suppress(LeaseNotFound):  # somebody else let go of it
        leases.drop(store, pin.id)
