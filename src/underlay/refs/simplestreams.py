"""Refs to the current version of a product: ``simplestreams:https://host/path/#OS:RELEASE:ARCH``."""

import re

from underlay.errors import InvalidRef
from underlay.model import ImageRef
from underlay.refs.web import DEFAULT_PORTS, web_ref

_INDEX = r"streams/v1/index\.s?json$"
_WORD = r"[A-Za-z0-9][A-Za-z0-9._+/-]*"
_PRODUCT = rf"(?P<product>{_WORD}(:{_WORD}){{2}})(:(?P<ftype>{_WORD}))?"
_NAMED_PRODUCT = rf"(?P<product>product=[A-Za-z0-9._+:/~-]+)(;ftype=(?P<ftype>{_WORD}))?"
_HINT = "write simplestreams:https://host/path/#OS:RELEASE:ARCH[:FILETYPE], or #product=NAME[;ftype=FILETYPE]"


def simplestreams_ref(rest: str) -> ImageRef:
    """Read what stands behind ``simplestreams:``: the URL under which ``streams/v1`` lies, and behind ``#`` which product.

    Raises:
        InvalidRef
    """
    url, _, chosen = rest.partition("#")
    if url.partition(":")[0].lower() not in DEFAULT_PORTS or "?" in url:
        raise InvalidRef("the simplestreams ref names no web address without a query", hint=_HINT)
    base = web_ref(url.partition(":")[0].lower(), re.sub(r"([^/])$", r"\1/", re.sub(_INDEX, "", url)))
    named, product = re.fullmatch(_NAMED_PRODUCT, chosen), re.fullmatch(_PRODUCT, chosen)
    if named:
        wanted = chosen
    elif product:
        wanted = product["product"].lower() + (f":{product['ftype']}" if product["ftype"] else "")
    else:
        raise InvalidRef(f"the simplestreams ref to {base.canonical} does not say which product", hint=_HINT)
    return ImageRef(
        scheme="simplestreams",
        canonical=f"simplestreams:{base.canonical}#{wanted}",
        location=f"{base.location}#{wanted}",
    )
