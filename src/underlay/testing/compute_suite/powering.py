"""Cases about the power of guests."""

from collections.abc import Callable

from underlay.compute import states
from underlay.compute.arguments import Instance
from underlay.compute.driver import ComputeDriver
from underlay.compute.errors import ComputeError, InstanceNotFound, InstanceNotRunning
from underlay.testing.compute_suite.case import Case, Guest, case, expect_equal, expect_state, planned, raising, spawned
from underlay.testing.compute_suite.stage import Ability, Stage


@case()
def a_guest_is_powered_off_and_on_and_twice_is_once(stage: Stage) -> None:
    with spawned(stage) as guest:
        for _ in range(2):
            stage.driver.power_off(guest.instance)
            expect_state(stage, guest, states.SHUTDOWN)
        for _ in range(2):
            _power_on(stage, guest)
            expect_state(stage, guest, states.RUNNING)


@case(Ability.GRACEFUL)
def a_guest_that_shuts_down_by_itself_is_not_cut(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        stage.driver.power_off(guest.instance, timeout=stage.patience, retry_interval=1)
        expect_state(stage, guest, states.SHUTDOWN)


@case()
def a_hard_reboot_starts_a_guest_whatever_it_was(stage: Stage) -> None:
    with spawned(stage) as guest:
        _reboot(stage, guest, "HARD")
        expect_state(stage, guest, states.RUNNING)
        stage.driver.power_off(guest.instance)
        _reboot(stage, guest, "HARD")
        expect_state(stage, guest, states.RUNNING)


@case(Ability.PAUSE)
def a_hard_reboot_starts_a_paused_guest(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.pause(guest.instance)
        _reboot(stage, guest, "HARD")
        expect_state(stage, guest, states.RUNNING)


@case()
def a_soft_reboot_ends_with_a_guest_that_runs(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        _reboot(stage, guest, "SOFT")
        expect_state(stage, guest, states.RUNNING)


@case(Ability.PAUSE)
def a_paused_guest_is_paused_until_it_goes_on(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.pause(guest.instance)
        expect_state(stage, guest, states.PAUSED)
        stage.driver.unpause(guest.instance)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.SUSPEND)
def a_suspended_guest_takes_no_memory_and_goes_on(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.suspend(stage.context, guest.instance)
        expect_state(stage, guest, states.SHUTDOWN, states.SUSPENDED)
        stage.driver.resume(stage.context, guest.instance, guest.network_info, guest.block_device_info)
        expect_state(stage, guest, states.RUNNING)


@case()
def what_ran_before_its_host_was_switched_off_is_started(stage: Stage) -> None:
    with spawned(stage) as guest:
        arguments = (stage.context, guest.instance, guest.network_info, guest.block_device_info)
        stage.driver.resume_state_on_host_boot(*arguments)
        expect_state(stage, guest, states.RUNNING)
        stage.driver.power_off(guest.instance)
        stage.driver.resume_state_on_host_boot(*arguments)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.RESCUE)
def a_rescued_guest_runs_and_runs_again_as_itself(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.rescue(stage.context, guest.instance, guest.network_info, stage.image(), "secret", guest.block_device_info)
        expect_state(stage, guest, states.RUNNING)
        stage.driver.unrescue(guest.instance, guest.network_info)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.RESCUE)
def an_unrescue_with_the_context_first_is_a_wrong_call(stage: Stage) -> None:
    with spawned(stage) as guest:
        with raising(TypeError):
            stage.driver.unrescue(object(), guest.instance)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.REBUILD)
def a_rebuilt_instance_is_the_same_from_another_image(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.rebuild(
            stage.context,
            guest.instance,
            stage.image(),
            [],
            None,
            {},
            [],
            _nothing,
            _nothing,
            network_info=guest.network_info,
            block_device_info=guest.block_device_info,
        )
        expect_state(stage, guest, states.RUNNING)
        expect_equal(1, stage.driver.list_instance_uuids().count(guest.instance.uuid), "how often it is there")


@case(Ability.SOFT_DELETE)
def a_soft_deleted_instance_is_off_until_it_is_restored(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.soft_delete(guest.instance)
        expect_state(stage, guest, states.SHUTDOWN)
        stage.driver.restore(guest.instance)
        expect_state(stage, guest, states.RUNNING)


@case(Ability.CRASH_DUMP)
def a_crash_dump_is_of_a_guest_that_runs(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        stage.driver.trigger_crash_dump(guest.instance)
        stage.driver.power_off(guest.instance)
        with raising(InstanceNotRunning):
            stage.driver.trigger_crash_dump(guest.instance)


@case(Ability.AGENT)
def a_guest_with_an_agent_is_frozen_thawed_and_given_a_password(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.await_guest(guest.instance)
        stage.driver.quiesce(stage.context, guest.instance, guest.image)
        stage.driver.unquiesce(stage.context, guest.instance, guest.image)
        stage.driver.set_admin_password(guest.instance, "another")
        expect_state(stage, guest, states.RUNNING)


@case()
def a_guest_that_hangs_in_a_reboot_is_looked_after(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.power_off(guest.instance)
        stage.driver.poll_rebooting_instances(0, [guest.instance])
        expect_state(stage, guest, states.RUNNING)


@case()
def the_power_of_what_is_not_there_cannot_be_changed(stage: Stage) -> None:
    guest, driver = planned(stage), stage.driver
    with raising(InstanceNotFound):
        driver.power_off(guest.instance)
    with raising(ComputeError):
        _reboot(stage, guest, "HARD")


@case(Ability.PAUSE)
def what_is_not_there_is_not_paused(stage: Stage) -> None:
    guest, driver = planned(stage), stage.driver
    changes: list[Callable[[ComputeDriver, Instance], None]] = [ComputeDriver.pause, ComputeDriver.unpause]
    for change in changes:
        with raising(InstanceNotFound):
            getattr(driver, change.__name__)(guest.instance)


def _power_on(stage: Stage, guest: Guest) -> None:
    stage.driver.power_on(stage.context, guest.instance, guest.network_info, guest.block_device_info)


def _reboot(stage: Stage, guest: Guest, kind: str) -> None:
    stage.driver.reboot(stage.context, guest.instance, guest.network_info, kind, guest.block_device_info)


def _nothing(*arguments: object, **more: object) -> None:
    """What a caller detaches and attaches when there are no volumes."""


CASES: tuple[Case, ...] = (
    a_guest_is_powered_off_and_on_and_twice_is_once,
    a_guest_that_shuts_down_by_itself_is_not_cut,
    a_hard_reboot_starts_a_guest_whatever_it_was,
    a_hard_reboot_starts_a_paused_guest,
    a_soft_reboot_ends_with_a_guest_that_runs,
    a_paused_guest_is_paused_until_it_goes_on,
    a_suspended_guest_takes_no_memory_and_goes_on,
    what_ran_before_its_host_was_switched_off_is_started,
    a_rescued_guest_runs_and_runs_again_as_itself,
    an_unrescue_with_the_context_first_is_a_wrong_call,
    a_rebuilt_instance_is_the_same_from_another_image,
    a_soft_deleted_instance_is_off_until_it_is_restored,
    a_crash_dump_is_of_a_guest_that_runs,
    a_guest_with_an_agent_is_frozen_thawed_and_given_a_password,
    a_guest_that_hangs_in_a_reboot_is_looked_after,
    the_power_of_what_is_not_there_cannot_be_changed,
    what_is_not_there_is_not_paused,
)
