"""Ironic's image cache over our core: put in the place of Ironic's own, it does that one's work, more safely.

Names, parameters and units are Ironic's. Nothing is decided here: its options become a configuration, its names refs, and the
core does the rest.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from underlay.errors import UnderlayError
from underlay.host import Host
from underlay.model import BaseImage
from underlay.openstack.ironic.checksums import expected_digest
from underlay.openstack.ironic.configuration import Masters, configuration, registered_masters
from underlay.openstack.ironic.exceptions import failure, translated
from underlay.openstack.ironic.options import Options
from underlay.openstack.ironic.refs import read_ref
from underlay.openstack.ironic.registry import LOG, logged
from underlay.openstack.ironic.sources import decompressed, located, permitted_formats, sources_of
from underlay.openstack.ironic.watch import Watch, tell
from underlay.policy.form import EXEMPT_FORMATS, Want
from underlay.units import format_size
from underlay.values import replace


class ImageCache:
    """A cache of master images that are delivered as hard links.

    Attributes:
        master_dir: its directory, which is made; None for no cache: each fetch brings the image anew.
    """

    def __init__(
        self,
        master_dir: str | None,
        cache_size: int,
        cache_ttl: int,
        disable_validation: bool = False,  # noqa: FBT001, FBT002 - as in Ironic
        force_raw: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """As in Ironic.

        Args:
            cache_size: bytes. cache_ttl: seconds.
            disable_validation: whether images are kept uninspected: kernels, ramdisks, ISO images.
            force_raw: whether images are delivered in raw form when a fetch does not say.
        """
        self.master_dir = master_dir
        self._cache_size = cache_size
        self._cache_ttl = cache_ttl
        self._disable_validation = disable_validation
        self._force_raw = force_raw
        if master_dir is not None:
            os.makedirs(master_dir, exist_ok=True)

    def fetch_image(
        self,
        href: str,
        dest_path: str,
        ctx: Any = None,
        force_raw: bool | None = None,  # noqa: FBT001 - as in Ironic
        expected_format: str | None = None,
        expected_checksum: str | None = None,
        expected_checksum_algo: str | None = None,
        image_auth_data: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Put an image at a path: a hard link to its master, or a copy where no link can be.

        Args:
            ctx: context of the request, for Glance. image_auth_data: credentials for a container registry.
            force_raw: None: as the constructor was told.
            expected_format: what the image must be, as image services say it.
            expected_checksum: of the bytes as served; in any case, with its algorithm before it or without.
            expected_checksum_algo: comes before what the checksum says itself.

        Returns:
            The format of what is at the path, which Ironic's callers store; None of an image that was not inspected.

        Raises:
            AssertionError: a format is expected of a cache that does not inspect.
            ImageRefValidationFailed, ImageDownloadFailed, ImageNotFound, InvalidImage and what derives from it,
            ImageConvertFailed, InsufficientDiskSpace: Ironic's own where Ironic is installed.
        """
        if expected_format is not None and self._disable_validation:
            raise AssertionError("a cache that does not inspect images cannot expect a format of one")
        options, watch = Options.load(), Watch()
        raw = self._force_raw if force_raw is None else force_raw
        self._check_permitted(expected_format, href, options)
        checksum = expected_digest(expected_checksum, expected_checksum_algo, href=href, options=options)
        path = os.path.abspath(dest_path)
        where = self.master_dir or os.path.dirname(path)
        with translated(href, where=where, is_transferring=lambda: watch.is_transferring), self._masters(path) as masters:
            ref = located(read_ref(href), options)
            sources = sources_of(options, context=ctx, auth=image_auth_data)
            host = Host.open(
                configuration(masters, options, others=registered_masters(options)), observer=watch, sources=sources
            )
            want = Want(
                checksum=checksum,
                disk_format=expected_format,
                raw=raw,
                decompress=decompressed(options),
                formats=permitted_formats(options) if self._is_validated(options) else None,
            )
            delivered = host.deliver_wanted(ref, Path(path), want, cache=masters.name)
        if delivered.came is not None and delivered.came.code in ("fetched", "made-raw"):
            with logged(self):
                self.clean_up()
        return _format(delivered.image)

    def clean_up(self, amount: int | None = None) -> None:
        """Remove masters that nobody has, the least recently used first; one that is in use never goes.

        What cannot be done is logged and no exception: what called for it has done its own work.

        Args:
            amount: bytes that are to come free; None: all go that are older than the cache's time to live. In both cases so
                many go besides that the cache keeps its size.
        """
        masters = Masters.of(self)
        if masters is None:
            return
        try:
            if amount is not None:
                _free(masters, amount)
                masters = replace(masters, ttl=None)  # what is merely old may stay then
            _prune(masters)
        except (UnderlayError, OSError) as error:
            LOG.error("The image cache %s could not be cleaned up: %s", masters.root, error)

    def _check_permitted(self, expected_format: str | None, href: str, options: Options) -> None:
        """Refuse a format that is not permitted before anything is fetched."""
        if expected_format is None or not self._is_validated(options) or expected_format in EXEMPT_FORMATS:
            return
        if expected_format not in permitted_formats(options):
            raise failure("InvalidImage", f"{expected_format} is not permitted (permitted_image_formats)", href=href)

    def _is_validated(self, options: Options) -> bool:
        return not (self._disable_validation or options.disable_deep_image_inspection)

    @contextmanager
    def _masters(self, path: str) -> Iterator[Masters]:
        """This cache's masters; without a directory, those of one beside the path that is there for as long as it takes."""
        if (masters := Masters.of(self)) is not None:
            yield masters
            return
        with TemporaryDirectory(prefix=".underlay-", dir=os.path.dirname(path)) as directory:
            yield Masters(root=Path(directory), inspects=not self._disable_validation)


def _free(masters: Masters, amount: int) -> None:
    """Remove what nobody has until so many bytes have come free, and log when they do not."""
    if amount <= 0:
        return
    host = Host.open(configuration(masters, Options.load()), observer=Watch())
    report = host.apply(host.plan_free(amount, masters.root, cache=masters.name))
    tell(report)
    if report.freed < amount:
        left, wanted = format_size(amount - report.freed), format_size(amount)
        LOG.warning("%s of %s could not be freed in the image cache %s", left, wanted, masters.root)


def _prune(masters: Masters) -> None:
    host = Host.open(configuration(masters, Options.load()), observer=Watch())
    tell(host.apply(host.plan_prune(instances=(), cache=masters.name)))


def _format(image: BaseImage) -> str | None:
    return image.format if image.served_format is not None else None
