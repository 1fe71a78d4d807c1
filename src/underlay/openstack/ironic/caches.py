"""The three caches of a conductor, with the directories, sizes and times that Ironic's options give them."""

from underlay.openstack.ironic.configuration import Masters
from underlay.openstack.ironic.image_cache import ImageCache
from underlay.openstack.ironic.options import Options
from underlay.openstack.ironic.registry import cleanup


@cleanup(priority=75)
class ISOImageCache(ImageCache):
    """ISO images that nodes boot from."""

    def __init__(self) -> None:
        options = Options.load()
        size, ttl = options.iso_cache_bytes, options.iso_cache_seconds
        super().__init__(options.iso_master_path or None, size, ttl, disable_validation=True, force_raw=False)

    @staticmethod
    def described(options: Options) -> Masters | None:
        """Its directory, which is not made."""
        size, ttl = options.iso_cache_bytes, options.iso_cache_seconds
        return Masters.at(options.iso_master_path, size=size, ttl=ttl, inspects=False)


@cleanup(priority=50)
class InstanceImageCache(ImageCache):
    """Images that nodes are deployed with."""

    def __init__(self) -> None:
        options = Options.load()
        super().__init__(options.instance_master_path or None, options.image_cache_bytes, options.image_cache_seconds)

    @staticmethod
    def described(options: Options) -> Masters | None:
        """Its directory, which is not made."""
        size, ttl = options.image_cache_bytes, options.image_cache_seconds
        return Masters.at(options.instance_master_path, size=size, ttl=ttl, inspects=True)


@cleanup(priority=25)
class TFTPImageCache(ImageCache):
    """Kernels, ramdisks and what installers load."""

    def __init__(self) -> None:
        options = Options.load()
        size, ttl = options.image_cache_bytes, options.image_cache_seconds
        super().__init__(options.tftp_master_path or None, size, ttl, disable_validation=True)

    @staticmethod
    def described(options: Options) -> Masters | None:
        """Its directory, which is not made."""
        size, ttl = options.image_cache_bytes, options.image_cache_seconds
        return Masters.at(options.tftp_master_path, size=size, ttl=ttl, inspects=False)
