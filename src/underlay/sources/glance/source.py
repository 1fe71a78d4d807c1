"""Images in Glance: an image's UUID is its version, because Glance never changes the bytes of an image."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from underlay.contracts import ByteStream
from underlay.errors import SourceError
from underlay.model import ImageRef, ImageVersion
from underlay.plainfiles import FileStream, opened, settled, validator_of
from underlay.sources.glance import upload
from underlay.sources.glance.api import Api
from underlay.sources.glance.description import Image, check_status, version_of
from underlay.sources.glance.identity import Identity
from underlay.sources.glance.signature import signature_of
from underlay.values import replace
from underlay.web import Web


@dataclass(frozen=True, slots=True, kw_only=True)
class GlanceSource:
    """OpenStack's image service. The cloud's configuration is read, and Keystone asked, when the first image is.

    Attributes:
        cloud: its name in clouds.yaml; None: the environment's, or the only one. region, interface: of its catalogue.
        endpoints: URLs of Glance in place of the catalogue's, in the order in which they are asked.
        allow_md5: an MD5 proves the bytes of an image that Glance has no better digest of.
        direct_locations: directories from which bytes are read when Glance says that they are there.
        certificates: the directory of those that must have signed every image; None: signatures are not looked at.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"glance"})
    revalidate_after: float = 0.0
    stale_if_error: bool = True
    cloud: str | None = None
    region: str | None = None
    interface: str | None = None
    endpoints: tuple[str, ...] = ()
    allow_md5: bool = False
    direct_locations: tuple[Path, ...] = ()
    certificates: Path | None = None
    web: Web = field(default_factory=Web)
    _api: Api = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        identity = Identity(cloud=self.cloud, region=self.region, interface=self.interface, web=self.web)
        object.__setattr__(self, "_api", Api(identity=identity, endpoints=self.endpoints))

    def fixed_id(self, ref: ImageRef) -> str | None:
        """The UUID."""
        return ref.location

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The UUID."""
        return ref.location

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What Glance says of the image.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable, UntrustedCertificate; FormatMismatch: it is no disk
            image; SignatureRefused; ConfigError: nothing can be made of the cloud's configuration; ExtraMissing
        """
        image, endpoint = self._api.image(ref)
        check_status(ref, image)
        signature = None
        if self.certificates is not None:
            signature = signature_of(str(ref), image.properties, certificates=self.certificates, now=datetime.now(UTC))
        found_at = self._direct_location(image) or endpoint
        return version_of(ref, image, allow_md5=self.allow_md5, found_at=found_at, signature=signature)

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """The bytes as they were uploaded, from ``offset`` on; from a file of Glance's store where that is configured.

        Raises:
            as `describe`; SourceChanged when Glance has other bytes.
        """
        with ExitStack() as stack:
            stream = self._direct_stream(stack, version, offset)
            yield stream or stack.enter_context(self._api.body(version, offset=offset, first=version.found_at))

    def check_waits(self, ref: ImageRef, *, token: str | None = None) -> None:
        """As `underlay.contracts.ImageReceiver` has it.

        Raises:
            ImageNotFound, SourceRefused, NotAuthorized, SourceUnavailable, UntrustedCertificate, ConfigError, ExtraMissing
        """
        upload.check_waits(self._api_for(token), ref)

    def upload(self, ref: ImageRef, path: Path, *, disk_format: str, token: str | None = None) -> None:
        """As `underlay.contracts.ImageReceiver` has it; what Glance then says of the bytes is compared with what was sent.

        Raises:
            as `check_waits`
        """
        upload.upload(self._api_for(token), ref, path, disk_format=disk_format)

    def has(self, ref: ImageRef, path: Path, *, token: str | None = None) -> bool:
        """As `underlay.contracts.ImageReceiver` has it, by the size and the digest that Glance tells.

        Raises:
            as `check_waits`
        """
        return upload.has(self._api_for(token), ref, path)

    def _api_for(self, token: str | None) -> Api:
        if token is None:
            return self._api
        return replace(self._api, identity=replace(self._api.identity, token=token))

    def _direct_location(self, image: Image) -> str | None:
        """The URL of the file that has the bytes, below a directory from which they may be read."""
        for place in image.places:
            path = _path_of(place)
            if path is not None and any(path.is_relative_to(allowed) for allowed in self.direct_locations):
                return place
        return None

    def _direct_stream(self, stack: ExitStack, version: ImageVersion, offset: int) -> ByteStream | None:
        """The file's bytes; None when it is not here, not readable or not the image: then Glance serves them."""
        path = _path_of(version.found_at or "")
        if path is None:
            return None
        what = f"{version.ref} ({path})"
        try:
            fd = stack.enter_context(opened(what, str(path), allowed=self.direct_locations, hint="see direct_locations"))
        except SourceError:
            return None
        status = settled(fd)
        if version.size not in (None, status.st_size):
            return None
        return FileStream(fd, what, status.st_size, validator_of(status), offset)


def _path_of(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None
