"""Snapshots, resizes and cold migrations."""

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
from underlay.compute.contract.resize import Resize
from underlay.compute.libvirt import migrating, resizing, snapshots
from underlay.compute.libvirt.contract.located import Located
from underlay.compute.libvirt.hostaddress import own_address


class LibvirtResize(Resize, Located):
    """Snapshots and resizes of libvirt's domains, and their moves between hosts that share the directory of instances."""

    def snapshot(self, context: Context, instance: Instance, image_id: str, update_task_state: Callable[..., Any]) -> None:
        """As the contract has it: into Glance where `[sources.glance]` is configured, if the id is that of an image there.

        Any other is written into a file of the configured directory, where who uploads it finds it.
        """
        token = getattr(context, "auth_token", None)
        snapshots.snapshot(self.site, instance, image_id, update_task_state, token=token)

    def post_interrupted_snapshot_cleanup(self, context: Context, instance: Instance) -> None:
        """As the contract has it."""
        snapshots.clean(self.site, instance)

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
        """As the contract has it, to this host, or to one that shares the directory of instances.

        Raises:
            InstanceFaultRollback: around ResizeError: a disk would be made smaller; MigrationPreCheckError: it would not
            succeed; InstancePowerOffFailure; OperationFailed: what was tried failed. InstanceNotFound
        """
        return migrating.begin(
            self.site,
            instance,
            dest,
            flavor,
            network_info,
            block_device_info,
            here=own_address(self.site.options),
            timeout=timeout,
            retry_interval=retry_interval,
        )

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
        """As the contract has it. After a failure the instance can be reverted.

        Raises:
            InvalidDiskInfo, DiskNotFound, FlavorDiskSmallerThanImage, VirtualInterfacePlugException, Invalid, OperationFailed
        """
        resizing.finish(
            self.site,
            instance,
            image_meta,
            disk_info,
            network_info,
            block_device_info,
            migration=migration,
            grows=resize_instance,
            power_on=power_on,
        )

    def confirm_migration(self, context: Context, migration: Migration, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it; libvirt forgets a guest that has moved to another host.

        Raises:
            OperationFailed: what was kept is all that there is of the instance. InvalidInput: it came from another host.
        """
        resizing.confirm(self.site, instance, migration)

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
        """As the contract has it; also of a resize that was interrupted.

        Raises:
            InstanceNotFound: nothing of the instance is here. InvalidInput: it came from another host. OperationFailed: it runs
            on the other one.
        """
        resizing.revert(self.site, instance, network_info, block_device_info, migration=migration, power_on=power_on)
