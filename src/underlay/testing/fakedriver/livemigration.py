"""The fake driver's live migrations."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from underlay.compute import events, states
from underlay.compute.arguments import BlockDeviceInfo, Context, Instance, MigrateData, NetworkInfo
from underlay.compute.contract.livemigration import LiveMigration
from underlay.compute.errors import MigrationPreCheckError, UnableToMigrateToSelf
from underlay.compute.livemigration import LiveMigrateData
from underlay.testing.fakedriver.hypervisor import machine_of
from underlay.testing.fakedriver.running import Running


class FakeLiveMigration(LiveMigration, Running):
    """Moves of running machines between hypervisors in memory. They are over at once."""

    def check_can_live_migrate_destination(
        self,
        context: Context,
        instance: Instance,
        src_compute_info: Mapping[str, Any],
        dst_compute_info: Mapping[str, Any],
        block_migration: bool = False,
        disk_over_commit: bool = False,
    ) -> MigrateData:
        """As the contract has it."""
        if instance.uuid in self.hypervisor.machines:
            raise UnableToMigrateToSelf(instance_id=instance.uuid, host=self.hypervisor.host)
        return LiveMigrateData(is_volume_backed=False)

    def check_can_live_migrate_source(
        self,
        context: Context,
        instance: Instance,
        dest_check_data: MigrateData,
        block_device_info: BlockDeviceInfo | None = None,
    ) -> MigrateData:
        """As the contract has it."""
        if self.hypervisor.machine(instance).state not in (states.RUNNING, states.PAUSED):
            raise MigrationPreCheckError(reason="the instance does not run")
        return dest_check_data

    def cleanup_live_migration_destination_check(self, context: Context, dest_check_data: MigrateData) -> None:
        """As the contract has it; there is nothing to undo."""

    def pre_live_migration(
        self,
        context: Context,
        instance: Instance,
        block_device_info: BlockDeviceInfo | None,
        network_info: NetworkInfo,
        disk_info: str | None,
        migrate_data: MigrateData,
    ) -> MigrateData:
        """As the contract has it."""
        self._plug(machine_of(instance, instance.flavor), network_info)
        known = isinstance(migrate_data, LiveMigrateData)
        return replace(migrate_data, wait_for_vif_plugged=False) if known else migrate_data

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
        """As the contract has it."""
        there, machine = self.site.found(dest), self.hypervisor.machine(instance)
        if there is None or there.broken == "start":
            recover_method(context, instance, dest, migrate_data=migrate_data)
            return
        with self.hypervisor.lock, there.lock:
            there.machines[instance.uuid] = self.hypervisor.machines.pop(instance.uuid)
        self._tell(machine, events.EVENT_LIFECYCLE_MIGRATION_COMPLETED)
        post_method(context, instance, dest, block_migration, migrate_data)

    def live_migration_force_complete(self, instance: Instance) -> None:
        """As the contract has it: every migration is over."""
        self.hypervisor.machine(instance)

    def live_migration_abort(self, instance: Instance) -> None:
        """As the contract has it: every migration is over."""
        self.hypervisor.machine(instance)

    def rollback_live_migration_at_destination(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None,
        destroy_disks: bool = True,
        migrate_data: MigrateData | None = None,
    ) -> None:
        """As the contract has it."""
        self._unplug(instance)

    def post_live_migration_at_source(self, context: Context, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        self._unplug(instance)

    def post_live_migration_at_destination(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_migration: bool = False,
        block_device_info: BlockDeviceInfo | None = None,
    ) -> None:
        """As the contract has it."""
        self._plug(self.hypervisor.machine(instance), network_info)

    def check_instance_shared_storage_local(self, context: Context, instance: Instance) -> Mapping[str, Any] | None:
        """As the contract has it."""
        if instance.uuid not in self.hypervisor.machines:
            return None
        probe = f"{self.hypervisor.host}/{instance.uuid}/probe"
        self.site.shared.add(probe)
        return {"filename": probe}

    def check_instance_shared_storage_remote(self, context: Context, data: Mapping[str, Any]) -> bool:
        """As the contract has it: nothing is shared between hosts."""
        return data["filename"] in self.site.shared and data["filename"].startswith(f"{self.hypervisor.host}/")

    def check_instance_shared_storage_cleanup(self, context: Context, data: Mapping[str, Any]) -> None:
        """As the contract has it."""
        self.site.shared.discard(data["filename"])
