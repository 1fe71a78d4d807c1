"""``oci://host/repository:tag`` and ``oci://host/repository@sha256:…``: a tag is resolved to a digest, and that is fetched.

What a registry says is believed only where its bytes have the digest that names them: the manifest's is computed here, that of
an artifact's layer by the ingest, and that of a containerdisk's layer on its way.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from underlay.contracts import ByteStream
from underlay.errors import DigestMismatch, ImageNotFound, SourceRefused
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id
from underlay.run import PLAIN_ENVIRONMENT
from underlay.sources.oci.choice import Artifact, ContainerDisk, choose_disk, choose_manifest, platform_of_machine
from underlay.sources.oci.containerdisk import DiskInLayer, check_layer
from underlay.sources.oci.manifest import (
    ACCEPTED,
    LONGEST,
    Descriptor,
    Manifest,
    check_digest,
    digest_of,
    parse_digest,
    parse_manifest,
)
from underlay.sources.oci.place import Place
from underlay.sources.oci.registry import Registries
from underlay.values import replace
from underlay.web import Web

_ACCEPT = {"Accept": ", ".join(ACCEPTED)}
_DIGEST = "Docker-Content-Digest"
_DEEPEST = 3  # indexes within indexes; nobody is known to have more than two


@dataclass(frozen=True, slots=True, kw_only=True)
class OciSource:
    """OCI registries.

    Attributes:
        plain_http: hosts that are asked without TLS, with their ports, as refs name them.
        auth_files: where logins are looked for when a registry wants one.
        environment: of the programs that keep logins for docker.
        platform: as ``os/architecture``, for images that are there for several; None: this host's.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"oci"})
    web: Web
    plain_http: frozenset[str] = frozenset()
    auth_files: Sequence[Path] = ()
    environment: Callable[[], Mapping[str, str]] = lambda: PLAIN_ENVIRONMENT
    platform: str | None = None
    revalidate_after: float = 300.0
    stale_if_error: bool = True
    _registries: Registries = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        registries = Registries(
            web=self.web, plain_http=self.plain_http, auth_files=self.auth_files, environment=self.environment
        )
        object.__setattr__(self, "_registries", registries)

    def fixed_id(self, ref: ImageRef) -> str | None:
        """The version id when the ref has a digest.

        An index has an image for each platform, with an id of its own; so by an index's digest no image is ever found, and
        the registry is asked.
        """
        place = Place.of(ref)
        return None if place.digest is None else place.version_id(place.digest)

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """What the ref fixes, else of the content alone: a manifest's digest, of which ids are made, it does not tell."""
        return self.fixed_id(ref) or content_version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the ref is now: the manifest that its tag means, or that of this platform in the index that it means.

        A version that is here is asked about by a HEAD, which registries do not count against a limit of pulls.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, UntrustedCertificate, SourceUnavailable, ConfigError: the logins.
            DigestMismatch: a manifest is not what names it.
        """
        place, what = Place.of(ref), str(ref)
        if known and (validator := self._validator(self._asked_digest(what, place))) in known:
            return ImageVersion(ref=ref, validator=validator)
        named, digest, manifest = self._resolved(what, place)
        version = ImageVersion(ref=ref, id=place.version_id(digest), validator=self._validator(named))
        return _described(what, version, choose_disk(what, manifest, place.part))

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """The disk's bytes from ``offset`` on, of exactly the manifest that was described.

        The bytes of an artifact's layer are begun at ``offset``. A containerdisk's layer is read from its beginning, because
        nothing tells where in it the disk goes on; its digest is that of all of it, so bytes of an earlier stream that broke
        are not proven by this one.

        Raises:
            as `describe`. While a containerdisk is read: SourceRefused, UnsafeImage, DigestMismatch, and as every stream.
        """
        assert version.id is not None
        place, what = Place.named(version.id), str(version.ref)
        _, _, manifest = self._resolved(what, place)
        disk = choose_disk(what, manifest, place.part)
        if isinstance(disk, Artifact):
            with self._registries.blob(what, place, disk.layer.digest, size=disk.layer.size, offset=offset) as blob:
                yield blob
            return
        with self._found(what, place, disk) as found:
            found.skip(offset)
            yield found

    @contextmanager
    def _found(self, what: str, place: Place, disk: ContainerDisk) -> Iterator[DiskInLayer]:
        for layer in disk.layers:
            with self._registries.blob(what, place, layer.digest, size=layer.size) as blob:
                found = DiskInLayer(what, layer, blob, place.part)
                if found.find():
                    yield found
                    return
        if place.part is not None:
            raise ImageNotFound(f"{what}: no layer has this file in disk/")
        raise SourceRefused(f"{what} is a container image without a disk", hint="a containerdisk has one file in disk/")

    def _asked_digest(self, what: str, place: Place) -> str:
        """The digest of what a ref means now, by the registry's word; empty when it does not say."""
        with self._registries.answer(what, "HEAD", place, f"manifests/{place.reference}", headers=_ACCEPT) as answer:
            return str(answer.headers.get(_DIGEST, ""))

    def _validator(self, digest: str) -> str:
        # An index means other bytes to another platform.
        return f"{digest};{self._platform}"

    @property
    def _platform(self) -> str:
        return self.platform or platform_of_machine(os.uname().machine)

    def _resolved(self, what: str, place: Place) -> tuple[str, str, Manifest]:
        """The digest that the place names, and the manifest that is for this platform, with its own digest."""
        named, content, media_type = self._document(what, place, place.reference)
        digest = named
        for _ in range(_DEEPEST):
            found = parse_manifest(what, content, media_type=media_type)
            if isinstance(found, Manifest):
                return named, digest, found
            chosen = choose_manifest(what, found, self._platform)
            digest, content, media_type = self._document(what, place, chosen.digest, described=chosen)
        raise SourceRefused(f"{what} is an index of indexes of indexes")

    def _document(
        self, what: str, place: Place, reference: str, *, described: Descriptor | None = None
    ) -> tuple[str, bytes, str]:
        """A manifest or an index: its digest, its bytes, and what it is served as."""
        with self._registries.answer(what, "GET", place, f"manifests/{reference}", headers=_ACCEPT) as answer:
            answer.check_encoding()
            content = answer.read(LONGEST)
            told, media_type = answer.headers.get(_DIGEST), answer.headers.get("Content-Type", "")
        if ":" in reference:
            check_digest(f"the manifest of {what}", content, reference)
            if described is not None and described.size != len(content):
                raise SourceRefused(f"{what}: a manifest has another size than its index says")
            return reference, content, media_type
        digest = digest_of(content)
        # A registry may name it by another algorithm than ours.
        if told is not None and told.startswith("sha256:") and told != digest:
            raise DigestMismatch(f"the manifest of {what}", expected=told, actual=digest)
        return digest, content, media_type


def _described(what: str, version: ImageVersion, disk: Artifact | ContainerDisk) -> ImageVersion:
    if isinstance(disk, Artifact):
        return replace(version, size=disk.layer.size, digests=(parse_digest(what, disk.layer.digest),))
    for layer in disk.layers:
        check_layer(what, layer)
    # What has come of one stream is proven at the end of that stream, and of no other: a registry that breaks off after it has
    # sent wrong bytes must not have them kept because it then sends the right ones.
    return replace(version, resumable=False)
