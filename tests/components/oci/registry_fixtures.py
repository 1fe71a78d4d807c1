"""Registries of the tests here, each started once, and repositories in them, each new."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pushing import Pusher
from reading import TokenRegistry, source_for
from registry_server import RunningRegistry, TokenMaker, basic_authentication, registry

from underlay.sources.oci.source import OciSource
from underlay.testing.httpserver import serving


@pytest.fixture(scope="session")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry that asks nobody who they are."""
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def basic_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry behind Basic authentication."""
    directory = tmp_path_factory.mktemp("basic-registry")
    with registry(directory, authentication=basic_authentication(directory)) as running:
        yield running


@pytest.fixture(scope="session")
def token_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenRegistry]:
    """A registry behind tokens."""
    directory, maker = tmp_path_factory.mktemp("token-registry"), TokenMaker.make()
    with serving({}) as server:
        authentication = maker.authentication(directory, realm=server.url("/token?kept=yes"))
        with registry(directory, authentication=authentication) as running:
            yield TokenRegistry(running, server, maker)


@pytest.fixture
def repository() -> str:
    """A name of its own for each test."""
    return f"test/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def pusher(open_registry: RunningRegistry, repository: str) -> Pusher:
    """Pushes to a new repository of the open registry."""
    return Pusher(open_registry.url, repository)


@pytest.fixture
def source(open_registry: RunningRegistry) -> OciSource:
    """The source, as it is configured for the open registry."""
    return source_for(open_registry)


@pytest.fixture
def logins(tmp_path: Path) -> Path:
    """A file for logins, with the right one for no registry yet."""
    return tmp_path / "config.json"
