"""What every part of the driver stands on."""

from dataclasses import dataclass

from underlay.compute.arguments import Instance
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.directory import InstanceDirectory, directory_of
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.lifecycleevents import LifecycleEvents
from underlay.config.libvirt import Libvirt
from underlay.host import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One host with its libvirt and its Underlay.

    Attributes:
        name: of the compute service's host. host: whose caches and backends disks are made from.
        virt_type: ``kvm`` or ``qemu``: what guests really run under.
        events: that are told of its guests.
    """

    name: str
    host: Host
    options: Libvirt
    connection: Connection
    events: LifecycleEvents
    virt_type: str

    def domain(self, instance: Instance) -> Domain:
        """The domain of an instance, whether there is one or not."""
        return Domain(self.connection, instance.uuid)

    def directory(self, instance: Instance) -> InstanceDirectory:
        """The directory of an instance, whether there is one or not.

        Raises:
            InvalidInput
        """
        return directory_of(self.host.config.instances, instance.uuid)
