"""Virtual machines without a compute service: what ``underlay vm`` makes and runs by the compute driver for libvirt.

There is no store but libvirt: a machine's name is looked up there, and what a driver is told of it later lies in the metadata
of its domain. docs/guides/virtual-machines.md has the shape.
"""
