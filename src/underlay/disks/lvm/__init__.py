"""Disks that are logical volumes of an LVM volume group, by the programs of lvm2 and cryptsetup."""

from underlay.disks.lvm.backend import LvmBackend

__all__ = ["LvmBackend"]
