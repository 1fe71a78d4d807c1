"""Disks that are directories with a Parallels image and its description, as OpenVZ's and Virtuozzo's ploop has them."""

from underlay.disks.ploop.backend import PloopBackend

__all__ = ["PloopBackend"]
