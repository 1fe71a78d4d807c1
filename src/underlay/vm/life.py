"""The life of a virtual machine: made, started, stopped, rebooted, snapshot and removed, each by one call of the driver."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from underlay.compute.errors import InstanceExists, OperationFailed
from underlay.compute.libvirt import LibvirtDriver, localdisks
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain, has_name
from underlay.errors import InvalidName
from underlay.host import Host
from underlay.model import InstanceDisk
from underlay.refs import is_ref
from underlay.units import format_duration
from underlay.values import replace
from underlay.vm import networks
from underlay.vm.driving import driving, plainly, with_libvirt
from underlay.vm.images import image_of
from underlay.vm.instances import VmInstance, VmRemains, block_devices_of, instance_of, interfaces_of
from underlay.vm.machines import UnreadableVm, Vm, connected, find, find_any
from underlay.vm.record import VmInterface, VmRecord
from underlay.vm.wanted import Wanted, new_interface, recorded

PRESS_AGAIN = 10.0
"""Seconds after which a guest that is to shut down has its power button pressed again."""

_POLL = 0.05


def create(host: Host, wanted: Wanted) -> Vm:
    """Make a machine, and start it if it is to be. Whole or not at all.

    Raises:
        InstanceExists: the name is taken. VirtualInterfacePlugException: a bridge or a network. DiskTooSmall, NotCached, and
        what a fetch raises. OperationFailed: libvirt refuses it. HypervisorUnavailable, ExtraMissing
    """
    options = host.config.libvirt
    backend, cache = wanted.backend or options.images_type, wanted.cache or options.cache
    with connected(host) as connection:  # what a look can tell is told before guests are tried under KVM
        _refuse_taken(connection, wanted.name)
        interfaces = tuple(_interfaces(connection, wanted))
    with ExitStack() as holding:
        found_by, ref = image_of(host, replace(wanted, backend=backend, cache=cache), holding)
        record = recorded(wanted, image=ref, interfaces=interfaces, now=datetime.now(UTC).replace(microsecond=0))
        instance = instance_of(
            record, uuid=str(uuid4()), name=wanted.name, host=host.config.host, image=found_by, data=wanted.data
        )
        return _spawned(
            with_libvirt(host, replace(options, images_type=backend, cache=cache)), instance, record, starts=wanted.starts
        )


def _spawned(host: Host, instance: VmInstance, record: VmRecord, *, starts: bool) -> Vm:
    with driving(host) as driver:
        driver.spawn(
            None,
            instance,
            instance.image_meta,
            [],
            None,
            {},
            network_info=interfaces_of(record),
            block_device_info=block_devices_of(record),
            power_on=starts,
        )
        return find(driver.site.connection, instance.uuid)


def _refuse_taken(connection: Connection, name: str) -> None:
    if has_name(connection, name):
        raise InstanceExists(f"there is a virtual machine {name} already", hint="choose another name, or delete it first")


def _interfaces(connection: Connection, wanted: Wanted) -> Iterator[VmInterface]:
    named = wanted.networks
    if not (wanted.bridges or named or wanted.alone) and networks.has_default(connection):
        named = (networks.DEFAULT,)
    networks.check_bridges(wanted.bridges)
    for bridge in wanted.bridges:
        yield new_interface(bridge)
    for network in named:
        yield new_interface(networks.bridge_of(connection, network), network)


def await_output(host: Host, vm: Vm, *, seconds: float) -> None:
    """Wait until a machine has written something to its serial line.

    Raises:
        OperationFailed: it has not in time, or is off without a word. It stays as it is.
    """
    deadline = time.monotonic() + seconds
    with connected(host) as connection:
        while not _has_written(vm):
            if not Domain(connection, vm.uuid).is_active() and not _has_written(vm):
                raise OperationFailed(f"{vm.name} is off, and has written nothing to its serial line")
            if time.monotonic() >= deadline:
                raise OperationFailed(
                    f"{vm.name} has written nothing to its serial line for {format_duration(seconds)}",
                    hint="it runs on; perhaps its system does not use the serial line",
                )
            time.sleep(_POLL)


def _has_written(vm: Vm) -> bool:
    try:
        return vm.console_log is not None and os.path.getsize(vm.console_log) > 0
    except FileNotFoundError:
        return False


def start(host: Host, name: str) -> Vm:
    """Start a machine that is off, or let one that is paused go on; one that runs is a success.

    Raises:
        InstanceNotFound, OperationFailed, HypervisorUnavailable, ExtraMissing
    """
    with _known(host, name) as known:
        _check_bridges(known.vm)
        record = known.vm.record
        known.driver.power_on(None, known.instance, interfaces_of(record), block_devices_of(record))
        return known.now


def _check_bridges(vm: Vm) -> None:
    networks.check_bridges(one.bridge for one in vm.record.interfaces)


def stop(host: Host, name: str, *, seconds: float) -> Vm:
    """Have a machine shut down, and cut its power when it has not in time; one that is off is a success.

    Args:
        seconds: that it has; 0: its power is cut at once.

    Raises:
        InstanceNotFound, InstancePowerOffFailure, HypervisorUnavailable, ExtraMissing
    """
    with _known(host, name) as known:
        known.driver.power_off(known.instance, timeout=seconds, retry_interval=PRESS_AGAIN)
        return known.now


def reboot(host: Host, name: str, *, is_hard: bool) -> Vm:
    """Start a machine anew. Hard: its power is cut, and its domain is made again from the record in its metadata.

    Raises:
        InstanceNotFound, InstanceRebootFailure, VirtualInterfacePlugException, HypervisorUnavailable, ExtraMissing
    """
    with _known(host, name) as known:
        _check_bridges(known.vm)
        record, kind = known.vm.record, "HARD" if is_hard else "SOFT"
        known.driver.reboot(None, known.instance, interfaces_of(record), kind, block_devices_of(record))
        return known.now


def snapshot(host: Host, name: str, target: Path | None, *, image_format: str | None) -> Path:
    """Write a machine's root disk, as it is now, into a new file, which needs no other.

    Args:
        target: absolute; None: one in ``snapshots_directory``, called by the machine and the time.
        image_format: raw or qcow2; None: raw when ``target`` is called so, else as configured.

    Raises:
        InstanceNotFound, InvalidName, DiskExists; InsufficientSpace, CacheMissing, CacheNotWritable: the directory.
    """
    options = host.config.libvirt
    is_raw = target is not None and target.suffix == ".raw"
    image_format = image_format or ("raw" if is_raw else options.snapshot_image_format)
    if target is None:
        directory = options.snapshots_directory or host.config.instances / "snapshots"
        target = directory / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{image_format}"
    else:
        _check_target(target)
    options = replace(options, snapshots_directory=target.parent, snapshot_image_format=image_format)
    with _known(with_libvirt(host, options), name) as known:
        known.driver.snapshot(None, known.instance, target.name, lambda *_, **__: None)
    return target


def _check_target(target: Path) -> None:
    if is_ref(target.name):  # the driver would give the image of that UUID its data
        raise InvalidName(f"no snapshot can be called {target.name}: so are images of Glance", hint="choose another file name")
    if not target.parent.is_dir():
        raise InvalidName(f"there is no directory {target.parent}", hint="make it, or name another file")


def delete(host: Host, name: str) -> Vm | UnreadableVm:
    """Cut a machine's power and remove it, its disks and its directory; its base image stays. The machine as it was.

    All of that is found by its UUID, so one whose record nobody can read goes like any other.

    Raises:
        InstanceNotFound; OperationFailed: it does not go, or not all of it. HypervisorUnavailable, ExtraMissing
    """
    with connected(host) as connection:
        vm = find_any(connection, name)
    with _driving_as(host, vm.virt_type) as driver:
        driver.destroy(None, VmRemains(uuid=vm.uuid, name=vm.name, host=host.config.host), [])
    return vm


def output(host: Host, name: str) -> bytes:
    """The end of what a machine wrote to its serial line since it was last started.

    Raises:
        InstanceNotFound, HypervisorUnavailable, ExtraMissing
    """
    with _known(host, name) as known:
        return known.driver.get_console_output(None, known.instance)


def disks_of(host: Host, vm: Vm) -> list[InstanceDisk]:
    """A machine's disks.

    Raises:
        BackendUnavailable, and as `Host.disk`
    """
    with plainly():
        return [host.disk(vm.uuid, name=name) for name in localdisks.names_of(host, vm.uuid)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A machine that is there, and the driver that can do something about it."""

    driver: LibvirtDriver
    vm: Vm
    instance: VmInstance

    @property
    def now(self) -> Vm:
        return find(self.driver.site.connection, self.vm.uuid)


@contextmanager
def _known(host: Host, name: str) -> Iterator[_Known]:
    with connected(host) as connection:
        vm = find(connection, name)
    with _driving_as(host, vm.virt_type) as driver:
        yield _Known(driver=driver, vm=vm, instance=instance_of(vm.record, uuid=vm.uuid, name=vm.name, host=host.config.host))


def _driving_as(host: Host, virt_type: str) -> AbstractContextManager[LibvirtDriver]:
    """What a machine runs under was found out when it was made, so no guest is started to find that out again."""
    return driving(with_libvirt(host, replace(host.config.libvirt, virt_type=virt_type)))
