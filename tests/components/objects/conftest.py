"""The object stores, each started once for the tests of one process."""

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from moto_environment import s3_server
from object_places import AzurePlace, GcsPlace, S3Place, azure_place, gcs_place, s3_place


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def bucket_names() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"images-{next(numbers)}"


@pytest.fixture
def s3(s3_url: str, bucket_names: Callable[[], str]) -> S3Place:
    """A new bucket."""
    return s3_place(s3_url, bucket_names())


@pytest.fixture(scope="session")
def gcs() -> Iterator[GcsPlace]:
    with gcs_place("images") as place:
        yield place


@pytest.fixture(scope="session")
def azure() -> Iterator[AzurePlace]:
    with azure_place("images") as place:
        yield place
