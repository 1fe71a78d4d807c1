"""The images that the host keeps."""

from collections.abc import Sequence

from underlay.compute.arguments import Context, Instance
from underlay.compute.contract.images import Images
from underlay.compute.libvirt import imagecache
from underlay.compute.libvirt.contract.located import Located
from underlay.compute.libvirt.livemigration import returning


class LibvirtImages(Images, Located):
    """Underlay's caches."""

    def manage_image_cache(self, context: Context, all_instances: Sequence[Instance]) -> None:
        """As the contract has it: a prune, by the rules of each cache. Interrupted moves are looked at again first."""
        returning.settle_all(self.site)
        imagecache.prune(self.site, all_instances)

    def cache_image(self, context: Context, image_id: str) -> bool:
        """As the contract has it."""
        return imagecache.fetch(self.site, image_id)
