"""The source of OCI registries, with a real registry behind it that wants a password, for the shipped conformance suite."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import urllib3
from pushing import CONFIG, DISK, OCI_CONFIG, OCI_EMPTY, OCI_TAR, Document, Pusher, artifact, digest, disk_layer, encoded, image
from registry_server import LOGIN, PASSWORD, USER

from underlay.contracts import ImageSource
from underlay.sources.oci.source import OciSource
from underlay.testing.relay import Fault, Relay
from underlay.testing.source_suite import Announced, Away, Cut, Forbidden, Replaced, Silent, Slow, Stalled, Trouble, Withdrawn
from underlay.web import Web


@dataclass(slots=True)
class ArtifactStage:
    """Artifacts in a registry, behind a relay that misbehaves.

    Attributes:
        logins: the file that the source finds its login in.
    """

    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({})
    relay: Relay
    pusher: Pusher
    logins: Path
    patience: float = 6.0
    secrets: Sequence[str] = (PASSWORD, LOGIN)
    pushed: dict[str, Document] = field(default_factory=dict)
    web: Web = field(default_factory=lambda: Web(connect_timeout=2, read_timeout=1.2))

    def __post_init__(self) -> None:
        self._allow(LOGIN)

    @property
    def source(self) -> ImageSource:
        return OciSource(web=self.web, plain_http=frozenset({self.place}), auth_files=(self.logins,), revalidate_after=0)

    @property
    def place(self) -> str:
        return self.relay.base.removeprefix("http://")

    @property
    def unsafe_refs(self) -> Sequence[str]:
        return (
            "oci://",
            "oci:image",
            f"oci://{self.place}/",
            f"oci://{self.place}/../etc/passwd",
            f"oci://{self.place}/v2/..%2f..%2fsecret:1",
            f"oci://{self.place}/{self.pusher.repository}:../1",
            f"oci://{self.place}/{self.pusher.repository}:1?x=y",
            f"oci://{self.place}/{self.pusher.repository}@sha256:1",
            f"oci://{self.place}/{self.pusher.repository}:1#nothing/../of-this",
        )

    def put(self, content: bytes) -> str:
        tag = f"tag-{len(self.pushed)}"
        self._push(tag, self._manifest(content))
        return f"oci://{self.place}/{self.pusher.repository}:{tag}"

    @contextmanager
    def trouble(self, ref: str, trouble: Trouble) -> Iterator[None]:
        tag = ref.rpartition(":")[2]
        before = self.pushed[tag]
        self._make(tag, before, trouble)
        try:
            yield
        finally:
            self.relay.behave()
            self.relay.come_back()
            self._allow(LOGIN)
            self._push(tag, before)

    def _make(self, tag: str, manifest: Document, trouble: Trouble) -> None:
        blob = f"*/blobs/{manifest['layers'][0]['digest']}"
        match trouble:
            case Replaced(content):
                self._push(tag, self._manifest(content))
            case Withdrawn():
                self.pusher.remove_manifest(digest(encoded(manifest)))
            case Forbidden():
                self._allow("dXNlcjphbm90aGVy")
            case Away():
                self.relay.go_away()
            case Silent():
                self.relay.misbehave("*/manifests/*", Fault(silent=True))
            case Stalled(after):
                self.relay.misbehave(blob, Fault(stall_after=after))
            case Slow(rate):
                self.relay.misbehave(blob, Fault(rate=rate))
            case Cut(after):
                self.relay.misbehave(blob, Fault(cut_after=after))
            case Announced(size):
                [layer] = manifest["layers"]
                self._push(tag, artifact({**layer, "size": size}))

    def _manifest(self, content: bytes) -> Document:
        self.pusher.blob(OCI_EMPTY, b"{}")
        return artifact(self.pusher.blob(DISK, content))

    def _push(self, tag: str, manifest: Document) -> None:
        self.pusher.manifest(tag, manifest)
        self.pushed[tag] = manifest

    def _allow(self, login: str) -> None:
        self.logins.write_text(json.dumps({"auths": {self.place: {"auth": login}}}))


@dataclass(slots=True)
class ContainerdiskStage(ArtifactStage):
    """Containerdisks there."""

    cannot: ClassVar[Mapping[type, str]] = MappingProxyType(
        {
            Announced: "nothing tells the size of a disk in a layer before it is read",
            Cut: "each transfer of a layer begins at its first byte, and one that breaks there each time gets no further",
            Stalled: "as it is cut off",
        }
    )

    def _manifest(self, content: bytes) -> Document:
        self.pusher.blob(OCI_CONFIG, CONFIG)
        return image(self.pusher.blob(f"{OCI_TAR}+gzip", disk_layer(content, compression="gzip")))


def logged_in(url: str, repository: str) -> Pusher:
    """Pushes to a repository behind Basic authentication."""
    return Pusher(url, repository, headers=dict(urllib3.make_headers(basic_auth=f"{USER}:{PASSWORD}")))
