"""The ``[sources]`` tables: each source's options as they are written, and the arguments that they are to its adapter."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from underlay.config import environment, values
from underlay.config.credentials import read_credentials
from underlay.config.objects import AzureTable, GcsTable, S3Table, object_arguments
from underlay.errors import ConfigError, InvalidRef
from underlay.refs import registry_host
from underlay.web import Credential, Web

_PLATFORM = r"[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?"
_Parallel = Annotated[int, msgspec.Meta(ge=1, le=8)]


class HttpTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that is asked for over HTTP, whatever the source."""

    revalidate_after: str | int = "5min"
    stale_if_error: bool = True
    connect_timeout: str | int = "10s"
    read_timeout: str | int = "60s"
    low_speed_limit: str | int = "1KiB"
    low_speed_time: str | int = "60s"
    parallel: _Parallel = 1
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    credentials_file: str | None = None
    use_proxies: bool = True


class FileTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of this host."""

    allowed_paths: list[str] = []
    command_line: bool = True


class OciTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OCI registries."""

    revalidate_after: str | int = "5min"
    stale_if_error: bool = True
    plain_http: list[str] = []
    platform: str | None = None
    auth_file: str | None = None


class GlanceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenStack's image service; clouds.yaml and the environment's ``OS_…`` are openstacksdk's to read."""

    cloud: str | None = None
    region: str | None = None
    interface: Literal["public", "internal", "admin"] | None = None
    endpoints: list[str] = []
    allow_md5: bool = False
    direct_locations: list[str] = []
    verify_signatures: bool = False
    certificates: str | None = None


class SimplestreamsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Product streams; what speaks HTTP is as for everything else."""

    revalidate_after: str | int = "5min"
    stale_if_error: bool = True
    keyrings: list[str] = []
    require_signature: bool = True


class SourceTables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table for each kind of source."""

    http: HttpTable = HttpTable()
    file: FileTable = FileTable()
    oci: OciTable = OciTable()
    s3: S3Table = S3Table()
    gs: GcsTable = GcsTable()
    az: AzureTable = AzureTable()
    glance: GlanceTable = GlanceTable()
    simplestreams: SimplestreamsTable = SimplestreamsTable()


def web_of(table: HttpTable) -> Web:
    """The client for everything that speaks HTTP.

    A credentials file that cannot be used, and a proxy that is none, are no matter to who needs no network: the client says it
    when it is used.

    Raises:
        WrongValue
    """
    proxies: Mapping[str, str] = {}
    no_proxy: tuple[str, ...] = ()
    credentials: Mapping[str, Credential] = {}
    unusable: ConfigError | None = None
    try:
        proxies, no_proxy = environment.proxies() if table.use_proxies else ({}, ())
        credentials = _credentials(table)
    except ConfigError as error:
        unusable = error
    if table.client_key is not None and table.client_cert is None:
        raise values.WrongValue("sources.http.client_key", "a key alone tells nobody who we are", hint="set client_cert")
    return Web(
        connect_timeout=values.positive(table.connect_timeout, "sources.http.connect_timeout"),
        read_timeout=values.positive(table.read_timeout, "sources.http.read_timeout"),
        low_speed_limit=values.size(table.low_speed_limit, "sources.http.low_speed_limit"),
        low_speed_time=values.positive(table.low_speed_time, "sources.http.low_speed_time"),
        parallel=table.parallel,
        ca_file=_file(table.ca_file, "sources.http.ca_file"),
        client_cert=_file(table.client_cert, "sources.http.client_cert"),
        client_key=_file(table.client_key, "sources.http.client_key"),
        credentials=credentials,
        unusable=unusable,
        proxies=proxies,
        no_proxy=no_proxy,
    )


def arguments_of(tables: SourceTables, web: Web) -> dict[str, Mapping[str, Any]]:
    """For each scheme, the arguments of its source.

    Raises:
        WrongValue
    """
    http = {
        "revalidate_after": values.duration(tables.http.revalidate_after, "sources.http.revalidate_after"),
        "stale_if_error": tables.http.stale_if_error,
        "web": web,
    }
    allowed = tuple(values.absolute(path, "sources.file.allowed_paths") for path in tables.file.allowed_paths)
    return {
        "http": http,
        "https": http,
        "file": {"allowed_paths": allowed},
        "oci": _oci(tables.oci, web),
        "glance": _glance(tables.glance, web),
        "simplestreams": _streams(tables.simplestreams, web),
        **object_arguments(tables.s3, tables.gs, tables.az, web),
    }


def _oci(table: OciTable, web: Web) -> Mapping[str, Any]:
    if table.platform is not None and not re.fullmatch(_PLATFORM, table.platform):
        hint = "write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64"
        raise values.WrongValue("sources.oci.platform", f"{table.platform!r} is no platform", hint=hint)
    named = values.optional_path(table.auth_file, "sources.oci.auth_file")
    return {
        "revalidate_after": values.duration(table.revalidate_after, "sources.oci.revalidate_after"),
        "stale_if_error": table.stale_if_error,
        "plain_http": frozenset(_registry(host) for host in table.plain_http),
        "platform": table.platform,
        "auth_files": environment.registry_auth_files() if named is None else (named,),
        "environment": environment.of_programs_that_keep_logins,
        "web": web,
    }


def _registry(text: str) -> str:
    try:
        return registry_host(text)
    except InvalidRef as error:
        raise values.WrongValue("sources.oci.plain_http", str(error), hint=error.hint) from error


def _glance(table: GlanceTable, web: Web) -> dict[str, Any]:
    key = "sources.glance"
    certificates = values.optional_path(table.certificates, f"{key}.certificates")
    if table.verify_signatures and certificates is None:
        raise values.WrongValue(
            f"{key}.verify_signatures", "nothing says by whom images must be signed", hint="set certificates to their directory"
        )
    return {
        "cloud": table.cloud,
        "region": table.region,
        "interface": table.interface,
        "endpoints": tuple(values.web_address(url, f"{key}.endpoints") for url in table.endpoints),
        "allow_md5": table.allow_md5,
        "direct_locations": tuple(values.absolute(path, f"{key}.direct_locations") for path in table.direct_locations),
        "certificates": certificates if table.verify_signatures else None,
        "web": web,
    }


def _streams(table: SimplestreamsTable, web: Web) -> Mapping[str, Any]:
    key = "sources.simplestreams"
    return {
        "revalidate_after": values.duration(table.revalidate_after, f"{key}.revalidate_after"),
        "stale_if_error": table.stale_if_error,
        "keyrings": tuple(values.absolute(path, f"{key}.keyrings") for path in table.keyrings),
        "require_signature": table.require_signature,
        "web": web,
    }


def _file(text: str | None, key: str) -> str | None:
    path = values.optional_path(text, key)
    return None if path is None else str(path)


def _credentials(table: HttpTable) -> Mapping[str, Credential]:
    path: Path | None = values.optional_path(table.credentials_file, "sources.http.credentials_file")
    return {} if path is None else read_credentials(path)
