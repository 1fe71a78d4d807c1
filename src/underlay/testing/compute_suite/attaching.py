"""Cases about volumes, interfaces and the names of devices."""

from dataclasses import replace
from typing import Any

from underlay.compute import states
from underlay.compute.arguments import Instance, Vif
from underlay.compute.errors import ComputeError, DiskNotFound, VolumeDriverNotFound
from underlay.testing.compute_suite.case import (
    Case,
    case,
    destroy,
    expect,
    expect_equal,
    expect_state,
    planned,
    raising,
    spawn,
    spawned,
)
from underlay.testing.compute_suite.stage import Ability, Stage

_DEVICE = "/dev/vdb"
_COUNTERS = 5


@case(Ability.VOLUMES)
def a_volume_is_attached_to_a_running_guest_and_detached(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        volume = stage.volume()
        for _ in range(2):
            stage.driver.attach_volume(stage.context, volume, guest.instance, _DEVICE, disk_bus="virtio")
            stage.driver.detach_volume(stage.context, volume, guest.instance, _DEVICE)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.VOLUMES)
def a_volume_is_attached_to_a_guest_that_is_off(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        volume = stage.volume()
        stage.driver.attach_volume(stage.context, volume, guest.instance, _DEVICE, disk_bus="virtio")
        stage.driver.detach_volume(stage.context, volume, guest.instance, _DEVICE)
        expect_state(stage, guest, states.SHUTDOWN)


@case(Ability.VOLUMES)
def to_detach_what_is_not_attached_is_said_by_its_error(stage: Stage) -> None:
    with spawned(stage) as guest, raising(DiskNotFound):
        stage.driver.detach_volume(stage.context, stage.volume(), guest.instance, _DEVICE)


@case(Ability.VOLUMES)
def a_volume_of_an_unknown_kind_is_refused(stage: Stage) -> None:
    unknown = {"driver_volume_type": "no-such-kind", "data": {}, "serial": "b2c5a4f0-8b5d-4ed9-8f17-9d2d2f0bd2a5"}
    with spawned(stage) as guest:
        with raising(VolumeDriverNotFound):
            stage.driver.attach_volume(stage.context, unknown, guest.instance, _DEVICE)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.VOLUMES)
def a_device_that_is_taken_is_not_given_again(stage: Stage) -> None:
    with spawned(stage) as guest:
        volume = stage.volume()
        stage.driver.attach_volume(stage.context, volume, guest.instance, _DEVICE, disk_bus="virtio")
        with raising(ComputeError):
            stage.driver.attach_volume(stage.context, stage.volume(), guest.instance, _DEVICE, disk_bus="virtio")
        stage.driver.detach_volume(stage.context, volume, guest.instance, _DEVICE)


@case(Ability.VOLUMES, Ability.EXTEND_VOLUME)
def a_guest_is_told_that_a_volume_has_grown(stage: Stage) -> None:
    with spawned(stage) as guest:
        volume = stage.volume()
        stage.driver.attach_volume(stage.context, volume, guest.instance, _DEVICE, disk_bus="virtio")
        stage.driver.extend_volume(stage.context, volume, guest.instance, 64 << 20)
        stage.driver.detach_volume(stage.context, volume, guest.instance, _DEVICE)


@case(Ability.VOLUMES, Ability.SWAP_VOLUME)
def a_volume_is_put_in_another_one_s_place(stage: Stage) -> None:
    with spawned(stage) as guest:
        old, new = stage.volume(), stage.volume()
        stage.driver.attach_volume(stage.context, old, guest.instance, _DEVICE, disk_bus="virtio")
        stage.driver.swap_volume(stage.context, old, new, guest.instance, _DEVICE, 0)
        with raising(DiskNotFound):
            stage.driver.detach_volume(stage.context, old, guest.instance, _DEVICE)
        stage.driver.detach_volume(stage.context, new, guest.instance, _DEVICE)


@case(Ability.VOLUMES)
def who_wants_to_reach_volumes_says_who_it_is(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        connector = stage.driver.get_volume_connector(guest.instance)
    expect({"ip", "initiator", "host"} <= connector.keys(), "a connector has ip, initiator and host")
    expect(isinstance(connector["ip"], str), "the ip is text")


@case(Ability.COUNTERS)
def a_disk_has_five_counters_and_an_unknown_one_none(stage: Stage) -> None:
    with spawned(stage) as guest:
        found = stage.driver.block_stats(guest.instance, "vda") or []
        expect_equal(_COUNTERS, len(found), "how many counters the root disk has")
        expect(all(type(one) is int and one >= 0 for one in found), "counters are integers from 0 on")
        expect(stage.driver.block_stats(guest.instance, "vdz") is None, "a disk that is not there has no counters")


@case(Ability.COUNTERS, Ability.VOLUMES)
def the_use_of_a_volume_is_told_by_its_id(stage: Stage) -> None:
    with spawned(stage) as guest:
        volume = stage.volume()
        stage.driver.attach_volume(stage.context, volume, guest.instance, _DEVICE, disk_bus="virtio")
        row = {"volume_id": volume["serial"], "device_name": _DEVICE, "connection_info": volume}
        asked = [{"instance": guest.instance, "instance_bdms": [row]}]
        [used] = stage.driver.get_all_volume_usage(stage.context, asked)
        expect_equal(volume["serial"], used["volume"], "the volume's id")
        expect(used["instance"] is guest.instance, "it says of which instance")
        expect(all(used[key] >= 0 for key in ("rd_req", "rd_bytes", "wr_req", "wr_bytes")), "counters are from 0 on")


@case(Ability.INTERFACES)
def an_interface_is_attached_to_a_running_guest_and_detached(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        [vif, *_] = stage.network_info()
        stage.driver.attach_interface(stage.context, guest.instance, guest.image, vif)
        stage.driver.detach_interface(stage.context, guest.instance, vif)
        expect_state(stage, guest, states.RUNNING)
        with raising(ComputeError):
            stage.driver.detach_interface(stage.context, guest.instance, vif)


@case(Ability.INTERFACES)
def an_interface_of_an_unknown_type_is_refused(stage: Stage) -> None:
    with spawned(stage) as guest:
        [vif, *_] = stage.network_info()
        with raising(ComputeError):
            stage.driver.attach_interface(stage.context, guest.instance, guest.image, {**vif, "type": "no-such-type"})
        expect_state(stage, guest, states.RUNNING)


@case(Ability.TAGS, Ability.INTERFACES)
def tagged_interfaces_are_written_down_where_the_guest_finds_them(stage: Stage) -> None:
    guest = planned(stage)
    [first, *others], [late, *_] = guest.network_info, stage.network_info()
    guest = replace(guest, network_info=[{**first, "tag": "first"}, *others])
    try:
        spawn(stage, guest, power_on=False)
        expect_equal({"first"}, set(_tagged(guest.instance, first)), "the tags of a new instance's interface")
        stage.driver.attach_interface(stage.context, guest.instance, guest.image, {**late, "tag": "late"})
        places = _tagged(guest.instance, first) | _tagged(guest.instance, late)
        expect_equal({"first", "late"}, set(places), "the tags with a further interface")
        expect_equal(2, len({*places.values()} - {None}), "how many places two tagged interfaces have")
        stage.driver.detach_interface(stage.context, guest.instance, late)
        expect_equal({}, _tagged(guest.instance, late), "what is written down of an interface that is gone")
        expect_equal({"first"}, set(_tagged(guest.instance, first)), "the tags of the interface that stays")
    finally:
        destroy(stage.driver, stage, guest)


def _tagged(instance: Instance, vif: Vif) -> dict[str, str | None]:
    """Where an interface is by what is written down of it, by its tags."""
    metadata, mac = instance.device_metadata, vif["address"].lower()
    found = [one for one in getattr(metadata, "devices", ()) if getattr(one, "mac", "").lower() == mac]
    return {tag: getattr(one.bus, "address", None) for one in found for tag in one.tags or ()}


@case()
def the_host_s_side_of_interfaces_is_made_and_removed_as_often_as_one_likes(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        for change in (stage.driver.plug_vifs, stage.driver.unplug_vifs):
            for _ in range(2):
                change(guest.instance, guest.network_info)


@case(Ability.DEVICE_NAMES)
def devices_that_have_no_name_get_one_of_their_own(stage: Stage) -> None:
    instance = stage.instance(stage.image())
    root: dict[str, Any] = {"source_type": "image", "destination_type": "local", "boot_index": 0, "device_name": None}
    name = stage.driver.default_root_device_name(instance, stage.image(), root)
    expect(name.startswith("/dev/"), "a name begins with /dev/")
    rows: list[dict[str, Any]] = [{"device_name": None, "disk_bus": None, "device_type": None} for _ in range(3)]
    stage.driver.default_device_names_for_instance(instance, name, rows[:2], rows[2:])
    names = [row["device_name"] for row in rows]
    expect_equal(4, len({name, *names}), "how many names the root and three devices have")
    another = stage.driver.get_device_name_for_instance(instance, rows, {"device_name": names[0], "disk_bus": None})
    expect(another.startswith("/dev/") and another not in (name, *names), "a further device has a further name")


CASES: tuple[Case, ...] = (
    a_volume_is_attached_to_a_running_guest_and_detached,
    a_volume_is_attached_to_a_guest_that_is_off,
    to_detach_what_is_not_attached_is_said_by_its_error,
    a_volume_of_an_unknown_kind_is_refused,
    a_device_that_is_taken_is_not_given_again,
    a_guest_is_told_that_a_volume_has_grown,
    a_volume_is_put_in_another_one_s_place,
    who_wants_to_reach_volumes_says_who_it_is,
    a_disk_has_five_counters_and_an_unknown_one_none,
    the_use_of_a_volume_is_told_by_its_id,
    an_interface_is_attached_to_a_running_guest_and_detached,
    an_interface_of_an_unknown_type_is_refused,
    tagged_interfaces_are_written_down_where_the_guest_finds_them,
    the_host_s_side_of_interfaces_is_made_and_removed_as_often_as_one_likes,
    devices_that_have_no_name_get_one_of_their_own,
)
