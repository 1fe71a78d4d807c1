"""Refs to images in Glance: a UUID, ``glance:UUID``, and ``glance://HOST[:PORT]/UUID`` of one endpoint."""

import re
from urllib.parse import urlsplit

from underlay.errors import InvalidRef
from underlay.model import ImageRef
from underlay.refs.text import shown

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def uuid_ref(uuid: str) -> ImageRef:
    """The ref of an image by its UUID alone."""
    return ImageRef(scheme="glance", canonical=f"glance:{uuid.lower()}", location=uuid.lower())


def glance_ref(text: str, rest: str) -> ImageRef:
    """Read what stands behind ``glance:``; ``//UUID`` is as Ironic writes it.

    Raises:
        InvalidRef
    """
    endpoint, slash, uuid = rest.removeprefix("//").rpartition("/")
    if not UUID.fullmatch(uuid) or (slash and not rest.startswith("//")):
        raise InvalidRef(f"the ref {shown(text)!r} is no Glance image", hint="write glance:UUID, or glance://HOST:PORT/UUID")
    if not slash:
        return uuid_ref(uuid)
    canonical = f"glance://{_endpoint(endpoint)}/{uuid.lower()}"
    return ImageRef(scheme="glance", canonical=canonical, location=uuid.lower())


def _endpoint(text: str) -> str:
    """A host with its port, if it has one, in lower case; nothing else, because a token may go there."""
    refused = InvalidRef("the Glance ref names no endpoint", hint="write glance://HOST:PORT/UUID, without a user")
    try:
        url = urlsplit(f"//{text}")
        host, port = url.hostname, url.port
    except ValueError as error:
        raise refused from error
    if not host or re.search(r"[\s@/?#\\]", text):
        raise refused
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"
