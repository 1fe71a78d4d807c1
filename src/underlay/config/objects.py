"""The tables of the object stores, ``[sources.s3]``, ``[sources.gs]`` and ``[sources.az]``, and what the environment adds.

The variables are those of the services' own tools. Files of profiles are named here, and read again by the request after
they change, so that keys which are renewed in one are used at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from underlay.config import environment, values
from underlay.sources.objects.access import Addressing, AzureAccess, GcsAccess, Keys, S3Access
from underlay.web import Web

# A URL with a password in it is none of these, and no message repeats what was written.
_Endpoint = Annotated[str, msgspec.Meta(pattern=r"^https?://[!-~]+$")]
_Region = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,63}$")]
_Account = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{3,24}$")]


class S3Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Amazon S3, and what speaks its language."""

    endpoint: _Endpoint | None = None
    region: _Region | None = None
    profile: str | None = None
    anonymous: bool = False
    allow_http: bool = False
    addressing_style: Addressing = Addressing.AUTO
    revalidate_after: str | int = "5min"
    stale_if_error: bool = True


class GcsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Google Cloud Storage."""

    endpoint: _Endpoint | None = None
    credentials_file: str | None = None
    anonymous: bool = False
    allow_http: bool = False
    revalidate_after: str | int = "5min"
    stale_if_error: bool = True


class AzureTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Azure Blob Storage."""

    account: _Account | None = None
    endpoint: _Endpoint | None = None
    anonymous: bool = False
    allow_http: bool = False
    revalidate_after: str | int = "5min"
    stale_if_error: bool = True


def object_arguments(s3: S3Table, gs: GcsTable, az: AzureTable, web: Web) -> dict[str, Mapping[str, Any]]:
    """For each scheme, the arguments of its source.

    Raises:
        WrongValue
    """
    return {
        "s3": {"s3": _s3(s3), **_freshness(s3, "sources.s3"), "web": web},
        "gs": {"gs": _gcs(gs), **_freshness(gs, "sources.gs"), "web": web},
        "az": {"az": _azure(az), **_freshness(az, "sources.az"), "web": web},
    }


def _freshness(table: S3Table | GcsTable | AzureTable, key: str) -> dict[str, Any]:
    seconds = values.duration(table.revalidate_after, f"{key}.revalidate_after")
    return {"revalidate_after": seconds, "stale_if_error": table.stale_if_error}


def _s3(table: S3Table) -> S3Access:
    first = environment.first
    return S3Access(
        endpoint=table.endpoint or first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        region=table.region or first("AWS_REGION", "AWS_DEFAULT_REGION"),
        # As in AWS's own tools: a profile that is asked for comes before the keys of the environment, one of it after them.
        keys=None if table.profile else _s3_keys(),
        profile=table.profile or first("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
        files=_s3_files(),
        machine_credentials=_asks_machine(),
        metadata_endpoint=first("AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_METADATA_ENDPOINT"),
        anonymous=table.anonymous,
        allow_http=table.allow_http,
        addressing_style=table.addressing_style,
    )


def _s3_keys() -> Keys | None:
    key, secret = environment.first("AWS_ACCESS_KEY_ID"), environment.first("AWS_SECRET_ACCESS_KEY")
    if key is None and secret is None:
        return None
    token = environment.first("AWS_SESSION_TOKEN")
    return Keys(access_key_id=key or "", secret_access_key=secret or "", session_token=token)


def _s3_files() -> tuple[Path, ...]:
    found = (
        environment.file_in_home("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        environment.file_in_home("AWS_CONFIG_FILE", ".aws/config"),
    )
    return tuple(file for file in found if file is not None)


def _asks_machine() -> bool:
    """Whether the machine may have credentials of its own: a token in a file, a container's, or its metadata service's."""
    names = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    return environment.first(*names) is not None or environment.first("AWS_EC2_METADATA_DISABLED") not in (
        "true",
        "True",
        "TRUE",
    )


def _gcs(table: GcsTable) -> GcsAccess:
    named = environment.first("GOOGLE_APPLICATION_CREDENTIALS")
    configured = values.optional_path(table.credentials_file, "sources.gs.credentials_file")
    return GcsAccess(
        endpoint=table.endpoint,
        credentials_file=configured or (Path(named) if named else None),
        anonymous=table.anonymous,
        allow_http=table.allow_http,
    )


def _azure(table: AzureTable) -> AzureAccess:
    first = environment.first
    return AzureAccess(
        endpoint=table.endpoint or first("AZURE_STORAGE_ENDPOINT"),
        account=table.account or first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
        key=first("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"),
        sas=first("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
        anonymous=table.anonymous,
        allow_http=table.allow_http,
    )
