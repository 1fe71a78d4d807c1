"""Who we are to a cloud: its configuration, read on first use, a token that is renewed, and the catalogue."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from underlay.clouds import Library, imported, read_region
from underlay.errors import ConfigError, NotAuthorized
from underlay.once import FileStamp, Once, file_stamp
from underlay.sources.glance.account import Account, account_of, translated
from underlay.values import replace
from underlay.web import Web

_TOKEN = "X-Auth-Token"  # noqa: S105 - a field's name
_WHO_ASKS = "the token of who asks"


@dataclass(frozen=True, slots=True)
class _Cloud:
    """A cloud whose configuration was read: from which files, and what tells whether they have changed since."""

    library: Library
    region: Any
    session: Any
    account: Account
    web: Web
    files: tuple[Path, ...]
    stamp: FileStamp
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(slots=True, kw_only=True)
class Identity:
    """One cloud, and we there. Safe to share between threads and across forks; a changed clouds.yaml is read again.

    Attributes:
        cloud: its name in clouds.yaml; None: the environment's, or the only one. region, interface: of its catalogue; None: as
            the cloud's configuration says.
        web: the client for what needs no certificates of the cloud's own.
        token: of who asks, in place of the configured user's; it cannot be renewed.
    """

    cloud: str | None = None
    region: str | None = None
    interface: str | None = None
    web: Web = field(default_factory=Web)
    token: str | None = field(default=None, repr=False)
    _read: Once[_Cloud] = field(default_factory=Once, init=False, repr=False)

    def headers(self, what: str) -> Mapping[str, str]:
        """The fields that tell Glance who asks, with a token that has not ended.

        Raises:
            ExtraMissing, ConfigError, NotAuthorized, SourceUnavailable, UntrustedCertificate
        """
        if self.token is not None:
            return {_TOKEN: self.token}
        cloud = self._cloud(what)
        try:
            with translated(what, cloud.library, cloud.account):
                return cloud.session.get_auth_headers() or {}
        except NotAuthorized:
            self._read.drop(self.cloud, cloud)
            raise

    def renewed(self, what: str, refused: Mapping[str, str]) -> Mapping[str, str]:
        """As `headers`, after Glance refused these: with another token, where there can be one.

        Raises:
            as `headers`
        """
        if self.token is not None:
            raise NotAuthorized(f"{what}: Glance does not accept {_WHO_ASKS}", hint="ask again with a token that has not ended")
        cloud = self._cloud(what)
        with cloud.lock:  # of many threads whose token was refused, one asks for another
            if self.headers(what) == refused:
                cloud.session.invalidate()
            return self.headers(what)

    def endpoint(self, what: str) -> str:
        """The image service's URL, by the cloud's configuration or its catalogue.

        Raises:
            as `headers`
        """
        cloud = self._cloud(what)
        region, interface = (ask("image") for ask in (cloud.region.get_region_name, cloud.region.get_interface))
        with translated(what, cloud.library, cloud.account), suppress(cloud.library.errors.CatalogException):
            if url := cloud.region.get_endpoint("image") or cloud.session.get_endpoint(
                service_type="image", region_name=region, interface=interface
            ):
                return str(url)
        place = f"region {region}, interface {interface}"
        raise ConfigError(
            f"{what}: the catalogue of {cloud.account.keystone} has no image service ({place})",
            hint="check region and interface under [sources.glance] and in clouds.yaml",
        )

    def client(self, what: str) -> Web:
        """The client for the cloud's services, with its certificates where its configuration names any.

        Raises:
            ExtraMissing, ConfigError
        """
        return self._cloud(what).web

    def who(self, what: str) -> str:
        """Who we are, for messages.

        Raises:
            ExtraMissing, ConfigError
        """
        return self._cloud(what).account.who if self.token is None else _WHO_ASKS

    def _cloud(self, what: str) -> _Cloud:
        return self._read.get(self.cloud, lambda: self._opened(what), holds=lambda one: one.stamp == file_stamp(one.files))

    def _opened(self, what: str) -> _Cloud:
        library = imported("glance")
        chosen = {"region_name": self.region, "interface": self.interface}
        options = {key: value for key, value in chosen.items() if value}
        with translated(what, library, None):
            region, files = read_region(library, self.cloud, timeout=self.web.read_timeout, **options)
            session = region.get_session()
        web = _with_certificates(what, region, self.web)
        # Taken after they were read: what changed in between is read when Keystone refuses us.
        return _Cloud(library, region, session, account_of(region), web, files, file_stamp(files))


def _with_certificates(what: str, region: Any, web: Web) -> Web:
    authority, client = region.get_requests_verify_args()
    keystone = (region.config.get("auth") or {}).get("auth_url") or ""
    if authority is False and urlsplit(str(keystone)).scheme == "https":
        raise ConfigError(
            f"{what}: the cloud {region.name!r} is configured not to verify certificates, and a password would go to anybody",
            hint="name the authority of its certificates as cacert in clouds.yaml",
        )
    if isinstance(authority, str):
        web = replace(web, ca_file=authority)
    cert, key = (client, None) if client is None or isinstance(client, str) else client
    return web if cert is None else replace(web, client_cert=cert, client_key=key)
