"""Where a guest is whose move was interrupted, found out from both hosts' libvirt, and what each host then does about it.

libvirt has one of the two run it, whoever is killed; but the source may be left with a guest that stands still, or with the
domain of one that has gone, and either host with files. A host acts only when it knows. Else it leaves everything as it is,
says so, and tries again: when the driver starts, with each pass of the image cache, and with the next attempt to move.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path

from underlay import locks
from underlay.compute.errors import ComputeError, HypervisorUnavailable, InstanceNotFound, InvalidInput, OperationFailed
from underlay.compute.libvirt import domain as domains, localdisks, networks
from underlay.compute.libvirt.directory import InstanceDirectory, directory_of, rename_durably, rename_over_doomed
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.livemigration import addresses, disks, marks, sights, verdicts
from underlay.compute.libvirt.livemigration.marks import Mark
from underlay.compute.libvirt.livemigration.sights import Sight
from underlay.compute.libvirt.livemigration.verdicts import Where
from underlay.compute.libvirt.site import Site
from underlay.files import translated

_LOG = logging.getLogger(__name__)
_POLL = 0.2  # seconds between two looks at what is still open
_SETTLING = 20.0  # seconds that libvirt has to end a move
_HELD = ".held"  # behind a directory's name, while it is looked whether anybody needs it


def settle_all(site: Site) -> None:
    """Settle every interrupted move from or to this host. What cannot be settled is logged, and stays for the next time."""
    instances = site.host.config.instances
    put_back(instances, site.name)
    for settle, kind in ((settle_departure, marks.LEAVING), (settle_arrival, marks.ARRIVING)):
        for directory in marks.marked(instances, kind, site.name):
            try:
                settle(site, directory)
            except ComputeError as error:
                _LOG.warning("the move of the instance %s cannot be settled yet: %s", directory.uuid, error)


# ------------------------------------------------------------------------------------------------------------- it was leaving


def settle_departure(site: Site, directory: InstanceDirectory) -> None:
    """Settle the move of a guest from here, if nobody is at it: end it where it can be ended, and remove what has gone.

    Raises:
        HypervisorUnavailable, OperationFailed; as `localdisks.translated`
    """
    with marks.left(directory, marks.LEAVING, site.name) as mark:
        if mark is None:
            return
        where = whereabouts(site, directory.uuid, mark, patience=0)
        if where is Where.HERE:
            marks.remove(directory, marks.LEAVING, site.name)
        elif where is Where.THERE:
            forget(site, directory, mark)
        else:
            _LOG.warning("it is not known whether the instance %s runs here or on %s", directory.uuid, mark.other)


def refuse_unsettled(site: Site, directory: InstanceDirectory) -> None:
    """Settle what is left of an earlier move from here, and refuse to begin another one before that is known to have ended.

    Else a guest that may run on the other host would be sent to a third one, and nobody would ever ask the other one again.

    Raises:
        OperationFailed; as `settle_departure`
    """
    settle_departure(site, directory)
    settle_arrival(site, directory)  # it may have come here before, and nobody has made it last
    mark = marks.read(directory, marks.LEAVING, site.name)
    if mark is not None:
        what = f"the instance {directory.uuid} is moving to {mark.other} already, or it is not known whether it has"
        raise OperationFailed(what, hint="see that libvirt on that host can be reached, and try again")


def forget(site: Site, directory: InstanceDirectory, mark: Mark) -> None:
    """Remove what is left here of a guest that has gone: its files too, unless both hosts have them.

    Raises:
        HypervisorUnavailable, OperationFailed; as `localdisks.translated`
    """
    Domain(site.connection, directory.uuid).remove()
    networks.unplug_all(directory.uuid)
    if mark.shared:
        marks.remove(directory, marks.LEAVING, site.name)
        return
    disks.remove_of_host(site, directory.uuid)
    directory.remove()


def whereabouts(site: Site, uuid: str, mark: Mark, *, patience: float) -> Where:
    """Where a guest is that was to leave; it is let go on here when the other host does not have it.

    Args:
        patience: seconds in which a libvirt that does not answer may do so again.

    Raises:
        HypervisorUnavailable: of this host's libvirt
    """
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        try:
            where = _whereabouts(site, uuid, mark)
        except HypervisorUnavailable:
            if waited >= patience:
                raise
        else:
            is_open = where is Where.OPEN and waited < _SETTLING
            if not is_open and (where is not Where.UNKNOWN or waited >= patience):
                return where
        time.sleep(_POLL)


def _whereabouts(site: Site, uuid: str, mark: Mark) -> Where:
    here = sights.look(site.connection, uuid)
    if verdicts.is_surely_here(here):
        return Where.HERE
    if here is not None and here.sending:
        _end(site, uuid)
        return Where.OPEN  # until it has ended
    try:
        there = _look_there(site, uuid, mark)
    except ComputeError as error:
        _LOG.warning("host %s cannot be asked for the instance %s: %s", mark.other, uuid, error)
        return Where.UNKNOWN
    where = verdicts.where_of(here, there)
    if where is Where.HERE and here is not None and here.active and here.moving:
        Domain(site.connection, uuid).unpause()  # its move has left it standing
    return where


def _end(site: Site, uuid: str) -> None:
    with suppress(InstanceNotFound, OperationFailed):  # it has just come to its end, or can no longer be ended
        Domain(site.connection, uuid).ask(lambda found: found.abortJob())


def _look_there(site: Site, uuid: str, mark: Mark) -> Sight | None:
    uri = addresses.of_libvirt(site.options.moves, mark.other, mark.address)
    return sights.look_there(uri, uuid, libvirt=mark.libvirt, own=sights.identity(site.connection))


# ------------------------------------------------------------------------------------------------------------ it was arriving


def settle_arrival(site: Site, directory: InstanceDirectory) -> None:
    """Settle the move of a guest to here, if nobody is at it: keep one that has come, undo what was made for one that has not.

    One that is still coming is left to libvirt, and to who asked for it.

    Raises:
        HypervisorUnavailable, OperationFailed; as `localdisks.translated`
    """
    with marks.left(directory, marks.ARRIVING, site.name) as mark:
        if mark is None:
            return
        here = sights.look(site.connection, directory.uuid)
        if here is None:
            undo_arrival(site, directory, mark)
        elif here.is_settled:
            _keep(site, directory)
        elif here.active:
            _LOG.info("the instance %s is still coming from %s", directory.uuid, mark.other)
        else:
            _settle_stopped(site, directory, mark)


def _settle_stopped(site: Site, directory: InstanceDirectory, mark: Mark) -> None:
    """It has come and been switched off, or it came to nothing just before its end: the other host has it then."""
    try:
        there = _look_there(site, directory.uuid, mark)
    except ComputeError as error:
        _LOG.warning("host %s cannot be asked for the instance %s: %s", mark.other, directory.uuid, error)
        return
    if there is None:
        marks.remove(directory, marks.ARRIVING, site.name)
    elif there.is_settled and there.runs:
        Domain(site.connection, directory.uuid).remove()
        undo_arrival(site, directory, mark)
    else:
        what = "the instance %s is off here and does not run on %s either, and which is newer is not known"
        _LOG.warning(what, directory.uuid, mark.other)


def _keep(site: Site, directory: InstanceDirectory) -> None:
    """Have a guest that has come last over a restart of the host, as far as libvirt knows it."""
    domain = Domain(site.connection, directory.uuid)
    xml = domain.xml(inactive=True)
    domains.define(site.connection, xml)
    marks.remove(directory, marks.ARRIVING, site.name)


def undo_arrival(site: Site, directory: InstanceDirectory, mark: Mark) -> None:
    """Remove what was made for a guest that has not come; nothing that both hosts have.

    The directory is called something else first, so that no guest can come any more, and then it is looked whether one has.

    Raises:
        HypervisorUnavailable; OperationFailed: it is just coming.
    """
    if mark.shared:
        networks.unplug_all(directory.uuid)
        marks.remove(directory, marks.ARRIVING, site.name)
        return
    held = directory.path.with_name(f"{directory.uuid}{_HELD}")
    _rename(directory.path, held)  # crash: what `put_back` finds
    try:
        has_come = sights.look(site.connection, directory.uuid) is not None
    except ComputeError:
        _rename(held, directory.path)
        raise
    if has_come:
        _rename(held, directory.path)
        raise OperationFailed(f"the instance {directory.uuid} is just coming")
    networks.unplug_all(directory.uuid)
    with localdisks.translated(), translated(held), suppress(FileNotFoundError):
        rename_over_doomed(held, directory.doomed)  # crash: what goes when the next driver starts
    directory.remove_doomed()


def _rename(held: Path, path: Path) -> None:
    with localdisks.translated(), translated(path), suppress(FileNotFoundError):
        rename_durably(held, path)


def may_go(site: Site, directory: InstanceDirectory, mark: Mark) -> bool:
    """Whether what was made for a guest may be removed: it has not come, and the other host says that it has it.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    here = sights.look(site.connection, directory.uuid)
    if here is None:
        return True
    try:
        there = _look_there(site, directory.uuid, mark)
    except ComputeError:
        there = None
    return verdicts.may_go(here, there)


def put_back(instances: Path, host: str) -> None:
    """Give directories their names again whose removal was interrupted: it is begun anew. One that goes on is left alone."""
    for held in sorted(instances.glob(f"*{_HELD}")):
        with suppress(InvalidInput, OSError):
            directory = directory_of(instances, held.name.removesuffix(_HELD))
            with locks.try_exclusive(held / marks.name_of(marks.ARRIVING, host)) as lock:
                if lock is not None:
                    rename_durably(held, directory.path)
