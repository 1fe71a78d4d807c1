"""The source of object stores, with a real server of each behind it, for the shipped conformance suite."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlsplit

from object_places import AZURE_KEY, KEYS, AzurePlace, GcsPlace, S3Place, signatures_checked

from underlay.contracts import ImageSource
from underlay.sources.objects.source import ObjectSource
from underlay.testing.relay import Fault, Relay
from underlay.testing.source_suite import Announced, Away, Cut, Forbidden, Replaced, Silent, Slow, Stalled, Trouble, Withdrawn
from underlay.values import replace
from underlay.web import Web


@dataclass(slots=True, kw_only=True)
class BucketStage:
    """Objects in a bucket, whose server is asked through a relay that misbehaves.

    Attributes:
        bucket: asked past the relay.
    """

    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({})
    bucket: S3Place | GcsPlace | AzurePlace
    relay: Relay
    patience: float = 6.0
    secrets: Sequence[str] = ()
    contents: dict[str, bytes] = field(default_factory=dict)
    web: Web = field(default_factory=lambda: Web(connect_timeout=2, read_timeout=1.2))

    @property
    def source(self) -> ImageSource:
        return ObjectSource(revalidate_after=0, web=self.web, **self._access())

    @property
    def place(self) -> str:
        return urlsplit(self.relay.base).netloc

    @property
    def unsafe_refs(self) -> Sequence[str]:
        self.bucket.put("there", b"secret")
        there, (scheme, _, _) = self.bucket.ref("there"), self.bucket.ref("there").partition("://")
        return (
            f"{scheme}:there",
            f"{scheme}://",
            there.removesuffix("/there"),
            there.removesuffix("there"),
            f"{there}/../there",
            f"{scheme}://another/../{self.bucket.bucket}/there",
            f"{scheme}://another/%2e%2e/{self.bucket.bucket}/there",
            f"{scheme}://..%2f{self.bucket.bucket}/there",
            f"{scheme}://user:secret@{self.bucket.bucket}/there",
            f"{there}?acl",
            f"{there}#there",
        )

    def put(self, content: bytes) -> str:
        key = f"debian/ein Bild {len(self.contents)}"
        self._put(key, content)
        return self.bucket.ref(key)

    @contextmanager
    def trouble(self, ref: str, trouble: Trouble) -> Iterator[None]:
        key = next(key for key in self.contents if self.bucket.ref(key) == ref)
        before = self.contents[key]
        with ExitStack() as undone:
            undone.callback(self._recover, key, before, trouble)
            self._make(key, trouble, undone)
            yield

    def _make(self, key: str, trouble: Trouble, undone: ExitStack) -> None:
        pattern = f"*/{self.bucket.bucket}/*"
        match trouble:
            case Replaced(content):
                self._put(key, content)
            case Withdrawn():
                self._withdraw(key)
            case Forbidden():
                self._forbid(undone)
            case Away():
                self.relay.go_away()
            case Silent():
                self.relay.misbehave(pattern, Fault(silent=True))
            case Stalled(after):
                self.relay.misbehave(pattern, Fault(stall_after=after), method="GET")
            case Slow(rate):
                self.relay.misbehave(pattern, Fault(rate=rate), method="GET")
            case Cut(after):
                self.relay.misbehave(pattern, Fault(cut_after=after), method="GET")
            case Announced(size):
                self.relay.misbehave(pattern, Fault(length=size), method="HEAD")

    def _recover(self, key: str, before: bytes, trouble: Trouble) -> None:
        self.relay.behave()
        self.relay.come_back()
        if isinstance(trouble, Replaced | Withdrawn):
            self._put(key, before)

    def _put(self, key: str, content: bytes) -> None:
        self.bucket.put(key, content)
        self.contents[key] = content

    def _withdraw(self, key: str) -> None:
        self.bucket.withdraw(key)

    def _forbid(self, undone: ExitStack) -> None:
        """Let the source have nothing any more, until that is undone."""
        self.relay.misbehave("*", Fault(status=403))

    def _access(self) -> dict[str, Any]:
        """The source's argument for this kind of bucket."""
        raise NotImplementedError


@dataclass(slots=True, kw_only=True)
class S3Stage(BucketStage):
    """A bucket of S3. Its server asks nobody for proof, until an object is forbidden: then it finds that the keys are wrong."""

    bucket: S3Place
    secrets: Sequence[str] = (KEYS.secret_access_key,)

    def _access(self) -> dict[str, Any]:
        return {"s3": replace(self.bucket.access, endpoint=self.relay.base)}

    def _forbid(self, undone: ExitStack) -> None:
        undone.enter_context(signatures_checked(self.bucket.url))


@dataclass(slots=True, kw_only=True)
class VersionedS3Stage(S3Stage):
    """A bucket that keeps the versions of its objects; one that is withdrawn is so for good."""

    versions: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bucket.keep_versions()

    def _put(self, key: str, content: bytes) -> None:
        self.versions[key] = self.bucket.put(key, content)
        self.contents[key] = content

    def _withdraw(self, key: str) -> None:
        self.bucket.withdraw(key, version=self.versions[key])


@dataclass(slots=True, kw_only=True)
class GcsStage(BucketStage):
    """A bucket of Google's. Its server forbids nothing, so the relay does."""

    bucket: GcsPlace

    def _access(self) -> dict[str, Any]:
        return {"gs": replace(self.bucket.access, endpoint=self.relay.base)}


@dataclass(slots=True, kw_only=True)
class AzureStage(BucketStage):
    """A container of Azure's. The key of its account is always right there, so it is the relay that forbids."""

    bucket: AzurePlace
    secrets: Sequence[str] = (AZURE_KEY,)

    def _access(self) -> dict[str, Any]:
        endpoint = self.relay.url(urlsplit(self.bucket.url).path)
        return {"az": replace(self.bucket.access, endpoint=endpoint)}
