"""Cases about instances that come and go."""

from underlay.compute import states
from underlay.compute.errors import ComputeError, InstanceNotFound
from underlay.testing.compute_suite.case import (
    Case,
    case,
    destroy,
    expect,
    expect_equal,
    expect_gone,
    expect_state,
    planned,
    raising,
    spawn,
    spawned,
)
from underlay.testing.compute_suite.stage import Ability, Stage


@case()
def a_spawned_guest_runs_when_the_call_returns(stage: Stage) -> None:
    with spawned(stage) as guest:
        expect_state(stage, guest, states.RUNNING)


@case()
def a_guest_that_is_not_to_be_powered_on_is_shut_down(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        expect_state(stage, guest, states.SHUTDOWN)
        expect(stage.driver.instance_exists(guest.instance), "a guest that is off exists")


@case()
def an_instance_is_listed_by_name_and_by_uuid_and_counted(stage: Stage) -> None:
    driver = stage.driver
    before = driver.get_num_instances()
    with spawned(stage) as one, spawned(stage, power_on=False) as other:
        for guest in (one, other):
            expect(guest.instance.name in driver.list_instances(), "a name is listed")
            expect(guest.instance.uuid in driver.list_instance_uuids(), "a UUID is listed")
            expect(driver.instance_exists(guest.instance), "it exists")
        expect_equal(before + 2, driver.get_num_instances(), "the number of instances")
    expect_equal(before, driver.get_num_instances(), "the number of instances when they are gone")


@case()
def an_instance_that_nobody_made_is_not_there(stage: Stage) -> None:
    guest = planned(stage)
    expect(not stage.driver.instance_exists(guest.instance), "what was not made does not exist")
    with raising(InstanceNotFound):
        stage.driver.get_info(guest.instance)
    expect_equal([], list(stage.traces(guest.instance)), "what there is of an instance that nobody made")


@case()
def a_destroyed_instance_leaves_nothing(stage: Stage) -> None:
    guest = planned(stage)
    spawn(stage, guest)
    expect(stage.traces(guest.instance), "the stage sees an instance that is there")
    destroy(stage.driver, stage, guest)
    expect_gone(stage, guest)
    with raising(InstanceNotFound):
        stage.driver.get_info(guest.instance)


@case()
def to_destroy_what_is_gone_is_a_success(stage: Stage) -> None:
    guest = planned(stage)
    destroy(stage.driver, stage, guest)
    spawn(stage, guest)
    for _ in range(2):
        destroy(stage.driver, stage, guest)
    stage.driver.cleanup(stage.context, guest.instance, guest.network_info, guest.block_device_info)
    expect_gone(stage, guest)


@case()
def an_instance_that_is_there_is_not_made_again_and_goes_on(stage: Stage) -> None:
    with spawned(stage) as guest:
        with raising(ComputeError):
            spawn(stage, guest)
        expect_state(stage, guest, states.RUNNING)


@case()
def an_instance_of_the_same_name_takes_nothing_over(stage: Stage) -> None:
    with spawned(stage) as guest:
        twin = planned(stage)
        twin.instance.name = guest.instance.name
        with raising(ComputeError):
            spawn(stage, twin)
        expect_state(stage, guest, states.RUNNING)
        expect(twin.instance.uuid not in stage.driver.list_instance_uuids(), "the twin is not there")


@case()
def a_destroyed_instance_can_be_made_again(stage: Stage) -> None:
    guest = planned(stage)
    for _ in range(2):
        spawn(stage, guest)
        expect_state(stage, guest, states.RUNNING)
        destroy(stage.driver, stage, guest)
    expect_gone(stage, guest)


@case()
def an_image_larger_than_the_disk_is_refused_and_nothing_is_left(stage: Stage) -> None:
    guest = planned(stage)
    guest.image.min_disk = guest.instance.flavor.root_gb + 1
    with raising(ComputeError):
        try:
            spawn(stage, guest)
        finally:
            guest.image.min_disk = 0
    expect_gone(stage, guest)


@case(Ability.BREAKING)
def a_spawn_that_fails_leaves_nothing_at_whichever_step(stage: Stage) -> None:
    expect(stage.steps, "the stage has steps that can be broken")
    for step in stage.steps:
        guest = planned(stage)
        with stage.breaking(step), raising(ComputeError):
            spawn(stage, guest)
        expect_gone(stage, guest)
        with raising(InstanceNotFound):
            stage.driver.get_info(guest.instance)
        stage.driver.failed_spawn_cleanup(guest.instance)
        spawn(stage, guest)
        destroy(stage.driver, stage, guest)


@case(Ability.RESTART)
def a_driver_that_takes_over_finds_the_instances_as_they_are(stage: Stage) -> None:
    with spawned(stage) as running, spawned(stage, power_on=False) as off:
        driver = stage.restarted()
        expect_state(stage, running, states.RUNNING, driver=driver)
        expect_state(stage, off, states.SHUTDOWN, driver=driver)
        both = {running.instance.uuid, off.instance.uuid}
        expect(both <= set(driver.list_instance_uuids()), "instances outlast the service")
        expect_equal([running.instance], list(driver.process_instances_at_startup(stage.context, [running.instance])), "those")


CASES: tuple[Case, ...] = (
    a_spawned_guest_runs_when_the_call_returns,
    a_guest_that_is_not_to_be_powered_on_is_shut_down,
    an_instance_is_listed_by_name_and_by_uuid_and_counted,
    an_instance_that_nobody_made_is_not_there,
    a_destroyed_instance_leaves_nothing,
    to_destroy_what_is_gone_is_a_success,
    an_instance_that_is_there_is_not_made_again_and_goes_on,
    an_instance_of_the_same_name_takes_nothing_over,
    a_destroyed_instance_can_be_made_again,
    an_image_larger_than_the_disk_is_refused_and_nothing_is_left,
    a_spawn_that_fails_leaves_nothing_at_whichever_step,
    a_driver_that_takes_over_finds_the_instances_as_they_are,
)
