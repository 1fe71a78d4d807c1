"""Where a ref points: a registry's host, a repository, what in it, and which part of that."""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from underlay.model import ImageRef

# Canonical refs have been read by `underlay.refs`; here they are only taken apart.
_CANONICAL = re.compile(r"oci://([^/]+)/([^:@#]+)[:@]([^#]+)(?:#(.+))?")
_DOCKER_HUB = "docker.io"
_API_OF_DOCKER_HUB = "registry-1.docker.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a ref says.

    Attributes:
        host: with its port, when it has one.
        reference: a tag, or a digest as ``algorithm:hex``.
        part: the title of a layer, or the name of a file in a containerdisk; None: there is only one.
    """

    host: str
    repository: str
    reference: str
    part: str | None = None

    @classmethod
    def of(cls, ref: ImageRef) -> "Place":
        """The place that a canonical ref or a version id names."""
        return cls.named(ref.location)

    @classmethod
    def named(cls, text: str) -> "Place":
        """As `of`, of a version id."""
        match = _CANONICAL.fullmatch(text)
        assert match is not None, text
        part = None if match[4] is None else unquote(match[4])
        return cls(host=match[1], repository=match[2], reference=match[3], part=part)

    @property
    def digest(self) -> str | None:
        """The digest that is named, which fixes the manifest for ever; None for a tag."""
        return self.reference if ":" in self.reference else None

    @property
    def server(self) -> str:
        """The host that is asked."""
        return _API_OF_DOCKER_HUB if self.host == _DOCKER_HUB else self.host

    def version_id(self, digest: str) -> str:
        """The version id of what a manifest of this repository describes."""
        part = "" if self.part is None else f"#{quote(self.part, safe='')}"
        return f"oci://{self.host}/{self.repository}@{digest}{part}"
