"""Probes of shared storage."""

from collections.abc import Mapping
from typing import Any

from underlay.compute.arguments import Context, Instance
from underlay.compute.contract.livemigration import LiveMigration
from underlay.compute.libvirt import sharing
from underlay.compute.libvirt.contract.located import Located


class LibvirtSharedStorage(LiveMigration, Located):
    """Whether hosts share the directory of instances."""

    def check_instance_shared_storage_local(self, context: Context, instance: Instance) -> Mapping[str, Any] | None:
        """As the contract has it: a file in the instance's directory, if there is one."""
        return sharing.probe(self.site, instance)

    def check_instance_shared_storage_remote(self, context: Context, data: Mapping[str, Any]) -> bool:
        """As the contract has it."""
        return sharing.sees(self.site, data)

    def check_instance_shared_storage_cleanup(self, context: Context, data: Mapping[str, Any]) -> None:
        """As the contract has it. Raises InvalidInput of what is no probe, and leaves it."""
        sharing.remove_probe(self.site, data)
