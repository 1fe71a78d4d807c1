"""Manifests and indexes as registries serve them: read, and held against each other, but not judged.

OCI image specification 1.1, manifest.md, image-index.md and descriptor.md; Docker's image manifest version 2, schema 2.
"""

import hashlib
from typing import Annotated, TypeVar

import msgspec

from underlay.errors import DigestMismatch, InvalidDigest, SourceRefused
from underlay.model import Digest
from underlay.web import printable

LONGEST = 4 << 20
"""Bytes of a manifest: what the distribution specification asks of registries at least, and what none goes beyond."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
"""Media types that we ask for."""

MOST_LAYERS = 256
"""Layers of a manifest. Docker's images have 127 at most; each may be a request."""

_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
_TITLE = "org.opencontainers.image.title"
_ALGORITHMS = frozenset({"sha256", "sha512"})  # those that the image specification registers


_Decoded = TypeVar("_Decoded")


class Platform(msgspec.Struct, frozen=True):
    """What a manifest of an index is for."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """What a manifest says of another piece of content. Its ``urls`` are never followed."""

    media_type: str
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    annotations: dict[str, str] | None = None
    platform: Platform | None = None

    @property
    def title(self) -> str | None:
        """The name of the file that it was made from, when it says one."""
        return (self.annotations or {}).get(_TITLE)


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """One image or artifact: a configuration and layers, the lowest first."""

    config: Descriptor | None = None
    layers: list[Descriptor] = []


class Index(msgspec.Struct, frozen=True):
    """Several manifests, of which each platform has its own."""

    manifests: list[Descriptor]


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int | None = None
    media_type: str | None = None
    layers: msgspec.Raw = msgspec.Raw()
    manifests: msgspec.Raw = msgspec.Raw()


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """The digest of content, as manifests write it."""
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def check_digest(what: str, content: bytes, expected: str) -> None:
    """Make sure that content is what a digest names.

    Raises:
        DigestMismatch
    """
    actual = digest_of(content, parse_digest(what, expected).algorithm)
    if actual != expected:
        raise DigestMismatch(what, expected=expected, actual=actual)


def parse_digest(what: str, text: str) -> Digest:
    """The digest in a descriptor.

    Raises:
        SourceRefused: it is none, or of an algorithm that the image specification does not have.
    """
    try:
        digest = Digest.parse(text)
    except InvalidDigest as error:
        raise SourceRefused(f"{what}: its manifest names something that is no digest") from error
    if digest.algorithm not in _ALGORITHMS or str(digest) != text:
        raise SourceRefused(f"{what}: its manifest has a digest of another kind than sha256 and sha512")
    return digest


def parse_manifest(what: str, content: bytes, *, media_type: str) -> Manifest | Index:
    """Read a manifest or an index.

    What it calls itself and what it was served as must be the same, and it cannot be both: the same bytes shall not be one
    thing to us and another to whoever looked at them before (CVE-2021-41190).

    Args:
        media_type: as it was served.

    Raises:
        SourceRefused
    """
    kind = _decoded(what, content, _Kind)
    served = media_type.partition(";")[0].strip().lower()
    if kind.media_type is not None and kind.media_type != served and served in {*_MANIFESTS, *_INDEXES}:
        raise SourceRefused(f"{what}: its manifest is served as something else than it calls itself")
    meant = kind.media_type or served
    if kind.schema_version != 2 or meant not in {*_MANIFESTS, *_INDEXES}:
        raise SourceRefused(
            f"{what}: its manifest is of a kind that Underlay does not read: {printable(meant) or 'it has no name'}",
            hint="push it as an OCI artifact or as a containerdisk",
        )
    if kind.layers and kind.manifests:
        raise SourceRefused(f"{what}: its manifest is an index as well")
    if meant in _INDEXES:
        index = _decoded(what, content, Index)
        _check_digests(what, index.manifests)
        return index
    manifest = _decoded(what, content, Manifest)
    if len(manifest.layers) > MOST_LAYERS:
        raise SourceRefused(f"{what}: its manifest has {len(manifest.layers)} layers, and {MOST_LAYERS} are the most")
    _check_digests(what, manifest.layers)
    return manifest


def _check_digests(what: str, descriptors: list[Descriptor]) -> None:
    for descriptor in descriptors:
        parse_digest(what, descriptor.digest)


def _decoded(what: str, content: bytes, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise SourceRefused(f"{what}: its manifest cannot be read: {printable(str(error))}") from error
