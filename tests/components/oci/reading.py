"""What the tests of registries share: the source as it is configured, what it gives, and a registry with its tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pushing import Pusher
from registry_server import SERVICE, RunningRegistry, TokenMaker

from underlay.model import ImageVersion
from underlay.refs import parse_ref
from underlay.run import PLAIN_ENVIRONMENT
from underlay.sources.oci.source import OciSource
from underlay.stream import filled
from underlay.testing.httpserver import Served, Server
from underlay.web import Web


@dataclass(frozen=True, slots=True)
class TokenRegistry:
    """A registry that wants tokens, and the server that gives them."""

    registry: RunningRegistry
    server: Server
    maker: TokenMaker

    def gives(self, *tokens: str, field: str = "token", credentials: str | None = None) -> None:
        """From now on the server gives these tokens, in turn."""
        self._serve([Served(json.dumps({field: token}).encode(), credentials=credentials) for token in tokens])

    def gives_for(self, identity_token: str, *tokens: str) -> None:
        """From now on the server gives these tokens, in turn, to who posts this identity token (OAuth 2, RFC 6749, 6)."""
        form = {"grant_type": "refresh_token", "service": SERVICE, "refresh_token": identity_token}
        self._serve([Served(json.dumps({"access_token": token, "expires_in": 60}).encode(), form=form) for token in tokens])

    def _serve(self, answers: Sequence[Served]) -> None:
        self.server.serve("/token", answers)

    def pusher(self, repository: str) -> Pusher:
        token = self.maker.token(repository, "pull", "push", "delete")
        return Pusher(self.registry.url, repository, headers={"Authorization": f"Bearer {token}"})


def source_for(
    running: RunningRegistry, *files: Path, platform: str = "linux/amd64", environment: Mapping[str, str] = PLAIN_ENVIRONMENT
) -> OciSource:
    return OciSource(
        web=Web(),
        plain_http=frozenset({running.host}),
        auth_files=files,
        platform=platform,
        environment=lambda: environment,
    )


def read(source: OciSource, version: ImageVersion, *, offset: int = 0) -> bytes:
    with source.open(version, offset=offset) as stream:
        return b"".join(map(bytes, filled(stream)))


def fetch(source: OciSource, ref: str) -> bytes:
    return read(source, source.describe(parse_ref(ref)))


def ref_to(pusher: Pusher, reference: str = ":1") -> str:
    return f"oci://{pusher.url.removeprefix('http://')}/{pusher.repository}{reference}"
