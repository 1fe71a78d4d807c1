"""Where a guest's consoles are, and what it has written."""

import os
from contextlib import suppress
from pathlib import Path

from underlay.compute.arguments import Instance
from underlay.compute.consoles import ConsoleSerial, ConsoleVNC
from underlay.compute.errors import ConsoleNotAvailable, ConsoleTypeUnavailable
from underlay.compute.libvirt import guestxml, localdisks
from underlay.compute.libvirt.site import Site
from underlay.files import translated

_LAST = 102_400  # bytes, by the contract


def output(site: Site, instance: Instance) -> bytes:
    """The end of what a guest wrote since it was started; empty while it has written nothing.

    Raises:
        ConsoleNotAvailable, InstanceNotFound; OperationFailed: what it wrote cannot be read.
    """
    log = guestxml.console_log(site.domain(instance).xml())
    if log is None:
        raise ConsoleNotAvailable
    with localdisks.translated(), translated(log), suppress(FileNotFoundError):
        return _end_of(log)
    return b""


def vnc(site: Site, instance: Instance) -> ConsoleVNC:
    """Where its screen is.

    Raises:
        ConsoleTypeUnavailable: it has none, or does not run. InstanceNotFound
    """
    domain = site.domain(instance)
    port = guestxml.screen_port(domain.xml()) if domain.is_active() else None
    if port is None:
        raise ConsoleTypeUnavailable(console_type="vnc")
    return ConsoleVNC(host=site.options.vnc_address, port=port)


def serial(site: Site, instance: Instance) -> ConsoleSerial:
    """Where its serial line is.

    Raises:
        ConsoleTypeUnavailable: it is not reached from outside, or does not run. InstanceNotFound
    """
    domain = site.domain(instance)
    listens = guestxml.serial_listens_at(domain.xml()) if domain.is_active() else None
    if listens is None:
        raise ConsoleTypeUnavailable(console_type="serial")
    return ConsoleSerial(host=site.options.serial_console_address, port=listens[1])


def _end_of(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST))
        return file.read(_LAST)
