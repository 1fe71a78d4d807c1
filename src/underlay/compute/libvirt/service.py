"""How the driver's parts are put together when its service starts, and let go of when that ends."""

from collections.abc import Callable
from dataclasses import dataclass

from underlay.compute.events import LifecycleEvent
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.eventloop import EventLoop
from underlay.compute.libvirt.lifecycleevents import LifecycleEvents
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.probing import runs_under_kvm
from underlay.compute.libvirt.site import Site
from underlay.host import Host

_PROBE = 10.0  # seconds that a guest under KVM has to begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What runs from the start of the service to its end."""

    site: Site
    loop: EventLoop


def begin(name: str, *, host: Host | None, tell: Callable[[LifecycleEvent], None]) -> Running:
    """Connect, hear events, and find out what guests run under.

    Args:
        name: of the service's host. tell: called with each event.

    Raises:
        HypervisorUnavailable, ExtraMissing, ConfigError
    """
    host = Host.open() if host is None else host
    options = host.config.libvirt
    connection = Connection(options.connection_uri, timeout=options.timeout)
    events = LifecycleEvents(tell=tell, is_active=lambda uuid: Domain(connection, uuid).is_active())
    connection.opened = events.listen
    loop = EventLoop()
    loop.start()
    events.start()
    try:
        with translated():
            host.parts.make_directories()
        virt_type = _virt_type(host, connection)
    except BaseException:
        _let_go(connection, events, loop)
        raise
    site = Site(name=name, host=host, options=options, connection=connection, events=events, virt_type=virt_type)
    return Running(site=site, loop=loop)


def end(running: Running) -> None:
    """Let go of all of it. Guests run on."""
    _let_go(running.site.connection, running.site.events, running.loop)


def _let_go(connection: Connection, events: LifecycleEvents, loop: EventLoop) -> None:
    events.stop()  # first, as it may ask once more before it tells
    connection.close()
    loop.stop()  # last, as it is what notices that nobody answers


def _virt_type(host: Host, connection: Connection) -> str:
    options = host.config.libvirt
    works = _runs_under_kvm(host) if options.virt_type == "auto" else None
    connection.ask(lambda handle: handle.getLibVersion())  # when libvirt is not there, this says so
    return options.virt_type if works is None else "kvm" if works else "qemu"


def _runs_under_kvm(host: Host) -> bool:
    """Over a connection of its own, as nobody is to hear of the probe's guest."""
    options = host.config.libvirt
    connection = Connection(options.connection_uri, timeout=options.timeout)
    try:
        with translated():
            return runs_under_kvm(connection, host.config.instances, options, seconds=_PROBE)
    finally:
        connection.close()
