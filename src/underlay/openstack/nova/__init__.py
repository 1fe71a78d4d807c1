"""What Nova has in ``nova.virt.libvirt.imagecache`` and ``imagebackend``, and its fetch functions, over our core.

Names, signatures and what the attributes hold are Nova's (docs/reference/nova-parity.md tells the differences). Nothing of
Nova or oslo is imported with this package: its options, exceptions, locks and image API are used where it is installed. Where
it is not, the image backends and the fetch functions go by Underlay's own configuration.
"""

from underlay.openstack.nova.backend import Backend, Flat, ImageType, Lvm, Ploop, Qcow2, Rbd
from underlay.openstack.nova.fetches import fetch, fetch_raw_image, fetch_to_raw
from underlay.openstack.nova.image import Image
from underlay.openstack.nova.image_cache import ImageCacheManager, get_cache_fname

__all__ = [
    "Backend",
    "Flat",
    "Image",
    "ImageCacheManager",
    "ImageType",
    "Lvm",
    "Ploop",
    "Qcow2",
    "Rbd",
    "fetch",
    "fetch_raw_image",
    "fetch_to_raw",
    "get_cache_fname",
]
