"""Hard links: a name outside the caches is a use, names inside them are none."""

from pathlib import Path

import pytest

from machine import Machine
from probing import ORIGINAL, inventory, put, uses
from underlay.plan import Observed
from underlay.usage.links import LinksProbe


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine.make(tmp_path)
    (tmp_path / "second").mkdir()
    with machine.config.open("a", encoding="utf-8") as file:
        file.write(f'[caches.second]\nkind = "base"\npath = "{tmp_path}/second"\n')
    put(machine, ORIGINAL)
    return machine


def observed(machine: Machine, *caches: str) -> Observed:
    return LinksProbe().observe([inventory(machine, cache) for cache in caches or ("base",)])


def test_a_file_of_one_name_is_linked_to_by_nobody(machine: Machine) -> None:
    assert {} == uses(observed(machine))


def test_a_name_outside_the_cache_is_a_use(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "delivered").hardlink_to(machine.base / ORIGINAL)
    (tmp_path / "again").hardlink_to(machine.base / ORIGINAL)
    found = observed(machine)
    assert {ORIGINAL: {"linked"}} == uses(found)
    assert ["2 of its names lie outside the caches"] == [use.who for use in found.uses]
    for name in ("delivered", "again"):
        (tmp_path / name).unlink()
    assert {} == uses(observed(machine))


def test_two_names_in_the_caches_are_no_use(machine: Machine, tmp_path: Path) -> None:
    (machine.base / "swap_512").hardlink_to(machine.base / ORIGINAL)
    assert {} == uses(observed(machine))
    (tmp_path / "second/swap_1").hardlink_to(machine.base / ORIGINAL)
    assert {} == uses(observed(machine, "base", "second"))
    assert {ORIGINAL, "swap_512"} == set(uses(observed(machine)))  # the second cache was not looked at: that name is not known


def test_every_name_of_a_file_with_one_outside_is_used(machine: Machine, tmp_path: Path) -> None:
    (machine.base / "swap_512").hardlink_to(machine.base / ORIGINAL)
    (tmp_path / "delivered").hardlink_to(machine.base / ORIGINAL)
    assert {ORIGINAL: {"linked"}, "swap_512": {"linked"}} == uses(observed(machine))


def test_a_name_in_the_cache_that_is_not_of_its_grammar_counts_as_outside(machine: Machine) -> None:
    (machine.base / "stranger").hardlink_to(machine.base / ORIGINAL)
    assert {ORIGINAL: {"linked"}} == uses(observed(machine))
