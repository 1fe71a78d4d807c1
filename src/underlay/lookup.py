"""What a name, a ref or a path means in the caches. Never needs the network.

A name may be shortened to six characters of its beginning, or in its middle as tables do it: ``3f786850e387.raw``.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from underlay.errors import NotCached
from underlay.model import BaseImage, ImageRef, Lease
from underlay.naming import CacheKind, candidate_names, is_image_name, kind_of_name
from underlay.refs import is_ref, parse_ref
from underlay.store import Store, images

if TYPE_CHECKING:
    from underlay.plan import Verdict
    from underlay.policy.scrub import ScrubSubject

_SHORTENED = r"([0-9a-z][0-9a-z-]{5,})([._].*)?"
"""Six characters or more of a name's beginning, and its suffix if that is given."""


def find(stores: Sequence[Store], text: str) -> list[BaseImage]:
    """The images that a text means, but for those that are damaged.

    Raises:
        NotCached: none. ImageDamaged: none but such. InvalidRef. NotAnImage, UnsafeImage: as `underlay.store.images.find`.
    """
    found = look(stores, text)
    sound = [image for image in found if image.damage is None]
    for image in found:
        if not sound and image.damage is not None:
            raise images.damaged_error(image, image.damage)
    return sound


def look(stores: Sequence[Store], text: str) -> list[BaseImage]:
    """As `find`, damaged ones among them: to be shown, and for nothing else.

    Raises:
        as `find`, but never ImageDamaged
    """
    ref = parse_ref(text) if is_ref(text) else None
    found: list[BaseImage] = []
    for store in stores:
        names = _names_of_ref(store, ref) if ref else _names_meant(store, text)
        found += [image for name in names if (image := images.look(store, name))]
    if not found and ref is not None:
        found = [image for store in stores for image in images.everything(store) if image.ref == ref.canonical]
    if not found:
        what = ref.canonical if ref else text
        raise NotCached(f"no cache has {what!r}", hint="'underlay list' shows what is there")
    return found


def find_only(stores: Sequence[Store], text: str) -> BaseImage | None:
    """The one image that a text means, or None.

    Raises:
        NotCached: several.
    """
    try:
        found = find(stores, text)
    except NotCached:
        return None
    if len(found) > 1:
        names = ", ".join(os.fspath(image.path) for image in found)
        raise NotCached(f"{text!r} means {len(found)} images: {names}", hint="name one of them")
    return found[0]


def verdicts_meant(stores: Sequence[Store], verdicts: "Sequence[Verdict]", text: str) -> "list[Verdict]":
    """The verdicts on the files that a text means: leftovers too, and files that no inspection would pass.

    Args:
        stores: of the caches that were judged.

    Raises:
        NotCached: none of the judged files is meant; why. InvalidRef
    """
    is_meant = _meaning(stores, text)
    meant = [one for one in verdicts if is_meant(one.root, one.file.name, one.file.ref)]
    if not meant:
        raise _nothing_judged(stores, text)
    return meant


def subjects_meant(stores: Sequence[Store], subjects: "Sequence[ScrubSubject]", text: str) -> "list[ScrubSubject]":
    """The images that a text means, of those that a scrub could read: also such as no inspection would pass.

    Args:
        stores: of the caches that they are in.

    Raises:
        NotCached: none. InvalidRef
    """
    is_meant = _meaning(stores, text)
    meant = [one for one in subjects if is_meant(one.root, one.name, one.ref)]
    if not meant:
        raise _nothing_judged(stores, text)
    return meant


def _meaning(stores: Sequence[Store], text: str) -> Callable[[Path, str, str | None], bool]:
    """Tells of a file, by its cache directory, its name and the ref that it records, whether a text means it."""
    by_root = {store.root: store for store in stores}
    ref = parse_ref(text) if is_ref(text) else None
    if ref is None:
        return lambda root, name, _: _is_called(by_root[root], name, text)
    fixed = {(store.root, name) for store in stores for name in _judged_names(store, ref)}
    return lambda root, name, recorded: recorded == ref.canonical or (root, name) in fixed


def _nothing_judged(stores: Sequence[Store], text: str) -> NotCached:
    name = os.path.basename(text)
    for store in stores:
        if kind_of_name(name, kind=store.kind) is None and _is_called(store, name, text) and _is_there(store, name):
            hint = "no file whose name is outside the grammar of the cache is ever touched"
            return NotCached(f"{text!r} has no name of an image", hint=hint)
    return NotCached(f"no cache has {text!r}", hint="'underlay list' shows what is there")


def is_leased(store: Store, lease: Lease, text: str) -> bool:
    """Whether a text means one of the images of a lease; they need not be there."""
    if not is_ref(text):
        return any(_is_called(store, name, text) for name in lease.names)
    ref = parse_ref(text)
    return ref.canonical in lease.refs or any(name in lease.names for name in _names_of_ref(store, ref))


def _is_there(store: Store, name: str) -> bool:
    return name not in ("", ".", "..") and os.path.lexists(f"{store.root}/{name}")


def _is_called(store: Store, name: str, text: str) -> bool:
    """Whether a path, a name or a shortened name means this file of a cache. A whole name means no longer one."""
    if "/" in text:
        directory, last = os.path.split(os.path.abspath(text))
        return last == name and "\0" not in text and os.path.realpath(directory) == os.path.realpath(store.root)
    match = re.fullmatch(_SHORTENED, text, re.ASCII)
    if match is None or kind_of_name(text, kind=store.kind) is not None:
        return text == name
    beginning, suffix = match[1], match[2] or ""
    return name.startswith(text) or bool(suffix and name.startswith(beginning) and name.endswith(suffix))


def _names_of_ref(store: Store, ref: ImageRef) -> Sequence[str]:
    """The names that a ref fixes by itself: images that Nova or Ironic fetched carry no record, but have them."""
    return candidate_names(ref.location, ref=ref, kind=store.kind, raw_only=False) if ref.scheme == "glance" else ()


def _judged_names(store: Store, ref: ImageRef) -> Sequence[str]:
    """As `_names_of_ref`, and the names of masters, which a listing knows by their names only."""
    if store.kind is CacheKind.MASTERS:
        return candidate_names(ref.location, ref=ref, kind=store.kind, raw_only=False)
    return _names_of_ref(store, ref)


def _names_meant(store: Store, text: str) -> Sequence[str]:
    """The names in a cache that a path, a name or a shortened name means."""
    if "/" in text:
        directory, name = os.path.split(os.path.abspath(text))
        is_here = "\0" not in text and os.path.realpath(directory) == os.path.realpath(store.root)
        return [name] if is_here and is_image_name(name, kind=store.kind) else []
    if is_image_name(text, kind=store.kind):
        return [text]
    return [name for name in images.names(store) if _is_called(store, name, text)]
