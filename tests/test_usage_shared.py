"""Storage that several hosts share: nothing goes before it is known which hosts those are and each has said what it needs."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machine import Machine
from probing import IMAGES, ORIGINAL, OTHER, inventory, kept, original, overlay, problems, put, uses
from underlay.model import LAYOUT
from underlay.plan import Observed
from underlay.store import Store, hosts, registry
from underlay.usage.shared import SharedProbe

NOW = datetime(2026, 5, 1, tzinfo=UTC)
EVERYTHING = IMAGES | {"swap", "ephemeral", "master", "leftover"}
ALL_IMAGES = EVERYTHING - {"master", "leftover"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A cache where Nova has its own, so that there is a registry of hosts."""
    machine = Machine.make(tmp_path, base="elsewhere")
    beside = Machine(tmp_path, machine.instances / "_base", machine.instances, machine.config)
    beside.base.mkdir()
    text = machine.config.read_text(encoding="utf-8").replace(str(machine.base), str(beside.base))
    machine.config.write_text(text, encoding="utf-8")
    put(beside, ORIGINAL)
    return beside


@pytest.fixture
def store(machine: Machine) -> Store:
    store = machine.host().config.caches["base"]
    store.prepare()
    return store


def observed(machine: Machine, store: Store, *declared: str, host: str = "me") -> Observed:
    return SharedProbe([store], host, declared, NOW).observe([inventory(machine)])


def codes(found: Observed) -> list[str]:
    return [unknown.code for unknown in found.unknowns]


def say(store: Store, host: str, names: Sequence[str] = (), *, complete: bool = True) -> None:
    hosts.record(store, host=host, at=NOW, names=tuple(names), complete=complete)


def test_a_cache_of_one_host_has_no_other_users(machine: Machine, store: Store) -> None:
    assert ({}, [], []) == (uses(found := observed(machine, store)), codes(found), problems(found))
    say(store, "me", [ORIGINAL])
    assert ({}, [], []) == (uses(found := observed(machine, store)), codes(found), problems(found))


def test_what_another_host_uses_is_used_however_long_it_is_silent(machine: Machine, store: Store) -> None:
    say(store, "other", [ORIGINAL, original(OTHER)])
    found = observed(machine, store, "me", "other")
    assert {ORIGINAL: {"host"}, original(OTHER): {"host"}} == uses(found)
    assert ([], ["other", "other"]) == (codes(found), [use.who for use in found.uses])


def test_without_a_list_of_hosts_another_hosts_word_keeps_everything(machine: Machine, store: Store) -> None:
    say(store, "other")
    found = observed(machine, store)
    assert (["hosts-undeclared"], EVERYTHING) == (codes(found), kept(found))
    assert "other" in found.unknowns[0].detail


def test_a_hosts_word_that_is_older_than_a_minimum_age_keeps_what_it_may_have_come_to_need(
    machine: Machine, store: Store
) -> None:
    say(store, "other")
    say(store, "me")

    def kept(age: float) -> frozenset[str]:
        probe = SharedProbe([store], "me", ["me", "other"], NOW + timedelta(seconds=age))
        return frozenset(kind for unknown in probe.observe([inventory(machine)]).unknowns for kind in unknown.keeps)

    assert frozenset() == kept(3600)
    assert {"resized"} == kept(3601)
    assert {"resized"} == kept(86400)
    assert {"original", "resized", "swap", "ephemeral", "leftover"} <= kept(86401)


def test_a_declared_host_that_has_said_nothing_keeps_everything(machine: Machine, store: Store) -> None:
    say(store, "second")
    found = observed(machine, store, "me", "second", "third")
    assert (["host-silent"], EVERYTHING) == (codes(found), kept(found))
    assert "third" in found.unknowns[0].detail
    say(store, "third")
    assert [] == codes(observed(machine, store, "me", "second", "third"))


def test_a_host_that_could_not_tell_all_keeps_every_image(machine: Machine, store: Store) -> None:
    say(store, "other", complete=False)
    found = observed(machine, store, "me", "other")
    assert (["host-incomplete"], ALL_IMAGES) == (codes(found), kept(found))
    say(store, "other")
    assert [] == codes(observed(machine, store, "me", "other"))


def test_what_this_host_could_not_tell_last_time_is_no_matter(machine: Machine, store: Store) -> None:
    say(store, "me", complete=False)
    assert [] == codes(observed(machine, store, "me"))


def test_two_machines_of_one_name_keep_everything(machine: Machine, store: Store) -> None:
    say(store, "me")
    path = store.paths.host("me")
    path.write_text(path.read_text(encoding="utf-8").replace(f'"machine":"{hosts.machine_id()}"', '"machine":"f00d"'))
    found = observed(machine, store, "me")
    assert (["host-ambiguous"], EVERYTHING) == (codes(found), kept(found))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"layout": 1}'])
def test_a_word_that_cannot_be_read_keeps_everything(machine: Machine, store: Store, content: bytes) -> None:
    say(store, "other")
    store.paths.host("other").write_bytes(content)
    found = observed(machine, store, "me", "other")
    assert "host-unreadable" in codes(found)
    assert EVERYTHING == kept(found)
    assert [("host-unreadable", store.paths.host("other"))] == problems(found)


def test_a_word_of_a_later_version_keeps_everything(machine: Machine, store: Store) -> None:
    say(store, "other")
    path = store.paths.host("other")
    path.write_text(path.read_text(encoding="utf-8").replace(f'"layout":{LAYOUT}', f'"layout":{LAYOUT + 1}'))
    assert "host-unreadable" in codes(observed(machine, store, "me", "other"))


def test_a_fifo_in_place_of_a_word_does_not_make_it_wait(machine: Machine, store: Store) -> None:
    say(store, "other")
    store.paths.host("other").unlink()
    os.mkfifo(store.paths.host("other"))
    assert "host-unreadable" in codes(observed(machine, store, "me", "other"))


def test_words_that_cannot_be_listed_keep_everything(machine: Machine, store: Store) -> None:
    store.paths.hosts.touch()
    found = observed(machine, store)
    assert (["hosts-unreadable"], EVERYTHING) == (codes(found), kept(found))


# --------------------------------------------------------------------------------------------------------- Nova's registry


def registered(machine: Machine, stamps: object) -> Path:
    path = machine.instances / "compute_nodes"
    path.write_text(stamps if isinstance(stamps, str) else json.dumps(stamps), encoding="utf-8")
    return path


def test_a_host_in_novas_registry_is_a_host_however_old_its_stamp(machine: Machine, store: Store) -> None:
    registered(machine, {"me": 1e9, "other": 1e9})
    found = observed(machine, store)
    assert (["hosts-undeclared"], EVERYTHING) == (codes(found), kept(found))
    assert "other" in found.unknowns[0].detail
    found = observed(machine, store, "me")
    assert ["host-silent"] == codes(found)
    say(store, "other")
    assert [] == codes(observed(machine, store, "me", "other"))


def test_a_registry_with_this_host_alone_says_nothing(machine: Machine, store: Store) -> None:
    registered(machine, {"me": 1e9})
    assert [] == codes(observed(machine, store))


@pytest.mark.parametrize("content", ["{", "[]", '{"other": "yesterday"}', "\0"])
def test_a_registry_that_cannot_be_read_is_reported(machine: Machine, store: Store, content: str) -> None:
    path = registered(machine, content)
    assert [("registry-unreadable", path)] == problems(observed(machine, store))


@pytest.mark.parametrize("kind", ["directory", "fifo", "failing"])
def test_what_stands_in_the_registrys_place_keeps_everything(machine: Machine, store: Store, kind: str) -> None:
    path = machine.instances / "compute_nodes"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "failing":
            path.symlink_to("/proc/self/mem")
    found = observed(machine, store)
    assert (["hosts-unreadable"], EVERYTHING) == (codes(found), kept(found))


def test_a_cache_that_is_not_beside_a_nova_has_no_registry(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    registered(machine, {"other": 1e9})
    store = machine.host().config.caches["base"]
    store.prepare()
    assert [] == codes(observed(machine, store))


# -------------------------------------------------------------------------------------------------- retiring, whole passes


def _configured(machine: Machine, *declared: str) -> None:
    text = machine.config.read_text(encoding="utf-8")
    table = f'[instances]\nhosts = {json.dumps(list(declared))}\nlock_prefix = "nova-"'
    machine.config.write_text(f'host = "me"\n{text.replace("[instances]", table)}', encoding="utf-8")


def test_a_silent_host_keeps_what_it_named_until_it_is_retired(machine: Machine, store: Store) -> None:
    _configured(machine, "me", "other")
    host = machine.host()
    say(store, "other", [ORIGINAL])
    registry.stamp(store, "other")
    verdicts = host.plan_prune().verdicts
    assert [(False, "host")] == [(one.removes, one.reasons[0].code) for one in verdicts]
    host.retire_host("other")
    assert "host-silent" in [reason.code for one in host.plan_prune().verdicts for reason in one.reasons]
    machine.config.write_text(machine.config.read_text(encoding="utf-8").replace(', "other"', ""), encoding="utf-8")
    assert [True] == [one.removes for one in machine.host().plan_prune().verdicts]


def test_a_pass_says_what_this_host_uses_and_the_other_host_believes_it(machine: Machine, store: Store) -> None:
    _configured(machine, "me", "other")
    say(store, "other")
    overlay(machine.instances / "web-1/disk", machine.base / ORIGINAL)
    host = machine.host()
    host.apply(host.plan_prune())
    said = {one.host: one for _, one in host.hosts()}
    assert ((ORIGINAL,), True) == (said["me"].names, said["me"].complete)
    assert {ORIGINAL: {"host"}} == uses(observed(machine, store, "me", "other", host="other"))
    stamps = registry.read(machine.instances / "compute_nodes")
    assert stamps is not None
    assert ["me"] == list(stamps)


def test_a_pass_that_cannot_tell_all_says_so_to_the_others(machine: Machine, store: Store) -> None:
    _configured(machine, "me", "other")
    say(store, "other")
    (machine.instances / "web-1").mkdir()
    os.mkfifo(machine.instances / "web-1/disk")
    host = machine.host()
    host.apply(host.plan_prune())
    assert ["host-incomplete"] == codes(observed(machine, store, "me", "other", host="other"))
