"""Logins to registries, from the files that docker, podman and their like keep them in; read when a registry asks who we are.

The form is that of docker's ``config.json`` and of containers-auth.json(5): ``auths`` holds a login by registry, in the latter
also by a registry's namespace, where the closest one counts. ``credHelpers`` names programs that keep them by registry, and
``credsStore`` one for all others. A program of the former has the only say on its registry, with docker and with podman. One of
the latter is not heeded by podman, so what stands in the file counts where the program has no login.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from underlay.errors import ConfigError
from underlay.sources.oci import keepers
from underlay.sources.oci.login import Login
from underlay.sources.oci.place import Place

_LONGEST = 1 << 20  # bytes of a file
_DOCKER_HUB = "docker.io"
_DOCKER_HUB_OF_PROGRAMS = "https://index.docker.io/v1/"
_ALSO_DOCKER_HUB = frozenset({"index.docker.io", "registry-1.docker.io"})


class _Entry(msgspec.Struct, frozen=True):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None

    @property
    def has_login(self) -> bool:
        """Where a program keeps the login, docker writes an entry without any."""
        return bool(self.auth or self.username or self.identitytoken)


class _File(msgspec.Struct, frozen=True, rename={"creds_store": "credsStore", "cred_helpers": "credHelpers"}):
    auths: dict[str, _Entry] | None = None
    creds_store: str | None = None
    cred_helpers: dict[str, str] | None = None


def find_login(files: Sequence[Path], place: Place, *, environment: Mapping[str, str]) -> Login | None:
    """The login for a repository: of the first file that has one for its registry; None when none has.

    Args:
        environment: of the programs that keep logins.

    Raises:
        ConfigError: a file is there and cannot be read.
    """
    for path in files:
        file = _read(path)
        if file is not None and (login := _login(path, file, place, environment)):
            return login
    return None


def _read(path: Path) -> _File | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_LONGEST), type=_File)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"the registries' logins in {path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        # What it says may quote the file, and that is a secret.
        hint = "docker login and podman login write such a file"
        raise ConfigError(f"the registries' logins in {path} are no JSON of docker's form", hint=hint) from error


def _login(path: Path, file: _File, place: Place, environment: Mapping[str, str]) -> Login | None:
    """A program is asked before the file itself, as docker does it."""
    filed = {_normal(name): (name, entry) for name, entry in (file.auths or {}).items()}
    helpers = {_normal(name): (name, helper) for name, helper in (file.cred_helpers or {}).items()}
    written = _written(path, filed, place)
    if (named := next((helpers[name] for name in _names(place) if name in helpers), None)) is None:
        return _stored(path, file.creds_store or "", filed, place, environment) or written
    server, program = named
    if not program:
        return written  # for this registry no program is asked
    return keepers.ask(program, server, origin=f"of {server} in {path}", environment=environment)


def _written(path: Path, filed: Mapping[str, tuple[str, _Entry]], place: Place) -> Login | None:
    """The login that the file itself has."""
    entries = (filed[name] for name in _names(place) if name in filed)
    return next((_decoded(path, name, entry) for name, entry in entries if entry.has_login), None)


def _stored(
    path: Path, program: str, filed: Mapping[str, tuple[str, _Entry]], place: Place, environment: Mapping[str, str]
) -> Login | None:
    """What the program that is for all registries has for this one."""
    name, entry = filed.get(place.host, (_named_for_programs(place.host), None))
    is_elsewhere = entry is not None and not entry.has_login
    if not program or (not is_elsewhere and not keepers.is_installed(program, environment)):
        return None  # nothing says that it has a login for this registry, of which everybody may be allowed to pull
    return keepers.ask(program, name, origin=f"of {name} in {path}", environment=environment)


def _named_for_programs(host: str) -> str:
    return _DOCKER_HUB_OF_PROGRAMS if host == _DOCKER_HUB else host


def _decoded(path: Path, name: str, entry: _Entry) -> Login:
    origin = f"of {name} in {path}"
    if entry.identitytoken:
        return Login(origin=origin, identity_token=entry.identitytoken)
    if entry.username is not None and not entry.auth:
        return Login(origin=origin, user=entry.username, password=entry.password or "")
    if (pair := _pair(entry.auth or "")) is None:
        return Login(origin=origin, unusable="it is not USER:PASSWORD in base64")
    return Login(origin=origin, user=pair[0], password=pair[1])


def _pair(auth: str) -> tuple[str, str] | None:
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeError):
        return None
    return (user, password.rstrip("\0")) if colon else None


def _names(place: Place) -> Sequence[str]:
    """What a login for a repository may be filed under, the closest first; the registry is the last."""
    return list(_namespaces(f"{place.host}/{place.repository}"))


def _namespaces(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition("/")[0]


def _normal(name: str) -> str:
    """A registry as refs write it: docker's older entries are URLs, of which the host alone counts."""
    scheme, is_url, rest = name.partition("://")
    host, slash, path = (rest if is_url else scheme).partition("/")
    host = host.lower().removesuffix(":443")
    host = _DOCKER_HUB if host in _ALSO_DOCKER_HUB else host
    return host if is_url or not slash else f"{host}/{path}".rstrip("/")


def described(files: Sequence[Path]) -> str:
    """The files, for messages."""
    return ", ".join(map(str, files)) or "no file at all"
