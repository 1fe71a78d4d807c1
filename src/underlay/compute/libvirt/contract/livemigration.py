"""Moving an instance that runs to another host."""

from collections.abc import Callable, Mapping
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, Context, Instance, MigrateData, NetworkInfo
from underlay.compute.contract.livemigration import LiveMigration
from underlay.compute.libvirt import networks
from underlay.compute.libvirt.contract.located import Located
from underlay.compute.libvirt.livemigration import arriving, checks, leaving
from underlay.compute.libvirt.livemigration.leaving import Callbacks
from underlay.compute.libvirt.livemigration.moves import Moves
from underlay.compute.metadata import field_of


class LibvirtLiveMigration(LiveMigration, Located):
    """Live migrations between two libvirts, with disks on shared storage or copied beside what their base images have.

    The data of a migration are what `check_can_live_migrate_destination` began, or Nova's own object to which a service has
    written that (`underlay.compute.versioneddata`): then each step answers with the same object.
    """

    moves: Moves

    def check_can_live_migrate_destination(
        self,
        context: Context,
        instance: Instance,
        src_compute_info: Mapping[str, Any],
        dst_compute_info: Mapping[str, Any],
        block_migration: bool | None = False,
        disk_over_commit: bool = False,
    ) -> MigrateData:
        """As the contract has it; a ``block_migration`` of None is found out on the source."""
        return checks.on_destination(
            self.site,
            instance,
            src_compute_info,
            dst_compute_info,
            block_migration=block_migration,
            disk_over_commit=disk_over_commit,
        )

    def check_can_live_migrate_source(
        self,
        context: Context,
        instance: Instance,
        dest_check_data: MigrateData,
        block_device_info: BlockDeviceInfo | None = None,
    ) -> MigrateData:
        """As the contract has it."""
        told = checks.on_source(self.site, instance, dest_check_data, block_device_info)
        return checks.answer(told, dest_check_data)

    def cleanup_live_migration_destination_check(self, context: Context, dest_check_data: MigrateData) -> None:
        """As the contract has it: the probe is removed."""
        checks.remove_probe(self.site, field_of(dest_check_data, "filename"))

    def pre_live_migration(
        self,
        context: Context,
        instance: Instance,
        block_device_info: BlockDeviceInfo | None,
        network_info: NetworkInfo,
        disk_info: str | None,
        migrate_data: MigrateData,
    ) -> MigrateData:
        """As the contract has it; what `check_can_live_migrate_source` said of the disks is more than ``disk_info`` does.

        Raises:
            InstanceExists, MigrationPreCheckError, VirtualInterfacePlugException, ImageNotFound, OperationFailed
        """
        told = arriving.prepare(self.site, self.moves, instance, network_info, block_device_info, migrate_data)
        return checks.answer(told, migrate_data)

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
        """As the contract has it; ``migration_status="cancelled"`` tells ``recover_method`` that it was ended on purpose.

        Raises:
            as `underlay.compute.libvirt.livemigration.leaving.move`; then neither was called.
        """
        callbacks = Callbacks(moved=post_method, stayed=recover_method)
        leaving.move(self.site, self.moves, context, instance, dest, callbacks, migrate_data, block_migration=block_migration)

    def live_migration_force_complete(self, instance: Instance) -> None:
        """As the contract has it: its memory follows, or it stands still, as ``live_migration_permit_post_copy`` says."""
        leaving.force(self.site, self.moves, instance)

    def live_migration_abort(self, instance: Instance) -> None:
        """As the contract has it."""
        leaving.end(self.site, self.moves, instance)

    def rollback_live_migration_at_source(self, context: Context, instance: Instance, migrate_data: MigrateData) -> None:
        """As the contract has it."""
        leaving.let_stay(self.site, instance)

    def rollback_live_migration_at_destination(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None,
        destroy_disks: bool = True,
        migrate_data: MigrateData | None = None,
    ) -> None:
        """As the contract has it, whatever ``destroy_disks`` says: what was made here goes, and what is shared stays."""
        arriving.give_up(self.site, self.moves, instance)

    def post_live_migration_at_source(self, context: Context, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it; files that are not shared go with `cleanup`."""
        networks.unplug(instance, network_info)
        leaving.let_go(self.site, instance)

    def post_live_migration_at_destination(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_migration: bool = False,
        block_device_info: BlockDeviceInfo | None = None,
    ) -> None:
        """As the contract has it."""
        networks.plug(instance, network_info)
        arriving.make_last(self.site, self.moves, instance)
