"""A compute driver on libvirt with QEMU, whose instances' disks come from Underlay's caches.

docs/reference/compute.md says of each method of the contract how far it is.
"""

from underlay.compute.libvirt.driver import LibvirtDriver

__all__ = ["LibvirtDriver"]
