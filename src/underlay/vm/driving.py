"""The driver, for as long as one command takes, and its errors as people at a command line know them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from underlay.compute.errors import ComputeError
from underlay.compute.libvirt import LibvirtDriver
from underlay.config.libvirt import Libvirt
from underlay.contracts import Observer
from underlay.errors import UnderlayError
from underlay.host import Host
from underlay.host.parts import Parts
from underlay.model import Event, Level
from underlay.values import replace


@contextmanager
def driving(host: Host) -> Iterator[LibvirtDriver]:
    """A driver that is at work while the block is. What killed commands left half made goes first.

    Raises:
        HypervisorUnavailable, ExtraMissing; what the block raises, as `plainly` has it.
    """
    driver, name = LibvirtDriver(None, host=host), host.config.host
    with plainly(), _heard(host.observer):
        driver.init_host(name)
        try:
            yield driver
        finally:
            driver.cleanup_host(name)


@contextmanager
def _heard(observer: Observer) -> Iterator[None]:
    """What the driver logs for a compute service is told as events."""
    logger, ear = logging.getLogger("underlay.compute"), _Ear(observer)
    logger.addHandler(ear)
    try:
        yield
    finally:
        logger.removeHandler(ear)


class _Ear(logging.Handler):
    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def emit(self, record: logging.LogRecord) -> None:
        level = Level.WARNING if record.levelno >= logging.WARNING else Level.INFO
        self._observer.event(Event(code="hypervisor", level=level, detail=record.getMessage()))


@contextmanager
def plainly() -> Iterator[None]:
    """What Underlay itself says of images, disks and files comes out as it said it, not in the words of a compute service."""
    try:
        yield
    except ComputeError as error:
        if (said := _said(error)) is not None:
            raise said from error
        raise


def _said(error: BaseException) -> UnderlayError | None:
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, UnderlayError) and not isinstance(cause, ComputeError):
            return cause
        cause = cause.__cause__
    return None


def with_libvirt(host: Host, libvirt: Libvirt) -> Host:
    """The same host with other options for libvirt."""
    return Host(Parts(replace(host.config, libvirt=libvirt), host.observer, host.parts.sources))
