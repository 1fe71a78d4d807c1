"""The file of credentials for web servers: TOML, a table for each host, for the eyes of its owner only.

::

    ["images.example.org"]
    user = "deploy"
    password = "…"

    ["registry.example.org:5000"]
    token = "…"
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from underlay.errors import ConfigError
from underlay.web.credentials import Credential

_HOST = r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: str | None = None
    password: str | None = None
    token: str | None = None


def read_credentials(path: Path) -> Mapping[str, Credential]:
    """The credentials in a file, by host; nothing of them is ever part of a message.

    Raises:
        ConfigError: it cannot be read, others may read it, or an entry is none.
    """
    entries = _entries(path, _content(path))
    return {host.lower(): _credential(path, host, entry) for host, entry in entries.items()}


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise ConfigError(f"the credentials file {path} may be read by others", hint=f"chmod 600 {path}")
            return file.read().decode()
    except OSError as error:
        raise ConfigError(f"the credentials file {path} cannot be read: {error.strerror}", hint="correct it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the credentials file {path} is no text in UTF-8") from error


def _entries(path: Path, text: str) -> dict[str, _Entry]:
    try:
        return msgspec.convert(tomllib.loads(text), dict[str, _Entry])
    except tomllib.TOMLDecodeError as error:
        # What the parser says may repeat the line that it did not understand.
        raise ConfigError(f"the credentials file {path} is no TOML", hint='write a table ["HOST"] for each host') from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"the credentials file {path}: {error}", hint="use user and password, or token") from error


def _credential(path: Path, host: str, entry: _Entry) -> Credential:
    if not re.fullmatch(_HOST, host.lower()):
        raise ConfigError(f"the credentials file {path}: {host!r} is no host", hint='write ["HOST"] or ["HOST:PORT"]')
    if (entry.user is None) == (entry.token is None) or (entry.password is not None and entry.user is None):
        raise ConfigError(f"the credentials file {path}: {host} needs a user with a password, or a token")
    if entry.user is not None and ":" in entry.user:
        raise ConfigError(f"the credentials file {path}: the user for {host} has a colon", hint="RFC 7617 allows none")
    origin = f"for {host} in {path}"
    return Credential(origin=origin, user=entry.user, password=entry.password or "", token=entry.token)
