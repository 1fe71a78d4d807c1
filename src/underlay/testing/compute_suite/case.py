"""One case of the suite, and how cases look at a driver: guests that are destroyed again, states that are waited for."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from underlay.compute import get_block_device_info, states
from underlay.compute.arguments import ImageMeta, Instance, NetworkInfo
from underlay.compute.driver import ComputeDriver
from underlay.testing.compute_suite.stage import Ability, Stage
from underlay.testing.expecting import expect as expect, expect_equal as expect_equal

_PAUSE = 0.05  # seconds between two looks
_DEFAULT = (states.RUNNING,)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that every driver must do.

    Attributes:
        name: what must hold, in words. needs: what the driver must be able to.
    """

    name: str
    needs: frozenset[Ability]
    check: Callable[[Stage], None]

    def __str__(self) -> str:
        return self.name

    def run(self, stage: Stage) -> None:
        """Try it.

        Raises:
            AssertionError: the driver breaks its contract. Any other error of the driver that a case did not expect does, too.
            ValueError: the case needs what the stage says that it cannot.
        """
        if missing := self.needs & stage.cannot.keys():
            names = " and ".join(sorted(one.name for one in missing))
            raise ValueError(f"{self.name} needs {names}, which {type(stage).__name__} cannot")
        self.check(stage)


def case(*needs: Ability) -> Callable[[Callable[[Stage], None]], Case]:
    """Make a function the check of a case, which is called as the function is."""
    return lambda check: Case(check.__name__.replace("_", "-"), frozenset(needs), check)


@dataclass(frozen=True, slots=True)
class Guest:
    """An instance of a case, and what it was made from."""

    instance: Instance
    image: ImageMeta
    network_info: NetworkInfo
    block_device_info: Mapping[str, Any]


@contextmanager
def spawned(stage: Stage, *, power_on: bool = True) -> Iterator[Guest]:
    """A guest that runs, or is off; destroyed at the end whatever becomes of it."""
    guest = planned(stage)
    try:
        spawn(stage, guest, power_on=power_on)
        yield guest
    finally:
        destroy(stage.driver, stage, guest)


def planned(stage: Stage) -> Guest:
    """One that is not made yet."""
    image = stage.image()
    instance = stage.instance(image)
    return Guest(instance, image, stage.network_info(), get_block_device_info(instance, []))


def spawn(stage: Stage, guest: Guest, *, power_on: bool = True) -> None:
    """Make it."""
    stage.driver.spawn(
        stage.context,
        guest.instance,
        guest.image,
        [],
        None,
        {},
        network_info=guest.network_info,
        block_device_info=guest.block_device_info,
        power_on=power_on,
    )


def destroy(driver: ComputeDriver, stage: Stage, guest: Guest) -> None:
    """Remove it with all that it has."""
    driver.destroy(stage.context, guest.instance, guest.network_info, guest.block_device_info)
    expect(driver.delete_instance_files(guest.instance), "the files of a destroyed instance can be deleted")


def awaited(stage: Stage, claim: Callable[[], object], what: str) -> None:
    """The contract wants this within the stage's patience."""
    deadline = time.monotonic() + stage.patience
    while not claim():
        expect(time.monotonic() < deadline, f"{what}, within {stage.patience:g} s")
        time.sleep(_PAUSE)


def expect_state(stage: Stage, guest: Guest, *wanted: int, driver: ComputeDriver | None = None) -> None:
    """The guest has one of these power states, at once: what brought it there has returned."""
    found = (driver or stage.driver).get_info(guest.instance, use_cache=False).state
    named = " or ".join(states.STATE_MAP[one] for one in wanted or _DEFAULT)
    expect(found in (wanted or _DEFAULT), f"the guest is {named}: found {states.STATE_MAP.get(found, found)}")


def expect_gone(stage: Stage, guest: Guest) -> None:
    """Nothing is left of the guest."""
    uuid = guest.instance.uuid
    expect(uuid not in stage.driver.list_instance_uuids(), "an instance that is gone is not listed")
    expect_equal([], list(stage.traces(guest.instance)), "what an instance that is gone has left")


@contextmanager
def raising(*errors: type[BaseException]) -> Iterator[None]:
    """The block ends with one of these errors."""
    names = " or ".join(error.__name__ for error in errors)
    try:
        yield
    except errors:
        return
    raise AssertionError(f"expected {names}, and nothing was raised")
