"""The fake driver's images."""

from collections.abc import Sequence

from underlay.compute.arguments import Context, Instance
from underlay.compute.contract.images import Images
from underlay.testing.fakedriver.running import Running


class FakeImages(Images, Running):
    """A cache of images' ids."""

    def manage_image_cache(self, context: Context, all_instances: Sequence[Instance]) -> None:
        """As the contract has it; no image is too young to go."""
        used = {disk.image for machine in self.hypervisor.machines.values() for disk in machine.disks.values()}
        self.hypervisor.cached &= used | {instance.image_ref for instance in all_instances}

    def cache_image(self, context: Context, image_id: str) -> bool:
        """As the contract has it."""
        fetched = image_id not in self.hypervisor.cached
        self.hypervisor.cached.add(image_id)
        return fetched
