"""Where a console of an instance is: a host, a port, and perhaps a path on it."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Console:
    """A console that is reached by connecting somewhere."""

    def get_connection_info(self, token: str, access_url: str) -> dict[str, Any]:
        """A new dict of all that is known, for the service that lets people in.

        Args:
            token: that the person brings. access_url: at which the person asks.
        """
        return {**asdict(self), "token": token, "access_url": access_url}


@dataclass(frozen=True, slots=True)
class PortConsole(Console):
    """One behind a port.

    Attributes:
        host: address or name. port: number of a TCP port. internal_access_path: what to ask for there, where that is needed.
    """

    host: str
    port: int
    internal_access_path: str | None = None


@dataclass(frozen=True, slots=True)
class ConsoleVNC(PortConsole):
    """One that speaks RFB (RFC 6143)."""


@dataclass(frozen=True, slots=True)
class ConsoleRDP(PortConsole):
    """One that speaks RDP."""


@dataclass(frozen=True, slots=True)
class ConsoleSerial(PortConsole):
    """A serial line."""


@dataclass(frozen=True, slots=True)
class ConsoleMKS(PortConsole):
    """One that speaks VMware's MKS."""


@dataclass(frozen=True, slots=True)
class ConsoleSpice(Console):
    """One that speaks SPICE, behind a port and another one for TLS.

    Attributes:
        host, port, internal_access_path: as of the others. tlsPort: None without TLS.
    """

    host: str
    port: int
    tlsPort: int | None  # noqa: N815 - the contract's own spelling
    internal_access_path: str | None = None
