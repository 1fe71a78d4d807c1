"""Snapshots; of resizes there is nothing yet."""

from collections.abc import Callable
from typing import Any

from underlay.compute.arguments import Context, Instance
from underlay.compute.contract.resize import Resize
from underlay.compute.libvirt import snapshots
from underlay.compute.libvirt.contract.located import Located


class LibvirtResize(Resize, Located):
    """Snapshots of libvirt's domains."""

    def snapshot(self, context: Context, instance: Instance, image_id: str, update_task_state: Callable[..., Any]) -> None:
        """As the contract has it, into a file of the configured directory, where who uploads it finds it."""
        snapshots.snapshot(self.site, instance, image_id, update_task_state)

    def post_interrupted_snapshot_cleanup(self, context: Context, instance: Instance) -> None:
        """As the contract has it."""
        snapshots.clean(self.site, instance)
