"""The source of OCI registries passes the shipped conformance suite, in front of the real registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_stage import ArtifactStage, ContainerdiskStage, logged_in
from registry_server import RunningRegistry

from underlay.testing.relay import Relay, relaying
from underlay.testing.source_suite import Case, cases

pytest_plugins = ["registry_fixtures"]
pytestmark = pytest.mark.component("docker-registry")


@pytest.fixture
def relay(basic_registry: RunningRegistry) -> Iterator[Relay]:
    with relaying(basic_registry.url) as running:
        yield running


@pytest.mark.parametrize("case", cases(ArtifactStage), ids=str)
def test_artifacts_keep_the_contract(
    case: Case, relay: Relay, basic_registry: RunningRegistry, repository: str, logins: Path
) -> None:
    case.run(ArtifactStage(relay=relay, pusher=logged_in(basic_registry.url, repository), logins=logins))


@pytest.mark.parametrize("case", cases(ContainerdiskStage), ids=str)
def test_containerdisks_keep_the_contract(
    case: Case, relay: Relay, basic_registry: RunningRegistry, repository: str, logins: Path
) -> None:
    case.run(ContainerdiskStage(relay=relay, pusher=logged_in(basic_registry.url, repository), logins=logins))
