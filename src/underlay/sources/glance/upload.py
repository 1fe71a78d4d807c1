"""An image's data on its way into Glance: its format is said, its bytes are sent, and what Glance has of them is looked at.

Glance takes an image's data once, and whole: an image whose sender is cut off is queued again
(https://docs.openstack.org/api-ref/image/v2/#upload-binary-image-data).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any

from underlay.errors import ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
from underlay.files import translated
from underlay.model import ImageRef
from underlay.sources.glance.api import Api, url_of
from underlay.sources.glance.description import GONE, Image
from underlay.values import replace
from underlay.web import Answer, check_status
from underlay.web.client import host_of

_PATCH = "application/openstack-images-v2.1-json-patch"
_BYTES = "application/octet-stream"
_CONTAINER = "bare"
_PIECE = 1 << 20
_PATIENCE = 900.0  # seconds that Glance may take for a piece, and at the end, for its store to have all of them
_DIGEST = "sha512"  # what Glance computes, unless it is configured otherwise
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """One change of an image.

    Attributes:
        content: makes what is sent; called again when it has to be sent again.
    """

    ref: ImageRef
    endpoint: str
    method: str
    below: str
    fields: Mapping[str, str]
    content: Callable[[], bytes | Iterable[bytes]]


@dataclass(slots=True)
class _Pieces:
    """The bytes of a file, and the digest of those that were sent."""

    file: RawIOBase
    digest: Any = field(default_factory=lambda: hashlib.new(_DIGEST))

    def again(self) -> Iterator[bytes]:
        """All of them, from the first."""
        self.file.seek(0)
        self.digest = hashlib.new(_DIGEST)
        while piece := self.file.read(_PIECE):
            self.digest.update(piece)
            yield piece


def check_waits(api: Api, ref: ImageRef) -> str:
    """Make sure that an image is there and has no data yet; the endpoint that says so.

    Raises:
        ImageNotFound; SourceRefused: it has its data. As `Api.image`
    """
    image, endpoint = _there(api, ref)
    if image.status != "queued":
        raise SourceRefused(f"{ref} waits for no data: it is {image.status}", hint="upload to an image that is queued")
    return endpoint


def has(api: Api, ref: ImageRef, path: Path) -> bool:
    """Whether an image has all of a file.

    Raises:
        ImageNotFound; as `Api.image`
    """
    image, _ = _there(api, ref)
    with translated(path), path.open("rb", buffering=0) as file:
        if image.status != "active" or image.size != path.stat().st_size or image.os_hash_algo != _DIGEST:
            return False
        return image.os_hash_value == hashlib.file_digest(file, _DIGEST).hexdigest()


def _there(api: Api, ref: ImageRef) -> tuple[Image, str]:
    image, endpoint = api.image(ref)
    if image.status in GONE:
        raise ImageNotFound(f"{ref} is gone: it is {image.status}")
    return image, endpoint


def upload(api: Api, ref: ImageRef, path: Path, *, disk_format: str) -> None:
    """Say an image's format, and give it its data.

    Raises:
        NotAuthorized: who asks may not. SourceUnavailable: Glance broke off, and has no data, or none yet. As `check_waits`
    """
    _refuse_while_saving(api, ref)
    endpoint = check_waits(api, ref)
    said = {"disk_format": disk_format, "container_format": _CONTAINER}
    patch = json.dumps([{"op": "add", "path": f"/{name}", "value": value} for name, value in said.items()]).encode()
    fields = {"Content-Type": _PATCH}
    # crash: an image of this format that is queued
    _make(api, _Change(ref=ref, endpoint=endpoint, method="PATCH", below="", fields=fields, content=lambda: patch))
    with translated(path), path.open("rb", buffering=0) as file:
        size, pieces = path.stat().st_size, _Pieces(file)
        fields = {"Content-Type": _BYTES, "Content-Length": str(size)}
        # crash: Glance has fewer bytes than were announced, keeps none of them, and the image is queued again
        try:
            _make(api, _Change(ref=ref, endpoint=endpoint, method="PUT", below="/file", fields=fields, content=pieces.again))
        except SourceUnavailable:
            if api.image(ref)[0].status != "active":
                raise  # else only its answer was lost, and what it has tells whether that is all
    _check(ref, api.image(ref)[0], size=size, digest=pieces.digest.hexdigest())


def _refuse_while_saving(api: Api, ref: ImageRef) -> None:
    """Glance takes a moment to see that a sender is gone, and another to have what it was sent."""
    if api.image(ref)[0].status == "saving":
        raise SourceUnavailable(f"{ref}: Glance still takes the data of an earlier upload", hint="try again")


def _make(api: Api, change: _Change) -> None:
    """Make a change; when Glance refuses the token, which may have ended, once more with another."""
    what, identity = str(change.ref), api.identity
    headers = identity.headers(what)
    with _answer(api, change, headers) as answer:
        if answer.status != _UNAUTHORIZED:
            _judge(api, change, answer)
            return
    with _answer(api, change, identity.renewed(what, headers)) as answer:
        _judge(api, change, answer)


@contextmanager
def _answer(api: Api, change: _Change, headers: Mapping[str, str]) -> Iterator[Answer]:
    what, url = str(change.ref), f"{url_of(change.ref, change.endpoint)}{change.below}"
    client = replace(api.identity.client(what), connect_timeout=_PATIENCE, read_timeout=_PATIENCE)
    fields = {**headers, **change.fields}
    with client.send(what, change.method, url, change.content(), headers=fields) as answer:
        yield answer


def _judge(api: Api, change: _Change, answer: Answer) -> None:
    if answer.status in range(200, 300):
        return
    ref, glance = change.ref, f"Glance at {host_of(change.endpoint)}"
    try:
        check_status(str(ref), answer)
    except ImageNotFound as error:
        raise ImageNotFound(f"{ref}: {glance} has no such image any more", hint="it was deleted meanwhile") from error
    except NotAuthorized as error:
        who = api.identity.who(str(ref))
        raise NotAuthorized(f"{ref}: {glance} does not let {who} give it its data", hint="ask the cloud's operator") from error


def _check(ref: ImageRef, image: Image, *, size: int, digest: str) -> None:
    is_other = image.os_hash_algo == _DIGEST and image.os_hash_value != digest
    if image.status != "active" or image.size != size or is_other:
        told = f"it is {image.status} and has {image.size} bytes, of {size} that were sent"
        raise SourceRefused(f"{ref}: Glance does not have what was uploaded: {told}", hint="delete it, and upload another")
