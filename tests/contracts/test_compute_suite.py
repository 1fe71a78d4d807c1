"""The conformance suite itself: compute drivers that do one thing wrong each, and what finds it."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
from compute_stages import FakeStage

from underlay.compute import ComputeDriver, InstanceInfo, ProviderTree, events, states
from underlay.compute.capabilities import no_capabilities
from underlay.compute.errors import ComputeError, InstanceNotFound
from underlay.testing import FakeDriver
from underlay.testing.compute_suite import CASES, Ability, Case, cases, impossible
from underlay.testing.fakedriver.hypervisor import FakeMachine


def wrong(name: str, method: Callable[..., Any]) -> type[FakeStage]:
    """The stage of a fake whose method is another."""
    kind = type("Wrong", (FakeDriver,), {name: method})
    return type("WrongStage", (FakeStage,), {"kind": kind, "__slots__": ()})


def findings(stage: type[FakeStage]) -> set[str]:
    """The cases that a driver does not pass."""
    found = set()
    for case in cases(stage):
        made = stage(patience=0.2)
        try:
            case.run(made)
        except (AssertionError, ComputeError, NotImplementedError, LookupError, TypeError, ValueError, AttributeError):
            found.add(str(case))
    return found


def _always_running(self: FakeDriver, instance: Any, use_cache: bool = True) -> InstanceInfo:  # noqa: FBT001, FBT002
    with suppress(InstanceNotFound):
        self.hypervisor.machine(instance)
    return InstanceInfo(states.RUNNING)


def _forgetful(self: FakeDriver) -> list[str]:
    return [one.uuid for one in self.hypervisor.machines.values() if one.state == states.RUNNING]


def _leaving(self: FakeDriver, *arguments: Any, **more: Any) -> None:
    with suppress(ComputeError):
        instance = arguments[1]
        self.hypervisor.machine(instance)
        del self.hypervisor.machines[instance.uuid]  # and its interfaces stay


def _strict(self: FakeDriver, context: Any, instance: Any, *arguments: Any, **more: Any) -> None:
    self.hypervisor.machine(instance)
    FakeDriver.destroy(self, context, instance, *arguments, **more)


def _spawning(self: FakeDriver, *arguments: Any, **more: Any) -> None:
    FakeDriver.spawn(self, *arguments, **{**more, "power_on": True})


def _starting_again(self: FakeDriver, machine: FakeMachine) -> None:
    if machine.state == states.RUNNING:
        raise ComputeError("it runs already")
    FakeDriver._start(self, machine)


def _untold(self: FakeDriver, event: Any) -> None:
    """Tells nobody."""


def _nowhere(self: FakeDriver, *arguments: Any, **more: Any) -> None:
    """Does nothing."""


def _without_pending(self: FakeDriver, context: Any, instance: Any, image_id: str, update_task_state: Any) -> None:
    self.hypervisor.machine(instance)
    update_task_state(task_state="image_uploading")
    self.site.images[image_id] = 1


def _numbers(self: FakeDriver, instance: Any, block_device_info: Any = None) -> str:
    disks = json.loads(FakeDriver.get_instance_disk_info(self, instance))
    return json.dumps([{key: int(value) if str(value).isdigit() else value for key, value in disk.items()} for disk in disks])


def _greedy(self: FakeDriver, tree: ProviderTree, nodename: str, allocations: Any = None) -> None:
    tree.update_traits(nodename, ["CUSTOM_MINE"])
    FakeDriver.update_provider_tree(self, tree, nodename)


def _empty(self: FakeDriver, tree: ProviderTree, nodename: str, allocations: Any = None) -> None:
    FakeDriver.update_provider_tree(self, tree, nodename)
    tree.update_inventory(nodename, {**tree.data(nodename).inventory, "VGPU": {"total": 0}})


def _boasting(self: FakeDriver, virtapi: Any, **more: Any) -> None:
    FakeDriver.__init__(self, virtapi, **more)
    self.capabilities = no_capabilities() | {"has_imagecache": True, "supports_image_type_raw": True}


def _generous(self: FakeDriver, *arguments: Any, **more: Any) -> Any:
    return True


def _same_name(self: FakeDriver, *arguments: Any) -> str:
    return "/dev/vda"


def _remembering(self: FakeDriver, instance: Any, machine: FakeMachine) -> None:
    """Writes down what comes, and not what goes."""
    before = instance.device_metadata
    FakeDriver._write_down(self, instance, machine)
    if before is not None and len(machine.vifs) < len(before.devices):
        instance.device_metadata = before


def _misbound(self: FakeDriver, instance: Any, network_info: Any) -> None:
    machine = self.hypervisor.machines.get(getattr(instance, "uuid", ""))
    if machine is not None:
        machine.rescued_by = None


def _needy(self: FakeDriver, nodename: str) -> dict[str, Any]:
    found = FakeDriver.get_available_resource(self, nodename)
    return {key: value for key, value in found.items() if key != "numa_topology"}


WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("get_info", _always_running, "a-guest-that-is-not-to-be-powered-on-is-shut-down"),
    ("get_info", _always_running, "an-instance-that-nobody-made-is-not-there"),
    ("list_instance_uuids", _forgetful, "an-instance-is-listed-by-name-and-by-uuid-and-counted"),
    ("destroy", _leaving, "a-destroyed-instance-leaves-nothing"),
    ("destroy", _strict, "to-destroy-what-is-gone-is-a-success"),
    ("destroy", _nowhere, "a-destroyed-instance-can-be-made-again"),
    ("spawn", _spawning, "a-guest-that-is-not-to-be-powered-on-is-shut-down"),
    ("_start", _starting_again, "a-guest-is-powered-off-and-on-and-twice-is-once"),
    ("emit_event", _untold, "who-listens-hears-of-a-guest-that-starts-and-stops"),
    ("emit_event", _untold, "who-listens-hears-of-a-guest-that-is-paused"),
    ("pause", _nowhere, "a-paused-guest-is-paused-until-it-goes-on"),
    ("suspend", _nowhere, "a-suspended-guest-takes-no-memory-and-goes-on"),
    ("reboot", _nowhere, "a-hard-reboot-starts-a-guest-whatever-it-was"),
    ("unrescue", _misbound, "an-unrescue-with-the-context-first-is-a-wrong-call"),
    ("soft_delete", _nowhere, "a-soft-deleted-instance-is-off-until-it-is-restored"),
    ("trigger_crash_dump", _nowhere, "a-crash-dump-is-of-a-guest-that-runs"),
    ("attach_volume", _nowhere, "a-volume-of-an-unknown-kind-is-refused"),
    ("detach_volume", _nowhere, "to-detach-what-is-not-attached-is-said-by-its-error"),
    ("swap_volume", _nowhere, "a-volume-is-put-in-another-one-s-place"),
    ("block_stats", _generous, "a-disk-has-five-counters-and-an-unknown-one-none"),
    ("attach_interface", _nowhere, "an-interface-of-an-unknown-type-is-refused"),
    ("_write_down", _nowhere, "tagged-interfaces-are-written-down-where-the-guest-finds-them"),
    ("_write_down", _remembering, "tagged-interfaces-are-written-down-where-the-guest-finds-them"),
    ("get_device_name_for_instance", _same_name, "devices-that-have-no-name-get-one-of-their-own"),
    ("default_root_device_name", lambda self, *arguments: "vda", "devices-that-have-no-name-get-one-of-their-own"),
    ("get_console_output", lambda self, *arguments: b"", "what-a-guest-writes-can-be-read"),
    ("get_diagnostics", lambda self, instance: {"cpu0_time": "0"}, "diagnostics-are-a-flat-mapping-of-integers"),
    ("get_all_bw_counters", lambda self, instances: [], "traffic-is-told-by-instance-and-address"),
    ("get_instance_disk_info", _numbers, "local-disks-are-told-with-their-sizes-as-digits"),
    ("snapshot", _without_pending, "a-snapshot-of-a-running-guest-is-uploaded-and-the-guest-runs-on"),
    ("snapshot", _nowhere, "a-snapshot-of-what-is-not-there-is-refused"),
    ("confirm_migration", _nowhere, "a-resized-guest-runs-with-a-larger-disk-and-is-confirmed"),
    ("finish_revert_migration", _nowhere, "a-resize-that-is-reverted-leaves-the-guest-as-it-was"),
    ("live_migration", _nowhere, "a-running-guest-moves-to-another-host"),
    ("live_migration", _nowhere, "a-guest-that-cannot-move-stays"),
    ("check_can_live_migrate_destination", _nowhere, "a-guest-is-not-migrated-to-where-it-is"),
    ("check_instance_shared_storage_remote", _generous, "a-probe-of-shared-storage-is-seen-until-it-is-removed"),
    ("get_available_resource", _needy, "a-host-says-what-it-has-and-what-is-taken"),
    ("update_provider_tree", _greedy, "the-provider-tree-has-the-host-s-inventory-and-what-others-put-there"),
    ("update_provider_tree", _empty, "the-provider-tree-has-the-host-s-inventory-and-what-others-put-there"),
    ("node_is_available", _generous, "a-host-has-nodes-that-last"),
    ("get_host_uptime", lambda self: "", "a-host-tells-its-time-and-its-processors"),
    ("set_host_enabled", _nowhere, "a-host-is-disabled-and-enabled-and-its-guests-run-on"),
    ("cache_image", _generous, "an-image-is-fetched-once"),
    ("manage_image_cache", lambda self, *_: self.hypervisor.cached.clear(), "an-image-that-is-used-outlasts-the-cache-s-care"),
    ("__init__", _boasting, "what-is-supported-is-what-can-be-done"),
    ("get_vnc_console", lambda self, *_: None, "a-vnc-console-is-somewhere-while-the-guest-runs"),
]


@pytest.mark.parametrize(
    ("name", "method", "case"), WRONG, ids=[f"{name}-{number}" for number, (name, _, _) in enumerate(WRONG)]
)
def test_a_driver_that_does_one_thing_wrong_is_found_out(name: str, method: Callable[..., Any], case: str) -> None:
    assert case in findings(wrong(name, method))


def test_the_fake_as_it_is_is_found_guilty_of_nothing() -> None:
    assert set() == findings(FakeStage)


def test_a_driver_that_does_nothing_passes_hardly_anything() -> None:
    class Nothing(FakeDriver):
        """Has the contract's own methods only."""

    for name in list(vars(ComputeDriver)) + [name for kind in ComputeDriver.__mro__[1:-1] for name in vars(kind)]:
        if not name.startswith("_") and name not in ("capabilities", "emit_event", "register_event_listener", "init_host"):
            setattr(Nothing, name, getattr(ComputeDriver, name))
    stage = type("NothingStage", (FakeStage,), {"kind": Nothing, "__slots__": ()})
    assert len(CASES) - 3 <= len(findings(stage))


def test_the_listener_that_a_case_registers_is_gone_afterwards() -> None:
    stage = FakeStage()
    for case in CASES:
        if Ability.EVENTS in case.needs:
            case.run(stage)
    assert stage.driver._compute_event_callback is None
    assert events.EVENT_LIFECYCLE_STARTED == 0


# --------------------------------------------------------------------------------------------------------------- the stage


class Unable(FakeStage):
    """Cannot do two things."""

    __slots__ = ()
    cannot: ClassVar[Mapping[Ability, str]] = MappingProxyType(
        {Ability.RESCUE: "there is nothing to rescue by", Ability.PAUSE: "time does not stop"}
    )


def case_of(name: str) -> Case:
    (found,) = (case for case in CASES if str(case) == name)
    return found


def test_what_a_stage_cannot_is_left_out_with_its_reason() -> None:
    left_out = impossible(Unable)
    assert "time does not stop" == left_out[case_of("a-paused-guest-is-paused-until-it-goes-on")]
    assert set(CASES) == {*cases(Unable), *left_out}
    assert 5 <= len(left_out) <= 7


def test_a_case_that_a_stage_cannot_set_up_is_not_run() -> None:
    with pytest.raises(ValueError, match="needs RESCUE, which Unable cannot"):
        case_of("a-rescued-guest-runs-and-runs-again-as-itself").run(Unable())


@pytest.mark.parametrize(
    ("cannot", "complaint"), [({Ability.PAUSE: " "}, "PAUSE, and does not say why"), ({"pause": "no"}, "none of the suite's")]
)
def test_a_stage_that_makes_no_sense_is_refused(cannot: Any, complaint: str) -> None:
    stage = type("Odd", (FakeStage,), {"cannot": cannot, "__slots__": ()})
    with pytest.raises(ValueError, match=complaint):
        cases(stage)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len(CASES) == len({str(case) for case in CASES})
