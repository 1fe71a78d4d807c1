"""Where the object stores are, and by which credentials they are asked: values that the configuration fills in. No I/O.

What is secret has no part in any repr.
"""

from enum import StrEnum
from pathlib import Path

import msgspec

from underlay.values import hiding


class Addressing(StrEnum):
    """Where an S3 request names its bucket: in the path, or as a part of the host's name."""

    AUTO = "auto"
    PATH = "path"
    VIRTUAL = "virtual"


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """A pair of S3 keys, and the token of a temporary one. An empty text means that it is missing."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    __repr__, __rich_repr__ = hiding("access_key_id", "secret_access_key", "session_token")


class S3Access(msgspec.Struct, frozen=True, kw_only=True):
    """Amazon S3, or another service that speaks its language.

    Attributes:
        endpoint: URL of the service; None: the profile's, else Amazon's for the region.
        region: None: the profile's, else us-east-1.
        keys: of the environment; None: the profile's.
        profile: in the files; None: ``default``, which need not be there.
        files: AWS's shared credentials and configuration files, as far as there are any; the first to say a thing is right.
        machine_credentials: whether the machine may be asked for credentials of its own when nothing else has any.
        metadata_endpoint: URL of the service that has those; None: the cloud's.
        anonymous: ask without credentials and sign nothing.
        allow_http: whether an endpoint without TLS is used.
    """

    endpoint: str | None = None
    region: str | None = None
    keys: Keys | None = None
    profile: str | None = None
    files: tuple[Path, ...] = ()
    machine_credentials: bool = True
    metadata_endpoint: str | None = None
    anonymous: bool = False
    allow_http: bool = False
    addressing_style: Addressing = Addressing.AUTO


class GcsAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Google Cloud Storage.

    Attributes:
        endpoint: URL of the service; None: Google's.
        credentials_file: JSON of a service account or of a user; None: what the library finds on the machine.
    """

    endpoint: str | None = None
    credentials_file: Path | None = None
    anonymous: bool = False
    allow_http: bool = False


class AzureAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Azure Blob Storage.

    Attributes:
        endpoint: URL of the account's blob service; None: Azure's for the account.
        account: name of the storage account. key: one of its keys, in base64. sas: a shared access signature instead.
    """

    endpoint: str | None = None
    account: str | None = None
    key: str | None = None
    sas: str | None = None
    anonymous: bool = False
    allow_http: bool = False

    __repr__, __rich_repr__ = hiding("key", "sas")
