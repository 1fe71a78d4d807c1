"""Our sources, each with a place of its kind behind it, for the shipped conformance suite."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar
from urllib.parse import urlsplit

from underlay.contracts import ImageSource
from underlay.errors import ImageNotFound, NotAuthorized, SourceUnavailable
from underlay.sources.file import FileSource
from underlay.sources.http import HttpSource
from underlay.testing.fakes import FakeImage, FakeSource
from underlay.testing.httpserver import Served, Server
from underlay.testing.relay import Fault, Relay
from underlay.testing.source_suite import (
    Announced,
    Away,
    Cut,
    Forbidden,
    Replaced,
    Silent,
    Slow,
    Stalled,
    Trouble,
    Withdrawn,
)
from underlay.values import replace
from underlay.web import Web

_RANGE = 128 << 10
_NONE: Mapping[type, str] = MappingProxyType({})


@dataclass(slots=True)
class FakeStage:
    """The shipped fake, which fails as it is told."""

    cannot: ClassVar[Mapping[type, str]] = _NONE
    fake: FakeSource = field(default_factory=FakeSource)
    patience: float = 1.0
    place: str = "fake.example"
    secrets: Sequence[str] = ()
    unsafe_refs: Sequence[str] = ("fake:", "fake:nothing/../image", "fake:image-9999")
    images: dict[str, FakeImage] = field(default_factory=dict)

    @property
    def source(self) -> ImageSource:
        return self.fake

    def put(self, content: bytes) -> str:
        ref = f"fake:image-{len(self.images)}"
        self._show(ref, _fake(content))
        return ref

    @contextmanager
    def trouble(self, ref: str, trouble: Trouble) -> Iterator[None]:
        before = self.images[ref]
        self._show(ref, self._troubled(ref, before, trouble))
        yield
        self._show(ref, before)

    def _show(self, ref: str, image: FakeImage) -> None:
        self.images[ref] = image
        self.fake.put(ref, image)

    def _troubled(self, ref: str, image: FakeImage, trouble: Trouble) -> FakeImage:
        away = SourceUnavailable(f"{ref}: {self.place} does not answer")
        match trouble:
            case Replaced(content):
                return _fake(content)
            case Withdrawn():
                gone = ImageNotFound(f"{ref} does not exist")
                return replace(image, describe_error=gone, open_error=gone)
            case Forbidden():
                refused = NotAuthorized(f"{ref} may not be had", hint="ask for it")
                return replace(image, describe_error=refused, open_error=refused)
            case Away() | Silent():
                return replace(image, describe_error=away, open_error=away)
            case Stalled(after):
                return replace(image, read_error=away, read_error_after=after)
            case Slow(rate):
                return replace(image, piece=rate // 10, delay=0.1)
            case Cut(after):
                return replace(image, cut_after=after)
            case Announced(size):
                return replace(image, size=size)


def _fake(content: bytes) -> FakeImage:
    return FakeImage(content, validator=hashlib.sha256(content).hexdigest())


@dataclass(slots=True)
class FileStage:
    """Files in a directory, which are replaced by a rename, or rewritten in their place."""

    cannot: ClassVar[Mapping[type, str]] = MappingProxyType(
        {
            Away: "a file system of this host is there or is not, and then there is no such file",
            Silent: "the kernel answers, or the file system is one that no time-out ends",
            Stalled: "the kernel answers, or the file system is one that no time-out ends",
            Slow: "nothing paces a file",
            Cut: "a file is read to its end; one that becomes shorter is replaced",
            Announced: "the size of a file is how long it is",
        }
    )
    directory: Path
    rewrites: bool = False
    patience: float = 1.0
    place: str = "this host"
    secrets: Sequence[str] = ()
    unsafe_refs: Sequence[str] = ()
    count: int = 0

    @classmethod
    def make(cls, root: Path, *, rewrites: bool = False) -> "FileStage":
        """A stage below a directory, with what must not be opened beside what may."""
        allowed = root / "allowed"
        allowed.mkdir()
        (root / "secret").write_bytes(b"secret")
        (root / "allowed-not").mkdir()
        (root / "allowed-not" / "image").write_bytes(b"secret")
        (allowed / "link").symlink_to("../secret")
        (allowed / "chain").symlink_to("link")
        (allowed / "loop").symlink_to("loop")
        (allowed / "up").symlink_to("..")
        (allowed / "zero").symlink_to("/dev/zero")
        (allowed / "environ").symlink_to("/proc/self/environ")
        os.mkfifo(allowed / "fifo")
        inside = ("../secret", "link", "chain", "loop", "up/secret", "up/allowed", "zero", "environ", "fifo", "", "%00", ".")
        outside = (
            "/dev/zero",
            "/proc/self/mem",
            "/proc/self/fd/0",
            f"{root}/allowed-not/image",
            f"{root}/secret",
            "//etc/passwd",
        )
        unsafe = [f"file://{path}" for path in (*(f"{allowed}/{name}" for name in inside), *outside)]
        return cls(allowed, rewrites=rewrites, unsafe_refs=(*unsafe, "file://elsewhere/image", "file:image"))

    @property
    def source(self) -> ImageSource:
        return FileSource(allowed_paths=(self.directory,))

    def put(self, content: bytes) -> str:
        self.count += 1
        file = self.directory / f"image {self.count}"
        file.write_bytes(content)
        return f"file://{self.directory}/image%20{self.count}"

    @contextmanager
    def trouble(self, ref: str, trouble: Trouble) -> Iterator[None]:
        file = self.directory / ref.rpartition("/")[2].replace("%20", " ")
        match trouble:
            case Replaced(content) if self.rewrites:
                file.write_bytes(content)
            case Replaced(content):
                (self.directory / "new").write_bytes(content)
                (self.directory / "new").rename(file)
            case Withdrawn():
                file.unlink()
            case Forbidden():
                file.chmod(0)
            case _:
                raise AssertionError(self.cannot[type(trouble)])
        yield


@dataclass(slots=True)
class HttpStage:
    """A web server that wants a password, behind a relay that misbehaves, with a signature in each URL."""

    cannot: ClassVar[Mapping[type, str]] = _NONE
    server: Server
    relay: Relay
    parallel: int = 1
    patience: float = 3.0
    secrets: Sequence[str] = ("hunter2", "f00dfeed")
    served: dict[str, Served] = field(default_factory=dict)
    web: Web = field(init=False)

    def __post_init__(self) -> None:
        self.web = Web(connect_timeout=2, read_timeout=0.6, parallel=self.parallel, range_size=_RANGE)

    @property
    def source(self) -> ImageSource:
        return HttpSource(revalidate_after=0, web=self.web)

    @property
    def place(self) -> str:
        return urlsplit(self.relay.base).netloc

    @property
    def unsafe_refs(self) -> Sequence[str]:
        base = self.relay.base
        return (
            "http:///image",
            "http://",
            "http://127.0.0.1:99999/image",
            f"{base}/white space",
            f"{base}/nothing?of=this",
            f"{base}/../../etc/passwd",
            f"{base}/%2e%2e/%2e%2e/etc/passwd",
        )

    def put(self, content: bytes) -> str:
        path = f"/image-{len(self.served)}"
        self._serve(path, Served(content, etag=_etag(content), credentials="user:hunter2"))
        return self.relay.url(f"{path}?X-Amz-Signature=f00dfeed").replace("//", "//user:hunter2@")

    @contextmanager
    def trouble(self, ref: str, trouble: Trouble) -> Iterator[None]:
        path = urlsplit(ref).path
        before = self.served[path]
        self._make(path, before, trouble)
        try:
            yield
        finally:
            self.relay.behave()
            self.relay.come_back()
            self._serve(path, before)

    def _make(self, path: str, served: Served, trouble: Trouble) -> None:
        match trouble:
            case Replaced(content):
                self._serve(path, replace(served, body=content, etag=_etag(content)))
            case Withdrawn():
                self.server.withdraw(path)
            case Forbidden():
                self._serve(path, replace(served, credentials="user:another"))
            case Away():
                self.relay.go_away()
            case Silent():
                self.relay.misbehave(path, Fault(silent=True))
            case Stalled(after):
                # A range is a transfer of its own, and shorter than the suite takes one to be.
                after = after if self.parallel == 1 else min(after, _RANGE // 2)
                self.relay.misbehave(path, Fault(stall_after=after), method="GET")
            case Slow(rate):
                self.relay.misbehave(path, Fault(rate=rate), method="GET")
            case Cut(after):
                self.relay.misbehave(path, Fault(cut_after=after), method="GET")
            case Announced(size):
                self.relay.misbehave(path, Fault(length=size), method="HEAD")

    def _serve(self, path: str, served: Served) -> None:
        self.served[path] = served
        self.server.serve(path, served)


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'
