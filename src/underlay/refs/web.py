"""Refs to web servers: ``https://…`` and ``http://…``."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from underlay.errors import InvalidRef
from underlay.model import ImageRef
from underlay.refs.text import without_signature

DEFAULT_PORTS: Mapping[str, int] = MappingProxyType({"http": 80, "https": 443})


def web_ref(scheme: str, text: str) -> ImageRef:
    """Read a URL.

    Raises:
        InvalidRef
    """
    # What cannot be read as a URL may hold its password or signature anywhere, so no message repeats it.
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise InvalidRef(f"the {scheme} ref is no URL", hint="check its host and its port") from error
    if not url.hostname or "" in url.hostname.removesuffix(".").split("."):
        raise InvalidRef(f"the {scheme} ref names no host", hint=f"write {scheme}://host/path")
    if re.search(r"\s", text):
        raise InvalidRef(f"the {scheme} ref to {url.hostname} has white space", hint="write %20 for a blank")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    authority = host if port in (None, DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    query = without_signature(url)
    canonical = f"{scheme}://{authority}{url.path or '/'}{'?' + query if query else ''}"
    return ImageRef(scheme=scheme, canonical=canonical, location=url._replace(fragment="").geturl())
