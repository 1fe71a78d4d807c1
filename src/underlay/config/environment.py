"""The process environment, as far as it configures anything. Nothing else reads it."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from underlay.errors import ConfigError

_PROXIED = ("http", "https")


def named_file() -> Path | None:
    """The configuration file that ``$UNDERLAY_CONFIG`` names."""
    named = os.environ.get("UNDERLAY_CONFIG")
    return Path(named) if named else None


def user_file() -> Path | None:
    """Where the user's configuration file would be."""
    directory = _user_directory("XDG_CONFIG_HOME", ".config")
    return directory / "underlay" / "underlay.toml" if directory else None


def storage_directory() -> Path:
    """Where the embedded default keeps what it has.

    Raises:
        ConfigError: this user has no home.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/underlay")
    directory = _user_directory("XDG_DATA_HOME", ".local/share")
    if directory is None:
        raise ConfigError("this user has no home directory", hint="set HOME or XDG_DATA_HOME, or use --config")
    return directory / "underlay"


def registry_auth_files() -> tuple[Path, ...]:
    """Where tools that pull from OCI registries keep their logins: containers-auth.json(5) first, then docker's own."""
    home = _home()
    named = os.environ.get("REGISTRY_AUTH_FILE")
    runtime, docker = os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("DOCKER_CONFIG", "")
    user = _user_directory("XDG_CONFIG_HOME", ".config")
    found = (
        Path(named) if named else None,
        Path(runtime) / "containers" / "auth.json" if os.path.isabs(runtime) else None,
        user / "containers" / "auth.json" if user else None,
        Path(docker) / "config.json" if docker else home and home / ".docker" / "config.json",
    )
    return tuple(path for path in found if path is not None)


def of_programs_that_keep_logins() -> Mapping[str, str]:
    """All of our own environment, as docker gives it to them: each finds its keys by variables of its own."""
    return dict(os.environ)


def proxies() -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The proxy of each scheme, and the hosts that are asked without one, as curl reads them.

    ``$HTTP_PROXY`` in capitals is not read: a web server that runs us sets it to what its client says (CVE-2016-5385).

    Raises:
        ConfigError: one is no proxy that we know how to use.
    """
    everything = first("all_proxy", "ALL_PROXY")
    named = {"http": os.environ.get("http_proxy") or everything, "https": first("https_proxy", "HTTPS_PROXY") or everything}
    found = {scheme: _proxy(scheme, url) for scheme, url in named.items() if url}
    hosts = (first("no_proxy", "NO_PROXY") or "").split(",")
    return found, tuple(host.strip() for host in hosts if host.strip())


def first(*names: str) -> str | None:
    """The value of the first of these variables that is set and not empty."""
    return next((value for value in map(os.environ.get, names) if value), None)


def file_in_home(name: str, default: str) -> Path | None:
    """The file that a variable names, else one below the user's home; None for a user without a home."""
    try:
        return Path(first(name) or f"~/{default}").expanduser()
    except RuntimeError:
        return None


def _proxy(scheme: str, url: str) -> str:
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PROXIED and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:  # it may hold a password, so it is not repeated
        raise ConfigError(
            f"the environment's proxy for {scheme} is no http or https proxy", hint="correct it, or set use_proxies = false"
        )
    return url


def _user_directory(variable: str, default: str) -> Path | None:
    """A base directory of the XDG specification, which has us ignore a relative one; None for a user without a home."""
    named = os.environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    home = _home()
    return home / default if home else None


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None
