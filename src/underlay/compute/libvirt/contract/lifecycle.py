"""Instances that come and go."""

from collections.abc import Callable, Sequence
from typing import Any

from underlay.compute.arguments import (
    AccelInfo,
    Allocations,
    BlockDeviceInfo,
    BlockDeviceMapping,
    Context,
    ImageMeta,
    Instance,
    MigrateData,
    NetworkInfo,
)
from underlay.compute.contract.lifecycle import LifeCycle
from underlay.compute.contract.listening import Listening
from underlay.compute.errors import NotSupported, PreserveEphemeralNotSupported
from underlay.compute.libvirt import (
    domain as domains,
    guestagent,
    kept,
    making,
    networks,
    removing,
    service,
    sharing,
    snapshots,
    swapping,
)
from underlay.compute.libvirt.contract.located import Located
from underlay.compute.libvirt.hostaddress import own_address
from underlay.compute.libvirt.livemigration import checks, leaving, returning
from underlay.compute.libvirt.livemigration.moves import Moves
from underlay.compute.metadata import field_of
from underlay.compute.states import InstanceInfo
from underlay.host import Host


class LibvirtLifeCycle(LifeCycle, Listening, Located):
    """Instances of libvirt."""

    underlay: Host | None
    moves: Moves

    def init_host(self, host: str) -> None:
        """As the contract has it: what was left half made is removed, and what was half resized is put back.

        Raises:
            HypervisorUnavailable, ExtraMissing, ConfigError; OperationFailed: the instances path cannot be read.
        """
        self._running = service.begin(host, host=self.underlay, tell=self.emit_event)
        try:
            kept.undo_all_interrupted(self.site)
            making.undo_all_interrupted(self.site)
            snapshots.clean_all(self.site)
            swapping.settle_all(self.site)
            sharing.announce(self.site.host, own_address(self.site.options))
            checks.remove_probes(self.site)
            returning.settle_all(self.site)
        except BaseException:
            self.cleanup_host(host)
            raise

    def cleanup_host(self, host: str) -> None:
        """As the contract has it."""
        self.moves.forget_expected()
        if self._running is not None:
            service.end(self._running)
            self._running = None

    def get_info(self, instance: Instance, use_cache: bool = True) -> InstanceInfo:
        """As the contract has it; nothing is remembered, so libvirt is always asked."""
        state, internal_id = self.site.domain(instance).state()
        return InstanceInfo(state=state, internal_id=internal_id)

    def instance_exists(self, instance: Instance) -> bool:
        """As the contract has it, by the UUID."""
        return self.site.domain(instance).exists()

    def list_instances(self) -> list[str]:
        """As the contract has it."""
        return domains.names(self.site.connection)

    def list_instance_uuids(self) -> list[str]:
        """As the contract has it."""
        return domains.uuids(self.site.connection)

    def spawn(
        self,
        context: Context,
        instance: Instance,
        image_meta: ImageMeta,
        injected_files: Sequence[Any],
        admin_password: str | None,
        allocations: Allocations | None,
        network_info: NetworkInfo | None = None,
        block_device_info: BlockDeviceInfo | None = None,
        power_on: bool = True,
        accel_info: AccelInfo | None = None,
    ) -> None:
        """As the contract has it. Files are not injected, and there are no accelerators.

        Raises:
            InstanceExists, FlavorDiskSmallerThanImage, ImageNotFound, VirtualInterfacePlugException, Invalid, OperationFailed
        """
        _refuse_injection(injected_files, accel_info)
        _refuse_certificates(instance)
        making.spawn(
            self.site,
            instance,
            image_meta,
            network_info,
            block_device_info,
            password=admin_password,
            power_on=power_on,
        )

    def rebuild(
        self,
        context: Context,
        instance: Instance,
        image_meta: ImageMeta,
        injected_files: Sequence[Any],
        admin_password: str | None,
        allocations: Allocations | None,
        bdms: Sequence[BlockDeviceMapping],
        detach_block_devices: Callable[..., Any],
        attach_block_devices: Callable[..., Any],
        network_info: NetworkInfo | None = None,
        evacuate: bool = False,
        block_device_info: BlockDeviceInfo | None = None,
        preserve_ephemeral: bool = False,
        *,
        accel_uuids: Sequence[str] | None = None,
        reimage_boot_volume: bool = False,
    ) -> None:
        """As the contract has it, on the host where the instance is. Its volumes stay attached.

        Raises:
            as `spawn`, but InstanceNotFound
        """
        if evacuate or reimage_boot_volume:
            raise NotImplementedError("instances are rebuilt where they are, from local disks")
        if preserve_ephemeral:
            raise PreserveEphemeralNotSupported
        _refuse_injection(injected_files, accel_uuids)
        _refuse_certificates(instance)
        making.rebuild(self.site, instance, image_meta, network_info, block_device_info, password=admin_password)

    def destroy(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        destroy_disks: bool = True,
        *,
        destroy_secrets: bool = True,
    ) -> None:
        """As the contract has it."""
        removing.destroy(self.site, instance)
        self.cleanup(context, instance, network_info, block_device_info, destroy_disks, destroy_secrets=destroy_secrets)

    def cleanup(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        destroy_disks: bool = True,
        migrate_data: MigrateData | None = None,
        destroy_vifs: bool = True,
        *,
        destroy_secrets: bool = True,
    ) -> None:
        """As the contract has it; libvirt has taken its own interfaces away with the guest. Another host's files stay."""
        if leaving.has_let_go(self.site, instance, migrate_data):
            leaving.let_go(self.site, instance)
        elif migrate_data is not None and (destroy_disks or leaving.leaves_directory(migrate_data)):
            leaving.remove_files(self.site, instance)
        elif destroy_disks:
            removing.remove_disks(self.site, instance)
        if destroy_vifs:
            networks.unplug_all(instance.uuid)

    def set_admin_password(self, instance: Instance, new_pass: str) -> None:
        """As the contract has it, by QEMU's guest agent."""
        guestagent.set_password(self.site, instance, new_pass)

    def delete_instance_files(self, instance: Instance) -> bool:
        """As the contract has it."""
        return removing.delete_files(self.site, instance)

    def instance_on_disk(self, instance: Instance) -> bool:
        """As the contract has it: its directory is here and may be written."""
        return removing.is_on_disk(self.site, instance)


def _refuse_injection(files: Sequence[Any] | None, accelerators: Sequence[Any] | None) -> None:
    if files:
        raise NotSupported("no files are injected into a guest's disk", hint="give the instance a config drive")
    if accelerators:
        raise NotSupported("no accelerators are given to guests")


def _refuse_certificates(instance: Instance) -> None:
    """An image that is here was verified by the host's certificates, if at all: who is to be trusted is not each instance's."""
    if field_of(instance, "trusted_certs"):
        what = f"the instance {instance.uuid} trusts certificates of its own, by which no image is verified here"
        raise NotSupported(what, hint="verify_signatures in [sources.glance] has every image verified")
