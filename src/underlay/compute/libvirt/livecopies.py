"""Copies of a disk of a guest that runs, as the disk was when the copy began: libvirt's backups, in push mode.

QEMU writes into a file that we have made, and libvirt neither makes nor removes it. So a copy that libvirt begins late, when
nobody waits for it any more and its file is gone, fails at once.
"""

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from underlay.compute.errors import ComputeError, InstanceNotFound, OperationFailed
from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.library import library

_POLL = 0.1  # seconds between two looks how far a copy is
_ENDS = 10.0  # seconds that QEMU may take to end a copy


def capacity(domain: Domain, device: str) -> int:
    """Bytes that the guest sees of a disk now.

    Raises:
        InstanceNotFound, OperationFailed, HypervisorUnavailable
    """
    return int(domain.ask(lambda found: found.blockInfo(device)[0]))


def copy(
    domain: Domain, *, device: str, target: Path, disk_format: str, begins_in: AbstractContextManager[None] | None = None
) -> None:
    """Copy a disk as it is now, while the guest writes on, into a file that is there: an empty image of the disk's size.

    Args:
        begins_in: is entered for the moment of which it is a copy.

    Raises:
        InstanceNotFound, HypervisorUnavailable; OperationFailed: among others, another copy goes on.
    """
    libvirt = library()
    if _target(domain) is not None:  # libvirt would wait for its end for half a minute
        raise OperationFailed(f"the disks of {domain.uuid} are being copied already", hint="try again when that is done")
    xml = guestxml.backup_xml(domain.xml(), device=device, target=target, disk_format=disk_format)
    try:
        with begins_in or nullcontext():
            domain.ask(lambda found: found.backupBegin(xml, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL))
        while not _is_done(domain):
            time.sleep(_POLL)  # crash: QEMU copies on, until somebody ends it
    except BaseException:
        with suppress(ComputeError):  # the error that goes on is the one that matters
            end(domain, into=target.parent)
        raise


def end(domain: Domain, *, into: Path) -> None:
    """End a copy into a directory's files; none is a success, and one to another place goes on.

    Raises:
        HypervisorUnavailable, OperationFailed
    """
    deadline = time.monotonic() + _ENDS
    while (target := _target(domain)) and target.parent == into and time.monotonic() < deadline:
        with suppress(OperationFailed):  # it ended by itself
            domain.ask(lambda found: found.abortJob())
        time.sleep(_POLL)


def _target(domain: Domain) -> Path | None:
    """The file into which a disk is being copied; None while none is."""
    libvirt = library()

    def look(found: Any) -> str | None:
        try:
            return str(found.backupGetXMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
                raise
            return None  # none goes on, or the guest is off

    try:
        xml = domain.ask(look)
    except InstanceNotFound:
        return None
    return None if xml is None else guestxml.backup_target(xml)


def _is_done(domain: Domain) -> bool:
    """Whether the copy is done.

    Raises:
        OperationFailed: it failed, or was ended.
    """
    libvirt = library()
    if domain.ask(lambda found: found.jobInfo()[0]) != libvirt.VIR_DOMAIN_JOB_NONE:
        return False
    told = domain.ask(lambda found: found.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED))
    if told.get("type") != libvirt.VIR_DOMAIN_JOB_COMPLETED or not told.get("success", True):
        raise OperationFailed(f"the disk of {domain.uuid} could not be copied: {told.get('errmsg') or 'the copy was ended'}")
    return True
