"""The power of guests."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from underlay.compute import states
from underlay.compute.arguments import BlockDeviceInfo, Instance, NetworkInfo
from underlay.compute.errors import (
    ComputeError,
    HypervisorUnavailable,
    InstanceNotFound,
    InstanceNotRunning,
    InstancePowerOffFailure,
    InstanceRebootFailure,
    OperationFailed,
)
from underlay.compute.libvirt import domain as domains, guestxml, networks, tagging, volumedisks
from underlay.compute.libvirt.assembling import assembled
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.site import Site
from underlay.compute.libvirt.starting import refuse_leaving, start
from underlay.compute.metadata import field_of

_LOG = logging.getLogger(__name__)
_POLL = 0.2  # seconds between two looks whether a guest is off
_PRESS_AGAIN = 10.0  # seconds after which a guest that did not listen is asked again, unless the caller says
_STAYS = (states.NOSTATE, states.RUNNING, states.PAUSED, states.SUSPENDED)
_SUSPENDED = "suspended"  # the service's word for an instance that its owner suspended


def power_on(
    site: Site, instance: Instance, network_info: NetworkInfo | None = None, info: BlockDeviceInfo | None = None
) -> None:
    """Start a guest that is off; one that runs goes on.

    One with volumes is made again, because where they are may have changed meanwhile, and one may have been detached by who
    was killed before the domain could be told.

    Raises:
        InstanceNotFound, OperationFailed, HypervisorUnavailable; as `networks.plug` and `hard_start`
    """
    domain = site.domain(instance)
    if not domain.is_active() and not domain.is_saved() and volumedisks.may_differ(site, instance, info):
        hard_start(site, instance, network_info, info)
        return
    if domain.state()[0] == states.PAUSED:
        domain.unpause()
    if not domain.is_active():
        networks.plug(instance, network_info)  # taps do not outlive their host's reboot
    start(site, domain)


def power_off(site: Site, instance: Instance, *, timeout: float, retry_interval: float) -> None:
    """Have a guest shut down within a time, and cut its power then.

    Args:
        timeout: seconds; 0: at once. retry_interval: seconds between the times that its button is pressed.

    Raises:
        InstancePowerOffFailure, InstanceNotFound, HypervisorUnavailable
    """
    domain = site.domain(instance)
    if domain.state()[0] == states.SHUTDOWN and not domain.is_active():
        return
    try:
        if timeout > 0 and shut_down(domain, seconds=timeout, again=retry_interval):
            return
        domain.cut()
    except (InstanceNotFound, HypervisorUnavailable):
        raise
    except ComputeError as error:
        raise InstancePowerOffFailure(reason=error.message) from error


def shut_down(domain: Domain, *, seconds: float, again: float = 0) -> bool:
    """Press the power button of a guest, and again; whether it is off in time. One that does not run hears nothing.

    A press that libvirt refuses, as while the domain's memory or disk is written, is one that the guest did not hear.
    """
    now = time.monotonic()
    deadline, press_at = now + seconds, now
    while domain.is_active():
        now = time.monotonic()
        if now >= deadline or domain.state()[0] not in (states.RUNNING, states.SHUTDOWN):
            return not domain.is_active()
        if now >= press_at:
            _press(domain)
            press_at = now + (again or _PRESS_AGAIN)
        time.sleep(min(_POLL, deadline - now))
    return True


def _press(domain: Domain) -> None:
    try:
        domain.press()
    except OperationFailed as error:
        _LOG.warning("the power button of the instance %s cannot be pressed: %s", domain.uuid, error)


def reboot(
    site: Site,
    instance: Instance,
    network_info: NetworkInfo | None,
    info: BlockDeviceInfo | None,
    *,
    kind: str,
    bad_volumes: Callable[[list[str]], Any] | None = None,
) -> None:
    """Start a guest anew: it is asked first, or its power is cut at once.

    Args:
        kind: SOFT or HARD. bad_volumes: told the devices of volumes that cannot be attached, without which a guest whose power
            was cut is started then; None: it is not.

    Raises:
        InstanceRebootFailure, InstanceNotFound, HypervisorUnavailable
    """
    domain = site.domain(instance)
    domain.state()
    if kind not in ("SOFT", "HARD"):
        raise InstanceRebootFailure(reason=f"{kind!r} is neither SOFT nor HARD")
    with _held(site, instance), _failing_as_reboot():
        refuse_leaving(site, instance.uuid)
        if kind == "SOFT" and shut_down(domain, seconds=site.options.wait_soft_reboot):
            start(site, domain)
            return
        good, bad = (info, []) if bad_volumes is None else volumedisks.without_bad(site, instance, info)
        hard_start(site, instance, network_info, good)
    if bad_volumes is not None and bad:
        bad_volumes(bad)


def hard_start(site: Site, instance: Instance, network_info: NetworkInfo | None, info: BlockDeviceInfo | None) -> None:
    """Cut a guest's power, forget what it has saved, make its domain again from what it is to have, and start it.

    What can be known before is looked at before: that its interfaces can be plugged, and that its disks and volumes are there.

    Without block devices nobody says what that is, and one that is being rescued is to have something else: then the domain
    stays as it is.

    Raises:
        InstanceNotFound, VirtualInterfacePlugException, OperationFailed, HypervisorUnavailable
    """
    domain, guest = site.domain(instance), None
    networks.plug(instance, network_info)
    if info is not None and not site.directory(instance).unrescue.exists():
        guest = assembled(site, instance, instance.image_meta, network_info, info)
    domain.cut()
    domain.forget_memory()
    if guest is not None:
        domains.define(site.connection, guestxml.to_xml(guest))
        tagging.write_down(site, instance, guest, network_info)
    start(site, domain)


def pause(site: Site, instance: Instance) -> None:
    """Stop a guest's CPUs.

    Raises:
        InstanceNotRunning, InstanceNotFound
    """
    _change(site, instance, Domain.pause, done=states.PAUSED)


def unpause(site: Site, instance: Instance) -> None:
    """Let a paused guest go on.

    Raises:
        InstanceNotRunning, InstanceNotFound; OperationFailed: among others, it may run on another host.
    """
    refuse_leaving(site, instance.uuid)
    _change(site, instance, Domain.unpause, done=states.RUNNING)


def suspend(site: Site, instance: Instance) -> None:
    """Write a guest's memory to disk, and have it take none.

    Raises:
        InstanceNotRunning, InstanceNotFound
    """
    domain = site.domain(instance)
    if domain.is_active():
        domain.save()
    elif not domain.is_saved():
        raise InstanceNotRunning(instance_id=instance.uuid)


def resume(site: Site, instance: Instance, network_info: NetworkInfo | None) -> None:
    """Let a suspended guest go on, or start one that has saved nothing.

    Raises:
        InstanceNotFound, OperationFailed; as `networks.plug`
    """
    if not site.domain(instance).is_active():
        networks.plug(instance, network_info)
    start(site, site.domain(instance))


def resume_state(site: Site, instance: Instance, network_info: NetworkInfo | None, info: BlockDeviceInfo | None) -> None:
    """Start a guest that ran before its host was switched off; one that runs, is paused, or is suspended stays as it is.

    One whose memory was saved when the host went down, as the service ``libvirt-guests`` does, goes on from there.

    Raises:
        InstanceNotFound, VirtualInterfacePlugException, OperationFailed
    """
    domain = site.domain(instance)
    if domain.state()[0] in _STAYS:
        return
    if not domain.is_saved():
        hard_start(site, instance, network_info, info)
    elif field_of(instance, "vm_state") != _SUSPENDED:
        networks.plug(instance, network_info)  # taps do not outlive their host's reboot
        start(site, domain)


def interrupt(site: Site, instance: Instance) -> None:
    """Send a guest a non-maskable interrupt.

    Raises:
        InstanceNotRunning, InstanceNotFound
    """
    domain = site.domain(instance)
    if not domain.is_active():
        raise InstanceNotRunning(instance_id=instance.uuid)
    domain.interrupt()


def start_all(site: Site, instances: Sequence[Instance]) -> None:
    """Start those that hang in a reboot and do not run. One that cannot be started does not keep the others."""
    for instance in instances:
        try:
            if not site.domain(instance).is_active():
                start(site, site.domain(instance))
        except ComputeError as error:
            _LOG.warning("the instance %s hangs in its reboot: %s", instance.uuid, error)


def _change(site: Site, instance: Instance, change: Callable[[Domain], None], *, done: int) -> None:
    domain = site.domain(instance)
    state, _ = domain.state()
    if state not in (states.RUNNING, states.PAUSED):
        raise InstanceNotRunning(instance_id=instance.uuid)
    if state != done:
        change(domain)


@contextmanager
def _held(site: Site, instance: Instance) -> Iterator[None]:
    site.events.hold(instance.uuid)
    try:
        yield
    finally:
        site.events.release(instance.uuid)


@contextmanager
def _failing_as_reboot() -> Iterator[None]:
    try:
        yield
    except (InstanceNotFound, HypervisorUnavailable):
        raise
    except ComputeError as error:
        raise InstanceRebootFailure(f"the instance could not be rebooted: {error.message}", hint=error.hint) from error
