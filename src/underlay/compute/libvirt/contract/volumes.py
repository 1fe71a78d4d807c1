"""Volumes, local disks and the names of devices."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from underlay.compute.arguments import BlockDeviceInfo, BlockDeviceMapping, ConnectionInfo, Context, ImageMeta, Instance
from underlay.compute.contract.volumes import Volumes
from underlay.compute.libvirt import (
    attaching,
    detaching,
    diagnosing,
    guestagent,
    localdisks,
    rownames,
    swapping,
    volumefacts,
    volumesnapshots,
)
from underlay.compute.libvirt.contract.located import Located
from underlay.run import SEARCH_PATH

_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs")  # those of Nova's libvirt driver


class LibvirtVolumes(Volumes, Located):
    """Volumes that are files, devices or in Ceph; what local disks are like, and what devices are called."""

    @property
    def need_legacy_block_device_info(self) -> bool:
        """As the contract has it: no."""
        return False

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
        """As the contract has it, of the kinds ``local`` and ``rbd``. Raises NotSupported of one that is encrypted."""
        attaching.attach(
            self.site,
            instance,
            connection_info,
            mountpoint,
            bus=disk_bus,
            device_type=device_type,
            encryption=encryption,
        )

    def detach_volume(
        self,
        context: Context,
        connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        """As the contract has it; a guest that runs has to let go of it, and is asked ``device_detach_attempts`` times."""
        detaching.detach(self.site, instance, connection_info, mountpoint)

    def swap_volume(
        self,
        context: Context,
        old_connection_info: ConnectionInfo,
        new_connection_info: ConnectionInfo,
        instance: Instance,
        mountpoint: str,
        resize_to: int,
    ) -> None:
        """As the contract has it."""
        swapping.swap(self.site, instance, old_connection_info, new_connection_info, mountpoint, resize_to=resize_to)

    def extend_volume(self, context: Context, connection_info: ConnectionInfo, instance: Instance, requested_size: int) -> None:
        """As the contract has it."""
        attaching.extend(self.site, instance, connection_info, requested_size)

    def volume_snapshot_create(
        self, context: Context, instance: Instance, volume_id: str, create_info: Mapping[str, Any]
    ) -> None:
        """As the contract has it, of a volume that is a file. The service tells its storage what became of it."""
        volumesnapshots.create(self.site, instance, volume_id, create_info)

    def volume_snapshot_delete(
        self, context: Context, instance: Instance, volume_id: str, snapshot_id: str, delete_info: Mapping[str, Any]
    ) -> None:
        """As the contract has it, while the guest runs. The storage removes the file."""
        volumesnapshots.delete(self.site, instance, volume_id, snapshot_id, delete_info)

    def get_volume_connector(self, instance: Instance) -> dict[str, Any]:
        """As the contract has it."""
        return volumefacts.connector(self.site)

    def get_all_volume_usage(self, context: Context, compute_host_bdms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the contract has it, of guests that run."""
        return volumefacts.usage(self.site, compute_host_bdms)

    def block_stats(self, instance: Instance, disk_id: str) -> list[int] | None:
        """As the contract has it; libvirt does not count failures of QEMU's disks, so there are none."""
        return diagnosing.of_disk(self.site, instance, disk_id)

    def get_instance_disk_info(self, instance: Instance, block_device_info: BlockDeviceInfo | None = None) -> str:
        """As the contract has it."""
        return localdisks.facts(self.site, instance)

    def default_root_device_name(self, instance: Instance, image_meta: ImageMeta, root_bdm: BlockDeviceMapping) -> str:
        """As the contract has it: the first name of the bus."""
        return rownames.root_name(self.site, image_meta, root_bdm)

    def default_device_names_for_instance(
        self, instance: Instance, root_device_name: str, *block_device_lists: Sequence[BlockDeviceMapping]
    ) -> None:
        """As the contract has it."""
        rownames.name_all(self.site, instance, root_device_name, [row for rows in block_device_lists for row in rows])

    def get_device_name_for_instance(
        self, instance: Instance, bdms: Sequence[BlockDeviceMapping], block_device_obj: BlockDeviceMapping
    ) -> str:
        """As the contract has it; a name that is asked for is not looked at."""
        return rownames.further_name(self.site, instance, bdms, block_device_obj)

    def quiesce(self, context: Context, instance: Instance, image_meta: ImageMeta) -> None:
        """As the contract has it, by QEMU's guest agent."""
        guestagent.quiesce(self.site, instance, image_meta)

    def unquiesce(self, context: Context, instance: Instance, image_meta: ImageMeta) -> None:
        """As the contract has it, by QEMU's guest agent."""
        guestagent.unquiesce(self.site, instance, image_meta)

    def is_supported_fs_format(self, fs_type: str) -> bool:
        """As the contract has it, by the programs that this host has."""
        return fs_type in _FILE_SYSTEMS and shutil.which(f"mkfs.{fs_type}", path=SEARCH_PATH) is not None
