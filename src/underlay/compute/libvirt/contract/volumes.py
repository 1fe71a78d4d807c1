"""Volumes and local disks; of volumes there is nothing yet."""

from underlay.compute.contract.volumes import Volumes
from underlay.generated import FILE_SYSTEMS


class LibvirtVolumes(Volumes):
    """Which shapes of block devices are understood, and which file systems can be made."""

    @property
    def need_legacy_block_device_info(self) -> bool:
        """As the contract has it: no."""
        return False

    def is_supported_fs_format(self, fs_type: str) -> bool:
        """As the contract has it: what an ephemeral disk can be given."""
        return fs_type in FILE_SYSTEMS
