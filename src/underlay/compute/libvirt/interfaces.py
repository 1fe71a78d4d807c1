"""Interfaces that instances are given and lose while they are there.

What runs and what starts the next time are two definitions. An interface is given to both at once. It is taken first from the
guest, which has to let go of it and may refuse, and then from what starts the next time: so after a refusal both are as they
were, and what an interruption leaves is finished by the next detach.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from underlay.compute.arguments import ImageMeta, Instance, Vif
from underlay.compute.errors import (
    ComputeError,
    HypervisorUnavailable,
    InstanceNotFound,
    InterfaceAttachFailed,
    InterfaceDetachFailed,
    OperationFailed,
)
from underlay.compute.libvirt import guestxml, networks, tagging
from underlay.compute.libvirt.diskplan import properties_of
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.guestplan import address_of, check_kind, device_of, interfaces_of
from underlay.compute.libvirt.site import Site

_POLL = 0.1  # seconds between two looks whether an interface has gone
_ASKED_ALREADY = "already in the process of unplug"  # in QEMU's refusal of a request that it has


def attach(site: Site, instance: Instance, image: ImageMeta, vif: Vif) -> None:
    """Give one more interface to an instance: for good, and at once while it runs.

    Raises:
        InterfaceAttachFailed: it has it already, or cannot be given it; nothing is changed. InstanceNotFound,
        HypervisorUnavailable; as `networks.check`
    """
    [interface] = interfaces_of([vif], properties_of(image))
    domain = site.domain(instance)
    if why := _between(site, instance, domain):
        raise InterfaceAttachFailed(f"no interface could be attached to {instance.uuid}: {why}")
    if _interface(domain.running_xml(), vif) or _interface(domain.xml(inactive=True), vif):
        raise InterfaceAttachFailed(f"the instance {instance.uuid} has an interface {vif['address']} already")
    tags = tagging.known(instance, [vif])
    with networks.plugged(instance, [vif]), _failing_as(InterfaceAttachFailed, instance):
        _attach(site, domain, vif, guestxml.interface_xml(interface))
    tagging.write_down_change(site, instance, tags)


def _attach(site: Site, domain: Domain, vif: Vif, xml: str) -> None:
    """When libvirt cannot write down what it has given to the guest already, as on a full disk, that is taken back."""
    try:
        domain.attach(xml)
    except OperationFailed:
        with suppress(ComputeError):  # the guest may not let go of it; the error that goes on is the one that matters
            if live := _interface(domain.running_xml(), vif):
                _has_gone(domain, vif, live, site.options.device_detach_timeout)
        raise


def detach(site: Site, instance: Instance, vif: Vif) -> None:
    """Take an interface away from an instance, whose guest has to let go of it while it runs.

    A guest that refuses cannot be stopped from doing so later, and then has the interface again when it starts the next time,
    unless it is detached once more.

    Raises:
        InterfaceDetachFailed: it has no such interface, or the guest does not let go of it; nothing is changed.
        InternalError: an unknown type. InvalidInput: it has no address. InstanceNotFound, HypervisorUnavailable
    """
    check_kind(vif)
    address_of(vif)
    domain = site.domain(instance)
    if why := _between(site, instance, domain):
        raise InterfaceDetachFailed(f"no interface could be detached from {instance.uuid}: {why}")
    live, kept = _interface(domain.running_xml(), vif), _interface(domain.xml(inactive=True), vif)
    if live is None and kept is None:
        if _unplug(instance, domain, vif):
            return  # an interruption had left that much
        raise InterfaceDetachFailed(f"the instance {instance.uuid} has no interface {vif['address']}")
    tags = tagging.known(instance)
    with _failing_as(InterfaceDetachFailed, instance):
        if live is not None:
            _take_from_guest(site, domain, vif)
        if (kept := _interface(domain.xml(inactive=True), vif)) is not None:
            domain.forget_device(kept)
    tagging.write_down_change(site, instance, tags)
    _unplug(instance, domain, vif)  # crash before: a tap that nobody has, which the next detach removes


def _unplug(instance: Instance, domain: Domain, vif: Vif) -> bool:
    """Remove the tap of an interface that is gone, unless another interface has it; whether it was there."""
    if check_kind(vif) != "tap":
        return False
    for xml in (domain.running_xml(), domain.xml(inactive=True)):
        if xml is not None and device_of(vif) in guestxml.addresses_by_device(xml):
            return False
    return bool(networks.unplug(instance, [vif]))


def _between(site: Site, instance: Instance, domain: Domain) -> str | None:
    """Why an instance's definition is not the one that it will have; None: it is."""
    if domain.is_saved():
        return "it is suspended, and goes on with the devices that it had"
    return "it is being rescued" if site.directory(instance).unrescue.exists() else None


def _interface(xml: str | None, vif: Vif) -> str | None:
    return None if xml is None else guestxml.interface_of(xml, vif["address"])


def _take_from_guest(site: Site, domain: Domain, vif: Vif) -> None:
    attempts, seconds = site.options.device_detach_attempts, site.options.device_detach_timeout
    for _ in range(attempts):
        live = _interface(domain.running_xml(), vif)
        if live is None or _has_gone(domain, vif, live, seconds):
            return
    raise InterfaceDetachFailed(
        f"the guest of {domain.uuid} does not let go of the interface {vif['address']}: it was asked {attempts} times, and had "
        f"{seconds:g} s each time",
        hint="let the guest run with drivers for hot-plugged devices, or power it off",
    )


def _has_gone(domain: Domain, vif: Vif, live: str, seconds: float) -> bool:
    try:
        domain.ask_for(live)
    except OperationFailed as error:
        if _ASKED_ALREADY not in error.message and _interface(domain.running_xml(), vif):
            raise
    deadline = time.monotonic() + seconds
    while _interface(domain.running_xml(), vif):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


@contextmanager
def _failing_as(failure: Callable[..., OperationFailed], instance: Instance) -> Iterator[None]:
    try:
        yield
    except (InstanceNotFound, HypervisorUnavailable, InterfaceDetachFailed):
        raise
    except OperationFailed as error:
        told = failure(instance_uuid=instance.uuid)
        raise failure(f"{told.message}: {error.message}", hint=error.hint) from error
