"""How a domain is started: with a port for its serial line that is free now."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from underlay.compute.errors import HypervisorUnavailable, OperationFailed
from underlay.compute.libvirt import domain as domains, guestxml
from underlay.compute.libvirt.directory import directory_of
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.livemigration import marks
from underlay.compute.libvirt.site import Site

_ATTEMPTS = 5  # another program may take a port between our look and QEMU's
TAKEN = "Address already in use"
"""What QEMU says of a port at which somebody listens already."""


def start(site: Site, domain: Domain) -> None:
    """Start a domain, or have it go on from its saved memory. One that runs goes on.

    Raises:
        InstanceNotFound, HypervisorUnavailable; OperationFailed: also of one that may run on another host.
    """
    refuse_leaving(site, domain.uuid)
    for left in reversed(range(_ATTEMPTS)):
        try:
            _refresh_port(site, domain)
            with _explained(domain):
                domain.start()
            return
        except OperationFailed as error:
            if not left or TAKEN not in error.message:
                raise


@contextmanager
def _explained(domain: Domain) -> Iterator[None]:
    """Say what a start may wait for that is not answered: QEMU opens disks in a Ceph before it answers anything."""
    is_in_ceph = guestxml.has_ceph_disks(domain.xml(inactive=True))
    try:
        yield
    except HypervisorUnavailable as error:
        if not is_in_ceph:
            raise
        hint = "see that libvirt's secrets of its disks have the right keys, and that the Ceph answers"
        what = f"the guest of {domain.uuid}, which has disks in a Ceph, was not started: {error.message}"
        raise HypervisorUnavailable(what, hint=hint) from error


def refuse_leaving(site: Site, uuid: str) -> None:
    """Refuse to have a guest go on that was to move, while it is not known whether it has: there would be two of it.

    Raises:
        OperationFailed
    """
    mark = marks.read(directory_of(site.host.config.instances, uuid), marks.LEAVING, site.name)
    if mark is not None:
        what = f"the instance {uuid} was to move to {mark.other}, and it is not known yet whether it has"
        raise OperationFailed(what, hint="see that libvirt on that host can be reached, and start this driver again")


def _refresh_port(site: Site, domain: Domain) -> None:
    if domain.is_active() or domain.is_saved():
        return  # it has its port, or what it saved has
    xml = domain.xml(inactive=True)
    if (listens := guestxml.serial_listens_at(xml)) is not None:
        port = free_port(listens[0], *site.options.serial_console_port_range)
        domains.define(site.connection, guestxml.with_serial_port(xml, port))


def free_port(address: str, first: int, last: int) -> int:
    """A port at which nobody listens. Each start tries them in another order, so that many at once seldom meet.

    Raises:
        OperationFailed
    """
    for port in random.sample(range(first, last + 1), last + 1 - first):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((address, port))
            except OSError:
                continue
            return port
    raise OperationFailed(f"no port from {first} to {last} at {address} is free for a serial console")
