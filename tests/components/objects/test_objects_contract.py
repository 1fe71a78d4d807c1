"""The source of object stores passes the shipped conformance suite, in front of a real server of each kind."""

from collections.abc import Iterator
from itertools import count
from urllib.parse import urlsplit

import pytest
from moto_environment import s3_server
from object_places import AzurePlace, azure_place, free_port, gcs_place, s3_place
from object_stages import AzureStage, GcsStage, S3Stage, VersionedS3Stage

from underlay.testing.relay import relaying
from underlay.testing.source_suite import Case, cases

BUCKETS = count(1)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A server, started once for the tests of one process."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def gcs_stage() -> Iterator[GcsStage]:
    """A bucket on a server that serves its objects by the relay's name alone."""
    port = free_port()
    with relaying(f"http://127.0.0.1:{port}") as relay:
        with gcs_place("images", port=port, public_host=urlsplit(relay.base).netloc) as place:
            yield GcsStage(bucket=place, relay=relay)


@pytest.fixture(scope="session")
def azure() -> Iterator[AzurePlace]:
    """A container in an Azurite that is started once for the tests of one process."""
    with azure_place("images") as place:
        yield place


@pytest.mark.component("moto")
@pytest.mark.parametrize("kind", [S3Stage, VersionedS3Stage])
@pytest.mark.parametrize("case", cases(S3Stage), ids=str)
def test_buckets_of_s3_keep_the_contract(case: Case, kind: type[S3Stage], s3_url: str) -> None:
    with relaying(s3_url) as relay:
        case.run(kind(bucket=s3_place(s3_url, f"bucket-{next(BUCKETS)}"), relay=relay))


@pytest.mark.component("fake-gcs-server")
@pytest.mark.parametrize("case", cases(GcsStage), ids=str)
def test_buckets_of_google_keep_the_contract(case: Case, gcs_stage: GcsStage) -> None:
    case.run(gcs_stage)


@pytest.mark.component("azurite")
@pytest.mark.parametrize("case", cases(AzureStage), ids=str)
def test_containers_of_azure_keep_the_contract(case: Case, azure: AzurePlace) -> None:
    with relaying(azure.url.rpartition("/")[0]) as relay:
        case.run(AzureStage(bucket=azure, relay=relay))
