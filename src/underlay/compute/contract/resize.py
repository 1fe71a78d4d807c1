"""Snapshots, and moving an instance that does not run: to another size, or another host."""

from collections.abc import Callable
from typing import Any

from underlay.compute.arguments import (
    Allocations,
    BlockDeviceInfo,
    Context,
    Flavor,
    ImageMeta,
    Instance,
    Migration,
    NetworkInfo,
    ShareInfo,
)


class Resize:
    """Snapshots, resizes and cold migrations.

    A resize is begun on the old host, finished on the new one, and then confirmed on the old or reverted on both. Until then
    the old host keeps the disks.
    """

    def snapshot(self, context: Context, instance: Instance, image_id: str, update_task_state: Callable[..., Any]) -> None:
        """Make an image of an instance's root disk, and upload it under an id that is there already.

        Args:
            update_task_state: called with IMAGE_PENDING_UPLOAD when the disk has been copied, and before the upload with
                IMAGE_UPLOADING and ``expected_state=IMAGE_PENDING_UPLOAD``: see `underlay.compute.taskstates`.

        Raises:
            ImageNotFound: the image was deleted meanwhile. InstanceNotFound, InstanceNotRunning.
        """
        raise NotImplementedError

    def post_interrupted_snapshot_cleanup(self, context: Context, instance: Instance) -> None:
        """Remove what a snapshot left that the service's end interrupted. Safe to repeat."""

    def migrate_disk_and_power_off(
        self,
        context: Context,
        instance: Instance,
        dest: str,
        flavor: Flavor,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        timeout: float = 0,
        retry_interval: float = 0,
    ) -> str:
        """Begin a resize or a cold migration: stop the guest, and move its disks to where they are to be.

        Args:
            dest: address of the new host. flavor: the new one. timeout, retry_interval: as in `power_off`.

        Returns:
            What `get_instance_disk_info` says, for `finish_migration`.

        Raises:
            InstanceFaultRollback: nothing changed.
        """
        raise NotImplementedError

    def finish_migration(
        self,
        context: Context,
        migration: Migration,
        instance: Instance,
        disk_info: str,
        network_info: NetworkInfo,
        image_meta: ImageMeta,
        resize_instance: bool,
        block_device_info: BlockDeviceInfo | None = None,
        power_on: bool = True,
        *,
        allocations: Allocations | None = None,
    ) -> None:
        """Finish it on the new host: make the instance there, and start it.

        Args:
            disk_info: what `migrate_disk_and_power_off` returned. resize_instance: disks grow to the new flavor.
            power_on: it runs when this returns; False leaves it shut down.
        """
        raise NotImplementedError

    def confirm_migration(self, context: Context, migration: Migration, instance: Instance, network_info: NetworkInfo) -> None:
        """Remove what the old host kept: it is not needed any more."""
        raise NotImplementedError

    def finish_revert_migration(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        migration: Migration,
        block_device_info: BlockDeviceInfo | None = None,
        power_on: bool = True,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """Put the instance back on the old host, from what that kept, and start it unless ``power_on`` is False."""
        raise NotImplementedError
