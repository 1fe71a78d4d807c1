"""The source of product streams, with a stream on the loopback server behind it, for the shipped conformance suite."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar
from urllib.parse import urlsplit

from streams import Stream, item, product
from underlay.contracts import ImageSource
from underlay.sources.simplestreams import SimplestreamsSource
from underlay.testing.httpserver import Served
from underlay.testing.relay import Fault, Relay
from underlay.testing.source_suite import Announced, Away, Cut, Forbidden, Replaced, Silent, Slow, Stalled, Trouble, Withdrawn
from underlay.web import Web

LOGIN = "user:hunter2"


@dataclass(slots=True)
class StreamStage:
    """A stream behind a password and a relay that misbehaves. An image is a product, and each of its contents a version of it.

    As publishers do, it gives a version's file a path of its own, where it stays until the product is withdrawn.

    Attributes:
        keyrings: of the public keys by which it is signed, if it is.
    """

    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({})
    stream: Stream
    relay: Relay
    keyrings: Sequence[Path] = ()
    patience: float = 3.0
    secrets: Sequence[str] = ("hunter2",)
    contents: dict[str, bytes] = field(default_factory=dict)
    web: Web = field(default_factory=lambda: Web(connect_timeout=2, read_timeout=0.6))

    @property
    def source(self) -> ImageSource:
        return SimplestreamsSource(revalidate_after=0, web=self.web, keyrings=tuple(self.keyrings))

    @property
    def place(self) -> str:
        return urlsplit(self.relay.base).netloc

    @property
    def unsafe_refs(self) -> Sequence[str]:
        for name, path in {"above": "../image", "elsewhere": "http://127.0.0.1:9/image", "file": "file:///etc/passwd"}.items():
            self.stream.found[name] = product({"1": {"disk1.img": item(b"secret", path)}})
        self.stream.server.serve("/image", Served(b"secret"))
        self.stream.serve()
        return (
            "simplestreams:",
            "simplestreams:file:///etc/#product=above",
            f"simplestreams:{self._base}",
            f"simplestreams:{self._base}#",
            f"simplestreams:{self._base}?of=this#product=above",
            *(f"simplestreams:{self._base}#product={name}" for name in ("above", "elsewhere", "file", "../image", "nothing")),
        )

    def put(self, content: bytes) -> str:
        name = f"image-{len(self.contents)}"
        self.contents[name] = content
        self._publish(name, content)
        return f"simplestreams:{self._base}#product={name}"

    @contextmanager
    def trouble(self, ref: str, trouble: Trouble) -> Iterator[None]:
        name = ref.rpartition("=")[2]
        self._make(name, trouble)
        try:
            yield
        finally:
            self.relay.behave()
            self.relay.come_back()
            if isinstance(trouble, Replaced | Withdrawn | Forbidden | Announced):
                self.stream.credentials = LOGIN
                self._publish(name, self.contents[name])

    def _make(self, name: str, trouble: Trouble) -> None:
        file = f"/releases/{name}/*"
        match trouble:
            case Replaced(content):
                self._publish(name, content)
            case Withdrawn():
                self._withdraw(name)
            case Forbidden():
                self.stream.credentials = "user:another"
                self._serve_file(self._path(name, self.contents[name]), self.contents[name])
                self.stream.serve()
            case Away():
                self.relay.go_away()
            case Silent():
                self.relay.misbehave("*", Fault(silent=True))
            case Stalled(after):
                self.relay.misbehave(file, Fault(stall_after=after))
            case Slow(rate):
                self.relay.misbehave(file, Fault(rate=rate))
            case Cut(after):
                self.relay.misbehave(file, Fault(cut_after=after))
            case Announced(size):
                self._publish(name, self.contents[name], size=size)

    @property
    def _base(self) -> str:
        return self.relay.url("/releases/").replace("//", f"//{LOGIN}@", 1)

    def _publish(self, name: str, content: bytes, *, size: int | None = None) -> None:
        """Let a newer version of the product have this content, and the list say this size of it."""
        path = self._path(name, content)
        self._serve_file(path, content)
        versions = self.stream.found.setdefault(name, product({}))["versions"]
        versions[f"{len(versions) + 1:08}"] = {
            "items": {"disk1.img": item(content, path, size=len(content) if size is None else size)}
        }
        self.stream.serve()

    def _withdraw(self, name: str) -> None:
        del self.stream.found[name]
        self.stream.serve()
        self.stream.server.withdraw(f"/releases/{self._path(name, self.contents[name])}")

    def _path(self, name: str, content: bytes) -> str:
        return f"{name}/{hashlib.sha256(content).hexdigest()}.img"

    def _serve_file(self, path: str, content: bytes) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.stream.server.serve(f"/releases/{path}", Served(content, etag=etag, credentials=self.stream.credentials))
