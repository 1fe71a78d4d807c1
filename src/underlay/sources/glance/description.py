"""What Glance says of an image, as one version of it. Pure: its API's JSON in, our types out.

The fields are those of version 2 of the Image API (docs.openstack.org/api-ref/image/v2), of which an image's owner writes every
property that is not Glance's own.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec

from underlay.errors import FormatMismatch, ImageNotFound, InvalidDigest, SourceRefused, SourceUnavailable
from underlay.model import Digest, ImageRef, ImageVersion, Signature

_GIB = 1 << 30
_LATER = frozenset({"saving", "uploading", "importing"})
GONE = frozenset({"killed", "deleted", "pending_delete"})
# A kernel or a ramdisk names itself in both fields. What is compressed is so as a whole, and its bytes tell.
_CONTAINERS = frozenset({"bare", "ami", "ari", "aki", "compressed", None})
_GLANCES_OWN = frozenset(
    {
        *("id", "name", "status", "visibility", "protected", "owner", "owner_id", "tags", "stores", "os_hidden"),
        *("size", "checksum", "os_hash_algo", "os_hash_value", "disk_format", "container_format", "min_disk"),
        *("created_at", "updated_at", "direct_url", "locations", "file", "schema", "self"),
    }
)
_ENDPOINT = "check the image endpoint in the catalogue, or endpoints under [sources.glance]"

_Bytes = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Small = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]


class Location(msgspec.Struct, frozen=True):
    """Where a store of Glance's has the bytes."""

    url: str


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as Glance shows it.

    Attributes:
        min_disk: GiB. properties: what the image's owner has said of it, and what a guest needs.
    """

    id: str
    status: str
    size: _Bytes | None = None
    disk_format: str | None = None
    container_format: str | None = None
    min_disk: _Small = 0
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    direct_url: str | None = None
    locations: list[Location] = []
    properties: dict[str, str] = {}

    @property
    def places(self) -> Sequence[str]:
        """Where its bytes are, where Glance is configured to say so; may hold a store's password."""
        return tuple(url for url in (self.direct_url, *(one.url for one in self.locations)) if url)


def read_image(ref: ImageRef, body: bytes) -> Image:
    """The image in an answer.

    Raises:
        SourceRefused: it is none, or another one.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        image = msgspec.convert({**fields, "properties": _properties(fields)}, Image)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceRefused(
            f"{ref}: what answers is no Glance, or one of another version of its API", hint=_ENDPOINT
        ) from error
    if image.id.lower() != ref.location:
        raise SourceRefused(f"{ref}: Glance answers with another image", hint=_ENDPOINT)
    return image


def _properties(fields: Mapping[str, Any]) -> dict[str, str]:
    told = {key: value for key, value in fields.items() if key not in _GLANCES_OWN}
    return {key: str(value) for key, value in told.items() if isinstance(value, str | int)}


def check_status(ref: ImageRef, image: Image) -> None:
    """Make sure that the image has bytes. One that is deactivated has; some may have them all the same.

    Raises:
        SourceUnavailable: they are on their way into Glance. ImageNotFound: there are none.
    """
    if image.status in _LATER:
        raise SourceUnavailable(f"{ref} has no data yet: it is {image.status}", hint="try again when it is active")
    if image.status == "queued":
        raise ImageNotFound(f"{ref} has no data: it is queued", hint="upload its data to Glance")
    if image.status in GONE:
        raise ImageNotFound(f"{ref} is gone: it is {image.status}")


def version_of(
    ref: ImageRef, image: Image, *, allow_md5: bool, found_at: str | None = None, signature: Signature | None = None
) -> ImageVersion:
    """The image's one version: Glance never changes the bytes of an image.

    Args:
        allow_md5: an MD5 proves the bytes where Glance has nothing better.

    Raises:
        FormatMismatch: it is in a container that is no disk image. SourceRefused: its digest cannot be verified.
    """
    if image.container_format not in _CONTAINERS:
        container = f"it is in the container format {image.container_format!r}"
        raise FormatMismatch(f"{ref} is no disk image: {container}", hint="upload the disk image that is in it")
    return ImageVersion(
        ref=ref,
        id=ref.location,
        size=image.size,
        disk_format=image.disk_format,
        digests=_digests(ref, image, allow_md5=allow_md5),
        min_disk=image.min_disk * _GIB,
        signature=signature,
        properties=image.properties,
        found_at=found_at,
        locations=tuple(image.places),
    )


def _digests(ref: ImageRef, image: Image, *, allow_md5: bool) -> tuple[Digest, ...]:
    """What Glance promises of the bytes; nothing of an image that was registered where it lay, without being read."""
    promised = (image.os_hash_algo, image.os_hash_value)
    with suppress(InvalidDigest):
        return (Digest.parse("{}:{}".format(*promised)),)
    with suppress(InvalidDigest):
        if allow_md5:
            return (Digest.parse(f"md5:{image.checksum}"),)
    if promised == (None, None) and image.checksum is None:
        return ()
    if promised == (None, None) and not allow_md5:
        raise SourceRefused(f"{ref}: Glance has no digest of it but an MD5", hint="set allow_md5 = true under [sources.glance]")
    raise SourceRefused(f"{ref}: Glance's digest of it ({image.os_hash_algo or 'md5'}) is none that we can verify")
