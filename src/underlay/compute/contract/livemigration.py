"""Moving an instance that runs."""

from collections.abc import Callable, Mapping
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, Context, Instance, MigrateData, Migration, NetworkInfo


class LiveMigration:
    """Live migrations.

    The order: `check_can_live_migrate_destination` there, `check_can_live_migrate_source` here,
    `cleanup_live_migration_destination_check` there, `post_claim_migrate_data` and `pre_live_migration` there, `live_migration`
    here. That ends in `post_live_migration` and `post_live_migration_at_source` here and `post_live_migration_at_destination`
    there, or in a rollback on both.
    """

    def check_can_live_migrate_destination(
        self,
        context: Context,
        instance: Instance,
        src_compute_info: Mapping[str, Any],
        dst_compute_info: Mapping[str, Any],
        block_migration: bool = False,
        disk_over_commit: bool = False,
    ) -> MigrateData:
        """On the destination: whether the instance could run here, and what the source must know to say so too.

        Args:
            src_compute_info, dst_compute_info: the two nodes' records. block_migration: disks are to be copied.
            disk_over_commit: disks are counted by what is allocated.

        Raises:
            MigrationPreCheckError, UnableToMigrateToSelf
        """
        raise NotImplementedError

    def check_can_live_migrate_source(
        self,
        context: Context,
        instance: Instance,
        dest_check_data: MigrateData,
        block_device_info: BlockDeviceInfo | None = None,
    ) -> MigrateData:
        """On the source: whether the instance can leave, given what the destination said; returns that with more.

        Raises:
            InvalidLocalStorage, InvalidSharedStorage: the two share something they must not, or do not share what they must.
            MigrationPreCheckError
        """
        raise NotImplementedError

    def check_source_migrate_data_at_dest(
        self,
        ctxt: Context,
        instance: Instance,
        migrate_data: MigrateData,
        migration: Migration,
        limits: Any,
        allocs: Any,
    ) -> MigrateData:
        """On the destination: a look at what the source said; returns it, perhaps with more."""
        return migrate_data

    def cleanup_live_migration_destination_check(self, context: Context, dest_check_data: MigrateData) -> None:
        """On the destination: undo what `check_can_live_migrate_destination` did, say remove its probe."""
        raise NotImplementedError

    def post_claim_migrate_data(
        self, context: Context, instance: Instance, migrate_data: MigrateData, claim: Any
    ) -> MigrateData:
        """On the destination, when its resources have been claimed: returns the data, perhaps with more."""
        return migrate_data

    def pre_live_migration(
        self,
        context: Context,
        instance: Instance,
        block_device_info: BlockDeviceInfo | None,
        network_info: NetworkInfo,
        disk_info: str | None,
        migrate_data: MigrateData,
    ) -> MigrateData:
        """On the destination: make ready: directory, disks, volumes, interfaces; returns the data with more.

        Args:
            disk_info: what `get_instance_disk_info` says on the source, when disks are copied.
        """
        raise NotImplementedError

    def live_migration(
        self,
        context: Context,
        instance: Instance,
        dest: str,
        post_method: Callable[..., Any],
        recover_method: Callable[..., Any],
        block_migration: bool = False,
        migrate_data: MigrateData | None = None,
    ) -> None:
        """On the source: move it.

        Args:
            dest: the destination's name.
            post_method: called with context, instance, dest, block_migration and migrate_data when it is there.
            recover_method: called with context, instance, dest and migrate_data when it is not.
        """
        raise NotImplementedError

    def live_migration_force_complete(self, instance: Instance) -> None:
        """Let a migration that does not come to its end do so, at the cost of a pause."""
        raise NotImplementedError

    def live_migration_abort(self, instance: Instance) -> None:
        """End a migration that is under way; the instance stays."""
        raise NotImplementedError

    def rollback_live_migration_at_source(self, context: Context, instance: Instance, migrate_data: MigrateData) -> None:
        """On the source, after a failure: put back what the migration changed there."""

    def rollback_live_migration_at_destination(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None,
        destroy_disks: bool = True,
        migrate_data: MigrateData | None = None,
    ) -> None:
        """On the destination, after a failure: undo `pre_live_migration`."""
        raise NotImplementedError

    def post_live_migration(
        self,
        context: Context,
        instance: Instance,
        block_device_info: BlockDeviceInfo | None,
        migrate_data: MigrateData | None = None,
    ) -> None:
        """On the source, once the instance runs elsewhere: let go of its volumes."""

    def post_live_migration_at_source(self, context: Context, instance: Instance, network_info: NetworkInfo) -> None:
        """On the source, once the instance runs elsewhere: remove its interfaces."""
        raise NotImplementedError("this driver cannot let go of the interfaces of an instance that was migrated away")

    def post_live_migration_at_destination(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_migration: bool = False,
        block_device_info: BlockDeviceInfo | None = None,
    ) -> None:
        """On the destination, once the instance runs here: make it last over a restart of the host."""
        raise NotImplementedError

    def check_instance_shared_storage_local(self, context: Context, instance: Instance) -> Mapping[str, Any] | None:
        """Begin to find out whether two hosts share an instance's directory: put a probe into it.

        Returns:
            ``filename`` of the probe, for the other host; None when there is nothing to find out.
        """
        raise NotImplementedError

    def check_instance_shared_storage_remote(self, context: Context, data: Mapping[str, Any]) -> bool:
        """Whether the probe of another host can be seen here."""
        raise NotImplementedError

    def check_instance_shared_storage_cleanup(self, context: Context, data: Mapping[str, Any]) -> None:
        """Remove the probe of `check_instance_shared_storage_local`."""
