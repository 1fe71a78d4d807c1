"""Who we are to a web server: a user with a password, or a token, for one host and never for another."""

import base64
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from underlay.refs.web import DEFAULT_PORTS
from underlay.values import hiding


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What one host is shown.

    Attributes:
        user, password: for Basic authentication (RFC 7617). token: instead of them, a bearer token (RFC 6750).
        origin: where it was found, as messages say it.
    """

    origin: str
    user: str | None = None
    password: str = ""
    token: str | None = None

    __repr__, __rich_repr__ = hiding("password", "token")

    @property
    def header(self) -> str:
        """The value of an Authorization field."""
        if self.token is not None:
            return f"Bearer {self.token}"
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def credential_for(url: str, known: Mapping[str, Credential]) -> Credential | None:
    """The credential for a URL: its own userinfo, else the known one of its host.

    Args:
        known: by ``host:port`` or ``host``, in lower case; the former comes first.
    """
    parts = urlsplit(url)
    if parts.username is not None:
        return Credential(origin="in the URL", user=unquote(parts.username), password=unquote(parts.password or ""))
    host = (parts.hostname or "").lower()
    return known.get(f"{host}:{parts.port or DEFAULT_PORTS[parts.scheme]}") or known.get(host)


def is_same_server(given: str, url: str) -> bool:
    """Whether what was given for one URL may be sent to another: the same origin, or the same host behind TLS at last."""
    return origin_of(url) in (origin_of(given), _secured(given))


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port (RFC 6454)."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)


def _secured(url: str) -> tuple[str, str | None, int | None] | None:
    parts = urlsplit(url)
    is_plain = parts.scheme == "http" and parts.port in (None, DEFAULT_PORTS["http"])
    return ("https", parts.hostname, DEFAULT_PORTS["https"]) if is_plain else None


def without_userinfo(url: str) -> str:
    """The URL without ``user:password@``."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
