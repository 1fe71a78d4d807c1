"""How an instance goes, with all that it had."""

import logging
import os

from underlay.compute.arguments import Instance
from underlay.compute.errors import ComputeError, OperationFailed
from underlay.compute.libvirt import claiming, keptdisks, localdisks, swapping
from underlay.compute.libvirt.directory import InstanceDirectory
from underlay.compute.libvirt.site import Site
from underlay.compute.metadata import field_of

_LOG = logging.getLogger(__name__)
_DELETING = "deleting"  # the task state of an instance that does not come back


def destroy(site: Site, instance: Instance) -> None:
    """End a guest and have libvirt forget it. One that is not there is a success.

    Raises:
        HypervisorUnavailable; OperationFailed: among others, it is being made.
    """
    with claiming.alone(site.directory(instance)):
        if not site.domain(instance).remove():
            _LOG.warning("the instance %s was to be destroyed and is not there", instance.uuid)


def remove_disks(site: Site, instance: Instance) -> None:
    """Remove the local disks, and all else in the instance's directory.

    What a resize keeps stays, as a reversal of that needs it, unless the instance is deleted for good. All of it stays where
    another host has it, as after a cold migration: that its guest is off there, nobody can see from the disks.

    Raises:
        OperationFailed: a disk is still needed, its storage does not answer, or the instance is being made.
    """
    if _is_anothers(site, instance):
        _LOG.warning("the files of the instance %s stay: it is %s that has it, which shares them", instance.uuid, instance.host)
        return
    _remove(site, site.directory(instance), for_good=field_of(instance, "task_state") == _DELETING)


def _remove(site: Site, directory: InstanceDirectory, *, for_good: bool) -> None:
    with claiming.alone(directory) as is_there:
        _let_go_of_volumes(directory)
        keptdisks.clear(site, directory)
        if for_good:
            keptdisks.let_go(site, directory)
        spared = () if for_good else keptdisks.spared(directory)
        localdisks.remove_all(site.host, directory.uuid, but=spared)  # crash: a directory without disks, removed the next time
        if not (directory.remove() if is_there else directory.remove_doomed()):  # crash: one that the next driver removes
            raise OperationFailed(f"{directory.path} cannot be removed whole", hint="see what is left of it, and remove it")
        if for_good and not directory.remove_both():
            raise OperationFailed(f"{directory.kept} cannot be removed whole", hint="see what is left of it, and remove it")


def _is_anothers(site: Site, instance: Instance) -> bool:
    """Whether the files of an instance are another host's: its service says so, and that host has its instances here.

    The configuration names those. Whether another has been seen here does not matter: what stays can go later.

    A deleted one is nobody's, and its service asks every host that had a part in its last move. Nor has anybody one that is
    half made: when its host is gone for good, another removes that.
    """
    if field_of(instance, "host") in (None, "", site.name) or field_of(instance, "deleted"):
        return False
    others = set(site.host.config.hosts) - {site.host.config.host}
    return bool(others) and not claiming.is_half_made(site.directory(instance))


def _let_go_of_volumes(directory: InstanceDirectory) -> None:
    try:
        swapping.forget(directory)
    except ComputeError as error:  # the volume is somebody else's, who may have removed it
        _LOG.warning("the new volume of a swap that was interrupted cannot have its size again: %s", error)


def delete_files(site: Site, instance: Instance) -> bool:
    """As `remove_disks`, with what a resize keeps; whether nothing is left.

    What is busy is no error, and neither is what is another host's.
    """
    try:
        if _is_anothers(site, instance):
            return False
        _remove(site, site.directory(instance), for_good=True)
    except ComputeError as error:
        _LOG.warning("files of the instance %s cannot be removed yet: %s", instance.uuid, error)
        return False
    return True


def is_on_disk(site: Site, instance: Instance) -> bool:
    """Whether the instance's directory is here and may be written."""
    return os.access(site.directory(instance).path, os.W_OK | os.X_OK)
