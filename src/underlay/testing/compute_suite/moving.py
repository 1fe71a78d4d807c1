"""Cases about snapshots, resizes and moves to another host."""

import json
from types import SimpleNamespace
from typing import Any

from underlay.compute import states
from underlay.compute.errors import InstanceFaultRollback, InstanceNotFound, UnableToMigrateToSelf
from underlay.compute.taskstates import IMAGE_PENDING_UPLOAD, IMAGE_SNAPSHOT, IMAGE_UPLOADING
from underlay.testing.compute_suite.case import (
    Case,
    Guest,
    case,
    expect,
    expect_equal,
    expect_state,
    planned,
    raising,
    spawned,
)
from underlay.testing.compute_suite.stage import Ability, Stage

_NOWHERE = "203.0.113.254"  # RFC 5737: nobody's


class _TaskStates:
    """Hears which task states a snapshot goes through, as its service would check them."""

    def __init__(self) -> None:
        self.now = IMAGE_SNAPSHOT
        self.seen: list[str] = []

    def __call__(self, task_state: str, expected_state: str = IMAGE_SNAPSHOT) -> None:
        expect_equal(self.now, expected_state, "the task state that is to be left")
        self.now = task_state
        self.seen.append(task_state)


@case(Ability.SNAPSHOT)
def a_snapshot_of_a_running_guest_is_uploaded_and_the_guest_runs_on(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        _expect_snapshot(stage, guest)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.SNAPSHOT)
def a_snapshot_of_a_guest_that_is_off_is_uploaded_too(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        _expect_snapshot(stage, guest)
        expect_state(stage, guest, states.SHUTDOWN)


@case(Ability.SNAPSHOT)
def a_snapshot_of_what_is_not_there_is_refused(stage: Stage) -> None:
    guest, image = planned(stage), stage.snapshot_id()
    with raising(InstanceNotFound):
        stage.driver.snapshot(stage.context, guest.instance, image, _TaskStates())
    expect(stage.uploaded(image) is None, "nothing is uploaded")


@case(Ability.SNAPSHOT)
def what_an_interrupted_snapshot_left_is_removed_as_often_as_one_likes(stage: Stage) -> None:
    with spawned(stage) as guest:
        for _ in range(2):
            stage.driver.post_interrupted_snapshot_cleanup(stage.context, guest.instance)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.RESIZE)
def a_resized_guest_runs_with_a_larger_disk_and_is_confirmed(stage: Stage) -> None:
    with spawned(stage) as guest:
        before, migration = guest.instance.flavor, _migration(stage)
        traces = sorted(stage.traces(guest.instance))
        _resize(stage, guest, migration)
        expect_state(stage, guest, states.RUNNING)
        [root, *_] = _disks(stage, guest)
        expect_equal(guest.instance.flavor.root_gb << 30, int(root["virt_disk_size"]), "the root disk's size")
        expect(guest.instance.flavor.root_gb > before.root_gb, "the stage's larger flavor is larger")
        stage.driver.confirm_migration(stage.context, migration, guest.instance, guest.network_info)
        expect_equal(traces, sorted(stage.traces(guest.instance)), "what the host has of a guest that was resized")
        expect_state(stage, guest, states.RUNNING)


@case(Ability.RESIZE)
def a_resize_that_is_reverted_leaves_the_guest_as_it_was(stage: Stage) -> None:
    with spawned(stage) as guest:
        before, migration = guest.instance.flavor, _migration(stage)
        sizes = [disk["virt_disk_size"] for disk in _disks(stage, guest)]
        _resize(stage, guest, migration)
        stage.driver.destroy(stage.context, guest.instance, guest.network_info, guest.block_device_info)
        guest.instance.flavor = before
        stage.driver.finish_revert_migration(
            stage.context, guest.instance, guest.network_info, migration, guest.block_device_info
        )
        expect_state(stage, guest, states.RUNNING)
        expect_equal(sizes, [disk["virt_disk_size"] for disk in _disks(stage, guest)], "the disks' sizes")


@case(Ability.RESIZE)
def a_resize_of_a_guest_that_is_off_leaves_it_off(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        before, migration = guest.instance.flavor, _migration(stage)
        _resize(stage, guest, migration, power_on=False)
        expect_state(stage, guest, states.SHUTDOWN)
        guest.instance.flavor = before
        stage.driver.finish_revert_migration(
            stage.context, guest.instance, guest.network_info, migration, guest.block_device_info, power_on=False
        )
        expect_state(stage, guest, states.SHUTDOWN)


@case(Ability.RESIZE)
def a_resize_to_a_smaller_disk_changes_nothing(stage: Stage) -> None:
    with spawned(stage) as guest:
        before, migration = guest.instance.flavor, _migration(stage)
        _resize(stage, guest, migration)
        stage.driver.confirm_migration(stage.context, migration, guest.instance, guest.network_info)
        here, sizes = stage.driver.get_host_ip_addr(), [disk["virt_disk_size"] for disk in _disks(stage, guest)]
        with raising(InstanceFaultRollback):
            stage.driver.migrate_disk_and_power_off(
                stage.context, guest.instance, here, before, guest.network_info, guest.block_device_info
            )
        expect_state(stage, guest, states.RUNNING)
        expect_equal(sizes, [disk["virt_disk_size"] for disk in _disks(stage, guest)], "the disks' sizes")


@case(Ability.RESIZE)
def a_resize_to_nowhere_changes_nothing(stage: Stage) -> None:
    with spawned(stage) as guest:
        flavor = stage.larger(guest.instance.flavor)
        with raising(InstanceFaultRollback):
            stage.driver.migrate_disk_and_power_off(
                stage.context, guest.instance, _NOWHERE, flavor, guest.network_info, guest.block_device_info
            )
        expect_state(stage, guest, states.RUNNING)


@case(Ability.LIVE_MIGRATION)
def a_running_guest_moves_to_another_host(stage: Stage) -> None:
    there = stage.other
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        data = _prepared(stage, guest)
        moved: list[str] = []
        _migrate(stage, guest, there.host, data, moved)
        expect_equal(["moved"], moved, "how the migration ended")
        stage.driver.post_live_migration(stage.context, guest.instance, guest.block_device_info, data)
        stage.driver.post_live_migration_at_source(stage.context, guest.instance, guest.network_info)
        there.driver.post_live_migration_at_destination(
            there.context, guest.instance, guest.network_info, block_device_info=guest.block_device_info
        )
        try:
            expect_state(there, guest, states.RUNNING)
            expect(not stage.driver.instance_exists(guest.instance), "the guest has left")
        finally:
            there.driver.destroy(there.context, guest.instance, guest.network_info, guest.block_device_info)
            there.driver.delete_instance_files(guest.instance)


@case(Ability.LIVE_MIGRATION)
def a_guest_that_cannot_move_stays(stage: Stage) -> None:
    there = stage.other
    with spawned(stage) as guest:
        data = _prepared(stage, guest)
        ended: list[str] = []
        _migrate(stage, guest, "no-such-host.invalid", data, ended)
        expect_equal(["recovered"], ended, "how the migration ended")
        stage.driver.rollback_live_migration_at_source(stage.context, guest.instance, data)
        there.driver.rollback_live_migration_at_destination(
            there.context, guest.instance, guest.network_info, guest.block_device_info, migrate_data=data
        )
        expect_state(stage, guest, states.RUNNING)
        expect(not there.driver.instance_exists(guest.instance), "the guest is not on the other host")
        expect_equal([], list(there.traces(guest.instance)), "what the other host has of it")


@case(Ability.LIVE_MIGRATION)
def a_guest_is_not_migrated_to_where_it_is(stage: Stage) -> None:
    with spawned(stage) as guest, raising(UnableToMigrateToSelf):
        facts = stage.compute_facts()
        stage.driver.check_can_live_migrate_destination(stage.context, guest.instance, facts, facts)


@case(Ability.SHARED_STORAGE)
def a_probe_of_shared_storage_is_seen_until_it_is_removed(stage: Stage) -> None:
    with spawned(stage) as guest:
        probe = stage.driver.check_instance_shared_storage_local(stage.context, guest.instance)
        expect(probe is not None, "there is something to find out about")
        assert probe is not None
        expect(stage.driver.check_instance_shared_storage_remote(stage.context, probe), "a host sees its own probe")
        stage.driver.check_instance_shared_storage_cleanup(stage.context, probe)
        expect(not stage.driver.check_instance_shared_storage_remote(stage.context, probe), "a probe that is gone is not seen")


def _expect_snapshot(stage: Stage, guest: Guest) -> None:
    image, task_states = stage.snapshot_id(), _TaskStates()
    stage.driver.snapshot(stage.context, guest.instance, image, task_states)
    expect_equal([IMAGE_PENDING_UPLOAD, IMAGE_UPLOADING], task_states.seen, "the task states of a snapshot")
    expect(stage.uploaded(image), "something is uploaded")


def _migration(stage: Stage) -> Any:
    here = {"source_compute": stage.host, "dest_compute": stage.host, "source_node": stage.host, "dest_node": stage.host}
    return SimpleNamespace(
        **here, id=1, uuid="3d8f0c5a-58a8-4a6c-a1d5-5b9c7e1f2a00", migration_type="resize", status="migrating"
    )


def _resize(stage: Stage, guest: Guest, migration: Any, *, power_on: bool = True) -> None:
    """Through a resize up to where it is to be confirmed or reverted."""
    here, flavor = stage.driver.get_host_ip_addr(), stage.larger(guest.instance.flavor)
    info = stage.driver.migrate_disk_and_power_off(
        stage.context, guest.instance, here, flavor, guest.network_info, guest.block_device_info
    )
    guest.instance.old_flavor, guest.instance.new_flavor = guest.instance.flavor, flavor
    guest.instance.flavor = flavor
    stage.driver.finish_migration(
        stage.context,
        migration,
        guest.instance,
        info,
        guest.network_info,
        guest.image,
        resize_instance=True,
        block_device_info=guest.block_device_info,
        power_on=power_on,
    )


def _disks(stage: Stage, guest: Guest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stage.driver.get_instance_disk_info(guest.instance, guest.block_device_info))
    return found


def _prepared(stage: Stage, guest: Guest) -> Any:
    """Through the checks and preparations of a live migration."""
    here, there, instance = stage.driver, stage.other.driver, guest.instance
    facts = stage.compute_facts(), stage.other.compute_facts()
    data = there.check_can_live_migrate_destination(stage.other.context, instance, *facts, block_migration=True)
    try:
        data = here.check_can_live_migrate_source(stage.context, instance, data, guest.block_device_info)
    finally:
        there.cleanup_live_migration_destination_check(stage.other.context, data)
    disks = here.get_instance_disk_info(instance, guest.block_device_info)
    return there.pre_live_migration(stage.other.context, instance, guest.block_device_info, guest.network_info, disks, data)


def _migrate(stage: Stage, guest: Guest, dest: str, data: Any, ended: list[str]) -> None:
    def moved(*arguments: object, **more: object) -> None:
        ended.append("moved")

    def recovered(*arguments: object, **more: object) -> None:
        ended.append("recovered")

    stage.driver.live_migration(stage.context, guest.instance, dest, moved, recovered, block_migration=True, migrate_data=data)


CASES: tuple[Case, ...] = (
    a_snapshot_of_a_running_guest_is_uploaded_and_the_guest_runs_on,
    a_snapshot_of_a_guest_that_is_off_is_uploaded_too,
    a_snapshot_of_what_is_not_there_is_refused,
    what_an_interrupted_snapshot_left_is_removed_as_often_as_one_likes,
    a_resized_guest_runs_with_a_larger_disk_and_is_confirmed,
    a_resize_that_is_reverted_leaves_the_guest_as_it_was,
    a_resize_of_a_guest_that_is_off_leaves_it_off,
    a_resize_to_a_smaller_disk_changes_nothing,
    a_resize_to_nowhere_changes_nothing,
    a_running_guest_moves_to_another_host,
    a_guest_that_cannot_move_stays,
    a_guest_is_not_migrated_to_where_it_is,
    a_probe_of_shared_storage_is_seen_until_it_is_removed,
)
