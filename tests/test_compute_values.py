"""What the contract speaks in: power states, events, consoles, diagnostics, migrations and errors."""

import copy
import dataclasses
import inspect
import time
from typing import Any

import pytest

from underlay.compute import consoles, errors, events, states
from underlay.compute.diagnostics import DRIVERS, Diagnostics
from underlay.compute.events import Event, InstanceEvent, LifecycleEvent
from underlay.compute.livemigration import LibvirtLiveMigrateData, LiveMigrateData
from underlay.compute.states import InstanceInfo
from underlay.errors import UnderlayError

ERRORS = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.ComputeError)]
ERRORS = list(dict.fromkeys(ERRORS))  # one has two names


# ------------------------------------------------------------------------------------------------------------- power states


def test_the_power_states_have_the_numbers_that_services_store() -> None:
    expected = {0: "pending", 1: "running", 3: "paused", 4: "shutdown", 6: "crashed", 7: "suspended"}
    assert expected == states.STATE_MAP
    named = (states.NOSTATE, states.RUNNING, states.PAUSED, states.SHUTDOWN, states.CRASHED, states.SUSPENDED)
    assert tuple(expected) == named


def test_what_is_said_of_an_instance_is_equal_when_all_of_it_is() -> None:
    class More(InstanceInfo):
        """Of another driver."""

    assert InstanceInfo(state=1, internal_id="3") == InstanceInfo(1, "3")
    assert InstanceInfo(1) != InstanceInfo(4)
    assert InstanceInfo(1, "3") != InstanceInfo(1)
    assert InstanceInfo(1) != More(1)
    assert More(1) == More(1)
    assert InstanceInfo(1) != 1
    assert InstanceInfo(1).internal_id is None


# -------------------------------------------------------------------------------------------------------------------- events


def test_the_transitions_have_their_numbers_and_names() -> None:
    names = ["Started", "Stopped", "Paused", "Resumed", "Suspended", "Postcopy started", "Migration completed"]
    assert names == [LifecycleEvent("u", number).get_name() for number in range(7)]
    assert list(range(7)) == [value for name, value in vars(events).items() if name.startswith("EVENT_LIFECYCLE_")]
    assert "Unknown" == LifecycleEvent("u", 7).get_name()


def test_an_event_is_of_now_unless_it_says_when() -> None:
    before = time.time()
    assert before <= Event().get_timestamp() <= time.time()
    assert 0 == Event(0).get_timestamp()
    event = LifecycleEvent("uuid", events.EVENT_LIFECYCLE_PAUSED, timestamp=12.5)
    assert ("uuid", 2, 12.5) == (event.get_instance_uuid(), event.get_transition(), event.get_timestamp())
    assert isinstance(event, InstanceEvent)
    assert "<LifecycleEvent: 12.5, uuid => Paused>" == repr(event)


# ------------------------------------------------------------------------------------------------------------------ consoles


@pytest.mark.parametrize("name", ["ConsoleVNC", "ConsoleRDP", "ConsoleSerial", "ConsoleMKS"])
def test_a_console_says_where_it_is(name: str) -> None:
    console = getattr(consoles, name)("host", 5900, "/path")
    expected = {"host": "host", "port": 5900, "internal_access_path": "/path", "token": "t", "access_url": "u"}
    assert expected == console.get_connection_info("t", "u")
    assert getattr(consoles, name)("host", 5900).internal_access_path is None


def test_a_spice_console_has_a_port_for_tls_before_the_path() -> None:
    console = consoles.ConsoleSpice("host", 5900, 5901, "/path")
    expected = {"host": "host", "port": 5900, "tlsPort": 5901, "internal_access_path": "/path"}
    assert {**expected, "token": "t", "access_url": "u"} == console.get_connection_info("t", "u")


# --------------------------------------------------------------------------------------------------------------- diagnostics


def test_diagnostics_count_their_details() -> None:
    diagnostics = Diagnostics(state="running", driver="libvirt", config_drive=False)
    diagnostics.add_cpu(id=0, time=17, utilisation=3)
    diagnostics.add_nic(mac_address="52:54:00:00:00:01", rx_octets=4, tx_drop=5)
    diagnostics.add_disk(read_bytes=1, errors_count=0)
    diagnostics.add_disk()
    assert (1, 1, 2) == (diagnostics.num_cpus, diagnostics.num_nics, diagnostics.num_disks)
    assert (17, 5, None) == (
        diagnostics.cpu_details[0].time,
        diagnostics.nic_details[0].tx_drop,
        diagnostics.disk_details[1].read_bytes,
    )
    assert (None, None) == (diagnostics.memory_details.maximum, diagnostics.uptime)


def test_diagnostics_are_of_a_known_driver() -> None:
    assert "ironic" in DRIVERS
    with pytest.raises(ValueError, match="'mine' is none of"):
        Diagnostics(state="running", driver="mine", config_drive=False)


# ---------------------------------------------------------------------------------------------------------------- migrations


def test_what_has_not_been_said_of_a_migration_is_none() -> None:
    data = LibvirtLiveMigrateData(is_volume_backed=False, filename="probe")
    assert isinstance(data, LiveMigrateData)
    assert ("probe", None) == (data.filename, data.bdms)
    assert dataclasses.replace(data, serial_listen_ports=(10000,)).serial_listen_ports == (10000,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.filename = "other"  # type: ignore[misc]


# -------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_made_from_its_keywords_and_says_them_in_one_line(error: Any) -> None:
    details = {name: f"<{name}>" for name in error.keywords()}
    made = error(**details)
    assert issubclass(error, UnderlayError)
    assert details == made.details
    assert all(value in str(made) for value in details.values())
    assert "\n" not in str(made)
    assert 90 <= error.exit_code <= 99
    assert 400 <= error.http_status <= 500


@pytest.mark.parametrize("error", [one for one in ERRORS if one.keywords() and one is not errors.InstanceFaultRollback])
def test_an_error_without_its_keywords_is_a_wrong_call(error: Any) -> None:
    with pytest.raises(TypeError, match="is made from"):
        error()
    with pytest.raises(TypeError, match="is made from"):
        error(**dict.fromkeys(error.keywords(), 1), more=1)


def test_an_error_may_say_something_of_its_own() -> None:
    error = errors.InstanceNotFound("gone with\nthe wind", hint="look elsewhere")
    assert ("gone with the wind", "look elsewhere", {}) == (str(error), error.hint, error.details)


def test_no_two_errors_share_a_code() -> None:
    assert len(ERRORS) == len({one.code for one in ERRORS})
    assert len(ERRORS) > 40


def test_a_rollback_has_the_error_that_it_came_from() -> None:
    inner = OSError("no room")
    assert errors.InstanceFaultRollback(inner).inner_exception is inner
    assert "no room" in str(errors.InstanceFaultRollback(inner_exception=inner))


def test_too_many_disks_is_found_by_each_of_its_kinds() -> None:
    error = errors.TooManyDiskDevices(maximum=26)
    assert isinstance(error, errors.InvalidBDM | errors.Invalid)
    assert (403, 400) == (error.http_status, errors.Invalid.http_status)


def test_a_driver_that_is_not_loaded_ends_a_program_with_1() -> None:
    error = errors.DriverNotLoaded("nothing is named", hint="name one")
    assert isinstance(error, SystemExit)
    assert not isinstance(error, Exception)
    assert (1, 1, "nothing is named", "name one") == (error.code, error.exit_code, str(error), error.hint)
    assert copy.copy(error).code == 1
