"""How instances come to be, and cease to be."""

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
from underlay.compute.metadata import InstanceDriverMetadata, metadata_of
from underlay.compute.states import InstanceInfo


class LifeCycle:
    """The instances of a hypervisor: which there are, making them, and removing them with all that they had."""

    def init_host(self, host: str) -> None:
        """Make ready for work: connect, and make whole what an interrupted operation left half done.

        Called once, before any other method.

        Args:
            host: the name of the compute service's host.
        """
        raise NotImplementedError

    def cleanup_host(self, host: str) -> None:
        """Let go of what `init_host` took; the service ends. Instances go on running."""

    def process_instances_at_startup(self, context: Context, instances: Sequence[Instance]) -> Sequence[Instance]:
        """Those of the host's instances that the service is to look after as it starts; all of them, unless overridden."""
        return instances

    def get_info(self, instance: Instance, use_cache: bool = True) -> InstanceInfo:
        """The power state of an instance, as the hypervisor has it now.

        Args:
            use_cache: False asks the hypervisor even when the driver remembers an answer.

        Raises:
            InstanceNotFound: the hypervisor does not know it.
        """
        raise NotImplementedError

    def get_num_instances(self) -> int:
        """How many instances the hypervisor has, running or not."""
        return len(self.list_instances())

    def instance_exists(self, instance: Instance) -> bool:
        """Whether the hypervisor knows an instance: by its UUID, or where UUIDs cannot be listed by its name."""
        try:
            return instance.uuid in self.list_instance_uuids()
        except NotImplementedError:
            return instance.name in self.list_instances()

    def list_instances(self) -> list[str]:
        """The names of all instances of the hypervisor, running or not."""
        raise NotImplementedError

    def list_instance_uuids(self) -> list[str]:
        """The UUIDs of all instances of the hypervisor, running or not."""
        raise NotImplementedError

    @classmethod
    def get_instance_driver_metadata(cls, instance: Instance, network_info: NetworkInfo) -> InstanceDriverMetadata:
        """What a driver may write down about an instance, for people who look at the host."""
        return metadata_of(instance, network_info)

    def prepare_for_spawn(self, instance: Instance) -> None:
        """Get ready for a `spawn` that is to come, before anything else is made for it."""

    def failed_spawn_cleanup(self, instance: Instance) -> None:
        """Undo `prepare_for_spawn`, because the spawn failed and is not tried again here. Safe to repeat."""

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
        """Make a new instance with its disks and start it.

        When it returns the instance runs, or is shut down when it was not to be powered on. When it fails nothing is left: no
        instance, disk, interface or directory.

        Args:
            injected_files: (path, contents) of files to write into the guest. admin_password: for the guest.
            allocations: what placement has given to it, by resource provider.
            accel_info: accelerators that are bound to it.
        """
        raise NotImplementedError

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
        """Make an instance anew from another image, under its own name, UUID and addresses.

        A driver that leaves this out says that its caller is to stop, destroy and spawn instead.

        Args:
            bdms: the rows of its block devices. detach_block_devices, attach_block_devices: functions of the caller that do so.
            evacuate: its host was lost, and it is made anew on this one. preserve_ephemeral: the ephemeral disk is kept.
            accel_uuids: of accelerators. reimage_boot_volume: the root volume gets the image too.

        Raises:
            PreserveEphemeralNotSupported: it cannot be kept.
        """
        raise NotImplementedError

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
        """Stop an instance at once and remove it, and then all that `cleanup` removes.

        An instance that is not there is a success. Safe to repeat.

        Args:
            destroy_disks: its local disks go too. destroy_secrets: what its disks were encrypted with goes too.
        """
        raise NotImplementedError

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
        """Remove what an instance that is gone from the hypervisor leaves: files, interfaces, connections to volumes.

        Safe to repeat.

        Args:
            migrate_data: set when it has been migrated away. destroy_vifs: its interfaces go too.
        """
        raise NotImplementedError

    def delete_instance_files(self, instance: Instance) -> bool:
        """Remove the files of an instance that are left.

        Returns:
            True when none are left, also when there were none; False when some are, and it is to be asked again. A file that
            is busy is no error.
        """
        return True

    def cleanup_lingering_instance_resources(self, instance: Instance) -> bool:
        """Remove what is left of an instance that was moved away while this host did not answer; True when nothing is left."""
        return True

    def instance_on_disk(self, instance: Instance) -> bool:
        """Whether an instance's directory can be used from here, or its disks are on storage that is shared."""
        return False

    def set_admin_password(self, instance: Instance, new_pass: str) -> None:
        """Change the password of the guest's administrator.

        The user is the image's property ``os_admin_user``, else ``Administrator`` of a Windows guest, else ``root``.

        Raises:
            SetAdminPasswdNotSupported: of this guest. InstanceAgentNotEnabled, QemuGuestAgentNotEnabled: it has no agent.
            NotImplementedError: the agent does not answer, as of a driver that cannot do it.
        """
        raise NotImplementedError

    def inject_file(self, instance: Instance, b64_path: str, b64_contents: str) -> None:
        """Write a file into a guest. The path and the contents are both base64."""
        raise NotImplementedError

    def change_instance_metadata(self, context: Context, instance: Instance, diff: dict[str, list[str]]) -> None:
        """Tell a running guest that its metadata changed.

        Args:
            diff: by key, ``["+", value]`` for one that is set, ``["-"]`` for one that is gone.
        """
