"""Pins and leases keep their images for as long as they hold; one that cannot be read keeps all of its cache."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machine import Machine
from probing import IMAGES, inventory, kept, problems, uses
from storing import published
from underlay.model import BaseImage
from underlay.plan import Observed
from underlay.store import Store, images, leases
from underlay.usage.leases import LeasesProbe

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
WHOLE = {"layout": 1, "holder": "x", "names": [], "refs": [], "made_at": "2026-01-01T00:00:00Z", "expires": None}
EVERYTHING = IMAGES | {"swap", "ephemeral", "master"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def store(machine: Machine) -> Store:
    store = machine.host().config.caches["base"]
    store.prepare()
    return store


@pytest.fixture
def image(store: Store) -> BaseImage:
    return published(store, b"content")


def observed(machine: Machine, store: Store, *, now: datetime = NOW) -> Observed:
    return LeasesProbe([store], now).observe([inventory(machine)])


def take(store: Store, image: BaseImage, *, holder: str = "ci", expires: datetime | None = None) -> str:
    with images.held(store, image.name) as hold:
        return leases.take(hold, holder=holder, ref=None, now=NOW, expires=expires).id


def test_a_pin_keeps_its_image_for_ever(machine: Machine, store: Store, image: BaseImage) -> None:
    take(store, image)
    for now in (NOW, NOW + timedelta(days=36500)):
        assert {image.name: {"pin"}} == uses(observed(machine, store, now=now))


def test_a_lease_keeps_its_image_until_it_ends(machine: Machine, store: Store, image: BaseImage) -> None:
    take(store, image, expires=NOW + timedelta(hours=1))
    found = observed(machine, store, now=NOW + timedelta(minutes=59))
    assert {image.name: {"lease"}} == uses(found)
    assert ["ci until 2026-05-01 13:00 UTC"] == [use.who for use in found.uses]
    assert {} == uses(observed(machine, store, now=NOW + timedelta(hours=1)))


def test_every_holder_is_named(machine: Machine, store: Store, image: BaseImage) -> None:
    take(store, image, holder="one")
    take(store, image, holder="two", expires=NOW + timedelta(hours=1))
    assert 2 == len(observed(machine, store).uses)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"layout": 1}',
        json.dumps(WHOLE | {"layout": 2}).encode(),
        json.dumps(WHOLE | {"expires": "2026-01-01T00:00:00"}).encode(),
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_lease_that_cannot_be_read_keeps_every_image_of_its_cache(
    machine: Machine, store: Store, image: BaseImage, content: bytes
) -> None:
    path = store.paths.leases / "lease-odd.json"
    path.write_bytes(content)
    take(store, image)
    found = observed(machine, store)
    assert EVERYTHING == kept(found)
    assert {store.root} == {unknown.root for unknown in found.unknowns}
    assert [("lease-unreadable", path)] == problems(found)
    assert {image.name: {"pin"}} == uses(found)


@pytest.mark.parametrize("kind", ["directory", "dangling", "failing"])
def test_what_stands_in_a_leases_place_and_cannot_be_read_keeps_every_image(machine: Machine, store: Store, kind: str) -> None:
    path = store.paths.leases / "lease-odd.json"
    match kind:
        case "directory":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "failing":
            path.symlink_to("/proc/self/mem")
    found = observed(machine, store)
    assert EVERYTHING == kept(found)
    assert [("lease-unreadable", path)] == problems(found)


def test_a_fifo_in_a_leases_place_does_not_make_it_wait(machine: Machine, store: Store) -> None:
    os.mkfifo(store.paths.leases / "lease-odd.json")
    assert EVERYTHING == kept(observed(machine, store))


def test_leases_that_cannot_be_listed_keep_every_image(machine: Machine, store: Store) -> None:
    store.paths.leases.rmdir()
    store.paths.leases.touch()
    found = observed(machine, store)
    assert EVERYTHING == kept(found)
    assert [("lease-unreadable", store.paths.leases)] == problems(found)


def test_what_a_crash_left_beside_a_lease_is_no_lease(machine: Machine, store: Store) -> None:
    (store.paths.leases / ".lease-1.json.new").write_bytes(b"{")
    (store.paths.leases / "README").write_bytes(b"{")
    found = observed(machine, store)
    assert ({}, frozenset(), []) == (uses(found), kept(found), problems(found))


def test_a_cache_that_is_not_laid_out_has_none(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    store = machine.host().config.caches["base"]
    assert [] == list(observed(machine, store).uses)


def test_leases_of_a_cache_that_was_not_asked_about_are_not_read(machine: Machine, store: Store, image: BaseImage) -> None:
    take(store, image)
    assert [] == list(LeasesProbe([store], NOW).observe([]).uses)
