"""Glance's API as far as it is read: an image's description and its bytes, from the first endpoint that answers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from underlay.contracts import ByteStream
from underlay.errors import ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
from underlay.model import ImageRef, ImageVersion
from underlay.sources.glance.description import Image, read_image
from underlay.sources.glance.identity import Identity
from underlay.web import Answer, check_status, open_body
from underlay.web.client import host_of

_LONGEST = 4 << 20  # bytes of a description
_VERSION = re.compile(r"/v\d+(\.\d+)?$")
_UNAUTHORIZED = 401
_ASK_OPERATOR = "ask the cloud's operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The image service of one cloud. Safe to share between threads.

    Attributes:
        endpoints: where it is, in the order in which they are asked; with none, where the catalogue says.
    """

    identity: Identity
    endpoints: tuple[str, ...] = ()

    def image(self, ref: ImageRef) -> tuple[Image, str]:
        """What Glance says of an image, and the endpoint that said it.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable, UntrustedCertificate, ConfigError, ExtraMissing
        """
        unavailable: SourceUnavailable | None = None
        for endpoint in self._endpoints(ref):
            try:
                return self._image(ref, endpoint), endpoint
            except SourceUnavailable as error:
                unavailable = unavailable or error
        assert unavailable is not None
        raise unavailable

    @contextmanager
    def body(self, version: ImageVersion, *, offset: int, first: str | None) -> Iterator[ByteStream]:
        """The image's bytes as they are stored, from ``offset`` on.

        Args:
            first: the endpoint that is asked before the others.

        Raises:
            as `image`
        """
        with ExitStack() as stack:
            yield self._body(stack, version, offset, first)

    def _body(self, stack: ExitStack, version: ImageVersion, offset: int, first: str | None) -> ByteStream:
        unavailable: SourceUnavailable | None = None
        for endpoint in sorted(self._endpoints(version.ref), key=lambda one: one != first):
            try:
                return self._opened(stack, version, offset, endpoint)
            except SourceUnavailable as error:
                unavailable = unavailable or error
        assert unavailable is not None
        raise unavailable

    def _image(self, ref: ImageRef, endpoint: str) -> Image:
        what, url = str(ref), url_of(ref, endpoint)
        web, headers = self.identity.client(what), self.identity.headers(what)
        with web.answer(what, "GET", url, headers=headers) as answer:
            if answer.status != _UNAUTHORIZED:
                return self._read(ref, endpoint, answer)
        with web.answer(what, "GET", url, headers=self.identity.renewed(what, headers)) as answer:
            return self._read(ref, endpoint, answer)

    def _read(self, ref: ImageRef, endpoint: str, answer: Answer) -> Image:
        with self._told(ref, endpoint):
            check_status(str(ref), answer)
        answer.check_encoding()
        return read_image(ref, answer.read(_LONGEST))

    def _opened(self, stack: ExitStack, version: ImageVersion, offset: int, endpoint: str) -> ByteStream:
        try:
            return self._renewing(stack, version, offset, endpoint)
        except NotAuthorized as error:
            raise self._withheld(version.ref, endpoint) from error
        except ImageNotFound as error:
            raise self._missing(version.ref, endpoint) from error

    def _renewing(self, stack: ExitStack, version: ImageVersion, offset: int, endpoint: str) -> ByteStream:
        """The stream; when Glance refuses the token, which may have ended meanwhile, once more with another."""
        what = str(version.ref)
        headers = self.identity.headers(what)
        try:
            return stack.enter_context(self._stream(version, offset, endpoint, headers))
        except NotAuthorized:
            headers = self.identity.renewed(what, headers)
        return stack.enter_context(self._stream(version, offset, endpoint, headers))

    def _withheld(self, ref: ImageRef, endpoint: str) -> NotAuthorized:
        """Why the bytes of an image are not for us.

        Raises:
            as `image`, when it is not shown either
        """
        if self._image(ref, endpoint).status == "deactivated":
            return NotAuthorized(
                f"{ref} is deactivated in Glance: nobody but an administrator gets its data",
                hint="have it looked at and reactivated: openstack image set --activate",
            )
        who = self.identity.who(str(ref))
        return NotAuthorized(f"{ref}: Glance at {host_of(endpoint)} shows it to {who} without its data", hint=_ASK_OPERATOR)

    def _missing(self, ref: ImageRef, endpoint: str) -> ImageNotFound:
        """Why there are no bytes of an image.

        Raises:
            as `image`, when it is gone as well
        """
        told = f"does not have its data, although it is {self._image(ref, endpoint).status}"
        return ImageNotFound(f"{ref}: Glance at {host_of(endpoint)} {told}", hint=_ASK_OPERATOR)

    @contextmanager
    def _stream(self, version: ImageVersion, offset: int, endpoint: str, headers: Mapping[str, str]) -> Iterator[ByteStream]:
        what, url = str(version.ref), f"{url_of(version.ref, endpoint)}/file"
        client, proven = self.identity.client(what), bool(version.digests)
        with open_body(client, what, url, offset=offset, size=version.size, headers=headers, proves_itself=proven) as stream:
            yield _Renewing(stream, what, self.identity, headers)

    def _endpoints(self, ref: ImageRef) -> Sequence[str]:
        """Where to ask for the image. A token goes there, so an endpoint that a ref names must be one that is configured."""
        configured = self.endpoints or (self.identity.endpoint(str(ref)),)
        named = _named_endpoint(ref)
        if named is None:
            return configured
        meant = [endpoint for endpoint in configured if named in _names_of(endpoint)]
        if not meant:
            raise SourceRefused(
                f"{ref} names an endpoint that is not configured, and our token does not go there",
                hint="add its URL to endpoints under [sources.glance]",
            )
        return meant

    @contextmanager
    def _told(self, ref: ImageRef, endpoint: str) -> Iterator[None]:
        """Say who was refused what by whom."""
        try:
            yield
        except ImageNotFound as error:
            who = self.identity.who(str(ref))
            raise ImageNotFound(
                f"{ref}: Glance at {host_of(endpoint)} has no such image, or does not show it to {who}",
                hint="check the UUID, and the image's visibility and members",
            ) from error
        except NotAuthorized as error:
            who = self.identity.who(str(ref))
            raise NotAuthorized(
                f"{ref}: Glance at {host_of(endpoint)} does not let {who} read it",
                hint=_ASK_OPERATOR,
            ) from error


@dataclass(frozen=True, slots=True)
class _Renewing:
    """A body by several requests, of which a later one may find that the token has ended."""

    stream: ByteStream
    what: str
    identity: Identity = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self.stream.readinto(buffer)
        except NotAuthorized as error:
            self.identity.renewed(self.what, self.headers)
            raise SourceUnavailable(f"{self.what}: the token ended during the transfer", hint="go on with another") from error


def url_of(ref: ImageRef, endpoint: str) -> str:
    """An image's URL below an endpoint, of which a catalogue may name the version or not."""
    return f"{_VERSION.sub('', endpoint.rstrip('/'))}/v2/images/{ref.location}"


def _names_of(endpoint: str) -> Sequence[str]:
    """How a ref may name an endpoint: by its host, with its port or without."""
    place = host_of(endpoint).lower()
    return place, re.sub(r":\d+$", "", place)


def _named_endpoint(ref: ImageRef) -> str | None:
    """The host, with its port if it has one, of ``glance://HOST:PORT/UUID``."""
    return urlsplit(ref.canonical).netloc or None
