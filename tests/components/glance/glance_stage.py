"""The source of Glance, with the real Glance and Keystone behind it, for the shipped conformance suite."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlsplit

from glance_people import Person, rewrite

from underlay.contracts import ImageSource
from underlay.sources.glance import GlanceSource
from underlay.testing.relay import Fault, Relay
from underlay.testing.source_suite import Announced, Away, Cut, Forbidden, Replaced, Silent, Slow, Stalled, Trouble, Withdrawn
from underlay.web import Web

_PASSWORD = "reader-secret"
_SECOND = 1.1  # and a little
_NO_SUCH = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A user who may read the images of alice's project, and is disabled when they are forbidden.

    Attributes:
        id: Keystone's. clouds_yaml: where the cloud ``reader`` is this user's.
    """

    admin: Person
    id: str
    clouds_yaml: Path

    def enable(self, *, enabled: bool) -> None:
        """Let the user be somebody to Keystone, or nobody."""
        _ask(self.admin, "PATCH", f"users/{self.id}", json={"user": {"enabled": enabled}})
        if enabled:
            # Keystone counts in seconds: it refuses all tokens of the second in which it revoked some.
            time.sleep(_SECOND)


def made_reader(admin: Person, directory: Path) -> Reader:
    """A new user."""
    name = f"reader-{uuid.uuid4().hex[:12]}"
    [project] = _ask(admin, "GET", "projects?name=wonderland")["projects"]
    [role] = _ask(admin, "GET", "roles?name=member")["roles"]
    wanted = {"name": name, "password": _PASSWORD, "domain_id": "default"}
    user = _ask(admin, "POST", "users", json={"user": wanted})["user"]["id"]
    admin.session.put(f"{admin.cloud.keystone}/v3/projects/{project['id']}/users/{user}/roles/{role['id']}")
    alice = json.loads(admin.cloud.clouds_yaml.read_text(encoding="utf-8"))["clouds"]["alice"]
    ours = {**alice, "auth": {**alice["auth"], "username": name, "password": _PASSWORD}}
    clouds_yaml = directory / "clouds.yaml"
    clouds_yaml.write_text(json.dumps({"clouds": {"reader": ours}}), encoding="utf-8")
    return Reader(admin=admin, id=user, clouds_yaml=clouds_yaml)


def _ask(admin: Person, method: str, path: str, **request: Any) -> Any:
    return admin.session.request(f"{admin.cloud.keystone}/v3/{path}", method, **request).json()


@dataclass(slots=True, kw_only=True)
class GlanceStage:
    """Images of alice's, which a reader asks Glance for through a relay that misbehaves. Keystone is asked itself."""

    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({Replaced: "the content of a Glance image never changes"})
    alice: Person
    reader: Reader
    relay: Relay
    source: ImageSource
    patience: float = 12.0
    secrets: Sequence[str] = (_PASSWORD,)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return urlsplit(self.relay.base).netloc

    @property
    def unsafe_refs(self) -> Sequence[str]:
        image = self.put(b"secret").removeprefix("glance:")
        return (
            "glance:",
            "glance:../../v3/users",
            f"glance:{image}/file",
            f"glance:../images/{image}",
            f"glance:{image}?of=this",
            f"glance://elsewhere.example/{image}",
            f"glance://user:secret@{self.place}/{image}",
            f"glance://{self.place}/../{image}",
            _NO_SUCH,
        )

    def put(self, content: bytes) -> str:
        ref = f"glance:{self.alice.image(content)}"
        self.sizes[ref] = len(content)
        return ref

    @contextmanager
    def trouble(self, ref: str, trouble: Trouble) -> Iterator[None]:
        image = ref.removeprefix("glance:")
        self._make(image, trouble)
        try:
            yield
        finally:
            self.relay.behave()
            self.relay.come_back()
            if isinstance(trouble, Forbidden):
                self.reader.enable(enabled=True)
            if isinstance(trouble, Announced):
                rewrite(self.alice.cloud, image, size=self.sizes[ref])

    def _make(self, image: str, trouble: Trouble) -> None:
        data = f"*/images/{image}/file"
        match trouble:
            case Withdrawn():
                self.alice.delete(image)
            case Forbidden():
                self.reader.enable(enabled=False)
            case Away():
                self.relay.go_away()
            case Silent():
                self.relay.misbehave(f"*/images/{image}*", Fault(silent=True))
            case Stalled(after):
                self.relay.misbehave(data, Fault(stall_after=after))
            case Slow(rate):
                self.relay.misbehave(data, Fault(rate=rate))
            case Cut(after):
                self.relay.misbehave(data, Fault(cut_after=after))
            case Announced(size):
                rewrite(self.alice.cloud, image, size=size)
            case _:
                raise AssertionError(self.cannot[type(trouble)])


def reading(relay: Relay) -> GlanceSource:
    """The source, as its configuration has it for the reader; it keeps its token, as long as that is good."""
    web = Web(connect_timeout=5, read_timeout=3)  # with what Keystone and Glance take where the machine is busy
    return GlanceSource(cloud="reader", endpoints=(relay.base,), web=web)
