"""Disks that are images in a pool of a Ceph (RADOS block devices), by the distribution's bindings of librados and librbd."""

from underlay.disks.rbd.backend import RbdBackend

__all__ = ["RbdBackend"]
