"""Volumes, disks and the names of devices."""

from collections.abc import Mapping, Sequence
from typing import Any

from underlay.compute.arguments import (
    BlockDeviceInfo,
    BlockDeviceMapping,
    ConnectionInfo,
    Context,
    ImageMeta,
    Instance,
    ShareInfo,
)


class Volumes:
    """What is attached to instances, under which names, and what is known of their disks."""

    @property
    def need_legacy_block_device_info(self) -> bool:
        """Whether block devices are to be passed in the older shapes of `underlay.compute.devices.legacy_block_devices`."""
        return True

    def attach_volume(
        self,
        context: Context,
        connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        disk_bus: str | None = None,
        device_type: str | None = None,
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        """Attach a volume to an instance, to a running one at once.

        Args:
            connection_info: ``driver_volume_type``; ``data``, whose ``access_mode`` is ``rw`` or ``ro`` and which says where
                the volume is; ``serial``, its id. mountpoint: the device's name, say ``/dev/vdb``.
            disk_bus, device_type: say ``virtio`` and ``disk``. encryption: how it is encrypted, if it is.

        Raises:
            TooManyDiskDevices, VolumeDriverNotFound: this kind of volume cannot be attached; VolumeAttachFailed.
        """
        raise NotImplementedError

    def detach_volume(
        self,
        context: Context,
        connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        """Detach a volume from an instance.

        Raises:
            DiskNotFound: it is not attached, which callers take for done. DeviceDetachFailed: the guest does not let it go.
        """
        raise NotImplementedError

    def swap_volume(
        self,
        context: Context,
        old_connection_info: ConnectionInfo,
        new_connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        resize_to: int,
    ) -> None:
        """Put another volume in an attached one's place, with what is on it, while the guest runs.

        On failure the old one stays.

        Args:
            resize_to: GiB that the new one is to have; 0 keeps its size.
        """
        raise NotImplementedError

    def extend_volume(self, context: Context, connection_info: ConnectionInfo, instance: Instance, requested_size: int) -> None:
        """Tell a guest that an attached volume has grown.

        Args:
            requested_size: bytes that it has now.

        Raises:
            ExtendVolumeNotSupported: of this kind of volume.
        """
        raise NotImplementedError

    def volume_snapshot_create(
        self, context: Context, instance: Instance, volume_id: str, create_info: Mapping[str, Any]
    ) -> None:
        """Snapshot a volume through the hypervisor that has it open: from now on writes go to a new file.

        Args:
            create_info: ``type``, which is ``qcow2``; ``snapshot_id``; ``new_file``, the name of the file.

        Raises:
            InternalError: another type, or no id. InstanceNotRunning.
        """
        raise NotImplementedError

    def volume_snapshot_delete(
        self, context: Context, instance: Instance, volume_id: str, snapshot_id: str, delete_info: Mapping[str, Any]
    ) -> None:
        """Remove a snapshot of a volume through the hypervisor, by merging files.

        Args:
            delete_info: ``type``, which is ``qcow2``; ``file_to_merge``, perhaps None; ``merge_target_file``, None for the file
                that is written.

        Raises:
            as `volume_snapshot_create`
        """
        raise NotImplementedError

    def get_volume_connector(self, instance: Instance) -> dict[str, Any]:
        """Who wants to reach volumes: ``ip``, ``initiator`` (iSCSI's name, or None), ``host``, and what else is known."""
        raise NotImplementedError

    def get_all_volume_usage(self, context: Context, compute_host_bdms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """How much attached volumes have been used.

        Args:
            compute_host_bdms: for each instance ``instance`` and ``instance_bdms``, its volumes' rows.

        Returns:
            For each volume ``volume`` (its id), ``instance``, ``rd_req``, ``rd_bytes``, ``wr_req``, ``wr_bytes``: requests and
            bytes. One without counters is left out.
        """
        raise NotImplementedError

    def block_stats(self, instance: Instance, disk_id: str) -> list[int] | None:
        """The counters of one disk.

        Args:
            disk_id: its name without ``/dev/``, say ``vda``.

        Returns:
            Read requests, bytes read, write requests, bytes written, requests that failed; None when they cannot be had.
        """
        raise NotImplementedError

    def get_instance_disk_info(self, instance: Instance, block_device_info: BlockDeviceInfo | None = None) -> str:
        """What is known of an instance's local disks, volumes left out.

        Returns:
            A list of objects as JSON text: ``path``; ``type`` (``raw``, ``qcow2`` …); ``backing_file``, its base name or
            nothing; ``virt_disk_size``, ``disk_size`` (allocated) and ``over_committed_disk_size``, which are bytes as strings
            of digits.

        Raises:
            InstanceNotFound
        """
        raise NotImplementedError

    def default_root_device_name(self, instance: Instance, image_meta: ImageMeta, root_bdm: BlockDeviceMapping) -> str:
        """The name of the root device, with ``/dev/``. A driver that leaves this out says that its caller is to choose.

        Raises:
            TooManyDiskDevices
        """
        raise NotImplementedError

    def default_device_names_for_instance(
        self, instance: Instance, root_device_name: str, *block_device_lists: Sequence[BlockDeviceMapping]
    ) -> None:
        """Name the devices that have no name: ``device_name`` of each row in each list is set in its place.

        Raises:
            TooManyDiskDevices
        """
        raise NotImplementedError

    def get_device_name_for_instance(
        self, instance: Instance, bdms: Sequence[BlockDeviceMapping], block_device_obj: BlockDeviceMapping
    ) -> str:
        """The name that a further device will have, with ``/dev/``. A name in the row is a wish.

        Args:
            bdms: the rows of the devices that it has. block_device_obj: the row of the further one.

        Raises:
            TooManyDiskDevices
        """
        raise NotImplementedError

    def is_supported_fs_format(self, fs_type: str) -> bool:
        """Whether an ephemeral disk can be made with this file system.

        Args:
            fs_type: ``ext2``, ``ext3``, ``ext4``, ``xfs``, ``ntfs`` or ``vfat``.
        """
        return False

    def quiesce(self, context: Context, instance: Instance, image_meta: ImageMeta) -> None:
        """Freeze a guest's file systems, through an agent in it, so that a snapshot of its disks is whole.

        Raises:
            InstanceQuiesceNotSupported, QemuGuestAgentNotEnabled: it cannot be done. InstanceQuiesceFailed: it failed.
        """
        raise NotImplementedError

    def unquiesce(self, context: Context, instance: Instance, image_meta: ImageMeta) -> None:
        """Let a guest's file systems go on.

        Raises:
            as `quiesce`
        """
        raise NotImplementedError

    def mount_share(self, context: Context, instance: Instance, share_mapping: ShareInfo) -> None:
        """Mount a file share on the host, for an instance."""
        raise NotImplementedError

    def umount_share(self, context: Context, instance: Instance, share_mapping: ShareInfo) -> bool:
        """Unmount a file share; True when another instance still uses it."""
        raise NotImplementedError

    def is_share_mounted(self, share_mapping: ShareInfo) -> bool:
        """Whether a file share is mounted on the host."""
        raise NotImplementedError
