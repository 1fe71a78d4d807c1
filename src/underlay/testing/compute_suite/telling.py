"""Cases about what is told of guests: their consoles, counters, disks and events."""

import json
from typing import Any

from underlay.compute import Event, LifecycleEvent, states
from underlay.compute.consoles import Console
from underlay.compute.diagnostics import Diagnostics
from underlay.compute.errors import ConsoleTypeUnavailable, InstanceNotFound
from underlay.compute.events import EVENT_LIFECYCLE_PAUSED, EVENT_LIFECYCLE_STARTED, EVENT_LIFECYCLE_STOPPED
from underlay.testing.compute_suite.case import (
    Case,
    Guest,
    awaited,
    case,
    destroy,
    expect,
    expect_equal,
    planned,
    raising,
    spawn,
    spawned,
)
from underlay.testing.compute_suite.stage import Ability, Stage

_LOG_BYTES = 102_400
_SIZES = ("virt_disk_size", "disk_size", "over_committed_disk_size")


@case(Ability.CONSOLE_OUTPUT)
def what_a_guest_writes_can_be_read(stage: Stage) -> None:
    with spawned(stage) as guest:
        awaited(stage, lambda: _output(stage, guest), "what the guest writes can be read")
        expect(len(_output(stage, guest)) <= _LOG_BYTES, f"no more than {_LOG_BYTES} bytes of it")
    with raising(InstanceNotFound):
        _output(stage, guest)


@case(Ability.CONSOLE_OUTPUT)
def a_guest_that_never_ran_has_written_nothing(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        expect(not _output(stage, guest), "a guest that never ran has written nothing")


@case(Ability.VNC)
def a_vnc_console_is_somewhere_while_the_guest_runs(stage: Stage) -> None:
    with spawned(stage) as guest:
        _expect_somewhere(stage.driver.get_vnc_console(stage.context, guest.instance))
        stage.driver.power_off(guest.instance)
        with raising(ConsoleTypeUnavailable):
            stage.driver.get_vnc_console(stage.context, guest.instance)
    with raising(InstanceNotFound):
        stage.driver.get_vnc_console(stage.context, guest.instance)


@case(Ability.SERIAL)
def a_serial_console_is_somewhere_while_the_guest_runs(stage: Stage) -> None:
    with spawned(stage) as guest, spawned(stage) as other:
        here = stage.driver.get_serial_console(stage.context, guest.instance)
        _expect_somewhere(here)
        expect(here != stage.driver.get_serial_console(stage.context, other.instance), "each guest has a console of its own")
        stage.driver.power_off(guest.instance)
        with raising(ConsoleTypeUnavailable):
            stage.driver.get_serial_console(stage.context, guest.instance)


@case(Ability.DIAGNOSTICS)
def diagnostics_are_a_flat_mapping_of_integers(stage: Stage) -> None:
    with spawned(stage) as guest:
        found = stage.driver.get_diagnostics(guest.instance)
        expect(found, "there are diagnostics")
        expect("cpu0_time" in found, "the first CPU has a time")
        expect(all(isinstance(value, int) for value in found.values()), "diagnostics are integers")
    with raising(InstanceNotFound):
        stage.driver.get_diagnostics(guest.instance)


@case(Ability.DIAGNOSTICS)
def diagnostics_of_every_hypervisor_have_one_shape(stage: Stage) -> None:
    with spawned(stage) as guest:
        found = stage.driver.get_instance_diagnostics(guest.instance)
        expect(isinstance(found, Diagnostics), "they are Diagnostics")
        expect_equal(states.STATE_MAP[states.RUNNING], found.state, "the state")
        expect_equal(guest.instance.flavor.vcpus, found.num_cpus, "how many CPUs it has")
        expect_equal(len(guest.network_info), found.num_nics, "how many interfaces it has")
        addresses = {vif["address"].lower() for vif in guest.network_info}
        expect_equal(addresses, {(one.mac_address or "").lower() for one in found.nic_details}, "the interfaces' addresses")
        expect(found.num_disks >= 1, "it has a disk")
        maximum = found.memory_details.maximum
        expect(maximum is None or maximum <= guest.instance.flavor.memory_mb, "memory is told in MiB")


@case(Ability.COUNTERS)
def traffic_is_told_by_instance_and_address(stage: Stage) -> None:
    with spawned(stage) as guest:
        found = stage.driver.get_all_bw_counters([guest.instance])
        expect_equal(len(guest.network_info), len(found), "how many interfaces are counted")
        for one in found:
            expect_equal(guest.instance.uuid, one["uuid"], "whose interface it is")
            expect(one["bw_in"] >= 0 and one["bw_out"] >= 0, "bytes are counted from 0 on")


@case(Ability.DISK_FACTS)
def local_disks_are_told_with_their_sizes_as_digits(stage: Stage) -> None:
    with spawned(stage) as guest:
        text = stage.driver.get_instance_disk_info(guest.instance, guest.block_device_info)
        disks: list[dict[str, Any]] = json.loads(text)
        expect(disks, "there is a local disk")
        for disk in disks:
            expect({"path", "type", "backing_file", *_SIZES} <= disk.keys(), "a disk has all keys")
            expect(all(isinstance(disk[size], str) and int(disk[size]) >= 0 for size in _SIZES), "sizes are digits")
            expect("/" not in disk["backing_file"], "a backing file is told by its base name")
        root = int(disks[0]["virt_disk_size"])
        expect_equal(guest.instance.flavor.root_gb << 30, root, "the root disk's size")
    with raising(InstanceNotFound):
        stage.driver.get_instance_disk_info(guest.instance)


@case(Ability.EVENTS)
def who_listens_hears_of_a_guest_that_starts_and_stops(stage: Stage) -> None:
    heard: list[Event] = []
    stage.driver.register_event_listener(heard.append)
    try:
        guest = planned(stage)
        spawn(stage, guest)
        awaited(stage, lambda: _told(heard, guest, EVENT_LIFECYCLE_STARTED), "it is told that the guest started")
        destroy(stage.driver, stage, guest)
        awaited(stage, lambda: _told(heard, guest, EVENT_LIFECYCLE_STOPPED), "it is told that the guest stopped")
    finally:
        stage.driver.register_event_listener(None)


@case(Ability.EVENTS, Ability.PAUSE)
def who_listens_hears_of_a_guest_that_is_paused(stage: Stage) -> None:
    heard: list[Event] = []
    with spawned(stage) as guest:
        stage.driver.register_event_listener(heard.append)
        try:
            stage.driver.pause(guest.instance)
            awaited(stage, lambda: _told(heard, guest, EVENT_LIFECYCLE_PAUSED), "it is told that the guest is paused")
        finally:
            stage.driver.register_event_listener(None)


@case(Ability.EVENTS)
def a_listener_that_fails_harms_nobody(stage: Stage) -> None:
    def fail(event: Event) -> None:
        raise ValueError(f"{event} is too much")

    stage.driver.register_event_listener(fail)
    try:
        with spawned(stage) as guest:
            expect_equal(states.RUNNING, stage.driver.get_info(guest.instance).state, "the state")
    finally:
        stage.driver.register_event_listener(None)


def _output(stage: Stage, guest: Guest) -> bytes | str:
    return stage.driver.get_console_output(stage.context, guest.instance)


def _told(heard: list[Event], guest: Guest, transition: int) -> bool:
    ours = [one for one in heard if isinstance(one, LifecycleEvent) and one.get_instance_uuid() == guest.instance.uuid]
    return transition in [one.get_transition() for one in ours]


def _expect_somewhere(console: Console) -> None:
    told = console.get_connection_info("token", "https://console.example/")
    expect(told["host"] and 0 < told["port"] < 1 << 16, "a console is on a host and a port")
    expect_equal(("token", "https://console.example/"), (told["token"], told["access_url"]), "what was asked with")


CASES: tuple[Case, ...] = (
    what_a_guest_writes_can_be_read,
    a_guest_that_never_ran_has_written_nothing,
    a_vnc_console_is_somewhere_while_the_guest_runs,
    a_serial_console_is_somewhere_while_the_guest_runs,
    diagnostics_are_a_flat_mapping_of_integers,
    diagnostics_of_every_hypervisor_have_one_shape,
    traffic_is_told_by_instance_and_address,
    local_disks_are_told_with_their_sizes_as_digits,
    who_listens_hears_of_a_guest_that_starts_and_stops,
    who_listens_hears_of_a_guest_that_is_paused,
    a_listener_that_fails_harms_nobody,
)
