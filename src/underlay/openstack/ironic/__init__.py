"""What Ironic has in ``ironic.drivers.modules.image_cache``, over our core, with its names, parameters and units.

Nothing of Ironic is imported with this module: its options, image services and exceptions are used where it is installed, and
its defaults and exceptions of the same names where it is not. ``ImageDownloadFailed`` and the others are attributes here too:
those that are raised.
"""

from underlay.openstack.ironic.caches import InstanceImageCache, ISOImageCache, TFTPImageCache
from underlay.openstack.ironic.exceptions import OURS, exception_class
from underlay.openstack.ironic.image_cache import ImageCache
from underlay.openstack.ironic.reclaim import clean_up_all, clean_up_caches
from underlay.openstack.ironic.registry import _cache_cleanup_list as _cache_cleanup_list, cleanup

__all__ = [
    "ISOImageCache",
    "ImageCache",
    "InstanceImageCache",
    "TFTPImageCache",
    "clean_up_all",
    "clean_up_caches",
    "cleanup",
]


def __getattr__(name: str) -> type[Exception]:
    if name in OURS:
        return exception_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
