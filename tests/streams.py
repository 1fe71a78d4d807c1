"""Product streams on the loopback server, as publishers lay them out; signed by keys that gpg made, or by nobody."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from underlay.testing.httpserver import Served, Server

UBUNTU = "com.ubuntu.cloud:server:24.04:amd64"
CONTENT_ID = "com.ubuntu.cloud:released:download"
Document = dict[str, Any]
Sign = Callable[[bytes], bytes]


def item(content: bytes, path: str, *, ftype: str = "disk1.img", **changes: object) -> Document:
    """A file of a version, as a list has it."""
    return {"ftype": ftype, "path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes}


def product(versions: Mapping[str, Mapping[str, Document]], **tags: object) -> Document:
    """A product with its versions; each is the items by their names."""
    return {
        "os": "ubuntu",
        "release": "noble",
        "release_title": "24.04 LTS",
        "version": "24.04",
        "arch": "amd64",
        "aliases": "24.04,n,noble,lts,default",
        "supported": True,
        **tags,
        "versions": {name: {"label": "release", "items": items} for name, items in versions.items()},
    }


def index(paths: Mapping[str, str], **changes: object) -> Document:
    """An index of lists of images, by what they contain."""
    entries = {
        content_id: {"datatype": "image-downloads", "format": "products:1.0", "path": path, "updated": "today"}
        for content_id, path in paths.items()
    }
    others = {"com.ubuntu.cloud:released:aws": {"datatype": "image-ids", "format": "products:1.0", "path": "streams/v1/aws"}}
    return {"format": "index:1.0", "index": {**entries, **others}, **changes}


def products(found: Mapping[str, Document], **changes: object) -> Document:
    """A list of images."""
    return {
        "format": "products:1.0",
        "datatype": "image-downloads",
        "content_id": CONTENT_ID,
        "products": dict(found),
        **changes,
    }


class Stream:
    """A stream below ``/releases/`` of a server, which may want a login for its documents."""

    def __init__(self, server: Server, *, sign: Sign | None = None, credentials: str | None = None) -> None:
        self.server = server
        self.sign = sign
        self.credentials = credentials
        self.suffix = "json" if sign is None else "sjson"
        self.found: dict[str, Document] = {}

    @property
    def index_path(self) -> str:
        return f"/releases/streams/v1/index.{self.suffix}"

    @property
    def list_path(self) -> str:
        return f"/releases/streams/v1/{CONTENT_ID}.{self.suffix}"

    def ref(self, wanted: str = "ubuntu:24.04:amd64") -> str:
        return f"simplestreams:{self.server.url('/releases/')}#{wanted}"

    def publishes(self, version: str, content: bytes, *, name: str = "disk1.img", **changes: object) -> None:
        """Another version of Ubuntu with one file, beside those that there are."""
        path = f"server/{version}/{name}"
        self.server.serve(f"/releases/{path}", Served(content))
        ubuntu = self.found.setdefault(UBUNTU, product({}))
        ubuntu["versions"][version] = {"items": {name: item(content, path, ftype=name, **changes)}}
        self.serve()

    def serve(self) -> None:
        """Serve what was found so far."""
        self.put(self.list_path, products(self.found))
        self.put(self.index_path, index({CONTENT_ID: self.list_path.removeprefix("/releases/")}))

    def put(self, path: str, document: object, *, sign: Sign | None = None) -> None:
        """Serve a document, signed as the stream is unless it is said otherwise."""
        text = document if isinstance(document, bytes) else json.dumps(document, indent=1).encode()
        signed = (sign or self.sign or bytes)(text)
        etag = f'"{hashlib.sha256(signed).hexdigest()}"'
        self.server.serve(path, Served(signed, etag=etag, credentials=self.credentials))
