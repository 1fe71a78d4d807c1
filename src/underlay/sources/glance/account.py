"""What a cloud's configuration says that we are, in the words of messages, and what its refusals mean. No secret is in either.

What a library says of an error is not repeated: it may hold a URL, and that a password.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from underlay.clouds import Library
from underlay.errors import ConfigError, NotAuthorized, SourceUnavailable, UnderlayError, UntrustedCertificate
from underlay.web.client import host_of

_CONFIGURED = "check the cloud in clouds.yaml, or the environment's OS_…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who we are to a cloud.

    Attributes:
        who: the user, the project and the cloud. credential: what proves it. keystone: its host; empty without one.
    """

    who: str
    credential: str
    keystone: str


def account_of(region: Any) -> Account:
    """The account of openstacksdk's ``CloudRegion``, by the names in its configuration."""
    auth: Mapping[str, Any] = region.config.get("auth") or {}
    project = _named(auth, "project", ("project_name", "project_id", "system_scope", "domain_name", "domain_id"))
    cloud = f"the cloud {region.name!r}"
    user = _named(auth, "user", ("username", "user_id"))
    who = " of ".join(part for part in (user, project, cloud) if part)
    credential = _credential(auth, user, region.config.get("auth_type"))
    scope = " of ".join(part for part in (project, cloud) if part)
    return Account(who=who, credential=f"{credential} for {scope}", keystone=host_of(str(auth.get("auth_url") or "")))


def _credential(auth: Mapping[str, Any], user: str | None, kind: Any) -> str:
    if application := _named(auth, "application credential", ("application_credential_name", "application_credential_id")):
        return application
    if "password" in auth:
        return f"the password of {user or 'nobody'}"
    return "the token" if "token" in auth else f"what it is shown ({kind})"


def _named(auth: Mapping[str, Any], what: str, keys: tuple[str, ...]) -> str | None:
    return next((f"the {what} {auth[key]!r}" for key in keys if auth.get(key)), None)


@contextmanager
def translated(what: str, library: Library, account: Account | None) -> Iterator[None]:
    """Raise our errors in place of openstacksdk's and keystoneauth's.

    Args:
        account: None as long as the configuration is being read.

    Raises:
        ConfigError, NotAuthorized, SourceUnavailable, UntrustedCertificate
    """
    try:
        yield
    except library.failures as error:
        raise _meaning(what, library, account, error) from error
    except OSError as error:  # of a file of certificates
        raise ConfigError(f"{what}: the cloud's certificates cannot be used", hint="correct cacert, cert and key") from error


def _meaning(what: str, library: Library, account: Account | None, error: Exception) -> UnderlayError:
    errors = library.errors
    if account is None or isinstance(error, library.sdk.exceptions.ConfigException):
        return ConfigError(f"{what}: {_configuration_fault(library, error)}", hint=_CONFIGURED)
    if isinstance(error, (errors.Unauthorized, errors.Forbidden)) or _is_ended_token(library, error):
        return NotAuthorized(f"{what}: Keystone at {account.keystone} does not accept {account.credential}", hint=_CONFIGURED)
    if isinstance(error, errors.SSLError):
        why = f"the certificate of {account.keystone} is not trusted"
        return UntrustedCertificate(f"{what}: {why}", hint="name its authority as cacert in clouds.yaml")
    if isinstance(error, (errors.CatalogException, errors.NotFound, errors.AuthPluginException)):
        kind = type(error).__name__
        return ConfigError(
            f"{what}: {account.keystone} does not answer as the Keystone of {account.who} ({kind})", hint=_CONFIGURED
        )
    return SourceUnavailable(
        f"{what}: Keystone does not answer at {account.keystone} ({type(error).__name__})",
        hint="check auth_url in the cloud's configuration, or try again later",
    )


def _is_ended_token(library: Library, error: Exception) -> bool:
    """Keystone does not find a token that has ended or was revoked, and says so; of a wrong URL nobody speaks of tokens."""
    return isinstance(error, library.errors.NotFound) and re.search(r"\btoken\b", str(error)) is not None


def _configuration_fault(library: Library, error: Exception) -> str:
    if isinstance(error, library.errors.MissingRequiredOptions):
        missing = ", ".join(option.dest for option in error.options)
        return f"no cloud is configured whole: {missing} is missing"
    if isinstance(error, library.sdk.exceptions.ConfigException):
        return str(error)
    return f"the cloud's configuration cannot be used ({type(error).__name__})"
