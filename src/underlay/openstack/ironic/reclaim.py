"""Room for images that are about to be fetched, over all of a conductor's caches; and the periodic clean-up of all of them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from underlay import hits
from underlay.errors import SourceUnavailable, UnderlayError
from underlay.filesystems import file_system, free_bytes
from underlay.hits import Ask
from underlay.host import Host
from underlay.model import ImageVersion
from underlay.openstack.ironic.configuration import Masters, configuration, registered_masters
from underlay.openstack.ironic.exceptions import no_room, translated
from underlay.openstack.ironic.options import Options
from underlay.openstack.ironic.refs import read_ref
from underlay.openstack.ironic.registry import logged, registered
from underlay.openstack.ironic.sources import located, sources_of
from underlay.openstack.ironic.watch import Watch
from underlay.policy.form import EXEMPT_FORMATS, Want
from underlay.store import images
from underlay.units import format_size

_RAW = EXEMPT_FORMATS | {"raw", "gpt", "iso"}


@dataclass(frozen=True, slots=True)
class _Need:
    """Bytes that a request will write.

    Attributes:
        transfers: what has to be fetched. raw: the raw forms of it, where their size is known; a sparse one takes less.
        held: names of the masters that the request will hit.
    """

    transfers: int = 0
    raw: int = 0
    held: frozenset[str] = frozenset()

    def __add__(self, other: "_Need") -> "_Need":
        return _Need(self.transfers + other.transfers, self.raw + other.raw, self.held | other.held)


def clean_up_caches(
    ctx: Any,
    directory: str | None,
    images_info: Sequence[tuple[str, str]],
    image_auth_data: Mapping[str, Any] | None = None,
) -> None:
    """Make room for images, as far as they have to be fetched; none of the masters that will be hit goes for it.

    Args:
        ctx: context of the request, for Glance. image_auth_data: credentials for a container registry.
        directory: of the cache that they come into; None: there is none, and nothing is done.
        images_info: each image with the path that it is wanted at.

    Raises:
        InsufficientDiskSpace: it cannot be had. ImageRefValidationFailed, ImageNotFound and others: as `fetch_image`.
    """
    if directory is None:
        return
    options, watch = Options.load(), Watch()
    sources = sources_of(options, context=ctx, auth=image_auth_data)
    host = Host.open(configuration(_masters_in(directory, options), options), observer=watch, sources=sources)
    need = sum((_need(host, href, options) for href in dict.fromkeys(href for href, _ in images_info)), _Need())
    with _kept(host, need.held if free_bytes(Path(directory)) < need.transfers + need.raw else ()):
        _clean_up_caches(directory, need.transfers + need.raw, least=need.transfers)


def clean_up_all() -> None:
    """Clean up every registered cache, by priority; one that fails is logged, and the others go on."""
    for _, cache in registered():
        with logged(cache):
            cache.clean_up()


def _clean_up_caches(directory: str, amount: int, *, least: int | None = None) -> None:
    """Make so many bytes free on a directory's file system, cache by cache, until it is enough.

    Args:
        least: bytes with which it is well all the same.

    Raises:
        InsufficientDiskSpace
    """
    path = Path(directory)
    for _, cache in registered() if free_bytes(path) < amount else ():
        missing = amount - free_bytes(path)
        if missing <= 0:
            return
        with logged(cache):
            if cache.master_dir is not None and file_system(Path(cache.master_dir)).key == file_system(path).key:
                cache.clean_up(amount=missing)
    required, free = amount if least is None else least, free_bytes(path)
    if free < required:
        reason = f"{directory} has no room: {format_size(required)} are needed, {format_size(free)} are free"
        raise no_room(directory, reason, required=required, actual=free)


# ------------------------------------------------------------------------------------------------------------- what is needed


def _masters_in(directory: str, options: Options) -> Masters:
    """The masters of the registered cache in this directory; of one that is not registered nothing but that is known."""
    here = Masters(root=Path(os.path.abspath(directory)))
    return next((one for one in registered_masters(options) if one.is_same(here)), here)


def _need(host: Host, href: str, options: Options) -> _Need:
    store = host.parts.cache(None).store
    with translated(href, where=os.fspath(store.root)):
        ref = located(read_ref(href), options)
        source, holding = host.parts.source(ref.scheme), ExitStack()  # nothing is fetched, so nothing is held
        ask = Ask(store=store, ref=ref, source=source, observer=host.observer, want=Want(), holding=holding)
        found = hits.fresh(ask, checked_since=datetime.now(UTC))
        version = None if found is not None else _described(ask)
        if version is None or (found := hits.unchanged(ask, version)) is not None:
            names = hits.names(store, ref)
            return _Need(held=frozenset(name for name in names if os.path.lexists(store.paths.image(name))))
        return _Need(version.size or 0, _raw_size(version, options))


def _described(ask: Ask) -> ImageVersion | None:
    """What has to be fetched as far as can be told; None when a master stands in for a source that does not answer."""
    try:
        return ask.source.describe(ask.ref)
    except SourceUnavailable:
        if hits.last_known(ask) is None:
            raise
        return None


def _raw_size(version: ImageVersion, options: Options) -> int:
    if version.disk_format is None or version.disk_format in _RAW or not options.force_raw_images:
        return 0
    return int(version.properties.get("virtual_size", 0))


@contextmanager
def _kept(host: Host, names: Sequence[str] | frozenset[str]) -> Iterator[None]:
    """Keep masters for as long as room is made."""
    with ExitStack() as stack:
        for name in names:
            with suppress(UnderlayError):  # gone by now: then it has to be fetched
                # As good as a lease, and takes no block of a file system that is full.
                images.keep_open(host.parts.cache(None).store.paths.image(name), stack)
        yield
