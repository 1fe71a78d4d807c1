"""Snapshots; of resizes there is nothing yet."""

from underlay.compute.contract.resize import Resize
from underlay.compute.libvirt.contract.located import Located


class LibvirtResize(Resize, Located):
    """Snapshots of libvirt's domains."""
