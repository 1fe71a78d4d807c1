"""Work that QEMU does on a disk in the background, waited for as long as it gets on."""

import time
from collections.abc import Callable

from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt import attacheddisks
from underlay.compute.libvirt.domaindisks import DomainDisks

_POLL = 0.2  # seconds between two looks
_STALLED = 600.0  # seconds without any progress after which storage is taken for dead


def await_copy(disks: DomainDisks, device: str) -> None:
    """Wait until a copy, or a commit of what is written, may be pivoted to.

    Raises:
        OperationFailed: it ended before, or does not get on. InstanceNotFound, HypervisorUnavailable
    """
    _await(disks, device, lambda is_going: _may_pivot(disks, device, is_going=is_going))


def await_end(disks: DomainDisks, device: str) -> None:
    """Wait until nothing goes on with a disk any more.

    Raises:
        as `await_copy`, but OperationFailed only when it does not get on
    """
    _await(disks, device, lambda is_going: not is_going)


def _may_pivot(disks: DomainDisks, device: str, *, is_going: bool) -> bool:
    found = attacheddisks.at(device, disks.live())
    if found is not None and found.may_pivot:
        return True
    if not is_going or found is None:
        raise OperationFailed(f"QEMU gave up copying {device}", hint="libvirt's log of the guest says why")
    return False


def _await(disks: DomainDisks, device: str, is_done: Callable[[bool], bool]) -> None:
    moved_at, seen = time.monotonic(), None
    while True:
        job = disks.job(device)
        if is_done(job is not None):
            return
        now = time.monotonic()
        if job != seen:
            moved_at, seen = now, job
        elif now - moved_at > _STALLED:
            raise OperationFailed(f"the work on {device} has not got on for {_STALLED:g} s")
        time.sleep(_POLL)
