"""The cloud of the tests here, started once, and who uses it."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from glance_environment import Cloud, running
from glance_people import Person, person


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One cloud for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with running(shared / "glance-cloud") as started:
        yield started


@pytest.fixture(scope="session")
def people(cloud: Cloud) -> Callable[[str], Person]:
    return partial(person, cloud)


@pytest.fixture(scope="session")
def alice(people: Callable[[str], Person]) -> Person:
    return people("alice")


@pytest.fixture(scope="session")
def admin(people: Callable[[str], Person]) -> Person:
    return people("admin")
