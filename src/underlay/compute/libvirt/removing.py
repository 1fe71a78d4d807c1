"""How an instance goes, with all that it had."""

import logging
import os

from underlay.compute.arguments import Instance
from underlay.compute.errors import ComputeError
from underlay.compute.libvirt import localdisks
from underlay.compute.libvirt.site import Site
from underlay.compute.metadata import field_of

_LOG = logging.getLogger(__name__)
_DELETING = "deleting"  # the task state of an instance that does not come back


def destroy(site: Site, instance: Instance) -> None:
    """End a guest and have libvirt forget it. One that is not there is a success.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    if not site.domain(instance).remove():
        _LOG.warning("the instance %s was to be destroyed and is not there", instance.uuid)


def remove_disks(site: Site, instance: Instance) -> None:
    """Remove the local disks, and all else in the instance's directory.

    What a resize keeps stays, as a reversal of that needs it, unless the instance is deleted for good.

    Raises:
        OperationFailed: a disk is still needed, or its storage does not answer.
    """
    localdisks.remove_all(site.host, instance.uuid)
    directory = site.directory(instance)
    directory.remove()
    if field_of(instance, "task_state") == _DELETING:
        directory.remove_kept()


def delete_files(site: Site, instance: Instance) -> bool:
    """As `remove_disks`; whether nothing is left. What is busy is no error."""
    try:
        localdisks.remove_all(site.host, instance.uuid)
    except ComputeError as error:
        _LOG.warning("disks of the instance %s cannot be removed yet: %s", instance.uuid, error)
        return False
    directory = site.directory(instance)
    return directory.remove() and directory.remove_kept()


def is_on_disk(site: Site, instance: Instance) -> bool:
    """Whether the instance's directory is here and may be written."""
    return os.access(site.directory(instance).path, os.W_OK | os.X_OK)
