"""Nova's fetch functions (``nova.virt.images`` and ``nova.virt.libvirt.utils``) over our sources.

An image is transferred, verified by the digests that its source promises and put at its path in one step. A path in the cache
of base images is what Nova would boot from, so there the image is made as `Image.cache` makes it: once, whoever asks, and
published when it is whole. Images of Glance are asked for by way of the Nova around us, all others from the configured sources.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

from underlay import files
from underlay.host import Host
from underlay.host.parts import Parts
from underlay.model import ImageRef
from underlay.naming import CacheKind
from underlay.openstack.nova import making, templates
from underlay.openstack.nova.around import Around, of_caller
from underlay.openstack.nova.exceptions import OF_FETCHES, in_nova_s_words
from underlay.openstack.nova.imageservice import NovaImages
from underlay.policy.form import EXEMPT_FORMATS, SERVED_FORMATS, Want
from underlay.refs import parse_ref
from underlay.store import Store
from underlay.values import replace


def fetch_raw_image(context: Any, target: str, image_id: str, trusted_certs: Any = None) -> None:
    """As `fetch`, with its arguments in another order."""
    fetch(context, image_id, target, trusted_certs)


def fetch(context: Any, image_href: str, path: str, trusted_certs: Any = None) -> None:
    """Put a kernel or a ramdisk at a path: the bytes as served, uninspected.

    At a path in the cache it becomes an image, which is inspected like any other, and made raw where the cache holds raw ones.

    Args:
        context: of the request. image_href: Glance's UUID, or a ref of any other source.
        trusted_certs: certificates by which the image has to be signed, as the request has them.

    Raises:
        ImageNotFound, ImageNotAuthorized, ImageUnacceptable, CouldNotFetchImage: Nova's, where Nova is around us.
        SourceError, ImageRefused, CacheError: ours, where it is not, and what Nova has no word for.
    """
    _put(_around(context, trusted_certs), image_href, path, Want(raw=False), inspects=False)


def fetch_to_raw(context: Any, image_href: str, path: str, trusted_certs: Any = None) -> None:
    """Put a disk's image at a path: inspected, and in raw form unless ``force_raw_images`` is off.

    Args:
        as for `fetch`

    Raises:
        as `fetch`; ToolError: it could not be converted.
    """
    around = _around(context, trusted_certs)
    want = Want(raw=True if around.store.force_raw else None, formats=_permitted(around))
    _put(around, image_href, path, want, inspects=True)


def _around(context: Any, trusted_certs: Any) -> Around:
    """What is there now; within a Nova, its own client asks Glance."""
    around = Around.load()
    if around.conf is None:
        return around
    sources = {"glance": NovaImages(context=context, trusted_certs=trusted_certs)}
    return Around(Parts(around.config, around.parts.observer, sources), around.conf)


def _permitted(around: Around) -> frozenset[str] | None:
    """The formats that an image may have: without an allowed kind of VMDK, no VMDK."""
    if around.conf is None or around.conf.compute.vmdk_allowed_types:
        return None
    return SERVED_FORMATS - {"vmdk"} | EXEMPT_FORMATS


def _put(around: Around, href: str, where: str, want: Want, *, inspects: bool) -> None:
    path = Path(os.path.abspath(where))

    def deliver(target: Path) -> None:
        _deliver(around, _ref(href), target, want, inspects=inspects)

    with in_nova_s_words(href, OF_FETCHES):
        store = around.store
        if path.parent != store.root:
            deliver(path)
            return
        with ExitStack() as holding:
            templates.ensure(of_caller(store), path.name, deliver, around.parts.observer, holding)


def _ref(href: str) -> ImageRef:
    """A ref by Nova's grammar, in which a UUID is Glance's; any other of ours means something as well.

    Raises:
        InvalidRef
    """
    try:
        return parse_ref(str(UUID(href)))
    except ValueError:
        return parse_ref(href)


def _deliver(around: Around, ref: ImageRef, path: Path, want: Want, *, inspects: bool) -> None:
    """Put the image at the path by way of a cache in staging that is there for as long as it takes."""
    with files.translated(path.parent):
        os.stat(path.parent)
    making.make_cache_directory(around.store)
    with templates.scratch(around.store, os.fspath(path), around.parts.observer) as directory:
        passing = replace(_without_nova(around.store), root=directory, force_raw=False, validation=inspects)
        config = replace(around.config, origin=directory, caches={"passing": passing}, instances=directory, rules={})
        host = Host.open(config, observer=around.parts.observer, sources=around.parts.sources)
        host.deliver_wanted(ref, path, want, cache="passing")


def _without_nova(store: Store) -> Store:
    """The rules of the cache for one of our own, in which no Nova is."""
    return replace(store, kind=CacheKind.MASTERS, nova_locks=None, rival_lock=None)
